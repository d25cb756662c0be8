"""Consolidator: grouped branches on all four linear layers of each block, and all biases and LayerNorms in place.

With 32 bits each branch is trained apart, with a draw of its own for drop path, and the branches are added up for the
file. With fewer bits it is the sum that a file quantizes, so the sum is what is trained: branches of one support are
joined before training into one latent tensor, which starts as their sum, is quantized as a whole and drops as a whole.
Source: Hao et al. 2023, `vision_transformer_timm.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional

from adapterpack.adapter import Branch, Site
from adapterpack.converters.consolidate import consolidate
from adapterpack.errors import CallError, Reason
from adapterpack.methods.consolidator import positions
from adapterpack.tensors import Dense, Tensor
from adapterpack.train.attachment import Attachment
from adapterpack.train.branch import TrainedBranch
from adapterpack.train.quantise import uniform
from adapterpack.train.recipe import Recipe
from adapterpack.train.sites import LINEARS, depth_of, norm_sites

START = 1e-3


class Grouped(TrainedBranch):
    """A grouped branch, computed with its zeros written out.

    One dense product is three to ten times faster than hundreds of tiny ones, on processors and accelerators alike.
    """

    def formula(self, x: torch.Tensor, t: Mapping[str, torch.Tensor]) -> torch.Tensor:
        groups, (outward, taps) = self.params["groups"], t["weight"].shape
        where = _positions(outward, taps, groups, self.params["reorder"], t["weight"].device)
        dense = torch.zeros(outward * taps * groups, device=x.device).index_put((where,), t["weight"].reshape(-1))
        return functional.linear(x, dense.view(outward, taps * groups), t.get("bias"))


@lru_cache(maxsize=64)
def _positions(outward: int, taps: int, groups: int, reorder: bool, device: torch.device) -> torch.Tensor:
    return torch.tensor(positions(outward, taps, groups, reorder), device=device)


def attach(at: Attachment, recipe: Recipe) -> None:
    """Put Consolidator's branches into a model and let its biases and norms be trained.

    Raises:
        CallError: `bad-call`, groups that do not divide a layer.
    """
    for block in range(depth_of(at.model)):
        for name in LINEARS:
            site = f"blocks.{block}.{name}"
            _attach_layer(at, site, recipe)
            at.replace(site, "bias")
    for site in norm_sites(at.model):
        at.replace(site, "weight")
        at.replace(site, "bias")


def _attach_layer(at: Attachment, site: str, recipe: Recipe) -> None:
    outward, inward = at.size(site)
    counts = recipe.groups or (int(at.model.embed_dim) // 2,)  # type: ignore[arg-type]
    for groups in counts:
        if inward % groups or outward % groups:
            hint = f"expected numbers that divide {outward} and {inward}"
            raise CallError(f"{groups} groups do not divide {site}", Reason.BAD_CALL, hint=hint)
    starts = [(groups, uniform((outward, inward // groups), START)) for groups in counts]
    has_bias = at.place(site).has("bias")
    for number, (groups, weight) in enumerate(_joined(starts, recipe)):
        roles = {"weight": (weight, recipe.bits)}
        if has_bias and (recipe.bits == 32 or number == 0):
            roles["bias"] = (uniform((outward,), START), 32)
        params = {"groups": groups, "reorder": recipe.reorder}
        at.beside(Grouped(site, "consolidator", params, at.bank, roles, path_drop=recipe.branch_drop))


def _joined(starts: list[tuple[int, torch.Tensor]], recipe: Recipe) -> list[tuple[int, torch.Tensor]]:
    if recipe.bits == 32:
        return starts
    plain = [(groups, weight.numpy()) for groups, weight in starts]
    return [(groups, torch.from_numpy(weight)) for groups, weight in consolidate(plain, reorder=recipe.reorder)]


def consolidated(branches: tuple[Branch, ...]) -> tuple[Branch, ...]:
    """The branches of a run as a file keeps them: joined layer by layer, their biases added to the layer's own.

    Args:
        branches: as `Attachment.export` gives them.
    """
    layers: dict[str, list[Branch]] = {}
    rest: list[Branch] = []
    for branch in branches:
        if branch.method == "consolidator":
            layers.setdefault(str(branch.site), []).append(branch)
        else:
            rest.append(branch)
    biases = {site: _bias(found) for site, found in layers.items()}
    out = [_with_bias(branch, biases.get(str(branch.site))) for branch in rest]
    for site, found in layers.items():
        out += _one_layer(site, found)
    return tuple(out)


def _bias(branches: list[Branch]) -> np.ndarray | None:
    found = [branch.tensors["bias"].dense() for branch in branches if "bias" in branch.tensors]
    return sum(found[1:], found[0]) if found else None


def _with_bias(branch: Branch, bias: np.ndarray | None) -> Branch:
    if bias is None or branch.method != "replace":
        return branch
    return Branch(branch.site, "replace", {}, {**branch.tensors, "bias": Dense(branch.tensors["bias"].dense() + bias)})


def _one_layer(site: str, branches: list[Branch]) -> list[Branch]:
    reorder = branches[0].params["reorder"]
    weights = [(branch.params["groups"], branch.tensors["weight"]) for branch in branches]
    tensors: list[tuple[int, Tensor]] = weights
    if all(isinstance(weight, Dense) for _, weight in weights):
        plain = [(groups, weight.dense()) for groups, weight in weights]
        tensors = [(groups, Dense(weight)) for groups, weight in consolidate(plain, reorder=reorder)]
    params = [{"groups": groups, "reorder": reorder} for groups, _ in tensors]
    return [Branch(Site.parse(site), "consolidator", p, {"weight": w}) for p, (_, w) in zip(params, tensors)]
