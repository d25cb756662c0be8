"""Module names of Hugging Face's and timm's vision transformers beside our sites, as tables. It knows no rule.

Source: the modules of transformers 4.57 (ViT, DeiT, DINOv2, CLIP vision), of transformers 5 (ViT), and of timm 1.0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Family:
    """The names of one implementation.

    Attributes:
        name: for messages.
        classes: how its model classes' names begin.
        prefixes: what may stand before every name but the head's.
        linears: (module, site) of the linear layers in a block; a template has `{i}` for the block's number.
        others: (module, site) of everything else that has weights.
        heads: modules that become the head.
        unbiased: sites whose module may have no bias, and the site that has one then, "" for none.
    """

    name: str
    classes: tuple[str, ...]
    prefixes: tuple[str, ...]
    linears: Pairs
    others: Pairs
    heads: tuple[str, ...]
    unbiased: Mapping[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> Pairs:
        return (*self.linears, *self.others)


def _attention(layer: str, names: Iterable[str]) -> Pairs:
    """Query, key, value and output projection of a block."""
    sites = ("attn.qkv[q]", "attn.qkv[k]", "attn.qkv[v]", "attn.proj")
    return tuple((f"{layer}.{name}", f"blocks.{{i}}.{site}") for name, site in zip(names, sites))


def _parts(layer: str, names: Mapping[str, str]) -> Pairs:
    """Other parts of a block, theirs by ours."""
    return tuple((f"{layer}.{theirs}", f"blocks.{{i}}.{ours}") for ours, theirs in names.items())


_NESTED = (*(f"attention.attention.{part}" for part in ("query", "key", "value")), "attention.output.dense")
_PATCHES = ("embeddings.patch_embeddings.projection", "patch_embed.proj")
_DINOV2 = ("dinov2.", "dinov2_with_registers.", "")
_LAYER, _LAYER5, _LAYERS = "encoder.layer.{i}", "layers.{i}", "encoder.layers.{i}"
_NORM, _NORMS = ("layernorm", "norm"), {"norm1": "norm1", "norm2": "norm2"}

FAMILIES = (
    Family(
        "timm",
        ("VisionTransformer",),
        ("",),
        _parts("blocks.{i}", {name: name for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}),
        (
            *_parts("blocks.{i}", _NORMS),
            *((name, name) for name in ("norm", "norm_pre", "fc_norm", "patch_embed.proj")),
        ),
        ("head",),
        {"norm": "fc_norm", "fc_norm": "", "patch_embed.proj": "norm_pre", "norm_pre": ""},
    ),
    Family(
        "Hugging Face ViT",
        ("ViT", "DeiT"),
        ("vit.", "deit.", ""),
        (*_attention(_LAYER, _NESTED), *_parts(_LAYER, {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"})),
        (*_parts(_LAYER, {"norm1": "layernorm_before", "norm2": "layernorm_after"}), _NORM, _PATCHES),
        ("classifier",),
    ),
    Family(
        "Hugging Face ViT (transformers 5)",
        ("ViT", "DeiT"),
        ("vit.", "deit.", ""),
        (
            *_attention(_LAYER5, [f"attention.{n}_proj" for n in "qkvo"]),
            *_parts(_LAYER5, {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}),
        ),
        (*_parts(_LAYER5, {"norm1": "layernorm_before", "norm2": "layernorm_after"}), _NORM, _PATCHES),
        ("classifier",),
    ),
    Family(
        "Hugging Face DINOv2",
        ("Dinov2",),
        _DINOV2,
        (*_attention(_LAYER, _NESTED), *_parts(_LAYER, {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"})),
        (*_parts(_LAYER, _NORMS), _NORM, _PATCHES),
        (),
    ),
    Family(
        "Hugging Face DINOv2 (giant)",
        ("Dinov2",),
        _DINOV2,
        (*_attention(_LAYER, _NESTED), *_parts(_LAYER, {"mlp.fc1": "mlp.weights_in", "mlp.fc2": "mlp.weights_out"})),
        (*_parts(_LAYER, _NORMS), _NORM, _PATCHES),
        (),
    ),
    Family(
        "Hugging Face CLIP",
        ("CLIP",),
        ("vision_model.", ""),
        (
            *_attention(_LAYERS, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")),
            *_parts(_LAYERS, {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}),
        ),
        (
            *_parts(_LAYERS, {"norm1": "layer_norm1", "norm2": "layer_norm2"}),
            ("post_layernorm", "norm"),
            ("pre_layrnorm", "norm_pre"),
            ("embeddings.patch_embedding", "patch_embed.proj"),
        ),
        ("classifier", "visual_projection"),
        {"patch_embed.proj": ""},
    ),
)
# any other model of timm's: its own paths are the sites
OWN = Family("timm's own", (), ("",), (), (), ("head.fc", "head", "fc", "classifier"))
