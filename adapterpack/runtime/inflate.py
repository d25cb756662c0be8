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
from adapterpack.tensors import Quantized


def inflate_on(stack: QuantizedStack, device: torch.device, factor: float = 1.0) -> torch.Tensor:
    """The weights of a stack.

    Args:
        stack: of any form.
        device: where the result is.
        factor: multiplies every weight, rounded once after the weight itself.

    Returns:
        float32 [tensors, *shape].
    """
    form = stack.first
    if not form.entries:
        return torch.empty((len(stack), *form.shape), device=device)
    levels = torch.from_numpy(levels_of(form.levels, form.bits).copy()).to(device)
    out = levels[_codes(stack, device)]
    out *= _per_weight(stack.scale, form, device)
    if stack.offset is not None:
        out += _per_weight(stack.offset, form, device)
    if factor != 1:
        out *= torch.tensor(factor, dtype=torch.float32, device=device)
    return out.reshape(len(stack), *form.shape)


def _codes(stack: QuantizedStack, device: torch.device) -> torch.Tensor:
    """int64 [tensors, entries]; bit j of the stream is bit j mod 8 of byte j div 8, see `bits`."""
    bits, entries = stack.first.bits, stack.first.entries
    packed = torch.from_numpy(np.array(stack.packed)).to(device)
    if bits == 8:
        return packed.long()
    shifts = torch.arange(8, dtype=torch.uint8, device=device)
    planes = (packed[:, :, None] >> shifts) & 1
    stream = planes.reshape(len(stack), -1)[:, : entries * bits]
    if bits == 1:
        return stream.long()
    weights = 1 << torch.arange(bits, device=device)
    return (stream.reshape(len(stack), entries, bits) * weights).sum(dim=2)


def _per_weight(values: NDArray[Any], form: Quantized, device: torch.device) -> torch.Tensor:
    """One number per group, spread over its weights: float32 [tensors, 1 or entries]."""
    spread = torch.from_numpy(np.array(values, np.float32)).to(device)
    if spread.shape[1] == 1:
        return spread
    return spread.repeat_interleave(form.group, dim=1)[:, : form.entries]
