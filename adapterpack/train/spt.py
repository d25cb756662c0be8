"""SPT: where a mask says so, a LoRA or adapter on a matrix, a whole vector, or a few entries; and the class token.

Both matrices of a structured module start from a normal distribution of 0.02, which is what the public code's model
ends up with: its own initialiser runs over the zeros. So the model is changed from the start. Entries on LayerNorms
are counted by a mask and never trained. Source: He et al. 2023, `BlockSPTParallel`, `BlockSPTSeq`.
"""

from __future__ import annotations

import torch

from adapterpack.converters.spt_mask import SptMask
from adapterpack.errors import Reason, UnsupportedAdapterError
from adapterpack.train.attachment import Attachment
from adapterpack.train.branch import Bottleneck, Lora, TrainedBranch
from adapterpack.train.quantise import truncated_normal
from adapterpack.train.recipe import Recipe
from adapterpack.train.sites import depth_of


def site_of(module: str) -> str:
    """`blocks.3.attn.v` → `blocks.3.attn.qkv[v]`; other modules keep their names."""
    head, _, last = module.rpartition(".")
    return f"{head}.qkv[{last}]" if head.endswith(".attn") and last in "qkv" else module


def attach(at: Attachment, recipe: Recipe, mask: SptMask) -> None:
    """Train what a mask chose.

    Args:
        at: the model.
        recipe: "spt-lora" or "spt-adapter", rank in `dim`.
        mask: for this backbone.

    Raises:
        UnsupportedAdapterError: `site-shape`, a mask of another backbone.
    """
    _check(at, mask)
    for module in mask.structured:
        at.beside(_structured(at, module, recipe))
    for name in mask.vectors:
        module, _, role = name.rpartition(".")
        at.replace(site_of(module), role)
    for name, positions in mask.positions().items():
        module, _, role = name.rpartition(".")
        if "norm" not in name:
            at.entries(site_of(module), role, positions, recipe.bits)
    if at.model._parameters.get("cls_token") is not None:  # models that average over all patches have none
        at.replace("cls_token", "value")


def _check(at: Attachment, mask: SptMask) -> None:
    if len(mask.matrices) != depth_of(at.model):
        text = f"the mask is for {len(mask.matrices)} blocks, the model has {depth_of(at.model)}"
        raise UnsupportedAdapterError(text, Reason.SITE_SHAPE, hint="make one with `adapterpack sensitivity`")
    for name, shape in mask.shapes.items():
        module, _, role = name.rpartition(".")
        found = at.place(site_of(module)).shape(role)
        if found != tuple(shape):
            text = f"{name}: the mask has shape {list(shape)}, the model {list(found or ())}"
            raise UnsupportedAdapterError(text, Reason.SITE_SHAPE, name, "was the mask made for another backbone?")


def _structured(at: Attachment, module: str, recipe: Recipe) -> TrainedBranch:
    site, proj = site_of(module), module.endswith("attn.proj")
    outward, inward = at.size(site)
    drops = {"input_drop": 0.0 if proj else recipe.dropout, "path_drop": recipe.branch_drop}
    if recipe.method == "spt-lora":
        starts = _pair(outward, inward, recipe)
        return Lora(site, "lora", {"scale": 1.0}, at.bank, starts, **drops)
    starts = _pair(outward, inward if proj else outward, recipe)
    starts |= {"down_bias": (torch.zeros(recipe.dim), 32), "up_bias": (torch.zeros(outward), 32)}
    params = {"nonlinearity": "gelu", "scale": 1.0, "tap": "input" if proj else "output"}
    return Bottleneck(site, "adapter", params, at.bank, starts, **drops)


def _pair(outward: int, read: int, recipe: Recipe) -> dict[str, tuple[torch.Tensor, int]]:
    down = truncated_normal((recipe.dim, read), 0.02, 2.0)
    up = truncated_normal((outward, recipe.dim), 0.02, 2.0)
    return {"down": (down, recipe.bits), "up": (up, recipe.bits)}
