"""PETL-ViT's `.bin` + `.yaml`: published files against an independent reader, the way back to the byte, bad files."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from adapterpack import _files
from adapterpack.adapter import Adapter, Branch, Head, Site
from adapterpack.converters._base import Hints
from adapterpack.converters.petl_vit import PetlVit
from adapterpack.errors import AdapterPackError, CorruptFileError, Reason, UnsupportedAdapterError
from adapterpack.quantize import quantize
from adapterpack.tensors import Dense, Quantized
from tests._converter_samples import CLASSES, DEPTH, WIDTH, backbone, normal, petl_adapter

SMALL = Hints(backbone=backbone())
PETL = PetlVit()
MEDIAN = np.float32(NormalDist().inv_cdf(0.75))  # of the positive half of a standard normal


def reference(data: bytes, s: dict[str, str]) -> dict[tuple[str, str], NDArray[np.float32]]:
    """The weights in a published 1-bit file, by (module, half); written from the layout alone."""
    found, at, h, classes = {}, 0, int(s["dim"]), int(s["num_class"])

    def matrix(*shape: int) -> NDArray[np.float32]:
        nonlocal at
        size = shape[0] * shape[1]
        ones = np.unpackbits(np.frombuffer(data, np.uint8, size // 8, at), bitorder="little")
        mean, std = struct.unpack_from("<ff", data, at + size // 8)
        at += size // 8 + 8
        level = np.where(ones == 1, MEDIAN, -MEDIAN)
        return (level * np.float32(std) + np.float32(mean)).reshape(shape)

    modules = ["mlp"] if s["method"].startswith("adaptformer") else ["attn.qkv[q]", "attn.qkv[v]"]
    for block in range(12):
        for module in modules:
            found[f"blocks.{block}.{module}", "down"] = matrix(h, 768)
            found[f"blocks.{block}.{module}", "up"] = matrix(768, h)
    if s["method"].endswith("bihead"):
        found["head", "weight"] = matrix(classes, 768)
    else:
        found["head", "weight"] = np.frombuffer(data, "<f4", classes * 768, at).reshape(classes, 768)
        found["head", "bias"] = np.frombuffer(data, "<f4", classes, at + classes * 3072)
        at += classes * 3076
    assert at == len(data)
    return found


def test_published_files_hold_what_an_independent_reader_finds(petl_vit: Path) -> None:
    sources = sorted(petl_vit.glob("*/*.bin"))
    assert len(sources) == 80
    for source in sources:
        settings = dict(line.split(": ") for line in source.with_suffix(".yaml").read_text().splitlines())
        adapter = PETL.read(source, Hints()).adapter
        found = {(str(b.site), role): t.dense() for b in adapter.branches for role, t in b.tensors.items()}
        assert adapter.head is not None
        found |= {("head", role): tensor.dense() for role, tensor in adapter.head.tensors.items()}
        expected = reference(source.read_bytes(), settings)
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[key], values) for key, values in expected.items())
        assert adapter.name == settings["dataset"] and adapter.method == settings["method"].removesuffix("-bihead")
        assert {b.params["scale"] for b in adapter.branches} == {float(settings["scale"])}
        assert adapter.backbone.name == "vit_base_patch16_224.orig_in21k"
        assert adapter.metadata == {"source": {"format": "petl-vit"}}


def test_published_files_come_back_byte_for_byte(petl_vit: Path, tmp_path: Path) -> None:
    for number, source in enumerate(sorted(petl_vit.glob("*/*.bin"))):
        out = tmp_path / f"{number}.bin"
        PETL.write(PETL.read(source, Hints()).adapter, out, force=False)
        assert out.read_bytes() == source.read_bytes()
        assert out.with_suffix(".yaml").read_bytes() == source.with_suffix(".yaml").read_bytes()


def test_what_cannot_be_derived_is_kept(petl_vit: Path, tmp_path: Path) -> None:
    source = petl_vit / "lora" / "cifar-bit1-dim1.bin"
    hints = Hints(task="CIFAR 100!", backbone_name="mine.safetensors")
    adapter = PETL.read(source, hints).adapter
    assert adapter.name == "CIFAR 100!"
    kept = {"format": "petl-vit", "dataset": "cifar", "backbone": "vit_base_patch16_224_in21k"}
    assert adapter.metadata["source"] == kept
    PETL.write(adapter, tmp_path / "x.bin", force=False)
    assert (tmp_path / "x.yaml").read_bytes() == source.with_suffix(".yaml").read_bytes()


def test_the_public_repositorys_layout(petl_vit: Path, tmp_path: Path) -> None:
    source = petl_vit / "lora" / "cifar-bit1-dim1.bin"
    for folder, path in (("models_bin", source), ("configs", source.with_suffix(".yaml"))):
        (tmp_path / folder / "lora").mkdir(parents=True)
        (tmp_path / folder / "lora" / path.name).write_bytes(path.read_bytes())
    adapter = PETL.read(tmp_path / "models_bin" / "lora" / source.name, Hints()).adapter
    assert adapter.same_as(PETL.read(source, Hints()).adapter)


@pytest.mark.parametrize("method", ["lora", "adaptformer"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("dim", [1, 3, 8])
@pytest.mark.parametrize("bihead", [False, True])
def test_all_methods_bits_and_dims(method: str, bits: int, dim: int, bihead: bool, tmp_path: Path) -> None:
    adapter = petl_adapter(method, bits, bihead=bihead, dim=dim)
    PETL.write(adapter, tmp_path / "x.bin", force=False)
    matrices = DEPTH * (2 if method == "lora" else 1) * 2
    head = WIDTH * CLASSES // 8 + 8 if bihead else 4 * CLASSES * (WIDTH + 1)
    assert (tmp_path / "x.bin").stat().st_size == matrices * (WIDTH * dim * bits // 8 + 8) + head
    back = PETL.read(tmp_path / "x.bin", SMALL).adapter
    assert replace(back, metadata={}).same_as(adapter)


def test_a_yaml_spelled_otherwise_comes_back(tmp_path: Path) -> None:
    PETL.write(petl_adapter(), tmp_path / "x.bin", force=False)
    odd = "scale: 10\r\nbit: 1\nmethod: lora\nnum_class: 5\ndim: 4\nbackbone: small_vit\ndataset: cifar"
    (tmp_path / "x.yaml").write_bytes(odd.encode())
    adapter = PETL.read(tmp_path / "x.bin", SMALL).adapter
    PETL.write(adapter, tmp_path / "y.bin", force=False)
    assert (tmp_path / "y.yaml").read_bytes() == odd.encode()
    renamed = replace(adapter, metadata={"source": {**adapter.metadata["source"], "yaml": "nonsense"}})
    PETL.write(renamed, tmp_path / "z.bin", force=False)
    assert (tmp_path / "z.yaml").read_bytes() == odd_as_usual()


def odd_as_usual() -> bytes:
    return b"backbone: small_vit\nbit: 1\ndataset: cifar\ndim: 4\nmethod: lora\nnum_class: 5\nscale: 10.0\n"


GOOD = {
    "backbone": "small_vit",
    "bit": "1",
    "dataset": "cifar",
    "dim": "4",
    "method": "lora",
    "num_class": "5",
    "scale": "10.0",
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bit": "'1'"}, "bad-source"),
        ({"bit": "1.0"}, "bad-source"),
        ({"bit": "true"}, "bad-source"),
        ({"bit": "3"}, "bad-source"),
        ({"bit": "32"}, "bad-source"),
        ({"dim": "0"}, "bad-source"),
        ({"dim": "-4"}, "bad-source"),
        ({"dim": "5"}, "bad-source"),
        ({"dim": "999999999999"}, "bad-source"),
        ({"num_class": "6"}, "bad-source"),
        ({"scale": ".inf"}, "bad-source"),
        ({"scale": "1e999"}, "bad-source"),
        ({"scale": "[1]"}, "bad-source"),
        ({"method": "consolidator"}, "bad-source"),
        ({"method": "adaptformer"}, "bad-source"),
        ({"dataset": "!!python/object:os.system"}, "bad-source"),
        ({"dataset": "5"}, "bad-source"),
        ({"extra": "1"}, "bad-source"),
        ({"dim": None}, "missing-field"),
        ({"scale": "null"}, "missing-field"),
        ({"scale": "1.0\nscale: 2.0"}, "duplicate-key"),
        ({"dim": "4\n\n"}, "bad-source"),
        ({"dim": "4 # four"}, "bad-source"),
        ({"dim": "4\n# \x0b"}, "bad-source"),
        ({"dataset": "räder"}, "bad-source"),
    ],
)
def test_bad_yaml(change: dict[str, str | None], reason: str, tmp_path: Path) -> None:
    PETL.write(petl_adapter(), tmp_path / "x.bin", force=False)
    lines = [f"{key}: {value}" for key, value in (GOOD | change).items() if value is not None]
    (tmp_path / "x.yaml").write_text("\n".join(lines), "utf-8")
    with pytest.raises(AdapterPackError) as caught:
        PETL.read(tmp_path / "x.bin", SMALL)
    assert caught.value.reason == reason


@pytest.mark.parametrize("cut", [slice(0, -1), slice(0, 0), slice(40, None)])
def test_a_length_that_does_not_fit_is_named(cut: slice, tmp_path: Path) -> None:
    PETL.write(petl_adapter(), tmp_path / "x.bin", force=False)
    whole = (tmp_path / "x.bin").read_bytes()
    (tmp_path / "x.bin").write_bytes(whole[cut])
    with pytest.raises(CorruptFileError) as caught:
        PETL.read(tmp_path / "x.bin", SMALL)
    assert caught.value.reason == "bad-source"
    assert f"{len(whole):,}" in str(caught.value) and f"{len(whole[cut]):,}" in str(caught.value)
    (tmp_path / "x.bin").write_bytes(whole + b"\0")
    with pytest.raises(CorruptFileError, match="bytes"):
        PETL.read(tmp_path / "x.bin", SMALL)


@pytest.mark.parametrize(
    ("at", "value", "reason"), [(8, "nan", "not-finite"), (12, "inf", "not-finite"), (12, "-1", "bad-scale")]
)
def test_bad_statistics(at: int, value: str, reason: str, tmp_path: Path) -> None:
    PETL.write(petl_adapter(), tmp_path / "x.bin", force=False)
    data = bytearray((tmp_path / "x.bin").read_bytes())
    data[at : at + 4] = struct.pack("<f", float(value))  # the first matrix takes 4·16/8 bytes, then mean and deviation
    (tmp_path / "x.bin").write_bytes(data)
    with pytest.raises(CorruptFileError, match=r"blocks\.0\.attn\.qkv\[q\] down") as caught:
        PETL.read(tmp_path / "x.bin", SMALL)
    assert caught.value.reason == reason


def test_a_head_with_nan(tmp_path: Path) -> None:
    PETL.write(petl_adapter(), tmp_path / "x.bin", force=False)
    data = (tmp_path / "x.bin").read_bytes()
    (tmp_path / "x.bin").write_bytes(data[:-4] + struct.pack("<f", float("nan")))
    with pytest.raises(CorruptFileError) as caught:
        PETL.read(tmp_path / "x.bin", SMALL)
    assert caught.value.reason == "not-finite"


def test_matrices_that_end_within_a_byte_are_refused_both_ways(tmp_path: Path) -> None:
    lines = [f"{key}: {value}" for key, value in (GOOD | {"dim": "1"}).items()]
    (tmp_path / "x.yaml").write_text("\n".join(lines))
    (tmp_path / "x.bin").write_bytes(b"\1" * 500)
    with pytest.raises(UnsupportedAdapterError, match="whole byte") as caught:
        PETL.read(tmp_path / "x.bin", Hints(settings={"depth": 2, "width": 12}))
    assert caught.value.reason == "not-expressible"


def test_no_yaml_and_no_size(tmp_path: Path) -> None:
    PETL.write(petl_adapter(), tmp_path / "x.bin", force=False)
    with pytest.raises(AdapterPackError, match="depth and width"):
        PETL.read(tmp_path / "x.bin", Hints())
    (tmp_path / "x.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"no \.yaml beside x\.bin"):
        PETL.read(tmp_path / "x.bin", SMALL)
    said: dict[str, Any] = dict(GOOD, bit=1, dim=4, num_class=5, scale=10.0)
    adapter = PETL.read(tmp_path / "x.bin", replace(SMALL, settings=said)).adapter
    assert replace(adapter, metadata={}).same_as(petl_adapter())


def lacking(adapter: Adapter) -> dict[str, Adapter]:
    first = adapter.branches[0]
    down = first.tensors["down"]
    assert isinstance(down, Quantized) and adapter.head is not None

    def with_first(**tensors: Any) -> Adapter:
        branch = Branch(first.site, first.method, first.params, {**first.tensors, **tensors})
        return replace(adapter, branches=(branch, *adapter.branches[1:]))

    other = Branch(Site("blocks.0.attn.proj"), "lora", first.params, first.tensors)
    return {
        "no head": replace(adapter, head=None),
        "no branch": replace(adapter, branches=()),
        "dense": with_first(down=Dense(down.dense())),
        "another codebook": with_first(down=quantize(normal(1, 4, 16), 1)),
        "groups": with_first(
            down=replace(down, group=32, scale=np.ones(2, np.float32), offset=np.zeros(2, np.float32))
        ),
        "another rank": with_first(down=quantize(normal(1, 8, 16), 1, levels="normal-l1")),
        "missing block": replace(adapter, branches=adapter.branches[1:]),
        "extra site": replace(adapter, branches=(*adapter.branches, other)),
        "same site twice": replace(adapter, branches=(*adapter.branches, first, first)),
        "two scales": replace(adapter, branches=(replace(first, params={"scale": 2.0}), *adapter.branches[1:])),
        "two methods": replace(adapter, branches=(replace(first, method="adaptformer"), *adapter.branches[1:])),
        "quantized head with bias": replace(adapter, head=Head(quantize(normal(1, 5, 16), 1), adapter.head.bias)),
        "a name YAML reads otherwise": replace(adapter, name="no"),
        "no backbone's name": replace(adapter, backbone=replace(adapter.backbone, name="")),
    }


@pytest.mark.parametrize("what", list(lacking(petl_adapter())))
def test_what_cannot_be_expressed_is_refused_and_nothing_is_written(what: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedAdapterError) as caught:
        PETL.write(lacking(petl_adapter())[what], tmp_path / "x.bin", force=False)
    assert caught.value.reason == "not-expressible"
    assert list(tmp_path.iterdir()) == []


SAID = {
    "no branch": ("branches of no method", "one of adaptformer and lora"),
    "missing block": ("blocks.0.attn.qkv[q] lacks down", "blocks.N.attn.qkv[q] and blocks.N.attn.qkv[v]"),
    "extra site": ("a branch at blocks.0.attn.proj", "blocks.N.attn.qkv[q] and blocks.N.attn.qkv[v]"),
    "two scales": ("2 scales", "one scale"),
    "no head": ("an adapter without a head", "1 bit or float"),
    "quantized head with bias": ("a head of 1 bit with a bias", "of 1 bit without a bias or of float32 with one"),
    "groups": ("blocks.0.attn.qkv[q] down", "one group"),
}


@pytest.mark.parametrize("what", SAID)
def test_a_refusal_says_what_was_found_what_is_held_and_what_to_do(what: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedAdapterError) as caught:
        PETL.write(lacking(petl_adapter())[what], tmp_path / "x.bin", force=False)
    found, held = SAID[what]
    assert found in str(caught.value) and held in str(caught.value), caught.value
    assert "unpack to checkpoint or safetensors" in str(caught.value) or "pack " in str(caught.value), caught.value


def test_a_fused_lora_is_named_with_the_places_that_there_are(tmp_path: Path) -> None:
    """What PETL-ViT divides into query and value, others keep in one."""
    down, up = (quantize(normal(n, *shape), 1, levels="normal-l1") for n, shape in ((1, (4, 16)), (2, (48, 4))))
    branches = [Branch(Site(f"blocks.{i}.attn.qkv"), "lora", {"scale": 1.0}, {"down": down, "up": up}) for i in (0, 1)]
    with pytest.raises(UnsupportedAdapterError, match=r"a branch at blocks\.0\.attn\.qkv: .*\[q\] and .*\[v\]"):
        PETL.write(replace(petl_adapter(), branches=tuple(branches)), tmp_path / "x.bin", force=False)


def test_half_a_pair_is_never_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.bin").write_bytes(b"old")
    with pytest.raises(AdapterPackError):
        PETL.write(petl_adapter(), tmp_path / "x.bin", force=False)
    assert [path.name for path in tmp_path.iterdir()] == ["x.bin"]

    real = _files.write_atomic

    def full_disk(path: Path, data: bytes, *, force: bool) -> None:
        if path.suffix == ".bin":
            raise CorruptFileError("no space", Reason.IO)
        real(path, data, force=force)

    monkeypatch.setattr(_files, "write_atomic", full_disk)
    with pytest.raises(CorruptFileError, match="no space"):
        PETL.write(petl_adapter(), tmp_path / "x.bin", force=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"x.bin": b"old"}
    (tmp_path / "x.yaml").write_bytes(b"old too")
    with pytest.raises(CorruptFileError, match="no space"):
        PETL.write(petl_adapter(), tmp_path / "x.bin", force=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"x.bin": b"old", "x.yaml": b"old too"}
