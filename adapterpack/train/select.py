"""What is chosen before a run, without looking at test images: SPT's mask, and the scale of a branch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from adapterpack.adapter import DataSettings
from adapterpack.converters.spt_mask import SptMask
from adapterpack.errors import CallError, Reason
from adapterpack.runtime.images import normalised
from adapterpack.train.data import Split
from adapterpack.train.devices import Hardware, seeded
from adapterpack.train.measure import NOTHING, Score
from adapterpack.train.recipe import SCALES, Recipe
from adapterpack.train.sensitivity import BATCH, BATCHES, Batch, make_mask, sensitivities

SEARCH_SHARE = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """The training images, how many classes they have, how they become input, and where that happens."""

    train: Split
    classes: int
    settings: DataSettings
    hardware: Hardware

    def batches(self, seed: int) -> Iterator[Batch]:
        """At most 16 batches of 32 images as the model takes them, shuffled by the seed."""
        order = np.random.default_rng(seed).permutation(len(self.train))[: BATCH * BATCHES]
        parts = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        device = self.hardware.device
        for part, pixels in zip(parts, self.train.pictures.batches(parts)):
            labels = torch.from_numpy(self.train.labels[part])
            yield normalised(pixels.to(device), self.settings), labels.to(device)


def mask_for(model: nn.Module, setting: Setting, recipe: Recipe, step: Callable[[], object] = lambda: None) -> SptMask:
    """SPT's first step on the training images.

    The public code takes the first 512 images of a list in random order; a folder lists its images class by class, so
    they are shuffled here, by the seed.

    Args:
        model: frozen.
        setting: training images and hardware.
        recipe: gives method, budget, rank and seed.
        step: is called after each of at most 16 batches.
    """
    with seeded(recipe.seed, setting.hardware.device):
        found = sensitivities(model, setting.batches(recipe.seed), setting.classes, recipe, step=step)
    return make_mask(model, found, recipe, recipe.method.removeprefix("spt-"))


def best_scale(recipe: Recipe, try_one: Callable[[Recipe, str], Score], tried: dict[float, Score]) -> float:
    """The scale of the paper's grid that is best on the validation images after a tenth of the epochs.

    A scale with which the loss becomes no number is worse than any other.

    Args:
        recipe: whose scale is wanted.
        try_one: trains with a recipe, named for reports, and gives its best validation score.
        tried: scores that are known already; what is found is added.

    Raises:
        CallError: `not-finite`, with every scale.
    """
    short = max(2, round(SEARCH_SHARE * recipe.epochs))
    for scale in SCALES:
        if scale not in tried:
            trial = replace(recipe, scale=scale, epochs=short, schedule="step")
            tried[scale] = _score(trial, f"scale {scale:g}", try_one)
    best = max(tried, key=lambda scale: (tried[scale].accuracy, -tried[scale].loss))
    if tried[best] == NOTHING:
        raise CallError("the loss is no number with any scale", Reason.NOT_FINITE, hint="lower --lr")
    return best


def _score(trial: Recipe, stage: str, try_one: Callable[[Recipe, str], Score]) -> Score:
    try:
        return try_one(trial, stage)
    except CallError as error:
        if error.reason != Reason.NOT_FINITE.value:
            raise
        return NOTHING
