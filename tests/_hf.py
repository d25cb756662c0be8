"""Tiny models of transformers with random weights, and the timm models that have the same weights.

The names are mapped here by hand, so that the converters' own tables are compared with something else.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from timm.layers import QuickGELU
from timm.models import VisionTransformer
from torch import nn

from adapterpack import Adapter

WIDTH, DEPTH, HIDDEN, SIZE, PATCH, CLASSES = 24, 2, 48, 16, 8, 5
KINDS = ("vit", "deit", "dinov2", "clip")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """A library's own warnings are not ours to fail on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def fill(module: nn.Module, names: tuple[str, ...] = ("",), seed: int = 0, spread: float = 0.2) -> None:
    """Random numbers in every parameter whose name contains one of `names`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            if any(part in name for part in names):
                value.copy_(torch.randn(value.shape, generator=generator) * spread)


def images(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))


def hf_model(kind: str, head: bool = True) -> nn.Module:
    """A tiny model of transformers with random weights, in eval mode."""
    with quiet():
        import transformers as t

        sizes = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 3, "image_size": SIZE,
                 "patch_size": PATCH, "layer_norm_eps": 1e-6}  # fmt: skip
        labels = {"num_labels": CLASSES}
        wide = {"intermediate_size": HIDDEN}
        if kind == "vit":
            config = t.ViTConfig(**sizes, **wide, **labels)
            model = t.ViTForImageClassification(config) if head else t.ViTModel(config, add_pooling_layer=False)
        elif kind == "deit":
            config = t.DeiTConfig(**sizes, **wide, **labels)
            model = t.DeiTForImageClassification(config) if head else t.DeiTModel(config, add_pooling_layer=False)
        elif kind == "dinov2":
            model = t.Dinov2Model(t.Dinov2Config(**sizes, mlp_ratio=2, layerscale_value=1.0))
        elif kind == "clip-classifier":
            model = t.CLIPForImageClassification(t.CLIPConfig(vision_config={**sizes, **wide}, **labels))
        elif kind == "clip-projection":
            model = t.CLIPVisionModelWithProjection(t.CLIPVisionConfig(**sizes, **wide, projection_dim=CLASSES))
        else:
            model = t.CLIPVisionModel(t.CLIPVisionConfig(**sizes, **wide))
    fill(model, spread=0.15)
    return model.eval()


def outputs(kind: str, model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """Logits, or the class token's features of a model without a head."""
    with torch.no_grad(), quiet():
        found: Any = model(pixel_values=pixels)
    if hasattr(found, "logits") or hasattr(found, "image_embeds"):
        return found.logits if hasattr(found, "logits") else found.image_embeds
    return found.pooler_output if kind in ("dinov2", "clip") else found.last_hidden_state[:, 0]


def timm_twin(kind: str, model: nn.Module, classes: int = 0) -> VisionTransformer:
    """timm's model with the same backbone weights."""
    arguments: dict[str, Any] = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH,
                                 "num_heads": 3, "mlp_ratio": 2, "num_classes": classes}  # fmt: skip
    if kind == "deit":
        arguments["reg_tokens"] = 1
    if kind == "dinov2":
        arguments["init_values"] = 1.0
    if kind.startswith("clip"):
        arguments |= {"pre_norm": True, "act_layer": QuickGELU}
    if kind == "clip-classifier":
        arguments |= {"global_pool": "avg", "final_norm": False}
    twin = VisionTransformer(**arguments)
    state = {name.split(".", 1)[1] if name.startswith(("vit.", "deit.", "vision_model.")) else name: value
             for name, value in model.state_dict().items()}  # fmt: skip
    own = _clip(state) if kind.startswith("clip") else _vit(state, kind)
    if kind == "clip-classifier":  # reads the mean patch before the last norm
        own = {name: value for name, value in own.items() if not name.startswith("norm.")}
    missing, extra = twin.load_state_dict(own, strict=False)
    assert not extra and all(name.startswith("head.") for name in missing), (missing, extra)
    return twin.eval()


def _vit(state: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    own = {
        "cls_token": state["embeddings.cls_token"],
        "pos_embed": state["embeddings.position_embeddings"],
        "patch_embed.proj.weight": state["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": state["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": state["layernorm.weight"],
        "norm.bias": state["layernorm.bias"],
    }
    if kind == "deit":
        own["reg_token"] = state["embeddings.distillation_token"]
    for i in range(DEPTH):
        theirs, ours = f"encoder.layer.{i}", f"blocks.{i}"
        for role in ("weight", "bias"):
            parts = [state[f"{theirs}.attention.attention.{part}.{role}"] for part in ("query", "key", "value")]
            own[f"{ours}.attn.qkv.{role}"] = torch.cat(parts)
            own[f"{ours}.attn.proj.{role}"] = state[f"{theirs}.attention.output.dense.{role}"]
            names = (("norm1", "norm1"), ("norm2", "norm2"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2"))
            if kind != "dinov2":
                names = (("norm1", "layernorm_before"), ("norm2", "layernorm_after"), ("mlp.fc1", "intermediate.dense"),
                         ("mlp.fc2", "output.dense"))  # fmt: skip
            for mine, other in names:
                own[f"{ours}.{mine}.{role}"] = state[f"{theirs}.{other}.{role}"]
        if kind == "dinov2":
            for n in (1, 2):
                own[f"{ours}.ls{n}.gamma"] = state[f"{theirs}.layer_scale{n}.lambda1"]
    return own


def _clip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    own = {
        "cls_token": state["embeddings.class_embedding"][None, None],
        "pos_embed": state["embeddings.position_embedding.weight"][None],
        "patch_embed.proj.weight": state["embeddings.patch_embedding.weight"],
    }
    for role in ("weight", "bias"):
        own[f"norm_pre.{role}"] = state[f"pre_layrnorm.{role}"]
        own[f"norm.{role}"] = state[f"post_layernorm.{role}"]
        for i in range(DEPTH):
            theirs, ours = f"encoder.layers.{i}", f"blocks.{i}"
            own[f"{ours}.attn.qkv.{role}"] = torch.cat([state[f"{theirs}.self_attn.{p}_proj.{role}"] for p in "qkv"])
            own[f"{ours}.attn.proj.{role}"] = state[f"{theirs}.self_attn.out_proj.{role}"]
            for n in (1, 2):
                own[f"{ours}.norm{n}.{role}"] = state[f"{theirs}.layer_norm{n}.{role}"]
                own[f"{ours}.mlp.fc{n}.{role}"] = state[f"{theirs}.mlp.fc{n}.{role}"]
    return own


def timm_model(classes: int = CLASSES) -> VisionTransformer:
    """A tiny timm model with random weights, in eval mode."""
    model = VisionTransformer(
        img_size=SIZE, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=3, mlp_ratio=2, num_classes=classes
    )
    fill(model, spread=0.15)
    return model.eval()


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-4) -> bool:
    """Within `tolerance` of the largest value, and of one shape."""
    return found.shape == expected.shape and bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def digest_of(adapter: Adapter) -> str:
    """SHA-256 over every branch's place, settings and numbers."""
    found = hashlib.sha256()
    for b in adapter.branches:
        for role, tensor in sorted(b.tensors.items()):
            found.update(f"{b.site} {b.method} {sorted(b.params.items())} {role}".encode())
            found.update(tensor.dense().tobytes())
    return found.hexdigest()
