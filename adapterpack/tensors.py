"""The three forms a trained tensor takes: dense numbers, quantized codes, or sparse entries.

A form is logical: it says what the values *are* (and enters the digest), not how a payload stores them.
Arrays are read-only by convention; nothing in the package writes to an array it was handed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Union

import numpy as np
from numpy.typing import NDArray

from adapterpack import bits as bitstream
from adapterpack.codebooks import levels_of
from adapterpack.errors import CallError, Reason

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
Shape = tuple[int, ...]
Content = tuple[NDArray[Any], ...]  # contiguous arrays whose bytes, one after another, are the content

DENSE_DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
}
_SINGLE, _HALF = np.dtype("<f4"), np.dtype("<f2")
SCALE_DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}


@lru_cache(maxsize=4096)
def numel(shape: Shape) -> int:
    """Number of elements, in Python integers (numbers from a file never meet np.prod)."""
    return math.prod(shape)


def widen_bfloat16(raw: NDArray[np.uint16]) -> F32:
    """bfloat16 bit patterns, uint16, to the float32 values they stand for; exact."""
    return (raw.astype(np.uint32) << 16).view(np.float32)


def round_bfloat16(values: F32) -> NDArray[np.uint16]:
    """float32 to bfloat16 bit patterns, uint16, rounding to nearest even."""
    raw = np.asarray(values, np.float32, order="C").view(np.uint32).astype(np.uint64)
    return ((raw + 0x7FFF + ((raw >> 16) & 1)) >> 16).astype(np.uint16)


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """Plain numbers.

    Attributes:
        data: any shape; float32, float16, or uint16 bit patterns where `dtype` is "bfloat16".
        dtype: "float32", "float16" or "bfloat16".
    """

    data: NDArray[Any]
    dtype: str = "float32"

    @property
    def shape(self) -> Shape:
        return self.data.shape

    @property
    def entries(self) -> int:
        return numel(self.shape)

    def form(self) -> dict[str, Any]:
        return {"dtype": self.dtype}

    def dense(self) -> F32:
        """The values, float32 [shape]; exact for all three dtypes."""
        if self.dtype == "bfloat16":
            return widen_bfloat16(self.data)
        return np.asarray(self.data, np.float32)

    def content(self) -> Content:
        """What the digest covers: the numbers, row-major, little-endian."""
        return (np.ascontiguousarray(self.data, DENSE_DTYPES[self.dtype]),)


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """Codes into a codebook, with a scale and optionally an offset for each group of weights.

    Weight i of the flattened tensor is `levels[code_i] * scale[g] + offset[g]` with g = i div group, each
    operation rounded to float32 (scale and offset widened first). Group 0 means one group for the tensor.
    Source: Jie et al. 2023 (the paper's form is group 0, offset = mean, scale = standard deviation).

    Attributes:
        shape: the tensor's shape.
        bits: 1 … 8.
        levels: the codebook's name, see `codebooks`.
        group: weights per group; the last group may be short.
        packed: uint8 [ceil(numel·bits/8)], see `bits`.
        scale: float32 or float16 [groups]; finite, sign bit clear.
        offset: the same dtype and length, or None.
    """

    shape: Shape
    bits: int
    levels: str
    group: int
    packed: U8
    scale: NDArray[Any]
    offset: NDArray[Any] | None

    @property
    def entries(self) -> int:
        return numel(self.shape)

    def form(self) -> dict[str, Any]:
        scale = "float16" if self.scale.dtype.itemsize == 2 else "float32"
        return {"bits": self.bits, "group": self.group, "levels": self.levels,
                "offset": self.offset is not None, "scale": scale}  # fmt: skip

    def codes(self) -> U8:
        """uint8 [numel]."""
        return bitstream.unpack(self.packed, self.entries, self.bits)

    def dense(self) -> F32:
        """The weights, float32 [shape]."""
        offset = None if self.offset is None else self.offset[None]
        return inflate(self, self.packed[None], self.scale[None], offset).reshape(self.shape)

    def content(self) -> Content:
        """What the digest covers: packed codes, scales, offsets, little-endian."""
        dtype = _HALF if self.scale.dtype.itemsize == 2 else _SINGLE
        parts = (np.ascontiguousarray(self.packed), np.ascontiguousarray(self.scale, dtype))
        return parts if self.offset is None else (*parts, np.ascontiguousarray(self.offset, dtype))


@dataclass(frozen=True, slots=True, eq=False)
class Sparse:
    """A few entries of an otherwise zero tensor.

    Attributes:
        shape: of the whole tensor.
        positions: int64 [n], strictly ascending, into the flattened (row-major) tensor.
        values: the n values in any dense or quantized form, shape (n,).
    """

    shape: Shape
    positions: NDArray[np.int64]
    values: Dense | Quantized

    @property
    def entries(self) -> int:
        return len(self.positions)

    def form(self) -> dict[str, Any]:
        return {"sparse": self.values.form()}

    def dense(self) -> F32:
        """The tensor with zeros written out, float32 [shape]."""
        out = np.zeros(numel(self.shape), np.float32)
        out[self.positions] = self.values.dense()
        return out.reshape(self.shape)

    def content(self) -> Content:
        """What the digest covers: count and positions as little-endian 64-bit integers, then the values."""
        count = np.array([self.entries], "<i8")
        return (count, np.ascontiguousarray(self.positions, "<i8"), *self.values.content())


Tensor = Union[Dense, Quantized, Sparse]


def groups_of(count: int, group: int) -> int:
    """How many groups `count` weights make; an empty tensor has none."""
    if count == 0:
        return 0
    return 1 if group == 0 else -(-count // group)


def same_tensor(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have one shape, one form and the same content, to the bit."""
    if type(one) is not type(other) or one.shape != other.shape or one.form() != other.form():
        return False
    return b"".join(map(bytes, one.content())) == b"".join(map(bytes, other.content()))


_LARGE = 1024  # bytes: from here on a lookup costs more than the call that makes it


def inflate(
    form: Quantized,
    packed: U8,
    scale: NDArray[Any],
    offset: NDArray[Any] | None,
    factor: float = 1.0,
    room: F32 | None = None,
) -> F32:
    """The weights of several tensors of one size and form at once: what makes loading many small matrices cheap.

    Where the factor f is not 1, every weight w becomes float32(f·w), rounded once after w itself.

    Args:
        form: one of them.
        packed: the codes of each, [tensors, bytes].
        scale, offset: [tensors, groups].
        factor: for example the scale of a LoRA branch.
        room: memory for the result, at least `len(packed) * room_of(form)` numbers; None for new memory.

    Returns:
        float32 [tensors, entries].
    """
    levels = levels_of(form.levels, form.bits)
    scale = scale.astype(np.float32, copy=False)
    offset = None if offset is None else offset.astype(np.float32, copy=False)
    count, width = len(packed), room_of(form)
    room = np.empty(count * width, np.float32) if room is None else room[: count * width]
    out = room.reshape(count, width)
    if form.group == 0 and 8 % form.bits == 0 and form.entries:
        values = levels * scale if offset is None else levels * scale + offset
        _by_byte_table(form.bits, packed, values if factor == 1 else values * np.float32(factor), out)
        return out[:, : form.entries]
    which = np.arange(form.entries) // (form.group or max(form.entries, 1))
    for i, row in enumerate(out[:, : form.entries]):
        row[:] = levels[bitstream.unpack(packed[i], form.entries, form.bits)] * scale[i][which]
        if offset is not None:
            row += offset[i][which]
        if factor != 1:
            row *= np.float32(factor)
    return out[:, : form.entries]


def room_of(form: Quantized) -> int:
    """How many numbers `inflate` writes for one tensor: whole bytes are looked up, so there may be a few too many."""
    return len(form.packed) * (8 // form.bits) if 8 % form.bits == 0 else form.entries


def _by_byte_table(bits: int, packed: U8, values: F32, out: F32) -> None:
    """One group a tensor: a table of what each byte stands for, then one lookup a byte.

    Args:
        bits: of a code.
        packed: [tensors, bytes].
        values: what each code stands for, [tensors, 2**bits].
        out: where the weights go, [tensors, bytes * weights a byte].
    """
    (count, size), each = packed.shape, 8 // bits
    tables = values
    if bits < 8:  # by half bytes: a quarter of the lookups, each of four times as much
        halves = values.take(bitstream.codes_of_nibble(bits), axis=1, mode="clip")
        tables = halves.take(bitstream.NIBBLES, axis=1, mode="clip")
    tables = tables.reshape(count, 256, each)
    rows = out.reshape(count, size, each)
    if size >= _LARGE:
        for table, codes_of_row, row in zip(tables, packed, rows):
            table.take(codes_of_row, axis=0, out=row, mode="clip")
    else:  # small tensors share a call
        places = packed.astype(np.intp) + 256 * np.arange(count)[:, None]
        tables.reshape(-1, each).take(places, axis=0, out=rows, mode="clip")


def require_finite(values: NDArray[Any], dtype: str, where: str) -> None:
    """Refuse NaN and infinity on the way in: a file holds neither.

    Raises:
        CallError: `not-finite`.
    """
    plain = widen_bfloat16(values) if dtype == "bfloat16" else values
    if not np.isfinite(plain).all():
        raise CallError("the tensor holds NaN or infinity", Reason.NOT_FINITE, where, "retrain or repair it first")
