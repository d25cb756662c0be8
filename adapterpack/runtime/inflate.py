"""Quantized tensors to weights on another device: the packed bits travel, and are expanded where they are used.

Every weight goes through the float32 roundings of `tensors.inflate` in the same order, so both agree to the bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adapterpack.codebooks import levels_of
from adapterpack.stacks import QuantizedStack
from adapterpack.tensors import numel


def inflate_on(stack: QuantizedStack, device: torch.device, factor: float = 1.0) -> torch.Tensor:
    """The weights of a stack.

    Args:
        stack: of any form.
        device: where the result is.
        factor: multiplies every weight, rounded once after the weight itself.

    Returns:
        float32 [tensors, *shape].
    """
    entries = numel(stack.shape)
    if not entries or not len(stack):
        return torch.empty((len(stack), *stack.shape), device=device)
    levels = torch.from_numpy(levels_of(stack.levels, stack.bits).copy()).to(device)
    out = levels[_codes(stack, device)]
    out *= _per_weight(stack.scale, stack.group, entries, device)
    if stack.offset is not None:
        out += _per_weight(stack.offset, stack.group, entries, device)
    if factor != 1:
        out *= torch.tensor(factor, dtype=torch.float32, device=device)
    return out.reshape(len(stack), *stack.shape)


def _codes(stack: QuantizedStack, device: torch.device) -> torch.Tensor:
    """int64 [tensors, entries]; bit j of the stream is bit j mod 8 of byte j div 8, see `bits`."""
    entries = numel(stack.shape)
    packed = torch.from_numpy(np.array(stack.packed)).to(device)
    if stack.bits == 8:
        return packed.long()
    shifts = torch.arange(8, dtype=torch.uint8, device=device)
    planes = (packed[:, :, None] >> shifts) & 1
    stream = planes.reshape(len(stack), -1)[:, : entries * stack.bits]
    if stack.bits == 1:
        return stream.long()
    weights = 1 << torch.arange(stack.bits, device=device)
    return (stream.reshape(len(stack), entries, stack.bits) * weights).sum(dim=2)


def _per_weight(values: NDArray[Any], group: int, entries: int, device: torch.device) -> torch.Tensor:
    """One number per group, spread over its weights: float32 [tensors, 1 or entries]."""
    spread = torch.from_numpy(np.array(values, np.float32)).to(device)
    if spread.shape[1] == 1:
        return spread
    return spread.repeat_interleave(group, dim=1)[:, :entries]
