"""Which matrices of a segment share a sign stream, and how their rows and columns become units and channels.

A pure function of shapes and parameters, so a reader finds the same layout as the writer. It knows shapes only: neither
methods nor roles, and nothing of the model that codes the streams.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterpack.codecs._sign_stream import Stream
from adapterpack.codecs._sign_tables import MAX_CHANNELS, MAX_MATRICES, MAX_UNITS

U8 = NDArray[np.uint8]
Shape = tuple[int, ...]

SHORT, ROWS = "short", "rows"
SPLIT_UNITS = 128  # a lone matrix with more units is split
FEW_UNITS = 8  # below this a matrix alone has too little to predict from, and all are joined


@dataclass(frozen=True, slots=True)
class Part:
    """One stream of a segment.

    Attributes:
        entries: positions, in the segment, of its matrices: pairs (down, up) that learn from each other, or singles.
        join: how many consecutive entries become one matrix.
        transposed: positions of those whose rows are the units.
        units: of one matrix of the segment.
        stream: shape and parameters of the stream.
    """

    entries: tuple[tuple[int, ...], ...]
    join: int
    transposed: frozenset[int]
    units: int
    stream: Stream


def branch_params(shapes: Sequence[Shape], join: int | None = None) -> dict[str, Any]:
    """The recommended parameters for the matrices of branches, in file order: down, up, down, up, …

    Args:
        shapes: of all matrices.
        join: pairs joined into one matrix, 0 for all. By default 1, or all where a matrix has fewer than 8 units;
            2 saves another percent for AdaptFormer and costs half as much time again.
    """
    units = min((min(shape, default=1) for shape in shapes), default=1)
    if join is None:
        join = 1 if units >= FEW_UNITS else 0
    lam = {0: 120, 1: 40}.get(join, 90)
    return {"join": join, "lam": lam, "pooled": join > 0, "units": SHORT}


def head_params() -> dict[str, Any]:
    """The recommended parameters for heads [classes × channels]."""
    return {"join": 1, "lam": 40, "pooled": False, "units": ROWS}


def plan(shapes: Sequence[Shape], params: Mapping[str, Any]) -> tuple[Part, ...] | None:
    """The streams of a segment, or None where the model does not apply and plain signs are to be used.

    Args:
        shapes: of all matrices, in file order.
        params: "join" (0 = all), "lam", "pooled", and "units": "rows", or "short" for the shorter side of each matrix
            (of a square one the rows if its position is even). Pooling is for pairs; without any it has no effect.
    """
    if not shapes or any(len(shape) != 2 or min(shape) < 1 for shape in shapes):
        return None
    rows_are_units = frozenset(
        i for i, (rows, columns) in enumerate(shapes)
        if params["units"] == ROWS or rows < columns or (rows == columns and i % 2 == 0)
    )  # fmt: skip
    oriented = [(r, c) if i in rows_are_units else (c, r) for i, (r, c) in enumerate(shapes)]
    if any(units > MAX_MATRICES * SPLIT_UNITS or channels > MAX_CHANNELS for units, channels in oriented):
        return None
    groups: dict[tuple[int, int, int], list[tuple[int, ...]]] = {}
    for entry in _entries(oriented, rows_are_units):
        groups.setdefault((len(entry), *oriented[entry[0]]), []).append(entry)
    parts = []
    for (_, units, channels), entries in groups.items():
        for run, join in _runs(entries, units, params["join"]):
            parts.append(_part(run, join, units, channels, rows_are_units, params))
    return tuple(parts)


def _entries(oriented: Sequence[tuple[int, int]], rows_are_units: frozenset[int]) -> list[tuple[int, ...]]:
    """Neighbours of equal units and channels, the first [units × channels] and the second the other way, are pairs."""
    entries: list[tuple[int, ...]] = []
    i = 0
    while i < len(oriented):
        is_pair = (
            i + 1 < len(oriented)
            and oriented[i] == oriented[i + 1]
            and oriented[i][0] <= MAX_UNITS
            and i in rows_are_units
            and i + 1 not in rows_are_units
        )
        entries.append((i, i + 1) if is_pair else (i,))
        i += len(entries[-1])
    return entries


def _runs(entries: list[tuple[int, ...]], units: int, join: int) -> list[tuple[tuple[tuple[int, ...], ...], int]]:
    """Entries of one stream each, within the limits, with how many of them are joined."""
    if units > MAX_UNITS:
        return [((entry,), 1) for entry in entries]
    join = min(join or len(entries), len(entries), MAX_UNITS // units)
    longest = join * (MAX_MATRICES // len(entries[0]))
    whole = len(entries) // join * join
    runs = [(tuple(entries[k : min(k + longest, whole)]), join) for k in range(0, whole, longest)]
    if whole < len(entries):
        runs.append((tuple(entries[whole:]), len(entries) - whole))
    return runs


def _part(
    entries: tuple[tuple[int, ...], ...], join: int, units: int, channels: int,
    rows_are_units: frozenset[int], params: Mapping[str, Any],
) -> Part:  # fmt: skip
    kinds = len(entries[0])
    matrices, wide, padding = kinds * len(entries) // join, units * join, 0
    if matrices == 1 and wide > SPLIT_UNITS:
        matrices = -(-wide // SPLIT_UNITS)
        wide = -(-units * join // matrices)
        padding = matrices * wide - units * join
    stream = Stream(matrices, channels, wide, params["lam"], bool(params["pooled"]) and kinds == 2, kinds, padding)
    transposed = rows_are_units.intersection(i for entry in entries for i in entry)
    return Part(entries, join, transposed, units, stream)


def to_streams(matrices: Sequence[U8], parts: Sequence[Part]) -> list[U8]:
    """Bits of the matrices of a segment, each uint8 with its own shape, to signs uint8 [M, C, U] of each part."""
    return [gather(matrices, part) for part in parts]


def gather(matrices: Sequence[U8] | Mapping[int, U8], part: Part) -> U8:
    """The same of one part; only its own matrices are looked at."""
    stream, joined = part.stream, []
    for k in range(0, len(part.entries), part.join):
        for kind in range(len(part.entries[0])):
            members = [entry[kind] for entry in part.entries[k : k + part.join]]
            joined.append(np.hstack([matrices[i].T if i in part.transposed else matrices[i] for i in members]))
    if len(joined) == stream.matrices:
        return np.stack(joined)
    padded = np.pad(joined[0], ((0, 0), (0, stream.padding)))
    return np.ascontiguousarray(padded.reshape(stream.channels, stream.matrices, stream.units).transpose(1, 0, 2))


def from_streams(streams: Sequence[U8], parts: Sequence[Part]) -> list[U8]:
    """The inverse of `to_streams`: bits of each matrix of the segment, C-contiguous, in file order."""
    found: dict[int, U8] = {}
    for signs, part in zip(streams, parts):
        found.update(scatter(signs, part))
    return [found[i] for i in range(len(found))]


def scatter(signs: U8, part: Part) -> dict[int, U8]:
    """Signs [M, C, U] of one part to the bits of its matrices, C-contiguous, by their position in the segment."""
    stream, kinds, found = part.stream, len(part.entries[0]), {}
    if stream.matrices != kinds * len(part.entries) // part.join:  # a lone matrix that was split
        signs = signs.transpose(1, 0, 2).reshape(1, stream.channels, -1)
    for position, entry in enumerate(part.entries):
        first = position % part.join * part.units
        for kind, i in enumerate(entry):
            matrix = signs[position // part.join * kinds + kind, :, first : first + part.units]
            found[i] = np.ascontiguousarray(matrix.T if i in part.transposed else matrix)
    return found
