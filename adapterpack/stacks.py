"""Tensors of one shape and form kept as one array, as files have them, to be decoded, verified and expanded at once.

Made, visited and expanded one by one, the fifty small matrices of a LoRA would take longer than it takes to read them.
A *run* is what sites have that differ in nothing but their name: the shapes of one site's tensors, and the number of
sites. A *column* is one role's tensors at all sites of a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Union

import numpy as np
from numpy.typing import NDArray

from adapterpack.tensors import DENSE_DTYPES, F32, U8, Dense, Quantized, Shape, Tensor, inflate, numel, room_of

Column = Sequence[Tensor]


@dataclass(frozen=True, slots=True)
class Run:
    """The shapes of one site's tensors, and how many sites have such."""

    shapes: tuple[Shape, ...]
    count: int


class _Rows(Sequence[Tensor]):
    """A sequence of tensors that are cut out when they are asked for."""

    __slots__ = ()

    def _row(self, number: int) -> Tensor:
        raise NotImplementedError

    def __getitem__(self, at: Any) -> Any:
        numbers = range(len(self))[at]
        return self._row(numbers) if isinstance(numbers, int) else [self._row(n) for n in numbers]


@dataclass(frozen=True, slots=True, eq=False)
class DenseStack(_Rows):
    """`Dense` tensors: data [tensors, *shape]."""

    data: NDArray[Any]
    dtype: str

    def __len__(self) -> int:
        return len(self.data)

    def _row(self, number: int) -> Dense:
        return Dense(self.data[number, ...], self.dtype)

    def content(self) -> list[NDArray[Any]]:
        """What the digest covers, a row a tensor."""
        return [self.data.astype(DENSE_DTYPES[self.dtype], copy=False).reshape(len(self), -1)]

    def inflate(self, factor: float = 1.0) -> F32:
        """float32 [tensors, *shape], newly made; see `tensors.inflate`."""
        values = np.array(Dense(self.data, self.dtype).dense(), np.float32)
        return values if factor == 1 else values * np.float32(factor)


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedStack(_Rows):
    """`Quantized` tensors: the first, which has the form; of all, packed [tensors, bytes], scale and offset
    [tensors, groups]."""

    first: Quantized
    packed: U8
    scale: NDArray[Any]
    offset: NDArray[Any] | None

    def __len__(self) -> int:
        return len(self.packed)

    def _row(self, number: int) -> Quantized:
        form, offset = self.first, None if self.offset is None else self.offset[number]
        packed, scale = self.packed[number], self.scale[number]
        return Quantized(form.shape, form.bits, form.levels, form.group, packed, scale, offset)

    def content(self) -> list[NDArray[Any]]:
        """What the digest covers, a row a tensor."""
        numbers = [self.scale] if self.offset is None else [self.scale, self.offset]
        return [self.packed, *(part.astype(part.dtype.newbyteorder("<"), copy=False) for part in numbers)]

    @property
    def room(self) -> int:
        """How many numbers `inflate` writes."""
        return len(self) * room_of(self.first)

    def inflate(self, factor: float = 1.0, room: F32 | None = None) -> F32:
        """float32 [tensors, *shape], in `room` or newly made; see `tensors.inflate`."""
        weights = inflate(self.first, self.packed, self.scale, self.offset, factor, room)
        return weights.reshape(len(self), *self.first.shape)


Stack = Union[DenseStack, QuantizedStack]


def stack_of(tensors: Column) -> Stack | None:
    """The tensors as one, copied unless they are one already; None where shapes or forms differ, or one is sparse."""
    if isinstance(tensors, (DenseStack, QuantizedStack)):
        return tensors
    if len(tensors) == 1 and isinstance(tensors[0], Dense):
        return DenseStack(tensors[0].data[None], tensors[0].dtype)
    dense = [t for t in tensors if isinstance(t, Dense)]
    coded = [t for t in tensors if isinstance(t, Quantized)]
    if len({t.shape for t in tensors}) != 1:
        return None
    if len(dense) == len(tensors) and len({t.dtype for t in dense}) == 1:
        return DenseStack(np.stack([t.data for t in dense]), dense[0].dtype)
    if len(coded) < len(tensors) or any(t.form() != coded[0].form() for t in coded):
        return None
    offset = None if coded[0].offset is None else np.stack([t.offset for t in coded if t.offset is not None])
    return QuantizedStack(coded[0], np.stack([t.packed for t in coded]), np.stack([t.scale for t in coded]), offset)


class Shapes(list[Shape]):
    """The shapes of a payload's tensors in file order, which knows its runs."""

    def __init__(self, runs: Iterable[Run]) -> None:
        super().__init__()
        self.runs = tuple(runs)
        for run in self.runs:
            self += run.shapes * run.count


def runs_of(shapes: Sequence[Shape]) -> tuple[Run, ...]:
    """The runs that shapes are known to have; those of a plain list are one site's."""
    return shapes.runs if isinstance(shapes, Shapes) else (Run(tuple(shapes), 1),)


def entries_of(shapes: Sequence[Shape]) -> int:
    """How many weights all tensors have together."""
    return sum(run.count * sum(map(numel, run.shapes)) for run in runs_of(shapes))


class Runs(Sequence[Tensor]):
    """A payload's tensors in file order, kept by run and column."""

    __slots__ = ("columns",)

    def __init__(self, columns: Sequence[Sequence[Column]]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return sum(len(column) for run in self.columns for column in run)

    def __iter__(self) -> Iterator[Tensor]:
        for run in self.columns:
            for site in zip(*run):
                yield from site

    def __getitem__(self, at: Any) -> Any:
        return list(self)[at]


def in_runs(tensors: Sequence[Tensor], shapes: Sequence[Shape]) -> Runs:
    """Tensors in file order, by run and column; `Runs` are taken to be cut by these shapes already."""
    if isinstance(tensors, Runs):
        return tensors
    columns, at = [], 0
    for run in runs_of(shapes):
        width = len(run.shapes)
        end = at + width * run.count
        columns.append([tensors[at + i : end : width] for i in range(width)])
        at = end
    return Runs(columns)


def group_content(columns: Sequence[Column]) -> Iterator[NDArray[Any]]:
    """What the digest covers of a group: site by site, the content of each role's tensor.

    Where a site's content is small, that of many sites is copied together: faster than to hand it out in parts.
    """
    stacks = [column for column in columns if isinstance(column, (DenseStack, QuantizedStack))]
    parts = [part for stack in stacks for part in stack.content()]
    width = sum(part.shape[1] * part.itemsize for part in parts)
    if len(stacks) == len(columns) and width < _SMALL:
        sites = _TOGETHER // max(width, 1)
        for start in range(0, len(columns[0]), sites):
            yield np.concatenate([_as_bytes(part[start : start + sites]) for part in parts], axis=1)
        return
    for site in zip(*columns):
        for tensor in site:
            yield from tensor.content()


_SMALL = 16_384  # bytes of a site: from here on, copying costs as much as it saves
_TOGETHER = 1 << 20  # bytes that are copied at a time


def _as_bytes(rows: NDArray[Any]) -> U8:
    return rows if rows.dtype == np.uint8 else np.ascontiguousarray(rows).view(np.uint8)
