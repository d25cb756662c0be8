"""The whole way for all 80 published adapters: pack, inspect, verify, load, and back byte for byte.

The forward of the paper is written out here a second time, from `QLinear`'s dequantised weights as the published loader
forms them and timm's own submodules; nothing of `runtime` or `methods` takes part in the reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import adapterpack
from adapterpack.exchange import pack, unpack
from adapterpack.packing.sizes import describe_file
from adapterpack.runtime.backbone import create_backbone
from adapterpack.runtime.fingerprint import fingerprint

METHODS = ("adaptformer", "adaptformer-bihead", "lora", "lora-bihead")
TASKS = 10
# totals of whole files over the ten tasks, as shares of the headerless dumps, at most
LARGEST = {
    ("adaptformer", 32): 0.780,
    ("adaptformer-bihead", 32): 0.710,
    ("lora", 32): 0.712,
    ("lora-bihead", 32): 0.545,
    **{(method, 1): 0.96 for method in METHODS},
}


@pytest.fixture(scope="module")
def backbone() -> Any:
    return create_backbone("vit_base_patch16_224.orig_in21k", pretrained=False).model


def dumps(folder: Path, method: str, dim: int) -> list[Path]:
    found = sorted((folder / method).glob(f"*-dim{dim}.bin"))
    assert len(found) == TASKS
    return found


@pytest.mark.filterwarnings("ignore:.* does not say which backbone:UserWarning")
@pytest.mark.parametrize("dim", [1, 32])
@pytest.mark.parametrize("method", METHODS)
def test_there_and_back(petl_vit: Path, tmp_path: Path, backbone: Any, method: str, dim: int) -> None:
    before = after = 0
    frozen = fingerprint(backbone.state_dict())
    for source in dumps(petl_vit, method, dim):
        packed = tmp_path / f"{source.stem}.apk"
        pack(source, packed)
        bundle = adapterpack.open(packed)
        check_sums(describe_file(bundle))
        assert list(bundle.verify()) == [source.stem.split("-bit")[0]]
        unpack(packed, tmp_path / "back.bin", to="petl-vit", force=True)
        assert (tmp_path / "back.bin").read_bytes() == source.read_bytes()
        assert (tmp_path / "back.yaml").read_bytes() == source.with_suffix(".yaml").read_bytes()
        with adapterpack.load(bundle, backbone) as loaded:
            sites = loaded.folded if method.startswith("lora") else loaded.attached
            assert len(sites) == (24 if method.startswith("lora") else 12)
            assert f"num_class: {loaded.classes}\n" in source.with_suffix(".yaml").read_text()
        if dim == 32:
            assert packed.stat().st_size < source.stat().st_size
        before += source.stat().st_size
        after += packed.stat().st_size
    assert fingerprint(backbone.state_dict()) == frozen
    assert after <= LARGEST[method, dim] * before, f"{after / before:.4f}"


def check_sums(file: dict[str, Any]) -> None:
    tasks = file["tasks"]
    assert file["container_bytes"] + sum(task["bytes"] for task in tasks) == file["file_bytes"]
    assert all(sum(task["bytes_by_part"].values()) == task["bytes"] for task in tasks)
    assert file["container_bytes"] <= 320


def test_profiles_differ_in_bytes_and_agree_in_digest(petl_vit: Path, tmp_path: Path) -> None:
    source = petl_vit / "lora-bihead" / "kitti-bit1-dim1.bin"
    for profile in ("small", "fast"):
        pack(source, tmp_path / f"{profile}.apk", profile=profile)
    small, fast = (adapterpack.open(tmp_path / f"{profile}.apk") for profile in ("small", "fast"))
    assert small.digest == fast.digest and small.file_bytes < fast.file_bytes
    assert small.read().same_as(fast.read())


def matrices(data: bytes, shapes: list[tuple[int, int]]) -> Iterator[torch.Tensor]:
    """QLinear weights of a dump: bits, least significant first, then mean and deviation."""
    at = 0
    for shape in shapes:
        count = shape[0] * shape[1]
        bits = np.unpackbits(np.frombuffer(data, np.uint8, count // 8, at), bitorder="little")
        mean, std = np.frombuffer(data, "<f4", 2, at + count // 8)
        at += count // 8 + 8
        yield torch.from_numpy(np.where(bits, 1, -1).reshape(shape)).double() * 0.6744897501960817 * float(std) + float(
            mean
        )
    yield torch.from_numpy(np.frombuffer(data, "<f4", offset=at).copy()).double()


def paper_logits(model: Any, source: Path, images: torch.Tensor) -> torch.Tensor:
    """The forward of the public code, in float64: LoRA on q and v, or AdaptFormer beside the MLP, then the head."""
    words = dict(line.split(": ") for line in source.with_suffix(".yaml").read_text().splitlines())
    h, classes, s = int(words["dim"]), int(words["num_class"]), float(words["scale"])
    lora, bihead = words["method"].startswith("lora"), words["method"].endswith("bihead")
    shapes = [(h, 768), (768, h)] * (24 if lora else 12) + ([(classes, 768)] if bihead else [])
    *weights, floats = matrices(source.read_bytes(), shapes)
    x = model.patch_embed(images)
    x = model.pos_drop(torch.cat([model.cls_token.expand(len(x), -1, -1), x], dim=1) + model.pos_embed)
    queue = iter(weights)
    for block in model.blocks:
        normed, attn = block.norm1(x), block.attn
        qkv = normed @ attn.qkv.weight.T + attn.qkv.bias
        if lora:
            for rows in (slice(0, 768), slice(1536, 2304)):
                down, up = next(queue), next(queue)
                qkv[..., rows] += s * ((normed @ down.T) @ up.T)
        q, k, v = (part.unflatten(-1, (12, 64)).transpose(1, 2) for part in qkv.split(768, dim=-1))
        mixed = ((q @ k.transpose(-1, -2)) / 8).softmax(dim=-1) @ v
        x = x + attn.proj(mixed.transpose(1, 2).flatten(2))
        beside = 0
        if not lora:
            down, up = next(queue), next(queue)
            beside = s * (torch.relu(x @ down.T) @ up.T)
        x = x + block.mlp(block.norm2(x)) + beside
    features = model.norm(x)[:, 0]
    if bihead:
        return features @ next(queue).T
    weight, bias = floats[: classes * 768].reshape(classes, 768), floats[classes * 768 :]
    return features @ weight.T + bias


@pytest.mark.filterwarnings("ignore:.* does not say which backbone:UserWarning")
@pytest.mark.parametrize("method", METHODS)
def test_logits_are_the_papers(petl_vit: Path, tmp_path: Path, backbone: Any, method: str) -> None:
    source = petl_vit / method / "cifar-bit1-dim32.bin"
    pack(source, tmp_path / "cifar.apk", profile="fast")
    images = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    before = fingerprint(backbone.state_dict())
    with torch.no_grad():
        expected = paper_logits(backbone.double(), source, images.double())
        backbone.float()
        for fold in ("never", "auto"):
            with adapterpack.load(tmp_path / "cifar.apk", backbone, fold=fold) as loaded:
                assert bool(loaded.folded) == (fold == "auto" and method.startswith("lora"))
                gap = (backbone(images) - expected).abs().max() / expected.abs().max()
            assert gap <= 2e-4, float(gap)
            assert fingerprint(backbone.state_dict()) == before
