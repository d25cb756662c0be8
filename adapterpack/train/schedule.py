"""The learning rate of the three papers: a linear warm-up from 1e-6, then a cosine to 1e-5 that ignores the warm-up."""

from __future__ import annotations

import math

from adapterpack.train.recipe import Recipe

START, END = 1e-6, 1e-5
BY_EPOCH_FROM = 50


def rate(recipe: Recipe, epoch: int, step: int, steps: int) -> float:
    """The rate of one step.

    With T epochs, W of them warm-up: f(t) = 1e-6 + t(lr − 1e-6)/W for t < W, else 1e-5 + ½(lr − 1e-5)(1 + cos(πt/T)).
    By epochs, t = max(epoch − 1, 0): the papers' scheduler moves after an epoch, so the first two run at 1e-6. By
    steps, t is the time that has passed, half a step added.

    Args:
        recipe: gives lr, epochs, warmup and schedule.
        epoch, step: from 0.
        steps: in an epoch.
    """
    t = max(epoch - 1, 0) if by_epoch(recipe) else epoch + (step + 0.5) / steps
    warm = recipe.warmup * recipe.epochs
    if t < warm:
        return START + t * (recipe.lr - START) / warm
    low = min(END, recipe.lr)
    return low + 0.5 * (recipe.lr - low) * (1 + math.cos(math.pi * t / recipe.epochs))


def by_epoch(recipe: Recipe) -> bool:
    """Whether the rate changes between epochs only."""
    return recipe.schedule == "epoch" or (recipe.schedule == "auto" and recipe.epochs >= BY_EPOCH_FROM)
