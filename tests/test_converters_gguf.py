"""GGUF LoRA, read back by gguf's own reader: Q1_0 to the bit, everything else exactly."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import adapterpack
from adapterpack.adapter import Adapter, Backbone, Branch, DataSettings, Head, Site
from adapterpack.converters.gguf import Gguf, blocks_of
from adapterpack.converters.petl_vit import PetlVit
from adapterpack.errors import AdapterPackError, UnsupportedAdapterError
from adapterpack.quantize import quantize, quantize_latent
from adapterpack.tensors import Dense, Quantized, Tensor
from adapterpack_cli.main import main
from tests import factories

gguf = pytest.importorskip("gguf", reason="needs the gguf package (adapterpack[export])")

WIDTH, RANK = 256, 4


def numbers(seed: int, *shape: int) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.1).astype(np.float32)


def block_form(values: NDArray[np.float32], group: int = 128, scale: str = "float16") -> Quantized:
    return quantize(values, 1, group, scale=scale, offset=False)


def lora(site: str, down: Tensor, up: Tensor, scale: float = 0.5) -> Branch:
    return Branch(Site.parse(site), "lora", {"scale": scale}, {"down": down, "up": up})


def sample(**changes: Any) -> Adapter:
    branches = (
        lora("blocks.0.attn.qkv[q]", block_form(numbers(1, RANK, WIDTH)), Dense(numbers(2, WIDTH, RANK))),
        lora("blocks.0.attn.proj", Dense(numbers(3, RANK, WIDTH)), block_form(numbers(4, WIDTH, RANK))),
        lora(
            "blocks.1.mlp.fc1",
            quantize_latent(numbers(5, RANK, WIDTH), 1),
            Dense(numbers(6, 4 * WIDTH, RANK).astype(np.float16), "float16"),
        ),
    )
    fields: dict[str, Any] = {
        "branches": branches,
        "head": Head(Dense(numbers(7, 3, WIDTH)), Dense(numbers(8, 3))),
        "labels": ("a", "b", "ç"),
        "data": DataSettings((3, 32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        "metadata": {"dataset": "toy", "source": {"format": "petl-vit"}},
        "backbone": Backbone("small", "sha256:" + "1" * 64),
    }
    return Adapter("toy", "lora", **{**fields, **changes})


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keys and tensors, by gguf's reader."""
    reader = gguf.GGUFReader(path)
    return {key: field.contents() for key, field in reader.fields.items()}, {t.name: t for t in reader.tensors}


def written(adapter: Adapter, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    (path,) = Gguf().write(adapter, folder / "x.gguf", force=True)
    return read(path)


def floats(tensor: Any) -> NDArray[np.float32]:
    """What ggml makes of a tensor: for Q1_0, d where a bit is set and −d where it is not, 128 weights in 18 bytes."""
    if tensor.tensor_type != gguf.GGMLQuantizationType.Q1_0:
        return np.asarray(tensor.data, np.float32)
    blocks = tensor.data.reshape(-1, 18)
    d = blocks[:, :2].copy().view("<f2").astype(np.float32)
    bits = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little").astype(bool)
    return np.where(bits, d, -d).reshape(tuple(reversed(tensor.shape.tolist())))


def test_keys(tmp_path: Path) -> None:
    keys, _ = written(sample(), tmp_path)
    assert keys["general.type"] == "adapter" and keys["adapter.type"] == "lora"
    assert keys["general.architecture"] == "clip" and keys["general.name"] == "toy"
    assert keys["adapter.lora.alpha"] == 0.5 * RANK
    assert keys["adapterpack.labels"] == ["a", "b", "ç"] and keys["adapterpack.backbone"] == "small"
    assert json.loads(keys["adapterpack.data"])["input_size"] == [3, 32, 32]
    assert keys["adapterpack.fingerprint"] == "sha256:" + "1" * 64


def test_numbers_are_those_of_the_adapter(tmp_path: Path) -> None:
    adapter = sample()
    _, tensors = written(adapter, tmp_path)
    kinds = {name: tensor.tensor_type.name for name, tensor in tensors.items()}
    assert kinds == {
        "v.blk.0.attn_q.weight.lora_a": "Q1_0",
        "v.blk.0.attn_q.weight.lora_b": "F32",
        "v.blk.0.attn_out.weight.lora_a": "F32",
        "v.blk.0.attn_out.weight.lora_b": "F32",  # rows of 4: no blocks
        "v.blk.1.ffn_up.weight.lora_a": "F32",  # with an offset: no blocks
        "v.blk.1.ffn_up.weight.lora_b": "F16",
    }
    for branch, stem in zip(adapter.branches, ("0.attn_q", "0.attn_out", "1.ffn_up")):
        for role, suffix in (("down", "a"), ("up", "b")):
            found = floats(tensors[f"v.blk.{stem}.weight.lora_{suffix}"])
            assert found.tobytes() == branch.tensors[role].dense().tobytes()


def test_the_scale_is_alpha_over_rank(tmp_path: Path) -> None:
    """(alpha / columns of lora_b) · B·A is the delta, as llama.cpp's loader computes it."""
    adapter = sample()
    keys, tensors = written(adapter, tmp_path)
    a, b = (floats(tensors[f"v.blk.0.attn_q.weight.lora_{x}"]) for x in "ab")
    delta = keys["adapter.lora.alpha"] / b.shape[1] * (b @ a)
    first = adapter.branches[0]
    expected = (np.float32(0.5) * first.tensors["up"].dense()) @ first.tensors["down"].dense()
    assert np.abs(delta - expected).max() <= 1e-6 * np.abs(expected).max()


def test_scales_that_differ_are_in_the_numbers(tmp_path: Path) -> None:
    down = block_form(numbers(1, RANK, WIDTH))
    up = block_form(numbers(4, WIDTH, 128), 128)
    wide = lora("blocks.1.attn.qkv", block_form(numbers(9, 128, WIDTH)), up, scale=2.0)
    adapter = sample(branches=(lora("blocks.0.attn.qkv[v]", down, Dense(numbers(2, WIDTH, RANK))), wide))
    keys, tensors = written(adapter, tmp_path)
    assert keys["adapter.lora.alpha"] == 0  # which readers take for a scale of 1
    for branch, stem in zip(adapter.branches, ("0.attn_v", "1.attn_qkv")):
        scaled = branch.tensors["up"].dense() * np.float32(branch.params["scale"])
        assert floats(tensors[f"v.blk.{stem}.weight.lora_b"]).tobytes() == scaled.tobytes()
        assert tensors[f"v.blk.{stem}.weight.lora_a"].tensor_type.name == "Q1_0"


def test_a_scale_that_alpha_cannot_give_back(tmp_path: Path) -> None:
    scale = next(s for s in np.linspace(0.1, 1, 200) if np.float32(s * 3) / np.float32(3) != np.float32(s))
    branch = lora("blocks.0.attn.proj", Dense(numbers(1, 3, WIDTH)), Dense(numbers(2, WIDTH, 3)), scale=float(scale))
    keys, tensors = written(sample(branches=(branch,)), tmp_path)
    assert keys["adapter.lora.alpha"] == 0
    expected = branch.tensors["up"].dense() * np.float32(scale)
    assert floats(tensors["v.blk.0.attn_out.weight.lora_b"]).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("tensor", "fits"),
    [
        (block_form(numbers(1, 4, 256)), True),
        (block_form(numbers(1, 4, 384), 256), True),
        (Quantized((2, 128), 1, "unit", 0, np.arange(32, dtype=np.uint8), np.array([0.25], np.float32), None), True),
        (Quantized((2, 128), 1, "unit", 0, np.arange(32, dtype=np.uint8), np.array([0.1], np.float32), None), False),
        (Quantized((2, 128), 1, "unit", 0, np.arange(32, dtype=np.uint8), np.array([1e9], np.float32), None), False),
        (block_form(numbers(1, 4, 256), 64), False),
        (block_form(numbers(1, 4, 192)), False),
        (quantize_latent(numbers(1, 4, 128), 1), False),
        (quantize(numbers(1, 4, 128), 2, 128, scale="float16", offset=False), False),
        (Dense(numbers(1, 4, 128)), False),
    ],
)
def test_blocks_where_their_values_are_the_tensors(tensor: Tensor, fits: bool) -> None:
    found = blocks_of(tensor)
    assert (found is not None) == fits
    if found is not None:
        blocks = np.frombuffer(found, np.uint8).reshape(-1, 18)
        d = blocks[:, :2].copy().view("<f2").astype(np.float32)
        signs = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little").astype(np.float32) * 2 - 1
        assert (signs * d).tobytes() == tensor.dense().tobytes()


def test_what_is_lost_is_said(tmp_path: Path) -> None:
    (left, plain, kept) = Gguf().lost(sample())
    assert "the head of 3 classes" in left and "dataset" in left and "class names" not in left and "source" not in left
    assert plain.startswith("2 tensors are written as plain float32")  # a block form in rows of 4, and one with offset
    assert kept == "1 of 6 matrices are Q1_0 blocks, to the bit"
    bare = replace(sample(), head=None, labels=None, metadata={}, branches=sample().branches[:1])
    assert Gguf().lost(bare) == ("1 of 2 matrices are Q1_0 blocks, to the bit",)


@pytest.mark.parametrize(
    ("branches", "told"),
    [
        (tuple(factories.adaptformer_branches()), "the method adaptformer"),
        (tuple(factories.sparse_branches()), "the method sparse"),
        ((), "without branches"),
        ((lora("patch_embed.proj", Dense(numbers(1, 2, 4)), Dense(numbers(2, 4, 2))),), "patch_embed.proj"),
        ((*sample().branches, sample().branches[0]), "two branches"),
        ((lora("blocks.0.mlp.fc1[q]", Dense(numbers(1, 2, 4)), Dense(numbers(2, 4, 2))),), r"fc1\[q\]"),
    ],
)
def test_what_gguf_cannot_hold_is_refused(branches: tuple[Branch, ...], told: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedAdapterError, match=told) as caught:
        Gguf().write(sample(branches=branches), tmp_path / "x.gguf", force=False)
    assert caught.value.reason == "not-expressible" and not list(tmp_path.iterdir())


def test_the_same_bytes_and_no_overwriting(tmp_path: Path) -> None:
    one, other = (Gguf().write(sample(), tmp_path / name, force=False)[0] for name in ("one.gguf", "other.gguf"))
    assert one.read_bytes() == other.read_bytes() and len(list(tmp_path.iterdir())) == 2
    with pytest.raises(AdapterPackError) as caught:
        Gguf().write(sample(), one, force=False)
    assert caught.value.reason == "file-exists"


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(AdapterPackError, match=r"adapterpack\[export\]") as caught:
        Gguf().write(sample(), tmp_path / "x.gguf", force=False)
    assert caught.value.reason == "missing-extra"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.apk").write_bytes(factories.pack(sample()))
    with warnings.catch_warnings(), pytest.raises(SystemExit) as done:
        main(["unpack", str(tmp_path / "x.apk"), "-o", str(tmp_path / "x.gguf"), "--to", "gguf", "--json"])
    out, err = capsys.readouterr()
    assert done.value.code == 0
    told = json.loads(out)
    assert told["form"] == "gguf" and told["bytes"] == (tmp_path / "x.gguf").stat().st_size
    assert [f"note: {note}" for note in told["notes"]] == err.splitlines() and "the head of 3 classes" in err
    assert len(read(tmp_path / "x.gguf")[1]) == 6


def test_petl_vit_loses_what_its_recipe_does_not_say() -> None:
    recipe = factories.make("lora", labels=False, metadata={}, backbone=Backbone("small"))
    assert PetlVit().lost(recipe) == ()
    (told,) = PetlVit().lost(sample())
    for words in ("3 class names", "the preprocessing", "the backbone's fingerprint", "the metadata dataset"):
        assert words in told
    assert "head" not in told


def test_other_forms_say_what_they_lose(tmp_path: Path) -> None:
    path = tmp_path / "x.apk"
    path.write_bytes(factories.pack(factories.make("lora")))
    plain = adapterpack.unpack(path, tmp_path / "x.safetensors", to="safetensors")
    assert plain == (tmp_path / "x.safetensors",)
    assert "12 tensors are written as plain float32" in plain.notes[0]  # 6 sites of down and up; the head is plain
    assert adapterpack.unpack(path, tmp_path / "x.ckpt", to="checkpoint").notes == ()
