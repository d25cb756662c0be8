"""Consolidation: the grouped branches of one layer, joined after training into as few grouped tensors as hold them.

Pure arithmetic on arrays. Adding rounds to float32, so quantization comes after it, never before.
Source: Hao et al. 2023, `get_actual_params`, stage one; spec/methods.md, "Consolidator".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Grouped = tuple[int, F32]  # groups, weight [out, in/groups]


def consolidate(branches: Sequence[Grouped], *, reorder: bool) -> list[Grouped]:
    """Join the branches of one layer.

    Branches with equal groups have one support and are added. Without reordering, a branch whose groups are a multiple
    of a coarser one's lies inside that one's blocks and is absorbed by it (by the coarsest, where several could). With
    reordering, or where neither divides the other, supports hardly overlap and the branches stay apart.

    Args:
        branches: (groups, weight float32 [out, in/groups]) of one layer, in the order in which they are added.
        reorder: whether the branches read reordered channels.

    Returns:
        The same sum with as few tensors, by ascending groups; each weight float32.
    """
    sums: dict[int, F32] = {}
    for groups, weight in branches:
        sums[groups] = sums[groups] + weight if groups in sums else weight.astype(np.float32)
    kept: dict[int, F32] = {}
    for groups, weight in sorted(sums.items()):
        host = None if reorder else next((coarse for coarse in kept if groups % coarse == 0), None)
        if host is None:
            kept[groups] = weight
        else:
            kept[host] = kept[host] + widened(weight, groups, host)
    return sorted(kept.items())


def widened(weight: F32, groups: int, coarse: int) -> F32:
    """A grouped weight written into the blocks of a coarser grouping: float32 [out, in/coarse], zero elsewhere.

    Args:
        weight: float32 [out, in/groups].
        groups: its groups, a multiple of `coarse`.
        coarse: the groups of the result.
    """
    outward, taps = weight.shape
    row = np.arange(outward)
    start = row // (outward // groups) * taps - row // (outward // coarse) * (taps * groups // coarse)
    out = np.zeros((outward, taps * groups // coarse), np.float32)
    np.put_along_axis(out, start[:, None] + np.arange(taps), weight, axis=1)
    return out
