"""LoRA and AdaptFormer as the 1-bit paper trains them, and the baselines that have no branches: linear, bias, full.

Source: Jie et al. 2023, `binary_adapter/lora.py` and `adaptformer.py`; BitFit (Zaken et al. 2022) for `bias`.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from adapterpack.adapter import Site
from adapterpack.runtime.families import classifier
from adapterpack.runtime.places import residual
from adapterpack.train.attachment import Attachment
from adapterpack.train.branch import AdaptFormer, Lora, Starts
from adapterpack.train.quantise import linear_start, truncated_normal
from adapterpack.train.recipe import Recipe
from adapterpack.train.sites import biased_sites, lora_sites, mlp_sites


def attach_lora(at: Attachment, recipe: Recipe) -> None:
    """LoRA on q and v of every block; k and the output projection stay as they are."""
    for site in lora_sites(at.model):
        outward, inward = at.size(site)
        starts = _starts(outward, inward, recipe)
        params = {"scale": _scale(recipe)}
        at.beside(Lora(site, "lora", params, at.bank, starts, hidden_drop=recipe.dropout))


def attach_adaptformer(at: Attachment, recipe: Recipe) -> None:
    """AdaptFormer beside every MLP."""
    for site in mlp_sites(at.model):
        width = residual(at.model, Site.parse(site)).width
        starts = _starts(width, width, recipe)
        params = {"scale": _scale(recipe)}
        at.around(AdaptFormer(site, "adaptformer", params, at.bank, starts, hidden_drop=recipe.dropout))


def attach_bias(at: Attachment, recipe: Recipe) -> None:
    """Every bias of the backbone, in place."""
    for site in biased_sites(at.model):
        at.replace(site, "bias")


def attach_nothing(at: Attachment, recipe: Recipe) -> None:
    """The linear probe trains the head alone."""


def attach_everything(at: Attachment, recipe: Recipe) -> None:
    """Full fine-tuning: copies of all parameters of the backbone, in their places until the run ends."""
    head = classifier(at.model)
    for module in at.model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and module is not head:
                module._parameters[name] = nn.Parameter(parameter.detach().clone())
                at.on_close(partial(module._parameters.__setitem__, name, parameter))


def _starts(outward: int, inward: int, recipe: Recipe) -> Starts:
    """down as `nn.Linear`; up zero, or near zero where zero could not be quantized."""
    shape = (outward, recipe.dim)
    up = torch.zeros(shape) if recipe.bits == 32 else truncated_normal(shape, recipe.up_start, 2 * recipe.up_start)
    return {"down": (linear_start((recipe.dim, inward)), recipe.bits), "up": (up, recipe.bits)}


def _scale(recipe: Recipe) -> float:
    return 1.0 if recipe.scale is None else recipe.scale
