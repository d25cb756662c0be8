"""Matrices of two values: signs again after a form of floats, to the bit, and nothing that is not exactly so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load_file, save_file

import adapterpack
from adapterpack import Branch, Dense, Head, Site
from adapterpack.adapter import Adapter
from adapterpack.converters._base import Imported
from adapterpack.converters._signs import as_signs, with_signs
from adapterpack.exchange import pack, unpack
from adapterpack.quantize import quantize, quantize_latent
from adapterpack.tensors import F32, Quantized
from tests.factories import make, numbers

FINITE = st.floats(-(2.0**99), 2.0**99, width=32)


def two(low: float, high: float) -> F32:
    chosen = np.random.default_rng(3).random((9, 13)) < 0.4
    return np.where(chosen, np.float32(high), np.float32(low)).astype(np.float32)


@given(FINITE, FINITE)
def test_two_values_come_back_to_the_bit_or_are_left(low: float, high: float) -> None:
    values = two(low, high)
    coded = as_signs(values)
    if coded is not None:
        assert coded.dense().tobytes() == values.tobytes() and coded.bits == 1


@given(arrays(np.float32, (8, 9), elements=st.floats(-1e3, 1e3, width=32)), st.booleans())
def test_whatever_was_in_one_bit_is_found(latent: F32, trained: bool) -> None:
    values = (quantize_latent(latent, 1) if trained else quantize(latent, 1)).dense()
    coded = as_signs(values)
    assert (coded is None) == (values.min() == values.max())
    if coded is not None:
        assert coded.dense().tobytes() == values.tobytes()


def test_equal_sizes_need_no_offset() -> None:
    coded = as_signs(two(-0.37, 0.37))
    assert coded is not None and coded.offset is None and coded.scale.tolist() == [np.float32(0.37)]
    assert np.array_equal(coded.codes().reshape(9, 13) == 1, two(-0.37, 0.37) > 0)


def odd(at: float) -> F32:
    values = two(-1, 1)
    values[4, 4] = at
    return values


@pytest.mark.parametrize("values", [odd(0.5), odd(np.nextafter(np.float32(1), np.float32(2))), two(1, 1), two(0, 0)])
def test_what_has_more_or_fewer_values(values: F32) -> None:
    assert as_signs(values) is None


def test_both_zeros_are_two_values_that_look_like_one() -> None:
    values = two(-1.0, 0.0)
    values[values == 0] = [0.0, *[-0.0] * (int((values == 0).sum()) - 1)]
    assert as_signs(values) is None


def test_matrices_and_the_head_alone() -> None:
    tensors = {"down": Dense(two(-1, 2)), "up": Dense(numbers(1, (5, 9)))}
    small = {"down": Dense(two(-1, 2)[:1]), "up": Dense(two(-1, 2)[:, :1][:1])}
    half = {"down": Dense(two(-1, 1).astype(np.float16), "float16"), "up": Dense(numbers(1, (5, 9)))}
    sites = [Site(f"blocks.{i}.attn.proj") for i in range(3)]
    rows = tuple(Branch(site, "lora", {"scale": 1.0}, t) for site, t in zip(sites, (tensors, small, half)))
    given_ = Imported(
        Adapter("toy", "lora", rows, Head(Dense(two(0.5, 0.25)), Dense(two(0, 1).reshape(-1)[:9]))), ("a",)
    )
    found = with_signs(given_)
    kinds = [[type(t) is Quantized for t in b.tensors.values()] for b in found.adapter.branches]
    assert kinds == [[True, False], [False, False], [False, False]]
    read = found.adapter.head
    assert read is not None and type(read.weight) is Quantized and type(read.bias) is Dense
    assert found.notes[0] == "a" and "2 matrices" in found.notes[1]
    assert with_signs(found) is found


def fused(*ups: F32) -> Branch:
    """LoRAs on query, key and value rows as PEFT has them on timm's one layer: up matrices in blocks."""
    rank = sum(up.shape[1] for up in ups)
    up, down = np.zeros((3 * len(ups[0]), rank), np.float32), np.zeros((rank, 30), np.float32)
    start = 0
    for i, block in enumerate(ups):
        columns = slice(start, start + block.shape[1])
        up[i * len(block) : (i + 1) * len(block), columns] = block
        down[columns] = np.where(numbers(i, (block.shape[1], 30)) > 0, i + 1, -i - 1)
        start += block.shape[1]
    return Branch(Site("blocks.0.attn.qkv"), "lora", {"scale": 0.5}, {"down": Dense(down), "up": Dense(up)})


def test_branches_that_share_a_layer_come_apart_where_all_are_signs() -> None:
    blocks = [two(-i, i).reshape(39, 3) for i in (1, 2, 3)]
    whole = fused(*blocks)
    parts = with_signs(Imported(Adapter("toy", "lora", (whole,)))).adapter.branches
    assert [str(b.site) for b in parts] == [f"blocks.0.attn.qkv[{part}]" for part in "qkv"]
    x = numbers(9, (4, 30))
    expected = x @ whole.tensors["down"].dense().T @ whole.tensors["up"].dense().T
    gained = [x @ b.tensors["down"].dense().T @ b.tensors["up"].dense().T for b in parts]
    assert np.allclose(np.concatenate(gained, axis=1), expected, rtol=1e-5, atol=1e-5)
    assert all(type(t) is Quantized for b in parts for t in b.tensors.values()) and parts[0].params == whole.params
    mixed = fused(blocks[0], numbers(1, (39, 3)), blocks[2])
    assert len(with_signs(Imported(Adapter("toy", "lora", (mixed,)))).adapter.branches) == 1
    beside = replace(parts[0], tensors=whole.tensors | {"up": Dense(whole.tensors["up"].dense()[:39])})
    both = with_signs(Imported(Adapter("toy", "lora", (whole, beside)))).adapter.branches
    assert [str(b.site) for b in both] == ["blocks.0.attn.qkv", "blocks.0.attn.qkv[q]"]


@pytest.mark.parametrize("form", ["safetensors", "peft", "timm", "vit"])
def test_a_one_bit_adapter_that_went_through_floats(form: str, tmp_path: Path) -> None:
    """As small as before, and every value is equal; also from a folder that was saved again without our note."""
    original = make("lora")
    pack(original, tmp_path / "x.apk")
    out = tmp_path / ("back.safetensors" if form == "safetensors" else "back")
    names = form if form in ("timm", "vit") else ""
    unpack(tmp_path / "x.apk", out, to="peft" if names else form, names=names)
    if names:
        path = out / "adapter_model.safetensors"
        save_file(load_file(path), path)
    summary = pack(out, tmp_path / "y.apk", labels=original.labels, metadata=original.metadata)
    assert any("two values" in note for note in summary.notes)
    first, second = (adapterpack.open(tmp_path / name).read() for name in ("x.apk", "y.apk"))
    assert [str(b.site) for b in first.branches] == [str(b.site) for b in second.branches]
    for one, other in zip(first.branches, second.branches):
        assert all(np.array_equal(one.tensors[r].dense(), other.tensors[r].dense()) for r in one.tensors)
    sizes = [(tmp_path / name).stat().st_size for name in ("x.apk", "y.apk")]
    assert sizes[1] <= sizes[0] + 200
