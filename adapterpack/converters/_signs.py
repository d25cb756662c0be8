"""Matrices of two values each, as a 1-bit adapter has them after a form that holds float32 alone: signs again.

Exactly or not at all: a matrix becomes signs, a scale and an offset only where these give back every bit of it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from adapterpack import bits
from adapterpack.adapter import Branch, Head, Site
from adapterpack.converters._base import Imported
from adapterpack.tensors import F32, Dense, Quantized, Tensor

_ENTRIES = 64  # below, signs with their scale save nothing
_NEAR = np.arange(-4, 5)  # so many steps of float32 around the middle and the half distance are tried


def with_signs(imported: Imported) -> Imported:
    """What was imported, with every matrix of two values as signs, and a note of how many there are."""
    adapter = imported.adapter
    found: list[Tensor] = []
    loras = Counter(branch.site.path for branch in adapter.branches if branch.method == "lora")
    alone = [_parts(branch) if loras[branch.site.path] == 1 else [branch] for branch in adapter.branches]
    branches = tuple(_branch(part, found) for parts in alone for part in parts)
    head = adapter.head
    if head is not None:
        head = Head(_signs(head.weight, found), head.bias)
    if not found:
        return imported
    count = "1 matrix has" if len(found) == 1 else f"{len(found)} matrices have"
    note = f"{count} two values each: kept as signs, equal to the bit"
    return replace(imported, adapter=replace(adapter, branches=branches, head=head), notes=(*imported.notes, note))


def _parts(branch: Branch) -> list[Branch]:
    """A LoRA on all of query, key and value as one on each, where it was put together of 1-bit ones: each column of its
    up matrix is zero but for one third, and all the blocks have two values."""
    if branch.method != "lora" or not branch.site.path.endswith("attn.qkv") or branch.site.part:
        return [branch]
    down, up = branch.tensors["down"].dense(), branch.tensors["up"].dense()
    if len(up) % 3:
        return [branch]
    thirds = up.reshape(3, len(up) // 3, -1)
    used: NDArray[np.bool_] = np.asarray(thirds.any(axis=1))
    parts = [(name, down[mask], third[:, mask]) for name, third, mask in zip("qkv", thirds, used) if mask.any()]
    if (used.sum(axis=0) != 1).any() or any(as_signs(matrix) is None for _, *both in parts for matrix in both):
        return [branch]
    named = ((Site(branch.site.path, name), {"down": Dense(a), "up": Dense(b)}) for name, a, b in parts)
    return [replace(branch, site=site, tensors=tensors) for site, tensors in named]


def _branch(branch: Branch, found: list[Tensor]) -> Branch:
    return replace(branch, tensors={role: _signs(tensor, found) for role, tensor in branch.tensors.items()})


def _signs(tensor: Tensor, found: list[Tensor]) -> Tensor:
    if not isinstance(tensor, Dense) or tensor.dtype != "float32" or len(tensor.shape) < 2:
        return tensor
    coded = as_signs(tensor.dense()) if tensor.entries >= _ENTRIES else None
    if coded is None:
        return tensor
    found.append(coded)
    return coded


def as_signs(values: F32) -> Quantized | None:
    """A matrix of exactly two values as signs; None for any other, or where no scale and offset give both exactly.

    Args:
        values: float32, any shape, finite.
    """
    low, high = values.min(), values.max()
    upper = values == high
    if low == high or not (upper | (values == low)).all():
        return None
    fitted = _scale_and_offset(low, high)
    if fitted is None:
        return None
    scale, offset = fitted
    shift = None if offset == 0 else np.array([offset])
    packed = bits.pack(upper.reshape(-1).astype(np.uint8), 1)
    coded = Quantized(values.shape, 1, "unit", 0, packed, np.array([scale]), shift)
    return coded if coded.dense().tobytes() == values.tobytes() else None


def _scale_and_offset(low: np.float32, high: np.float32) -> tuple[np.float32, np.float32] | None:
    """Two numbers whose difference and sum, rounded to float32, are the two values."""
    middle, half = (np.float64(low) + high) / 2, (np.float64(high) - low) / 2
    with np.errstate(over="ignore", under="ignore"):
        scales, offsets = _around(np.float32(half)), _around(np.float32(middle))
        fits = (offsets[:, None] - scales == low) & (offsets[:, None] + scales == high) & (scales > 0)
    rows, columns = np.nonzero(fits & np.isfinite(scales))
    return (scales[columns[0]], offsets[rows[0]]) if len(rows) else None


def _around(value: np.float32) -> NDArray[np.float32]:
    """The value and its neighbours, the nearest first."""
    steps = np.spacing(np.abs(value)) * _NEAR[np.argsort(np.abs(_NEAR), kind="stable")]
    near: NDArray[np.float32] = (value + steps).astype(np.float32)
    return near
