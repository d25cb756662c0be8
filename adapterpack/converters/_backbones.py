"""Backbones by name: the sizes that a ViT's name stands for, and names that have changed. Knows no model, no file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from adapterpack.errors import CallError, Reason

# depth and width of the published ViTs
_SIZES = {
    "tiny": (12, 192),
    "small": (12, 384),
    "base": (12, 768),
    "large": (24, 1024),
    "huge": (32, 1280),
    "giant": (40, 1408),
    "gigantic": (48, 1664),
}
_NAME = re.compile(rf"(?:vit|deit|deit3)_({'|'.join(_SIZES)})_")
# the plain old name's default weights are another checkpoint today (AugReg), so the tag is needed
_TODAY = {"vit_base_patch16_224_in21k": "vit_base_patch16_224.orig_in21k"}
_FORMERLY = {today: name for name, today in _TODAY.items()}


def todays_name(name: str) -> str:
    """timm's current name of a backbone that an outside file calls `name`."""
    return _TODAY.get(name, name)


def former_name(name: str) -> str:
    """The inverse of `todays_name`."""
    return _FORMERLY.get(name, name)


def depth_and_width(name: str, settings: Mapping[str, Any], backbone: Mapping[str, Any] | None) -> tuple[int, int]:
    """Blocks and features: from the settings, else from the backbone's tensors, else from its name.

    Raises:
        CallError: `bad-call` when none of them tells.
    """
    if "depth" in settings and "width" in settings:
        return settings["depth"], settings["width"]
    depth, width = _size_of(name, backbone)
    return settings.get("depth", depth), settings.get("width", width)


def _size_of(name: str, backbone: Mapping[str, Any] | None) -> tuple[int, int]:
    if backbone is not None and "norm.weight" in backbone:
        return depth_of(backbone), len(backbone["norm.weight"])
    size = _NAME.match(name)
    if size is None:
        hint = "give --backbone (backbone=…), or depth and width with --set (settings=…)"
        raise CallError(f"the size of the backbone {name[:80]!r} is not known", Reason.BAD_CALL, hint=hint)
    return _SIZES[size[1]]


def guessed(depth: int, ways: str = "--backbone, --set depth=…") -> str:
    """The note where the file alone tells how many blocks there are."""
    blocks = "1 block" if depth == 1 else f"{depth} blocks"
    return f"{blocks}, as many as the file has: nobody said which backbone it is for ({ways})"


def depth_of(names: Mapping[str, Any]) -> int:
    """One more than the highest block number in `blocks.N.…`; 0 without blocks."""
    numbers = [
        int(parts[1]) for parts in (name.split(".") for name in names) if parts[0] == "blocks" and parts[1].isdigit()
    ]
    return max(numbers, default=-1) + 1
