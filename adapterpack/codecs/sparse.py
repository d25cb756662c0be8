"""Codec `sparse`: positions as Rice-coded gaps, values through another codec.

Parameters: entries (in all tensors together), compression, values (`{"codec": name, …its parameters}`).
Payload: a count a tensor, a Rice parameter a tensor, the gaps' low bits, their high parts in unary, the values.
Gaps of evenly scattered positions are geometric, for which Rice codes are within 0.03 bits of the entropy.
Source: SPT's unstructured part (He et al. 2023); Golomb 1966, Rice 1979; spec/codecs.md, "sparse".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterpack.bits import pack, packed_bytes, padding_is_zero, unpack_wide
from adapterpack.codecs._base import Codec, Given, Params, only, parameter
from adapterpack.codecs._sections import COMPRESSIONS, Reader, Writer
from adapterpack.codecs.codebook import Codebook
from adapterpack.codecs.raw import Raw
from adapterpack.codecs.signs import Signs
from adapterpack.errors import CallError, CorruptFileError, Reason
from adapterpack.tensors import Shape, Sparse, Tensor, numel

MAX_RICE = 31
VALUE_CODECS: Mapping[str, Codec] = {codec.name: codec for codec in (Raw(), Signs(), Codebook())}
Gaps = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SparseEntries:
    """Sparse tensors whose values have one form."""

    name: str = "sparse"
    takes_given: bool = False

    def form(self, params: Params) -> dict[str, Any]:
        only(params, ("entries", "compression", "values"))
        parameter(params, "compression", COMPRESSIONS)
        entries = params.get("entries")
        if type(entries) is not int or entries < 0:
            raise CorruptFileError(f"entries is {entries!r}", Reason.BAD_PARAMETER, hint="expected a count")
        codec, inner = _values(params)
        return {"sparse": codec.form(inner)}

    def decoded_bytes(self, shapes: Sequence[Shape], params: Params) -> int:
        return 32 * int(params["entries"]) + 16 * len(shapes)

    def payload_bytes(self, shapes: Sequence[Shape], params: Params) -> int | None:
        return None

    def encode(self, tensors: Sequence[Tensor], params: Params, given: Given = ()) -> bytes:
        rows = [t for t in tensors if isinstance(t, Sparse)]
        gaps = [_gaps(t) for t in rows]
        rice = [rice_parameter(g) for g in gaps]
        high = _unary(np.concatenate([g >> k for g, k in zip(gaps, rice)]))
        writer = Writer(params["compression"])
        writer.section(np.array([len(g) for g in gaps], "<u4").tobytes())
        writer.section(bytes(rice))
        writer.section(b"".join(pack(g & ((1 << k) - 1), k).tobytes() for g, k in zip(gaps, rice)))
        writer.number(len(high))
        writer.section(high)
        codec, inner = _values(params)
        return writer.payload() + codec.encode([t.values for t in rows], inner)

    def decode(
        self, payload: memoryview, shapes: Sequence[Shape], params: Params, given: Given = ()
    ) -> Sequence[Tensor]:
        reader = Reader(payload, params["compression"])
        counts = _counts(reader, shapes, params["entries"])
        positions = _positions(reader, shapes, counts)
        codec, inner = _values(params)
        rest = reader.rest()
        sizes = [(n,) for n in counts]
        expected = codec.payload_bytes(sizes, inner)
        if expected is not None and expected != len(rest):
            raise CorruptFileError(f"values take {len(rest):,} bytes, expected {expected:,}", Reason.PAYLOAD_SIZE)
        values: Any = codec.decode(rest, sizes, inner)
        return [Sparse(shape, where, value) for shape, where, value in zip(shapes, positions, values)]


def _gaps(tensor: Sparse) -> Gaps:
    gaps: Gaps = np.diff(tensor.positions, prepend=-1) - 1
    if (gaps < 0).any() or (tensor.entries and int(tensor.positions[-1]) >= numel(tensor.shape)):
        message = f"positions of a sparse tensor of shape {list(tensor.shape)} are not strictly ascending within it"
        raise CallError(message, Reason.BAD_POSITIONS, hint="sort them, each entry once")
    return gaps


def rice_parameter(gaps: Gaps) -> int:
    """The parameter with the fewest bits in all; the smallest of equals."""
    costs = [len(gaps) * k + int((gaps >> k).sum()) for k in range(MAX_RICE + 1)]
    return costs.index(min(costs))


def _values(params: Params) -> tuple[Codec, Params]:
    inner = params.get("values")
    if not isinstance(inner, dict) or str(inner.get("codec")) not in VALUE_CODECS:
        raise CorruptFileError("values name no codec", Reason.BAD_PARAMETER, hint=f"expected {', '.join(VALUE_CODECS)}")
    return VALUE_CODECS[inner["codec"]], {name: value for name, value in inner.items() if name != "codec"}


def _counts(reader: Reader, shapes: Sequence[Shape], entries: int) -> list[int]:
    counts = [int(n) for n in np.frombuffer(reader.section(4 * len(shapes)), "<u4")]
    if sum(counts) != entries:
        raise CorruptFileError(f"{sum(counts):,} entries, the index says {entries:,}", Reason.BAD_POSITIONS)
    for count, shape in zip(counts, shapes):
        if count > numel(shape):
            raise CorruptFileError(f"{count:,} entries in a tensor of {numel(shape):,}", Reason.BAD_POSITIONS)
    return counts


def _positions(reader: Reader, shapes: Sequence[Shape], counts: list[int]) -> list[Gaps]:
    rice = bytes(reader.section(len(shapes)))
    if any(k > MAX_RICE for k in rice):
        raise CorruptFileError(f"Rice parameter {max(rice)}", Reason.BAD_POSITIONS, hint=f"at most {MAX_RICE}")
    low = np.frombuffer(reader.section(sum(packed_bytes(n, k) for n, k in zip(counts, rice))), np.uint8)
    room = sum(_unary_room(n, k, shape) for n, k, shape in zip(counts, rice, shapes))
    size = reader.number()
    if size > packed_bytes(room, 1):
        raise CorruptFileError(f"{size:,} bytes of unary parts cannot belong to these shapes", Reason.BAD_POSITIONS)
    high = _from_unary(np.frombuffer(reader.section(size), np.uint8), sum(counts))
    out: list[Gaps] = []
    at = first = 0
    for n, k, shape in zip(counts, rice, shapes):
        end = at + packed_bytes(n, k)
        if n * k and not padding_is_zero(low[at:end], n, k):
            raise CorruptFileError("pad bits after the gaps are not zero", Reason.PADDING_BITS)
        gaps = (high[first : first + n] << k) | unpack_wide(low[at:end], n, k)
        where = np.cumsum(gaps + 1) - 1
        if n and int(where[-1]) >= numel(shape):
            raise CorruptFileError(f"position {int(where[-1]):,} in a tensor of {numel(shape):,}", Reason.BAD_POSITIONS)
        out.append(where)
        at, first = end, first + n
    return out


def _unary_room(count: int, rice: int, shape: Shape) -> int:
    """The most bits that the high parts of `count` gaps can take; with the best parameter below 31 they add up to at
    most twice the count, or one more bit a gap would have been shorter."""
    high = numel(shape) >> rice
    return count + (high if rice == MAX_RICE else min(high, 2 * count)) if count else 0


def _unary(high: Gaps) -> bytes:
    """Each number as that many zeros and a one, least significant bit first."""
    ends = np.cumsum(high + 1) - 1
    stream = np.zeros(int(ends[-1]) + 1 if len(ends) else 0, np.uint8)
    stream[ends] = 1
    return np.packbits(stream, bitorder="little").tobytes()


def _from_unary(stream: NDArray[np.uint8], count: int) -> Gaps:
    if len(stream) and stream[-1] == 0:
        raise CorruptFileError("unary parts end in a zero byte", Reason.BAD_POSITIONS)
    ends = np.flatnonzero(np.unpackbits(stream, bitorder="little")).astype(np.int64)
    if len(ends) != count:
        raise CorruptFileError(f"{len(ends):,} unary parts, expected {count:,}", Reason.BAD_POSITIONS)
    return np.diff(ends, prepend=-1) - 1
