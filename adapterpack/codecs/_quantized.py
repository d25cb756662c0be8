"""What `signs` and `codebook` share: packed codes of all tensors, then all scales, then all offsets.

Each tensor's codes begin on a byte. Source: spec/codecs.md, "signs" and "codebook".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterpack.bits import packed_bytes
from adapterpack.codebooks import is_codebook, levels_of
from adapterpack.codecs._base import Params, only, parameter
from adapterpack.codecs._sections import COMPRESSIONS, Reader, Writer
from adapterpack.errors import AdapterPackError, CallError, CorruptFileError, Reason
from adapterpack.stacks import QuantizedStack, Runs, entries_of, runs_of
from adapterpack.tensors import SCALE_DTYPES, U8, Quantized, Shape, Tensor, groups_of, numel

GROUPS = (0, *(1 << k for k in range(3, 17)))  # 0 (the whole tensor), 8, 16, … 65,536
_WORDS: dict[int, np.dtype[Any]] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}
_WITHOUT_SIGN = {2: 0x7FFF, 4: 0x7FFFFFFF}
_SAFE = 3e38  # below the largest float32 by more than any rounding
FORM = ("group", "levels", "offset", "scale")


@dataclass(frozen=True, slots=True)
class Layout:
    """The checked form of a payload of codes.

    Attributes:
        bits, levels, group: see `Quantized`.
        scale: dtype of scales and offsets.
        offset: whether offsets are stored.
    """

    bits: int
    levels: str
    group: int
    scale: np.dtype[Any]
    offset: bool

    def sizes(self, shapes: Sequence[Shape]) -> tuple[int, int]:
        """Bytes of all codes, and how many groups there are."""
        code_bytes = groups = 0
        for run in runs_of(shapes):
            for shape in run.shapes:
                code_bytes += run.count * packed_bytes(numel(shape), self.bits)
                groups += run.count * groups_of(numel(shape), self.group)
        return code_bytes, groups


def layout_of(params: Params, bits: int) -> Layout:
    """Check the form parameters.

    Raises:
        CorruptFileError: `bad-parameter`.
    """
    levels = params.get("levels")
    if not isinstance(levels, str) or not is_codebook(levels, bits):
        raise CorruptFileError(
            f"no codebook {levels!r} of {bits} bits", Reason.BAD_PARAMETER, hint="see spec/codecs.md"
        )
    group = parameter(params, "group", GROUPS)
    scale = SCALE_DTYPES[parameter(params, "scale", tuple(SCALE_DTYPES))]
    return Layout(bits, levels, group, scale, parameter(params, "offset", (True, False)))


def form_of(params: Params, bits: int, extra: Sequence[str] = ()) -> dict[str, Any]:
    """Check all parameters of a codec that adds only `extra` and `compression` to the form."""
    only(params, (*FORM, "compression", *extra))
    parameter(params, "compression", COMPRESSIONS)
    layout_of(params, bits)
    return {"bits": bits, **{name: params[name] for name in FORM}}


def write_scales(writer: Writer, tensors: Sequence[Tensor], layout: Layout) -> None:
    """All scales, then all offsets.

    Raises:
        CallError: `bad-scale`, `not-finite`: what a reader would refuse.
    """
    rows = [t for t in tensors if isinstance(t, Quantized)]
    scales = np.concatenate([t.scale.astype(layout.scale, copy=False) for t in rows])
    offsets = None
    if layout.offset:
        offsets = np.concatenate([t.offset.astype(layout.scale, copy=False) for t in rows if t.offset is not None])
    _check_scales(scales, offsets, layout, CallError)
    writer.numbers(scales)
    if offsets is not None:
        writer.numbers(offsets)


def read_scales(reader: Reader, count: int, layout: Layout) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """All scales and all offsets, `count` of each, checked.

    Raises:
        CorruptFileError: `bad-scale` for NaN, infinity or a set sign bit; `not-finite` for an offset or a weight.
    """
    scales = reader.numbers(count, layout.scale)
    offsets = reader.numbers(count, layout.scale) if layout.offset else None
    _check_scales(scales, offsets, layout, CorruptFileError)
    return scales, offsets


def _check_scales(
    scales: NDArray[Any], offsets: NDArray[Any] | None, layout: Layout, error: type[AdapterPackError]
) -> None:
    """Refuse what is no scale or offset, and groups whose outermost weight, in float32, is infinite (codebooks are
    symmetric)."""
    highest, furthest = _largest(scales, signed=False), 0.0
    if not highest < math.inf:
        raise error("a scale is negative, infinite or NaN", Reason.BAD_SCALE)
    if offsets is not None:
        furthest = _largest(offsets, signed=True)
        if not furthest < math.inf:
            raise error("an offset is infinite or NaN", Reason.NOT_FINITE)
    level = levels_of(layout.levels, layout.bits)[-1]
    if float(level) * highest + furthest < _SAFE:
        return
    with np.errstate(over="ignore"):
        outermost = level * scales.astype(np.float32)
        if offsets is not None:
            outermost = outermost + np.abs(offsets.astype(np.float32))
    if not np.isfinite(outermost).all():
        raise error("a scale times the outermost level is infinite", Reason.NOT_FINITE)


def _largest(values: NDArray[Any], *, signed: bool) -> float:
    """The largest magnitude, or NaN or infinity where there is one; unless `signed`, NaN for a set sign bit as well.

    Found among the bit patterns, which are ordered as the magnitudes are, with infinity, NaN and signs above.
    """
    if not len(values):
        return 0.0
    size = values.dtype.itemsize
    words, largest = values.view(_WORDS[size]), _WITHOUT_SIGN[size]
    at = ((words & largest) if signed else words).argmax()
    return math.nan if not signed and int(words[at]) > largest else abs(float(values[at]))


def assemble(
    codes: NDArray[np.uint8],
    scales: NDArray[Any],
    offsets: NDArray[Any] | None,
    shapes: Sequence[Shape],
    layout: Layout,
) -> Runs:
    """Cut codes, scales and offsets into the columns of each run (views, no copies).

    Raises:
        CorruptFileError: `padding-bits`.
    """
    columns: list[list[QuantizedStack]] = []
    at = first = 0
    for run in runs_of(shapes):
        widths = [packed_bytes(numel(shape), layout.bits) for shape in run.shapes]
        groups = [groups_of(numel(shape), layout.group) for shape in run.shapes]
        end, last = at + run.count * sum(widths), first + run.count * sum(groups)
        packed = codes[at:end].reshape(run.count, sum(widths))
        scale = scales[first:last].reshape(run.count, sum(groups))
        offset = None if offsets is None else offsets[first:last].reshape(scale.shape)
        columns.append(list(_cut(packed, scale, offset, list(zip(run.shapes, widths, groups)), layout)))
        at, first = end, last
    return Runs(columns)


def _cut(
    packed: U8,
    scale: NDArray[Any],
    offset: NDArray[Any] | None,
    parts: Sequence[tuple[Shape, int, int]],
    layout: Layout,
) -> Iterator[QuantizedStack]:
    """The columns of a run from rows that hold one site each; of every column its shape, bytes and groups."""
    left = low = 0
    for shape, width, groups in parts:
        codes, here = packed[:, left : left + width], slice(low, low + groups)
        left, low = left + width, low + groups
        used = numel(shape) * layout.bits % 8
        if used and (codes[:, -1] >> used).any():
            raise CorruptFileError("pad bits after the last code are not zero", Reason.PADDING_BITS)
        scales, offsets = scale[:, here], None if offset is None else offset[:, here]
        numbers = codes[0], scales[0], None if offsets is None else offsets[0]
        first = Quantized(shape, layout.bits, layout.levels, layout.group, *numbers)
        yield QuantizedStack(first, codes, scales, offsets)


def encode(tensors: Sequence[Tensor], params: Params, bits: int) -> bytes:
    """Codes, scales, offsets, each one section (numbers: one a plane)."""
    layout = layout_of(params, bits)
    writer = Writer(params["compression"])
    writer.section(b"".join(t.packed.tobytes() for t in tensors if isinstance(t, Quantized)))
    write_scales(writer, tensors, layout)
    return writer.payload()


def decode(payload: memoryview, shapes: Sequence[Shape], params: Params, bits: int) -> Runs:
    """The inverse of `encode`."""
    layout = layout_of(params, bits)
    reader = Reader(payload, params["compression"])
    code_bytes, groups = layout.sizes(shapes)
    codes = np.frombuffer(reader.section(code_bytes), np.uint8)
    scales, offsets = read_scales(reader, groups, layout)
    reader.done()
    return assemble(codes, scales, offsets, shapes, layout)


def payload_bytes(shapes: Sequence[Shape], params: Params, bits: int) -> int | None:
    """Exact where nothing is compressed."""
    if params["compression"] != "none":
        return None
    layout = layout_of(params, bits)
    code_bytes, groups = layout.sizes(shapes)
    return code_bytes + groups * layout.scale.itemsize * (2 if layout.offset else 1)


def decoded_bytes(shapes: Sequence[Shape], params: Params) -> int:
    """The weights as float32; the codes themselves are never more than a quarter of that."""
    return 4 * entries_of(shapes)
