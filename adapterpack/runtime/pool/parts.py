"""What a task changes in one place, and which rows of a batch are whose: plain records between the pool's modules.

A place is named by its station, of which only its identity matters here.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from adapterpack.methods._base import Method, Params
from adapterpack.runtime.places import Place

Tensors = Mapping[str, torch.Tensor]
Rows = tuple[int, int] | None


@dataclass(frozen=True, slots=True, eq=False)
class Override:
    """A branch that makes a module's parameters other ones for a task.

    Attributes:
        place: in the twin.
        method, params: the branch.
        tensors: what is added into a parameter in float32; what replaces one in the parameter's own dtype.
    """

    place: Place
    method: Method
    tensors: Mapping[str, Any]
    params: Params


@dataclass(frozen=True, slots=True, eq=False)
class Gain:
    """What a task's branch adds to a module's output.

    Attributes:
        method, tensors, params: the branch, its scale in the tensors, in the backbone's dtype.
        rows: the columns that it writes, None for all.
        source: for a branch on the residual stream, the station whose input it reads.
        whole: whether the module's output is the stream behind, and not only what is added to it.
        stacked: True where it is part of a `Stack` too.
    """

    method: Method
    tensors: Tensors
    params: Params
    rows: Rows = None
    source: Hashable = None
    whole: bool = False
    stacked: bool = False


@dataclass(slots=True, eq=False)
class Part:
    """What a task changes at one station."""

    overrides: list[Override] = field(default_factory=list)
    gains: list[Gain] = field(default_factory=list)
    reads: bool = False

    @property
    def shifts(self) -> bool:
        """Whether a bias is all that is another one."""
        return bool(self.overrides) and all(override.tensors.keys() == {"bias"} for override in self.overrides)


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """The rows of one task in a sorted batch."""

    start: int
    stop: int
    parts: Mapping[Any, Part]


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """Low-rank products of several tasks at one station, a matrix pair a row of the batch.

    Attributes:
        start, stop: the rows.
        down: [rows, R, in], the tasks' `down` of all the columns below, one after another.
        ups: for each range of columns, `up` transposed: [rows, r, out].
    """

    start: int
    stop: int
    down: torch.Tensor
    ups: Sequence[tuple[Rows, torch.Tensor]]
