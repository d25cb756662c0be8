"""Codec `signs`: one bit a weight, with a scale and optionally an offset for each group.

Parameters: group, levels, offset, scale, compression. The form group 128, `unit`, no offset, float16 scales holds the
same numbers as ggml's Q1_0 blocks. Source: Jie et al. 2023; spec/codecs.md, "signs".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adapterpack.codecs import _quantized
from adapterpack.codecs._base import Given, Params
from adapterpack.errors import CorruptFileError, Reason, UnsupportedAdapterError
from adapterpack.tensors import Quantized, Shape, Tensor, numel

_Q1_0 = np.dtype([("d", "<f2"), ("qs", "u1", (16,))])  # ggml block_q1_0: 128 weights in 18 bytes


@dataclass(frozen=True, slots=True)
class Signs:
    """Quantized tensors of 1 bit."""

    name: str = "signs"
    takes_given: bool = False

    def form(self, params: Params) -> dict[str, Any]:
        return _quantized.form_of(params, 1)

    def decoded_bytes(self, shapes: Sequence[Shape], params: Params) -> int:
        return _quantized.decoded_bytes(shapes, params)

    def payload_bytes(self, shapes: Sequence[Shape], params: Params) -> int | None:
        return _quantized.payload_bytes(shapes, params, 1)

    def encode(self, tensors: Sequence[Tensor], params: Params, given: Given = ()) -> bytes:
        return _quantized.encode(tensors, params, 1)

    def decode(
        self, payload: memoryview, shapes: Sequence[Shape], params: Params, given: Given = ()
    ) -> Sequence[Tensor]:
        return _quantized.decode(payload, shapes, params, 1)


def to_q1_0(tensor: Quantized) -> bytes:
    """ggml Q1_0 blocks (float16 d, then 16 bytes of bits, least significant first) of a tensor, exactly.

    Raises:
        UnsupportedAdapterError: `not-expressible` unless the form is group 128, `unit`, float16 scales without offset,
            and the last dimension a multiple of 128 (ggml quantizes rows).
    """
    wanted = {"bits": 1, "group": 128, "levels": "unit", "offset": False, "scale": "float16"}
    if tensor.form() != wanted or not tensor.shape or tensor.shape[-1] % 128:
        found = f"shape {list(tensor.shape)}, {tensor.form()}"
        hint = "quantize with --bits 1 --group 128 and rows of a multiple of 128"
        raise UnsupportedAdapterError(f"no Q1_0 blocks for {found}", Reason.NOT_EXPRESSIBLE, hint=hint)
    blocks = np.empty(len(tensor.scale), _Q1_0)
    blocks["d"] = tensor.scale
    blocks["qs"] = tensor.packed.reshape(-1, 16)
    return blocks.tobytes()


def from_q1_0(data: bytes, shape: Shape) -> Quantized:
    """The inverse of `to_q1_0`.

    Raises:
        CorruptFileError: `payload-size`, or `bad-scale` for a negative or non-finite d.
    """
    if len(data) * 128 != numel(shape) * _Q1_0.itemsize or not shape or shape[-1] % 128:
        raise CorruptFileError(f"{len(data):,} bytes are no Q1_0 tensor of shape {list(shape)}", Reason.PAYLOAD_SIZE)
    blocks = np.frombuffer(data, _Q1_0)
    scale = np.ascontiguousarray(blocks["d"])
    if not np.isfinite(scale).all() or np.signbit(scale).any():
        raise CorruptFileError("a Q1_0 block has a negative, infinite or NaN scale", Reason.BAD_SCALE)
    return Quantized(shape, 1, "unit", 128, np.ascontiguousarray(blocks["qs"]).reshape(-1), scale, None)
