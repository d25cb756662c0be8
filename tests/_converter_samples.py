"""Small adapters and backbones that the converters' tests share: 2 blocks of width 16, every form of tensor."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterpack.adapter import Adapter, Backbone, Branch, DataSettings, Head, Site
from adapterpack.converters._base import Imported
from adapterpack.errors import AdapterPackError
from adapterpack.quantize import quantize, quantize_latent
from adapterpack.tensors import Dense, Sparse, round_bfloat16

DEPTH, WIDTH, CLASSES = 2, 16, 5


def normal(seed: int, *shape: int, scale: float = 0.1) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def backbone(depth: int = DEPTH, width: int = WIDTH) -> dict[str, NDArray[np.float32]]:
    """A ViT's tensors by timm's names."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 5, width),
        "patch_embed.proj.weight": (width, 3, 4, 4),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for i in range(depth):
        for name, out, into in (("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.fc1", 4, 1), ("mlp.fc2", 1, 4)):
            shapes[f"blocks.{i}.{name}.weight"] = (out * width, into * width)
            shapes[f"blocks.{i}.{name}.bias"] = (out * width,)
        for norm in ("norm1", "norm2"):
            shapes |= {f"blocks.{i}.{norm}.weight": (width,), f"blocks.{i}.{norm}.bias": (width,)}
    return {name: normal(seed, *shape) for seed, (name, shape) in enumerate(shapes.items())}


def petl_adapter(
    method: str = "lora", bits: int = 1, *, bihead: bool = False, dim: int = 4, task: str = "cifar"
) -> Adapter:
    """What PETL-ViT can express."""
    levels = "normal-l1-500" if bits == 8 else "normal-l1"
    sites = {"lora": ("attn.qkv[q]", "attn.qkv[v]"), "adaptformer": ("mlp",)}[method]
    branches = []
    for block in range(DEPTH):
        for k, site in enumerate(sites):
            down, up = normal(10 * block + k, dim, WIDTH), normal(100 + 10 * block + k, WIDTH, dim)
            tensors = {"down": quantize_latent(down, bits, levels), "up": quantize_latent(up, bits, levels)}
            branches.append(Branch(Site.parse(f"blocks.{block}.{site}"), method, {"scale": 10.0}, tensors))
    weight = normal(7, CLASSES, WIDTH)
    head = Head(quantize_latent(weight, 1)) if bihead else Head(Dense(weight), Dense(normal(8, CLASSES)))
    return Adapter(task, method, tuple(branches), head, data=DataSettings(), backbone=Backbone("small_vit"))


def rich_adapter() -> Adapter:
    """Every method and every form of tensor, labels and nested metadata."""
    at = np.array([3, 17, 200], np.int64)
    half = quantize(normal(3, 16, 4), 3, 7, scale="float16")
    sparse_codes = Sparse((48,), np.array([0, 47], np.int64), quantize(normal(5, 2), 2))
    bottleneck = {"down": Dense(normal(1, 2, 16)), "up": Dense(normal(2, 16, 2)), "up_bias": Dense(normal(9, 16))}
    branches = (
        Branch(Site("cls_token"), "replace", {}, {"value": Dense(normal(4, 1, 1, 16).astype(np.float16), "float16")}),
        Branch(Site("norm"), "replace", {}, {"weight": Dense(round_bfloat16(normal(6, 16)), "bfloat16")}),
        Branch(
            Site("blocks.0.attn.proj"), "adapter", {"nonlinearity": "gelu", "scale": 1.0, "tap": "input"}, bottleneck
        ),
        Branch(Site("blocks.0.attn.proj"), "consolidator", {"groups": 4, "reorder": True}, {"weight": half}),
        Branch(
            Site("blocks.0.attn.proj"),
            "consolidator",
            {"groups": 8, "reorder": True},
            {"weight": Dense(normal(12, 16, 2))},
        ),
        Branch(Site("blocks.0.attn.qkv", "k"), "sparse", {}, {"weight": Sparse((16, 16), at, Dense(normal(13, 3)))}),
        Branch(Site("blocks.1.attn.qkv"), "sparse", {}, {"bias": sparse_codes}),
    )
    head = Head(quantize(normal(14, 3, 16), 4, 32, offset=False), Dense(normal(15, 3)))
    data = DataSettings((3, 32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bilinear", 0.875, "center")
    where = Backbone("small_vit", "sha256:" + "0" * 64)
    return Adapter("räder", "mixed", branches, head, ("a", "b", "ç"), data, {"note": [1, {"x": None}]}, where)


def values_of(adapter: Adapter) -> dict[tuple[object, ...], NDArray[np.float32]]:
    """Every tensor's weights, by where it belongs."""
    found: dict[tuple[object, ...], NDArray[np.float32]] = {
        (str(b.site), b.method, repr(sorted(b.params.items())), role): tensor.dense()
        for b in adapter.branches
        for role, tensor in b.tensors.items()
    }
    if adapter.head is not None:
        found |= {("head", role): tensor.dense() for role, tensor in adapter.head.tensors.items()}
    return found


def silent(state: dict[str, Any], take: Callable[[dict[str, Any]], Imported]) -> list[str]:
    """Tensors, one at a time and everywhere, without which the state dict is read as another adapter."""
    groups = {name: {name} for name in state}
    for name in state:
        groups.setdefault(re.sub(r"^blocks\.\d+\.", "blocks.*.", name), set()).add(name)
    whole, found = take(state).adapter, []
    for group, names in groups.items():
        with contextlib.suppress(AdapterPackError):
            read = take({name: value for name, value in state.items() if name not in names})
            found += [] if read.adapter.same_as(whole) else [group]
    return found
