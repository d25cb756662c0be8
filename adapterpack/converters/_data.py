"""Preprocessing of an outside adapter: what its recipe fixes, what the backbone gives, what the settings say.

Also reads the spellings of those settings. Knows no outside form, no file, no model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from adapterpack.adapter import DataSettings
from adapterpack.errors import CallError, Reason

NAMES = ("input_size", "mean", "std")
MAX_SIDE = 1 << 14


def of_recipe(recipe: DataSettings | None, backbone: DataSettings | None) -> DataSettings | None:
    """A recipe's preprocessing at the backbone's input size; without a recipe, the backbone's.

    A recipe's mean and std are of 3 channels; for a backbone of another number the backbone's own take their place.
    """
    if recipe is None or backbone is None:
        return recipe or backbone
    channels = recipe if len(recipe.mean) == backbone.input_size[0] else backbone
    return replace(recipe, input_size=backbone.input_size, mean=channels.mean, std=channels.std)


def as_said(data: DataSettings | None, settings: Mapping[str, Any]) -> DataSettings | None:
    """Preprocessing with what the settings say of it in place.

    Args:
        data: what is known without them.
        settings: as `settings.select` gives them.

    Raises:
        CallError: `bad-call` when the three disagree, or when nothing is known and they do not say all.
    """
    said = {name: settings[name] for name in NAMES if name in settings}
    if not said:
        return data
    if data is None and len(said) < len(NAMES):
        hint = f"give all of {', '.join(NAMES)}, or --backbone (backbone=…)"
        raise CallError(f"{next(iter(said))} alone does not say how images are prepared", Reason.BAD_CALL, hint=hint)
    found = replace(data or DataSettings(), **said)
    channels = found.input_size[0]
    if not channels == len(found.mean) == len(found.std) or min(found.std) <= 0:
        message = f"input_size {'x'.join(map(str, found.input_size))}, mean {found.mean} and std {found.std} disagree"
        hint = f"mean and std want {channels} number{'s' if channels > 1 else ''} each, std above 0"
        raise CallError(message, Reason.BAD_CALL, hint=hint)
    return found


def parse(name: str, raw: Any) -> tuple[Any, ...] | None:
    """One of `NAMES` from any of its spellings (`3x32x32`, `32`, `[3, 32, 32]`; `0.5,0.5,0.5`, `[0.5, 0.5, 0.5]`).

    Returns:
        Three sizes, or one decimal number a channel; None for anything else.
    """
    return _size(raw) if name == "input_size" else _channels(raw)


def _size(raw: Any) -> tuple[int, int, int] | None:
    if type(raw) is int or (isinstance(raw, str) and raw.isascii() and raw.isdecimal()):
        raw = (3, raw, raw)
    items = raw.split("x") if isinstance(raw, str) else raw
    if not isinstance(items, (list, tuple)) or len(items) != 3:
        return None
    sides = [_whole(item) for item in items]
    return (sides[0], sides[1], sides[2]) if all(0 < side <= MAX_SIDE for side in sides) else None


def _whole(item: Any) -> int:
    """A whole number, 0 for anything else."""
    if isinstance(item, str) and item.isascii() and item.isdecimal() and len(item) < 10:
        return int(item)
    return item if type(item) is int else 0


def _channels(raw: Any) -> tuple[float, ...] | None:
    if type(raw) in (int, float):
        raw = (raw,)
    items = raw.split(",") if isinstance(raw, str) else raw
    if not isinstance(items, (list, tuple)) or not items or any(type(i) not in (int, float, str) for i in items):
        return None
    try:
        values = tuple(float(item) for item in items)
    except (ValueError, OverflowError):
        return None
    return values if all(math.isfinite(value) for value in values) else None
