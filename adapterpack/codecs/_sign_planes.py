"""One bit plane of a segment's matrices as streams and plain bits, which both predictive codecs share.

For each stream of the layout: its length and its words, or 0 and the packed bits of its matrices.
Source: spec/codecs.md, "predictive-signs".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterpack.bits import pack, packed_bytes, padding_is_zero
from adapterpack.codecs._base import Given, Params, parameter
from adapterpack.codecs._sections import Reader, Writer
from adapterpack.codecs._sign_given import MAX_GIVEN, given_of
from adapterpack.codecs._sign_given import Given as GivenSigns
from adapterpack.codecs._sign_layout import ROWS, SHORT, Part, gather, plan, scatter
from adapterpack.codecs._sign_model import Implementation, decode_signs, encode_signs, implementation
from adapterpack.errors import CorruptFileError, Reason
from adapterpack.tensors import Quantized, Shape, numel

EXTRA = ("join", "lam", "pooled", "units")
MAX_SIGNS = 1 << 26  # a segment's; it bounds the time that a hostile stream can take to some seconds
U8 = NDArray[np.uint8]


def check_params(params: Params) -> None:
    """Check the parameters that a plane adds to a codec's own.

    Raises:
        CorruptFileError: `bad-parameter`.
    """
    parameter(params, "join", range(65))
    parameter(params, "lam", range(1, 256))
    parameter(params, "pooled", (True, False))
    parameter(params, "units", (SHORT, ROWS))


def working_bytes(shapes: Sequence[Shape], params: Params) -> int:
    """Memory that coding the largest stream needs, in bytes.

    Raises:
        CorruptFileError: `limit-exceeded`; `bad-shape` where the model does not apply.
    """
    return max((part.stream.working_bytes() for part in _parts(shapes, params)), default=0)


def write_plane(writer: Writer, rows: Sequence[Quantized], params: Params, given: Given = ()) -> None:
    """Append the bits of 1-bit matrices, given the same of earlier tasks."""
    shapes = [t.shape for t in rows]
    using = implementation(sum(t.entries for t in rows))
    earlier = _checked(given, shapes)
    for part in _parts(shapes, params):
        stream = encode_signs(_signs(rows, part), **_settings(part), given=_of_part(earlier, part), using=using)
        plain = [rows[k].packed.tobytes() for k in _members(part)]
        coded = len(stream) < sum(map(len, plain)) and _is_predictable(part, earlier)
        writer.number(len(stream) if coded else 0)
        for data in [stream] if coded else plain:
            writer.plain(data)


@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """A plane taken out of a payload, its streams not decoded yet (all sizes are checked before that work begins).

    Attributes:
        plain: packed bits of the matrices that are stored so.
        coded: the streams of the others.
        earlier: the matrices of each given task.
        count: how many matrices there are.
        signs: how many bits.
    """

    plain: dict[int, U8]
    coded: list[tuple[Part, memoryview]]
    earlier: list[list[Quantized]]
    count: int
    signs: int

    def decode(self) -> list[U8]:
        """The packed bits of each matrix, in file order.

        Raises:
            CorruptFileError: `bad-stream`.
        """
        using = implementation(self.signs)
        packed = dict(self.plain)
        for part, stream in self.coded:
            packed |= _decoded(part, stream, _of_part(self.earlier, part), using)
        return [packed[i] for i in range(self.count)]


def take_plane(reader: Reader, shapes: Sequence[Shape], params: Params, given: Given = ()) -> Plane:
    """The inverse of `write_plane`, up to decoding.

    Raises:
        CorruptFileError: `payload-size`, `padding-bits`, `bad-stream`, `bad-shape`, `limit-exceeded`.
    """
    earlier = _checked(given, shapes)
    plain: dict[int, U8] = {}
    coded: list[tuple[Part, memoryview]] = []
    for part in _parts(shapes, params):
        size = reader.number()
        if size:
            _require_gain(part, size, shapes, earlier)
            coded.append((part, reader.plain(size)))
        else:
            plain |= {k: _plain(reader, shapes[k]) for k in _members(part)}
    return Plane(plain, coded, earlier, len(shapes), sum(map(numel, shapes)))


def _parts(shapes: Sequence[Shape], params: Params) -> tuple[Part, ...]:
    """The streams of a segment.

    Raises:
        CorruptFileError: `limit-exceeded`; `bad-shape` where the model does not apply.
    """
    signs = sum(map(numel, shapes))
    if signs > MAX_SIGNS:
        raise CorruptFileError(f"{signs:,} signs in a segment, at most {MAX_SIGNS:,} are coded", Reason.LIMIT)
    parts = plan(shapes, params)
    if parts is None:
        raise CorruptFileError("predictive signs are for matrices only", Reason.BAD_SHAPE)
    for part in parts:
        part.stream.check()
    return parts


def _members(part: Part) -> list[int]:
    """The part's matrices by their place in the segment, ascending."""
    return sorted(i for entry in part.entries for i in entry)


def _signs(rows: Sequence[Quantized], part: Part) -> U8:
    return gather({i: rows[i].codes().reshape(rows[i].shape) for i in _members(part)}, part)


def _checked(given: Given, shapes: Sequence[Shape]) -> list[list[Quantized]]:
    """The given tensors.

    Raises:
        CorruptFileError: `bad-shape` where they are no signs of these shapes; `limit-exceeded`.
    """
    if len(given) > MAX_GIVEN:
        raise CorruptFileError(f"{len(given)} given tasks, at most {MAX_GIVEN} are used", Reason.LIMIT)
    found = [[t for t in tensors if isinstance(t, Quantized) and t.bits == 1] for tensors in given]
    for tensors, rows in zip(given, found):
        if [t.shape for t in rows] != list(shapes) or len(rows) != len(tensors):
            raise CorruptFileError("a given task has no signs of the same shapes", Reason.BAD_SHAPE)
    return found


def _of_part(earlier: Sequence[Sequence[Quantized]], part: Part) -> GivenSigns | None:
    """What the given tasks have in the place of one stream; unpacked task by task, for the memory's sake."""
    return given_of(part.stream, (_signs(rows, part) for rows in earlier))


def _settings(part: Part) -> dict[str, Any]:
    s = part.stream
    return {"lam": s.lam, "pooled": s.pooled, "kinds": s.kinds, "padding": s.padding}


def _is_predictable(part: Part, earlier: Sequence[Any]) -> bool:
    """A single unit has nothing to be predicted from but given tasks."""
    return part.stream.units > 1 or bool(earlier)


def _require_gain(part: Part, size: int, shapes: Sequence[Shape], earlier: Sequence[Any]) -> None:
    """A stream is coded only where that is smaller, so that there is one way to write it.

    Raises:
        CorruptFileError: `bad-stream`.
    """
    plain = sum(packed_bytes(numel(shapes[i]), 1) for i in _members(part))
    if size >= plain or not _is_predictable(part, earlier):
        raise CorruptFileError(f"a stream of {size:,} bytes for signs that take {plain:,}", Reason.BAD_STREAM)


def _plain(reader: Reader, shape: Shape) -> U8:
    count = numel(shape)
    packed = np.frombuffer(reader.plain(packed_bytes(count, 1)), np.uint8)
    if not padding_is_zero(packed, count, 1):
        raise CorruptFileError("pad bits after the last sign are not zero", Reason.PADDING_BITS)
    return packed


def _decoded(part: Part, stream: memoryview, given: GivenSigns | None, using: Implementation) -> dict[int, U8]:
    s = part.stream
    signs = decode_signs(stream, s.matrices, s.channels, s.units, **_settings(part), given=given, using=using)
    return {i: pack(matrix.reshape(-1), 1) for i, matrix in scatter(signs, part).items()}
