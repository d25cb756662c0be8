"""A task inflated for mixed batches: for each station of the twin, the parameters it changes and the branches it adds.

It holds what runs and nothing of the file: tensors on the backbone's device, branches in the backbone's dtype, what is
added into a parameter in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from adapterpack.adapter import Adapter, DataSettings
from adapterpack.methods._base import Entries
from adapterpack.runtime.places import Residual
from adapterpack.runtime.plan import Step, plan
from adapterpack.runtime.pool.gather import Stack, stacked
from adapterpack.runtime.pool.parts import Gain, Override, Part, Tensors
from adapterpack.runtime.pool.station import Station
from adapterpack.runtime.pool.twin import Twin
from adapterpack.runtime.values import Value, values_of


@dataclass(frozen=True, slots=True, eq=False)
class Ready:
    """One inflated task.

    Attributes:
        parts: by station.
        head: "weight" [classes, features] and perhaps "bias", in the backbone's dtype; empty where the backbone's own
            head answers.
        labels, data: as the file has them.
        stacks: its low-rank products, for gathering; empty where rows are multiplied a segment at a time.
        nbytes: memory of all tensors.
    """

    parts: Mapping[Station, Part]
    head: Tensors
    labels: tuple[str, ...] | None
    data: DataSettings | None
    stacks: tuple[Stack, ...]
    nbytes: int

    @property
    def changes_parameters(self) -> bool:
        return any(part.overrides for part in self.parts.values())

    @property
    def only_stacks(self) -> bool:
        """Whether its low-rank products, gathered, and its head are all that it is."""
        parts = self.parts.values()
        return not self.changes_parameters and all(gain.stacked for part in parts for gain in part.gains)


@dataclass(slots=True, eq=False)
class _Build:
    """A task while it is arranged."""

    twin: Twin
    like: torch.Tensor
    parts: dict[Station, Part] = field(default_factory=dict)

    def part(self, module: Any) -> Part:
        return self.parts.setdefault(self.twin.station(module), Part())


def mixed_plan(adapter: Adapter, twin: Twin) -> list[Step]:
    """How each branch goes into a mixed batch; checks all of it.

    A sparse update runs as another parameter and not as a dense product, which would take as long as the backbone's.

    Raises:
        AdapterPackError: as `plan`.
    """
    return [
        replace(step, how="swap") if step.how == "hook" and _is_sparse(step) else step
        for step in plan(adapter, twin.model, "never")
    ]


def _is_sparse(step: Step) -> bool:
    return step.method.name == "sparse" and all(step.place.has(role) for role in step.roles)


def make_ready(adapter: Adapter, twin: Twin, *, gather: bool) -> Ready:
    """Inflate a task.

    Args:
        adapter: decoded and checked against the backbone.
        twin: where it will run.
        gather: whether low-rank products of several tasks will be multiplied together.
    """
    like = next(twin.model.parameters())
    steps = mixed_plan(adapter, twin)
    *values, head = values_of(steps, adapter.head, like.device)
    build = _Build(twin, like)
    for step, tensors in zip(steps, values):
        _arrange(build, step, tensors)
    stacks = stacked(build.parts) if gather else ()
    placed = _cast(head, like)
    return Ready(build.parts, placed, adapter.labels, adapter.data, stacks, _nbytes(build.parts, placed))


def _arrange(build: _Build, step: Step, tensors: dict[str, Value]) -> None:
    method, params = step.method, step.params
    if isinstance(step.at, Residual):
        build.part(step.at.norm).reads = True
        source = build.twin.station(step.at.norm)
        gain = Gain(method, _cast(tensors, build.like), params, source=source, whole=step.at.whole)
        build.part(step.at.end).gains.append(gain)
        return
    part = build.part(step.place.module)
    if step.how == "hook":
        weight = step.place.module._parameters.get("weight")
        like = build.like if weight is None else weight
        part.gains.append(Gain(method, _cast(tensors, like), params, step.place.rows))
        return
    part.overrides.append(Override(step.place, method, _kept(step, tensors), params))


def _kept(step: Step, tensors: dict[str, Value]) -> dict[str, Value]:
    """What an override needs: values that will stand alone in the dtype of what they replace, deltas in float32."""
    if not step.method.replaces:
        return tensors
    return {role: _like(tensor, step.place.tensor(role)) for role, tensor in tensors.items()}


def _like(tensor: torch.Tensor, parameter: torch.Tensor | None) -> torch.Tensor:
    return tensor if parameter is None else tensor.to(parameter.device, parameter.dtype)


def _cast(tensors: Mapping[str, torch.Tensor], like: torch.Tensor) -> dict[str, torch.Tensor]:
    return {role: tensor.to(like.device, like.dtype) for role, tensor in tensors.items()}


def _nbytes(parts: Mapping[Station, Part], head: Tensors) -> int:
    held: list[Any] = [*head.values()]
    for part in parts.values():
        held += [tensor for gain in part.gains for tensor in gain.tensors.values()]
        held += [value for override in part.overrides for value in override.tensors.values()]
    return sum(v.positions.nbytes + v.values.nbytes if isinstance(v, Entries) else v.nbytes for v in held)
