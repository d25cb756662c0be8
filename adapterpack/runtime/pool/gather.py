"""Low-rank products of many tasks in few launches: one gather a batch, one `bmm` down and one up for each range.

What a GPU wants, where a launch costs more than a segment's arithmetic; on a CPU a product a segment is as fast and
needs no copies. It runs on either, so that either can test it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from adapterpack.runtime.pool.parts import Gain, Part, Product, Rows
from adapterpack.runtime.pool.station import Station

Columns = tuple[Rows, int]  # a range of columns and the rank that writes to it
Form = tuple[tuple[Station, ...], tuple[Columns, ...], tuple[int, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """One task's low-rank products of one form at several stations.

    Attributes:
        form: the stations, their ranges of columns, and the sizes; tasks of one form are gathered together.
        down: [stations, R, in].
        ups: for each range, transposed: [stations, r, out].
    """

    form: Form
    down: torch.Tensor
    ups: tuple[torch.Tensor, ...]


def stacked(parts: dict[Station, Part]) -> tuple[Stack, ...]:
    """A task's stacks; its branches become views of them, so that nothing is held twice."""
    alike: dict[tuple[object, ...], list[Station]] = {}
    for station, part in parts.items():
        low = _low_rank(part)
        if low:
            alike.setdefault(_shape(low), []).append(station)
    return tuple(_stack(stations, parts) for stations in alike.values())


def products(ready: Sequence[tuple[int, int, Sequence[Stack]]]) -> dict[Station, list[Product]]:
    """What each station multiplies for a sorted batch.

    Args:
        ready: (start, stop, the task's stacks) of each segment, in order.
    """
    found: dict[Station, list[Product]] = {}
    for _, run in _runs(ready):
        for station, product in at_stations(run[0][0], run[-1][1], spread(run)):
            found.setdefault(station, []).append(product)
    return found


def spread(run: Sequence[tuple[int, int, Stack]], room: Stack | None = None) -> Stack:
    """The factors of every row of neighbouring segments: a stack with one dimension more, the rows, which come first.

    Args:
        run: (start, stop, the task's stack) of each segment, all of one form.
        room: where to write them; None for new memory.
    """
    counts = torch.tensor([stop - start for start, stop, _ in run])
    index = torch.repeat_interleave(torch.arange(len(run)), counts).to(run[0][2].down.device)

    def rows(parts: Sequence[torch.Tensor], out: torch.Tensor | None) -> torch.Tensor:
        return torch.index_select(torch.stack(list(parts)), 0, index, out=out)

    into = [None] * len(run[0][2].ups) if room is None else room.ups
    down = rows([stack.down for _, _, stack in run], None if room is None else room.down)
    ups = [rows(parts, out) for parts, out in zip(zip(*(stack.ups for _, _, stack in run)), into)]
    return Stack(run[0][2].form, down, tuple(ups))


def at_stations(start: int, stop: int, rows: Stack) -> Iterator[tuple[Station, Product]]:
    """What each station of a form multiplies for these rows of a batch.

    Args:
        start, stop: the rows.
        rows: their factors, from `spread`.
    """
    stations, ranges, _ = rows.form
    for i, station in enumerate(stations):
        pieces = [(columns, up[:, i]) for (columns, _), up in zip(ranges, rows.ups)]
        yield station, Product(start, stop, rows.down[:, i], pieces)


def order_key(stacks: Sequence[Stack]) -> tuple[int, ...]:
    """Sorts tasks so that those of one form are neighbours."""
    return tuple(hash(stack.form) for stack in stacks)


def _runs(ready: Sequence[tuple[int, int, Sequence[Stack]]]) -> list[tuple[Form, list[tuple[int, int, Stack]]]]:
    """Neighbouring segments with a stack of one form."""
    found: list[tuple[Form, list[tuple[int, int, Stack]]]] = []
    open_: dict[Form, list[tuple[int, int, Stack]]] = {}
    for start, stop, stacks in ready:
        mine = {stack.form: stack for stack in stacks}
        open_ = {form: run for form, run in open_.items() if form in mine}
        for form, stack in mine.items():
            if form not in open_:
                open_[form] = []
                found.append((form, open_[form]))
            open_[form].append((start, stop, stack))
    return found


def _low_rank(part: Part) -> list[Gain]:
    return [gain for gain in part.gains if gain.method.name == "lora"]


def _shape(low: Sequence[Gain]) -> tuple[object, ...]:
    return tuple((gain.rows, gain.tensors["up"].shape, gain.tensors["down"].shape) for gain in low)


def _stack(stations: Sequence[Station], parts: Mapping[Station, Part]) -> Stack:
    low = [_low_rank(parts[station]) for station in stations]
    down = torch.stack([torch.cat([gain.tensors["down"] for gain in gains]) for gains in low])
    ups = tuple(torch.stack([gain.tensors["up"].T for gain in gains]) for gains in zip(*low))
    columns = tuple((gain.rows, up.shape[1]) for gain, up in zip(low[0], ups))
    sizes = (down.shape[2], *(up.shape[2] for up in ups))
    stack = Stack((tuple(stations), columns, sizes), down, ups)
    for i, station in enumerate(stations):
        _use_views(parts[station], stack, i)
    return stack


def _use_views(part: Part, stack: Stack, number: int) -> None:
    at, which = 0, 0
    for i, gain in enumerate(part.gains):
        if gain.method.name == "lora":
            rank = stack.ups[which].shape[1]
            tensors = {"down": stack.down[number, at : at + rank], "up": stack.ups[which][number].T}
            part.gains[i] = replace(gain, tensors=tensors, stacked=True)
            at, which = at + rank, which + 1
