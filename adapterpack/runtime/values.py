"""The numbers of an adapter as torch tensors, all at once, with each branch's scale already in them.

Tensors of one form are expanded together: on the CPU by numpy's table lookup, elsewhere from packed bits on the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Union

import numpy as np
import torch

from adapterpack.adapter import Head
from adapterpack.methods._base import Entries, transforms
from adapterpack.runtime.inflate import inflate_on
from adapterpack.runtime.plan import Step
from adapterpack.tensors import Dense, Quantized, Sparse, Tensor, inflate

Value = Any  # a torch tensor, or `Entries` of torch tensors
Wanted = tuple[Union[Dense, Quantized], float]


def values_of(steps: Sequence[Step], head: Head | None, device: torch.device) -> list[dict[str, Value]]:
    """The tensors of every step by role, and of the head (last; empty where there is none), float32 on `device`.

    A sparse tensor that will be added into a parameter stays sparse, as `Entries`; elsewhere its zeros are written out.
    """
    wanted: list[Wanted] = []
    sparse: dict[int, Sparse] = {}
    for step in steps:
        scaled, factor = step.method.scaled, step.branch.params.get("scale", 1.0)
        into = step.how in ("fold", "swap") and not (step.method.replaces or transforms(step.method))
        for role, tensor in step.branch.tensors.items():
            if isinstance(tensor, Sparse) and into:
                sparse[len(wanted)] = tensor
            wanted.append((_plain(tensor, into), factor if role in scaled else 1.0))
    roles: list[Iterable[str]] = [step.branch.tensors for step in steps]
    if head is not None:
        wanted += [(_plain(tensor, False), 1.0) for tensor in head.tensors.values()]
        roles.append(head.tensors)
    found: list[Value] = list(expand(wanted, device))
    for i, tensor in sparse.items():
        positions = torch.from_numpy(np.array(tensor.positions, np.int64)).to(device)
        found[i] = Entries(positions, found[i])
    flat = iter(found)
    out = [{role: next(flat) for role in names} for names in roles]
    return out if head is not None else [*out, {}]


def expand(wanted: Sequence[Wanted], device: torch.device) -> list[torch.Tensor]:
    """Each tensor times its factor, float32 on `device`; the memory is the caller's own."""
    out: list[torch.Tensor] = [torch.empty(0)] * len(wanted)
    together: list[int] = []
    for i, (tensor, factor) in enumerate(wanted):
        if type(tensor) is Quantized:
            together.append(i)
        else:
            values = np.array(tensor.dense(), np.float32)
            out[i] = torch.from_numpy(values * np.float32(factor) if factor != 1 else values).to(device)
    forms = [tensor for tensor, _ in wanted if isinstance(tensor, Quantized)]
    for i, weights in zip(together, _inflate(forms, device, [wanted[i][1] for i in together])):
        out[i] = weights
    return out


def _inflate(tensors: list[Quantized], device: torch.device, factors: list[float]) -> list[torch.Tensor]:
    if device.type != "cpu":
        return inflate_on(tensors, device, factors)
    return [torch.from_numpy(weights) for weights in inflate(tensors, factors)]


def _plain(tensor: Tensor, into: bool) -> Dense | Quantized:
    if not isinstance(tensor, Sparse):
        return tensor
    return tensor.values if into else Dense(tensor.dense())
