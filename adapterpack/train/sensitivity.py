"""SPT's first step: how much the loss of a new task would fall for moving each parameter; and the mask file.

The sensitivity of a parameter is the sum over batches of the squared gradient of the batch's mean loss, with a random
head, in training mode (drop path active), without any update. q, k and v count as matrices of their own.
Source: He et al. 2023, `engine.get_sensitivity`.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from adapterpack._files import write_atomic
from adapterpack.adapter import Site
from adapterpack.converters.spt_mask import OPERATIONS, SptMask
from adapterpack.runtime.load import features_of
from adapterpack.runtime.places import Place, resolve
from adapterpack.tensors import numel
from adapterpack.train.attachment import Attachment
from adapterpack.train.budget import Sensitivities, split_budget
from adapterpack.train.head import TrainedHead
from adapterpack.train.recipe import Recipe
from adapterpack.train.sites import depth_of
from adapterpack.train.spt import site_of
from adapterpack.train.trainee import freeze, put_head, set_drop_path

BATCH, BATCHES = 32, 16
_ORDER = ("norm1", "attn.q", "attn.k", "attn.v", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
Batch = tuple[torch.Tensor, torch.Tensor]


def sensitivities(
    model: nn.Module, batches: Iterable[Batch], classes: int, recipe: Recipe, *, step: Callable[[], object]
) -> Sensitivities:
    """Measure every weight, bias and norm of the blocks, and the final norm.

    Args:
        model: a frozen timm `VisionTransformer`; it is as before afterwards.
        batches: (images, labels) as the model takes them; SPT uses 16 batches of 32.
        classes: of the task.
        recipe: gives drop path, head start and seed.
        step: is called after each batch.

    Returns:
        By timm's names with q, k, v split: float32 in the parameter's shape.
    """
    at = Attachment(model)
    was_training = model.training
    at.on_close(lambda: model.train(was_training))
    freeze(at)
    try:
        places = _candidates(model)
        set_drop_path(at, recipe.drop_path)
        device = next(model.parameters()).device
        head = TrainedHead(features_of(model), classes, recipe).to(device)
        put_head(at, head, classes)
        sums = _accumulate(model, places, batches, step)
        return {name: total.cpu().numpy() for name, total in sums.items()}
    finally:
        at.close()


def _accumulate(
    model: nn.Module, places: dict[str, tuple[Place, str]], batches: Iterable[Batch], step: Callable[[], object]
) -> dict[str, torch.Tensor]:
    owned = {id(p): p for place, role in places.values() if (p := place.module._parameters[role]) is not None}
    sums = {key: torch.zeros_like(parameter, dtype=torch.float32) for key, parameter in owned.items()}
    for parameter in owned.values():
        parameter.requires_grad_(True)
    try:
        model.train()
        for images, labels in batches:
            loss = functional.cross_entropy(model(images), labels)
            for key, grad in zip(owned, torch.autograd.grad(loss, list(owned.values()))):
                sums[key].addcmul_(grad.float(), grad.float())
            step()
    finally:
        for parameter in owned.values():
            parameter.requires_grad_(False)
    return {name: _rows(place, sums[id(place.module._parameters[role])]) for name, (place, role) in places.items()}


def _rows(place: Place, values: torch.Tensor) -> torch.Tensor:
    found = place.view(values)
    return values if found is None else found


def _candidates(model: nn.Module) -> dict[str, tuple[Place, str]]:
    """What may be chosen, in the order in which SPT's own model registers it."""
    modules = [f"blocks.{block}.{name}" for block in range(depth_of(model)) for name in _ORDER]
    found = {}
    for module in [*modules, *(["norm"] if isinstance(model._modules.get("norm"), nn.LayerNorm) else [])]:
        place = resolve(model, Site.parse(site_of(module)))
        for role in ("weight", "bias"):
            if place.has(role):
                found[f"{module}.{role}"] = place, role
    return found


def make_mask(model: nn.Module, found: Sensitivities, recipe: Recipe, kind: str) -> SptMask:
    """The mask of a recipe's budget: a LoRA mask or an adapter mask.

    Args:
        model: whose sensitivities they are.
        found: from `sensitivities`.
        recipe: gives rank and budget.
        kind: "lora" or "adapter".
    """
    parameters = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("head"))
    budget = recipe.budget or 0.005 * parameters / 1e6
    token = model._parameters.get("cls_token")
    return split_budget(found, budget, kind=kind, rank=recipe.dim, token=0 if token is None else token.numel())


def save_mask(mask: SptMask, out: Path, *, force: bool) -> None:
    """Write a mask with the fields of SPT's own files, in types that torch loads without any exception.

    Raises:
        CallError: `file-exists`, `io-error`.
    """
    content = {
        "unstructured_name_shapes": dict(mask.shapes),
        "unstructured_name_shapes_int": {name: numel(shape) for name, shape in mask.shapes.items()},
        "unstructured_indexes": torch.from_numpy(_own(mask.indexes)),
        "unstructured_params": torch.tensor(float(len(mask.indexes))),
        "structured_params": mask.structured_params,
        "params": torch.tensor(mask.params),
        "tuned_matrices": [[int(chosen) for chosen in row] for row in mask.matrices],
        "tuned_vectors": list(mask.vectors),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomic(out, buffer.getvalue(), force=force)


def digest_of(mask: SptMask) -> str:
    """Tells what two masks train apart."""
    found = hashlib.sha256(repr((dict(mask.shapes), mask.matrices, mask.vectors)).encode())
    found.update(mask.indexes.tobytes())
    return found.hexdigest()


def describe_mask(mask: SptMask) -> dict[str, object]:
    """What a mask chose, in numbers."""
    chosen = {name: sum(row[i] for row in mask.matrices) for i, name in enumerate(OPERATIONS)}
    return {
        "parameters": round(mask.params * 1e6),
        "structured": mask.structured_params,
        "sparse": len(mask.indexes),
        "matrices": chosen,
        "vectors": len(mask.vectors),
    }


def _own(indexes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.array(indexes, np.int64)
