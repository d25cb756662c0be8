"""Codec `predictive-codebook`: 2 to 8 bits a weight, the top bit predicted as `predictive-signs` predicts signs.

The top bit says on which side of the middle a weight lies, and so carries all that the model knows; the other bits are
stored as they are. Parameters: those of `codebook`, and join, lam, pooled, units.
Source: spec/codecs.md, "predictive-codebook".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterpack.bits import pack, packed_bytes, padding_is_zero, unpack
from adapterpack.codecs import _quantized
from adapterpack.codecs._base import Given, Params, parameter
from adapterpack.codecs._sections import Reader, Writer
from adapterpack.codecs._sign_planes import EXTRA, check_params, take_plane, working_bytes, write_plane
from adapterpack.codecs.codebook import BITS
from adapterpack.errors import CorruptFileError, Reason
from adapterpack.tensors import Quantized, Shape, Tensor, numel

U8 = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PredictiveCodebook:
    """Quantized matrices of 2 … 8 bits."""

    name: str = "predictive-codebook"
    takes_given: bool = False

    def form(self, params: Params) -> dict[str, Any]:
        check_params(params)
        return _quantized.form_of(params, parameter(params, "bits", BITS), ("bits", *EXTRA))

    def decoded_bytes(self, shapes: Sequence[Shape], params: Params) -> int:
        return 8 * sum(map(numel, shapes)) + working_bytes(shapes, params)

    def payload_bytes(self, shapes: Sequence[Shape], params: Params) -> int | None:
        return None

    def encode(self, tensors: Sequence[Tensor], params: Params, given: Given = ()) -> bytes:
        bits = params["bits"]
        rows = [t for t in tensors if isinstance(t, Quantized)]
        writer = Writer(params["compression"])
        write_plane(writer, [_top(t) for t in rows], params)
        writer.section(b"".join(pack(t.codes() & ((1 << (bits - 1)) - 1), bits - 1).tobytes() for t in rows))
        _quantized.write_scales(writer, tensors, _quantized.layout_of(params, bits))
        return writer.payload()

    def decode(
        self, payload: memoryview, shapes: Sequence[Shape], params: Params, given: Given = ()
    ) -> Sequence[Tensor]:
        bits = params["bits"]
        reader = Reader(payload, params["compression"])
        plane = take_plane(reader, shapes, params)
        sizes = [packed_bytes(numel(shape), bits - 1) for shape in shapes]
        low = np.frombuffer(reader.section(sum(sizes)), np.uint8)
        parts = np.split(low, np.cumsum(sizes)[:-1])
        for part, shape in zip(parts, shapes):
            if not padding_is_zero(part, numel(shape), bits - 1):
                raise CorruptFileError("pad bits after the last code are not zero", Reason.PADDING_BITS)
        layout = _quantized.layout_of(params, bits)
        scales, offsets = _quantized.read_scales(reader, layout.sizes(shapes)[1], layout)
        reader.done()
        codes = [_joined(top, part, numel(s), bits) for top, part, s in zip(plane.decode(), parts, shapes)]
        return _quantized.assemble(np.concatenate(codes), scales, offsets, shapes, layout)


def _top(tensor: Quantized) -> Quantized:
    """The top bits as a matrix of 1-bit codes; scale and codebook are not looked at."""
    packed = pack(tensor.codes() >> (tensor.bits - 1), 1)
    return Quantized(tensor.shape, 1, "unit", 0, packed, tensor.scale[:1], None)


def _joined(top: U8, low: U8, count: int, bits: int) -> U8:
    """Packed codes from packed top bits and packed low bits."""
    return pack((unpack(top, count, 1) << (bits - 1)) | unpack(low, count, bits - 1), bits)
