"""The numbers of an adapter as torch tensors, all at once, with each branch's scale already in them.

A column is expanded at once: on the CPU by numpy's table lookup, elsewhere from packed bits on the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from adapterpack.adapter import Head
from adapterpack.methods._base import Entries, transforms
from adapterpack.runtime.inflate import inflate_on
from adapterpack.runtime.plan import Step
from adapterpack.stacks import Column, DenseStack, QuantizedStack, stack_of
from adapterpack.tensors import Dense, Sparse, Tensor

Value = Any  # a torch tensor, or `Entries` of torch tensors


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """Tensors of one role, what to multiply them by, and whether sparse ones stay sparse."""

    column: Column
    factor: float = 1.0
    sparse: bool = False


def values_of(steps: Sequence[Step], head: Head | None, device: torch.device) -> list[dict[str, Value]]:
    """The tensors of every step by role, and of the head (last; empty where there is none), float32 on `device`.

    A sparse tensor that will be added into a parameter stays sparse, as `Entries`; elsewhere its zeros are written out.
    The memory is the caller's own, in few large blocks that all of them share.
    """
    kinds = [_kind(step) for step in steps]
    firsts = dict(zip(kinds, steps))
    wanted = [each for kind, step in firsts.items() for each in _wanted(step, sparse=kind[1])]
    wanted += [Wanted([tensor]) for tensor in ({} if head is None else head.tensors).values()]
    found = iter(expand(wanted, device))
    columns = {kind: {role: next(found) for role in step.roles} for kind, step in firsts.items()}
    out = [{role: column[step.number] for role, column in columns[kind].items()} for kind, step in zip(kinds, steps)]
    return [*out, {} if head is None else {role: next(found)[0] for role in head.tensors}]


def _kind(step: Step) -> tuple[int, bool]:
    """The step's group, and whether it is added into parameters."""
    return id(step.group), step.how in ("fold", "swap") and not (step.method.replaces or transforms(step.method))


def _wanted(step: Step, *, sparse: bool) -> Iterator[Wanted]:
    factor = step.params.get("scale", 1.0)
    for role, column in step.group.columns.items():
        yield Wanted(column, factor if role in step.method.scaled else 1.0, sparse)


def expand(wanted: Sequence[Wanted], device: torch.device) -> list[Sequence[Value]]:
    """Each column's tensors times its factor, float32 on `device`."""
    stacks = [stack_of(each.column) for each in wanted]
    here = [stack.room if isinstance(stack, QuantizedStack) and device.type == "cpu" else 0 for stack in stacks]
    room, at = np.empty(sum(here), np.float32), 0
    out: list[Sequence[Value]] = []
    for each, stack, size in zip(wanted, stacks, here):
        if stack is None:
            out.append([_expand_one(tensor, each, device) for tensor in each.column])
        elif isinstance(stack, DenseStack):
            out.append(torch.from_numpy(stack.inflate(each.factor)).to(device).unbind())
        elif size == 0:
            out.append(inflate_on(stack, device, each.factor).unbind())
        else:
            out.append(torch.from_numpy(stack.inflate(each.factor, room[at : at + size])).unbind())
            at += size
    return out


def _expand_one(tensor: Tensor, each: Wanted, device: torch.device) -> Value:
    if isinstance(tensor, Sparse) and each.sparse:
        positions = torch.from_numpy(np.array(tensor.positions, np.int64)).to(device)
        return Entries(positions, expand([Wanted([tensor.values], each.factor)], device)[0][0])
    plain = Dense(tensor.dense()) if isinstance(tensor, Sparse) else tensor
    return expand([Wanted([plain], each.factor)], device)[0][0]
