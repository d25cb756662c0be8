"""Which matrices of a segment share a sign stream, and where its signs go: spec/codecs.md, "predictive-signs".

Part of the second reader; the streams themselves are read by `sign_reader`. What scales make of the signs is not known
here. The top bits of "predictive-codebook" are such signs too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import sign_reader
from reader_base import Given, Params, Sections, Shape, choose, codes, elements, fail, numel, packed_bytes

EXTRA = ("join", "lam", "pooled", "units")
SIGNS = 1 << 26


class Stream(NamedTuple):
    """One stream: its matrices' positions in the segment, by entry; how many entries are joined; its size."""

    entries: list[list[int]]
    join: int
    units: int  # of a matrix of the segment
    M: int
    C: int
    U: int
    padding: int

    @property
    def kinds(self) -> int:
        return len(self.entries[0])

    @property
    def members(self) -> list[int]:
        return sorted(i for entry in self.entries for i in entry)


def check_parameters(params: Params) -> None:
    choose(params, "join", tuple(range(65)))
    choose(params, "lam", tuple(range(1, 256)))
    choose(params, "pooled", (True, False))
    choose(params, "units", ("short", "rows"))


def decoded_bytes(shapes: list[Shape], params: Params, each: int = 6) -> int:
    streams = streams_of(shapes, params)
    largest = max(s.M * s.U * (48 * s.U + 4 * s.C + 4096) for s in streams)
    return each * elements(shapes) + largest + (1 << 20)


# --- layout -------------------------------------------------------------------------------------------------------


def rows_are_units(i: int, shape: Shape, params: Params) -> bool:
    rows, columns = shape
    return params["units"] == "rows" or rows < columns or (rows == columns and i % 2 == 0)


def streams_of(shapes: list[Shape], params: Params) -> list[Stream]:
    if elements(shapes) > SIGNS:
        fail("limit-exceeded", "too many signs in a segment")
    if not shapes or any(len(shape) != 2 for shape in shapes):
        fail("bad-shape", "a tensor that is no matrix")
    is_down = [rows_are_units(i, shape, params) for i, shape in enumerate(shapes)]
    sides = [shape if down else shape[::-1] for shape, down in zip(shapes, is_down)]  # (units, channels)
    if any(units > 16384 or channels > 4096 for units, channels in sides):
        fail("bad-shape", "a matrix with too many units or channels")
    groups: dict[tuple[int, Shape], list[list[int]]] = {}
    i = 0
    while i < len(shapes):
        pair = i + 1 < len(shapes) and sides[i] == sides[i + 1] and is_down[i] and not is_down[i + 1]
        entry = [i, i + 1] if pair and sides[i][0] <= 512 else [i]
        groups.setdefault((len(entry), sides[i]), []).append(entry)
        i += len(entry)
    return [
        stream
        for (_, (units, channels)), entries in groups.items()
        for stream in _cut(entries, units, channels, params["join"])
    ]


def _cut(entries: list[list[int]], units: int, channels: int, join: int) -> list[Stream]:
    """The streams of one group of entries."""
    if units > 512:
        return [_stream([entry], 1, units, channels) for entry in entries]
    join = min(join or len(entries), len(entries), 512 // units)
    whole = len(entries) - len(entries) % join
    longest = join * (128 // len(entries[0]))
    streams = []
    for start in range(0, whole, longest):
        streams.append(_stream(entries[start : min(start + longest, whole)], join, units, channels))
    if whole < len(entries):
        streams.append(_stream(entries[whole:], len(entries) - whole, units, channels))
    return streams


def _stream(entries: list[list[int]], join: int, units: int, C: int) -> Stream:
    M, U = len(entries[0]) * len(entries) // join, join * units
    if M > 1 or U <= 128:
        return Stream(entries, join, units, M, C, U, 0)
    parts = -(-U // 128)
    each = -(-U // parts)
    return Stream(entries, join, units, parts, C, each, parts * each - U)


def place(stream: Stream, index: int, kind: int, unit: int) -> tuple[int, int]:
    """Matrix and unit of the stream that hold a unit of a matrix: of the entry `index`, of this kind."""
    matrix = index // stream.join * stream.kinds + kind
    wide = index % stream.join * stream.units + unit
    return matrix + wide // stream.U, wide % stream.U  # beyond U only where a lone matrix was split


# --- payload ------------------------------------------------------------------------------------------------------


def cells(s: Stream, shapes: list[Shape], params: Params) -> Iterator[tuple[int, int, int, int, int]]:
    """Every sign of a stream: its matrix and place (row-major) in the segment; its matrix, channel and unit here."""
    for index, entry in enumerate(s.entries):
        for kind, i in enumerate(entry):
            rows, columns = shapes[i]
            is_down = rows_are_units(i, shapes[i], params)
            for k in range(rows * columns):
                row, column = divmod(k, columns)
                m, u = place(s, index, kind, row if is_down else column)
                yield i, k, m, column if is_down else row, u


def take(sections: Sections, shapes: list[Shape], params: Params, is_given: bool) -> list[tuple[Stream, bytes, bool]]:
    """Each stream with its stored bytes, and whether those are words (else plain bits)."""
    found = []
    for stream in streams_of(shapes, params):
        size = sections.number()
        plain = sum(packed_bytes(numel(shapes[i]), 1) for i in stream.members)
        if size and (size >= plain or (stream.U == 1 and not is_given)):
            fail("bad-stream", "a stream that saves nothing")
        found.append((stream, sections.take(size or plain), size > 0))
    return found


def unpack(taken: list[tuple[Stream, bytes, bool]], shapes: list[Shape], params: Params, given: Given) -> bytes:
    """The packed bits of all matrices, by position, as the codec `signs` stores them."""
    packed: dict[int, bytes] = {}
    for stream, data, is_coded in taken:
        if is_coded:
            packed |= _decoded(stream, data, shapes, params, given)
            continue
        for i in stream.members:
            size = packed_bytes(numel(shapes[i]), 1)
            packed[i], data = data[:size], data[size:]
    return b"".join(packed[i] for i in range(len(shapes)))


def joined(top: bytes, low: bytes, shapes: list[Shape], below: int) -> bytes:
    """The packed codes of all matrices, from their packed top bits and the packed rest of `below` bits each."""
    packed = b""
    for count in map(numel, shapes):
        size, low_size = packed_bytes(count, 1), packed_bytes(count, below)
        rows = zip(codes(top[:size], count, 1), codes(low[:low_size], count, below))
        stream = sum((high << below | rest) << i * (below + 1) for i, (high, rest) in enumerate(rows))
        packed += stream.to_bytes(packed_bytes(count, below + 1), "little")
        top, low = top[size:], low[low_size:]
    return packed


def least_bits(s: Stream, is_given: bool) -> int:
    """B: signs that are certain to take a bit."""
    if not is_given:
        return s.M * s.C + min(2, s.C) * (s.M * (s.U - 1) - s.padding)
    v = min(s.U, 8)
    return min(2, s.C) * (s.M * v - max(0, s.padding - s.U + v))


def _decoded(s: Stream, data: bytes, shapes: list[Shape], params: Params, given: Given) -> dict[int, bytes]:
    if len(data) < -(-least_bits(s, bool(given)) // 32) * 4:
        fail("bad-stream", "fewer words than any signs take")
    pooled = params["pooled"] and s.kinds == 2
    earlier = tuple(_laid_out(s, packed, shapes, params) for packed in given)
    try:
        signs = sign_reader.decode(data, s.M, s.C, s.U, params["lam"], pooled, s.kinds, s.padding, earlier)
    except sign_reader.BadStream as error:
        fail("bad-stream", str(error))
    found = {i: bytearray(packed_bytes(numel(shapes[i]), 1)) for i in s.members}
    for i, k, m, c, u in cells(s, shapes, params):
        found[i][k // 8] |= signs[m][c][u] << k % 8
    return {i: bytes(packed) for i, packed in found.items()}


def _laid_out(s: Stream, packed: Sequence[bytes], shapes: list[Shape], params: Params) -> sign_reader.Signs:
    """The signs of a given task in the places of this stream; padding is 0."""
    signs = [[[0] * s.U for _ in range(s.C)] for _ in range(s.M)]
    for i, k, m, c, u in cells(s, shapes, params):
        signs[m][c][u] = packed[i][k // 8] >> k % 8 & 1
    return signs
