"""The numbers of an adapter as torch tensors, all at once, with each branch's scale already in them.

A column is expanded at once: on the CPU by numpy's table lookup, elsewhere from packed bits on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from adapterpack.adapter import Head
from adapterpack.methods import METHODS
from adapterpack.methods._base import Entries
from adapterpack.runtime.inflate import inflate_on
from adapterpack.runtime.plan import Step
from adapterpack.stacks import Column, DenseStack, QuantizedStack, stack_of
from adapterpack.tensors import F32, Dense, Sparse, Tensor

Value = Any  # a torch tensor, or `Entries` of torch tensors


def values_of(steps: Sequence[Step], head: Head | None, device: torch.device) -> list[dict[str, Value]]:
    """The tensors of every step by role, and of the head (last; empty where there is none), float32 on `device`.

    What `sparse` adds into a parameter stays sparse, as `Entries`; elsewhere the zeros of sparse tensors are written
    out. The memory is the caller's own; on the CPU the quantized tensors of a group share one block of it, which costs
    a fraction of the page faults of many.
    """
    made: dict[tuple[int, bool], list[dict[str, Value]]] = {}
    out: list[dict[str, Value]] = []
    for step in steps:
        sparse = step.how in ("fold", "swap") and step.method is METHODS["sparse"]
        kind = id(step.group), sparse
        if kind not in made:
            columns = _columns(step, device, sparse=sparse)
            made[kind] = [dict(zip(columns, site)) for site in zip(*columns.values())]
        out.append(made[kind][step.number])
    parts = {} if head is None else head.tensors
    return [*out, {role: _alone(tensor, device) for role, tensor in parts.items()}]


def _alone(tensor: Tensor, device: torch.device) -> torch.Tensor:
    """One tensor, float32 on `device`, in memory of its own."""
    if device.type == "cpu":
        values = tensor.dense()
        return torch.from_numpy(np.array(values) if isinstance(tensor, Dense) else values)
    found: torch.Tensor = expand([tensor], 1.0, device)[0]
    return found


def _columns(step: Step, device: torch.device, *, sparse: bool) -> dict[str, Sequence[Value]]:
    """The tensors of all sites of a step's group, by role."""
    columns: dict[str, Column] = {role: stack_of(column) or column for role, column in step.group.columns.items()}
    sizes = [column.room if isinstance(column, QuantizedStack) else 0 for column in columns.values()]
    room = np.empty(sum(sizes) if device.type == "cpu" else 0, np.float32)
    found: dict[str, Sequence[Value]] = {}
    for (role, column), size in zip(columns.items(), sizes):
        factor = step.params.get("scale", 1.0) if role in step.method.scaled else 1.0
        here, room = room[:size], room[size:]
        found[role] = expand(column, factor, device, sparse=sparse, room=here)
    return found


def expand(
    column: Column, factor: float, device: torch.device, *, sparse: bool = False, room: F32 | None = None
) -> Sequence[Value]:
    """Tensors times a factor, float32 on `device`; with `sparse`, sparse ones as `Entries`."""
    stack = stack_of(column)
    if stack is None:
        return [_expand_one(tensor, factor, device, sparse=sparse) for tensor in column]
    if isinstance(stack, QuantizedStack) and device.type != "cpu":
        return inflate_on(stack, device, factor).unbind()
    rows = stack.inflate(factor) if isinstance(stack, DenseStack) else stack.inflate(factor, room)
    if device.type != "cpu" or rows.ndim == 1:  # rows of no dimension, which numpy gives as plain numbers
        return torch.from_numpy(rows).to(device).unbind()
    return list(map(torch.from_numpy, rows))  # a storage each: pickle writes the whole storage of every view


def _expand_one(tensor: Tensor, factor: float, device: torch.device, *, sparse: bool) -> Value:
    if isinstance(tensor, Sparse) and sparse:
        positions = torch.from_numpy(np.array(tensor.positions, np.int64)).to(device)
        return Entries(positions, expand([tensor.values], factor, device)[0])
    return expand([Dense(tensor.dense()) if isinstance(tensor, Sparse) else tensor], factor, device)[0]
