"""Small vision transformers and made-up adapters for the tests of `runtime`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from timm.models import VisionTransformer
from torch import nn

from adapterpack.adapter import Adapter, Backbone, Branch, Head, Site
from adapterpack.quantize import quantize_latent
from adapterpack.runtime.backbone import randomise
from adapterpack.runtime.fingerprint import fingerprint
from adapterpack.tensors import Dense, Sparse, Tensor

WIDTH, DEPTH, SIZE = 48, 3, 32


def vit(**changes: Any) -> VisionTransformer:
    """A VisionTransformer of 48 features, 3 blocks and 3 heads on 32×32 images, in eval mode, weights from seed 0."""
    kwargs = {"img_size": SIZE, "patch_size": 8, "num_classes": 7, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": 3}
    model = VisionTransformer(**{**kwargs, **changes})
    randomise(model, 0)
    with torch.no_grad():
        for value in model.parameters():  # larger than an initialisation, so that every part matters to the logits
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel())) * 0.08)
    return model.eval()


def images(count: int = 2, size: int = SIZE, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def array(*shape: int, seed: int = 0, spread: float = 0.3) -> np.ndarray:
    return (np.random.default_rng((seed, *shape)).standard_normal(shape) * spread).astype(np.float32)


def dense(*shape: int, seed: int = 0) -> Dense:
    return Dense(array(*shape, seed=seed))


def about_one(*shape: int, seed: int = 0) -> Dense:
    return Dense(1 + array(*shape, seed=seed))


def one_bit(*shape: int, seed: int = 0) -> Tensor:
    return quantize_latent(array(*shape, seed=seed), 1)


def sparse(*shape: int, count: int = 5, seed: int = 0) -> Sparse:
    size = int(np.prod(shape))
    where = np.sort(np.random.default_rng(seed).choice(size, min(count, size), replace=False)).astype(np.int64)
    return Sparse(shape, where, dense(len(where), seed=seed))


def branch(site: str, method: str, tensors: Mapping[str, Tensor], **params: Any) -> Branch:
    return Branch(Site.parse(site), method, params, dict(tensors))


def adapter(branches: Sequence[Branch], model: nn.Module | None = None, classes: int = 4, **changes: Any) -> Adapter:
    """A task of `classes` classes; with a model, an adapter that names its fingerprint."""
    fields: dict[str, Any] = {
        "name": "toy",
        "method": "test",
        "branches": tuple(branches),
        "head": Head(one_bit(classes, WIDTH, seed=9), dense(classes, seed=9)) if classes else None,
        "backbone": Backbone("small", fingerprint(model) if model is not None else None),
    }
    return Adapter(**{**fields, **changes})


def lora(site: str, out: int = WIDTH, inward: int = WIDTH, rank: int = 4, seed: int = 0, scale: float = 0.5) -> Branch:
    tensors = {"down": one_bit(rank, inward, seed=seed), "up": one_bit(out, rank, seed=seed + 1)}
    return branch(site, "lora", tensors, scale=scale)


def lora_qv(depth: int = DEPTH) -> list[Branch]:
    sites = [f"blocks.{i}.attn.qkv[{part}]" for i in range(depth) for part in "qv"]
    return [lora(site, seed=10 * i) for i, site in enumerate(sites)]


def adaptformer(depth: int = DEPTH) -> list[Branch]:
    made = []
    for i in range(depth):
        tensors = {"down": one_bit(4, WIDTH, seed=i), "up": one_bit(WIDTH, 4, seed=i + 50)}
        made.append(branch(f"blocks.{i}.mlp", "adaptformer", tensors, scale=2.0))
    return made


def bent(site: str, nonlinearity: str, tap: str, scale: float, *, biases: bool = False) -> Branch:
    tensors = {"down": dense(3, WIDTH), "up": dense(WIDTH, 3)}
    if biases:
        tensors |= {"down_bias": dense(3), "up_bias": dense(WIDTH)}
    return branch(site, "adapter", tensors, nonlinearity=nonlinearity, scale=scale, tap=tap)


# One list of branches for each method; a new method needs a row here, and `test_every_method_has_an_example` says so.
EXAMPLES: dict[str, list[Branch]] = {
    "lora": [*lora_qv(), lora("blocks.1.mlp.fc1", out=4 * WIDTH, seed=70), lora("blocks.0.attn.proj", seed=80)],
    "adaptformer": adaptformer(),
    "adapter": [
        bent("blocks.0.attn.qkv[k]", "gelu", "output", 1.0, biases=True),
        bent("blocks.2.mlp.fc2", "silu", "output", 0.7),
        bent("blocks.1.attn.proj", "gelu", "input", 1.5),
        bent("blocks.0.attn", "relu", "sum", 0.8, biases=True),
        bent("blocks.0.mlp", "tanh", "sum", 0.9, biases=True),
        bent("blocks.1.attn", "leaky_relu", "residual", 1.1),
        bent("blocks.1.mlp", "quick_gelu", "residual", 1.2, biases=True),
        bent("blocks.2.mlp", "gelu_tanh", "sum", 1.3),
    ],
    "consolidator": [
        branch(
            "blocks.0.attn.qkv", "consolidator", {"weight": dense(144, 2), "bias": dense(144)}, groups=24, reorder=True
        ),
        branch("blocks.1.mlp.fc2", "consolidator", {"weight": dense(48, 8)}, groups=24, reorder=False),
    ],
    "sparse": [
        branch("blocks.0.attn.qkv[v]", "sparse", {"weight": sparse(WIDTH, WIDTH), "bias": sparse(WIDTH)}),
        branch("blocks.1.mlp.fc1", "sparse", {"weight": sparse(4 * WIDTH, WIDTH)}),
        branch("blocks.1.norm2", "sparse", {"bias": sparse(WIDTH)}),
        branch("cls_token", "sparse", {"value": sparse(1, 1, WIDTH)}),
        branch("blocks.2.attn.proj", "sparse", {"bias": dense(WIDTH)}),
    ],
    "replace": [
        branch("norm", "replace", {"weight": dense(WIDTH), "bias": dense(WIDTH, seed=1)}),
        branch("blocks.1.attn.qkv[q]", "replace", {"bias": dense(WIDTH, seed=2)}),
        branch("cls_token", "replace", {"value": dense(1, 1, WIDTH, seed=3)}),
    ],
    "affine": [
        branch("blocks.0.attn.qkv[k]", "affine", {"factor": about_one(WIDTH)}, tap="output"),
        branch("blocks.2.mlp.fc2", "affine", {"factor": about_one(4 * WIDTH)}, tap="input"),
        branch("blocks.1.mlp.fc2", "affine", {"factor": about_one(WIDTH), "shift": dense(WIDTH)}, tap="output"),
        branch("blocks.2.norm1", "affine", {"factor": about_one(WIDTH, seed=1), "shift": dense(WIDTH)}, tap="output"),
        branch("patch_embed.proj", "affine", {"factor": about_one(WIDTH), "shift": dense(WIDTH)}, tap="output"),
    ],
    "dora": [
        branch(site, "dora", {**lora(site, out, rank=2).tensors, "magnitude": dense(out, seed=5)}, scale=0.5)
        for site, out in (("blocks.0.attn.qkv[v]", WIDTH), ("blocks.1.attn.qkv", 3 * WIDTH), ("blocks.2.mlp.fc1", 192))
    ],
    "fact": [
        branch(
            site,
            "fact",
            {"down": dense(2, WIDTH, seed=1), "core": dense(3 * j, 2 * k, seed=i), "up": dense(WIDTH, 3, seed=2)},
            scale=0.5,
        )
        for i, (site, j, k) in enumerate(
            (("blocks.0.attn.qkv[k]", 1, 1), ("blocks.1.mlp.fc1", 4, 1), ("blocks.1.mlp.fc2", 1, 4))
        )
    ],
    "convpass": [
        branch(
            f"blocks.{i}.{part}",
            "convpass",
            {
                "down": dense(3, WIDTH, seed=i),
                "conv": dense(3, 3, 3, 3, seed=i),
                "up": dense(WIDTH, 3, seed=i),
                **(
                    {role: dense(size) for role, size in (("down_bias", 3), ("conv_bias", 3), ("up_bias", WIDTH))}
                    if i
                    else {}
                ),
            },
            scale=0.5,
            prefix=1,
        )
        for i in (0, 2)
        for part in ("attn", "mlp")
    ],
}


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything that unloading must bring back: module and parameter objects, hooks, attributes, and all values."""
    hooks = {
        name: tuple(len(getattr(module, kind)) for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"))
        for name, module in model.named_modules()
    }
    return {
        "modules": {name: id(module) for name, module in model.named_modules()},
        "parameters": {name: (id(p), p.data_ptr(), p.requires_grad, p.dtype) for name, p in model.named_parameters()},
        "attributes": {key: value for key, value in vars(model).items() if not key.startswith("_")}
        | {"": set(vars(model))},
        "hooks": hooks,
        "values": {name: value.clone() for name, value in model.state_dict().items()},
    }


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    plain = ("modules", "parameters", "attributes", "hooks")
    if any(one[key] != other[key] for key in plain) or one["values"].keys() != other["values"].keys():
        return False
    return all(torch.equal(value, other["values"][name]) for name, value in one["values"].items())


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-4) -> bool:
    """Within `tolerance` of the largest logit, and of the same shape."""
    if found.shape != expected.shape:
        return False
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())
