"""Quantized tensors to weights on another device: the packed bits travel, and are expanded where they are used.

Every weight goes through the float32 roundings of `tensors.inflate` in the same order, so both agree to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from adapterpack.codebooks import levels_of
from adapterpack.tensors import Quantized, alike


def inflate_on(
    tensors: Sequence[Quantized], device: torch.device, factors: Sequence[float] | None = None
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """The weights of many tensors, float32 on `device`; see `tensors.inflate_stacks`.

    Args:
        tensors: any mixture of shapes and forms; those of one size and form are expanded together.
        device: where the result is.
        factors: one a tensor; multiplies every weight, rounded once after the weight itself. None for all 1.

    Yields:
        Tensors of one shape and form as one, [n, *shape], with their places in `tensors`.
    """
    for by_shape in alike(tensors):
        rows = [i for places in by_shape.values() for i in places]
        chosen = None if factors is None else [factors[i] for i in rows]
        weights = _expand([tensors[i] for i in rows], device, chosen)
        for (shape, places), stack in zip(by_shape.items(), weights.split([len(v) for v in by_shape.values()])):
            yield places, stack.reshape(len(places), *shape)


def _expand(tensors: Sequence[Quantized], device: torch.device, factors: Sequence[float] | None) -> torch.Tensor:
    """Tensors of one size and form: float32 [tensors, entries]."""
    first = tensors[0]
    if not first.entries:
        return torch.empty((len(tensors), 0), device=device)
    levels = torch.from_numpy(levels_of(first.levels, first.bits).copy()).to(device)
    out = levels[_codes(tensors, device)]
    out *= _per_weight([t.scale for t in tensors], first, device)
    if first.offset is not None:
        out += _per_weight([t.offset for t in tensors if t.offset is not None], first, device)
    if factors is not None:
        out *= torch.tensor(factors, dtype=torch.float32, device=device)[:, None]
    return out


def _codes(tensors: Sequence[Quantized], device: torch.device) -> torch.Tensor:
    """int64 [tensors, entries]; bit j of the stream is bit j mod 8 of byte j div 8, see `bits`."""
    first = tensors[0]
    used = (first.entries * first.bits + 7) // 8
    packed = torch.from_numpy(np.stack([t.packed[:used] for t in tensors])).to(device)
    if first.bits == 8:
        return packed.long()
    shifts = torch.arange(8, dtype=torch.uint8, device=device)
    planes = (packed[:, :, None] >> shifts) & 1
    stream = planes.reshape(len(tensors), -1)[:, : first.entries * first.bits]
    if first.bits == 1:
        return stream.long()
    weights = 1 << torch.arange(first.bits, device=device)
    return (stream.reshape(len(tensors), first.entries, first.bits) * weights).sum(dim=2)


def _per_weight(values: Sequence[np.ndarray], first: Quantized, device: torch.device) -> torch.Tensor:
    """One number per group, spread over its weights: float32 [tensors, 1 or entries]."""
    spread = torch.from_numpy(np.stack(values).astype(np.float32)).to(device)
    if spread.shape[1] == 1:
        return spread
    return spread.repeat_interleave(first.group, dim=1)[:, : first.entries]
