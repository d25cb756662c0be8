"""The numbers of an adapter as torch tensors, all at once, with each branch's scale already in them.

Tensors of one form are expanded together: on the CPU by numpy's table lookup, elsewhere from packed bits on the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from adapterpack.adapter import Head
from adapterpack.methods._base import Entries, transforms
from adapterpack.runtime.inflate import inflate_on
from adapterpack.runtime.plan import Step
from adapterpack.tensors import Dense, Quantized, Sparse, Tensor, inflate_stacks

Value = Any  # a torch tensor, or `Entries` of torch tensors


def values_of(steps: Sequence[Step], head: Head | None, device: torch.device) -> list[dict[str, Value]]:
    """The tensors of every step by role, and of the head (last; empty where there is none), float32 on `device`.

    A sparse tensor that will be added into a parameter stays sparse, as `Entries`; elsewhere its zeros are written out.
    """
    wanted: list[Tensor] = []
    factors: list[float] = []
    for step in steps:
        scaled, factor = step.method.scaled, step.branch.params.get("scale", 1.0)
        into = step.how in ("fold", "swap") and not (step.method.replaces or transforms(step.method))
        for role, tensor in step.branch.tensors.items():
            wanted.append(Dense(tensor.dense()) if isinstance(tensor, Sparse) and not into else tensor)
            factors.append(factor if role in scaled else 1.0)
    roles: list[Iterable[str]] = [step.branch.tensors for step in steps]
    if head is not None:
        wanted += [Dense(t.dense()) if isinstance(t, Sparse) else t for t in head.tensors.values()]
        factors += [1.0] * len(head.tensors)
        roles.append(head.tensors)
    flat = iter(expand(wanted, factors, device))
    out = [{role: next(flat) for role in names} for names in roles]
    return out if head is not None else [*out, {}]


def expand(wanted: Sequence[Tensor], factors: Sequence[float], device: torch.device) -> list[Value]:
    """Each tensor times its factor, float32 on `device`, a sparse one as `Entries`; the memory is the caller's own."""
    out: list[Value] = [None] * len(wanted)
    codes: dict[int, Quantized] = {}
    for i, tensor in enumerate(wanted):
        if isinstance(tensor, Quantized):
            codes[i] = tensor
        elif isinstance(tensor, Sparse):
            positions = torch.from_numpy(np.array(tensor.positions, np.int64)).to(device)
            out[i] = Entries(positions, expand([tensor.values], [factors[i]], device)[0])
        else:
            values = np.array(tensor.dense(), np.float32)
            out[i] = torch.from_numpy(values * np.float32(factors[i]) if factors[i] != 1 else values).to(device)
    where = list(codes)
    for places, stack in _inflate(list(codes.values()), [factors[i] for i in where], device):
        for place, weights in zip(places, stack.unbind()):
            out[where[place]] = weights
    return out


def _inflate(
    tensors: list[Quantized], factors: list[float], device: torch.device
) -> Iterator[tuple[list[int], torch.Tensor]]:
    if device.type != "cpu":
        return inflate_on(tensors, device, factors)
    return ((places, torch.from_numpy(stack)) for places, stack in inflate_stacks(tensors, factors))
