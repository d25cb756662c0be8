"""Codec `codebook`: 2 to 8 bits a weight, indices into a named codebook, scale and optional offset a group.

Parameters: bits, group, levels, offset, scale, compression. Source: Jie et al. 2023; spec/codecs.md, "codebook".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adapterpack.codecs import _quantized
from adapterpack.codecs._base import Given, Params, parameter
from adapterpack.tensors import Shape, Tensor

BITS = (2, 3, 4, 5, 6, 7, 8)


@dataclass(frozen=True, slots=True)
class Codebook:
    """Quantized tensors of 2 … 8 bits."""

    name: str = "codebook"
    takes_given: bool = False

    def form(self, params: Params) -> dict[str, Any]:
        return _quantized.form_of(params, parameter(params, "bits", BITS), ("bits",))

    def decoded_bytes(self, shapes: Sequence[Shape], params: Params) -> int:
        return _quantized.decoded_bytes(shapes, params)

    def payload_bytes(self, shapes: Sequence[Shape], params: Params) -> int | None:
        return _quantized.payload_bytes(shapes, params, params["bits"])

    def encode(self, tensors: Sequence[Tensor], params: Params, given: Given = ()) -> bytes:
        return _quantized.encode(tensors, params, params["bits"])

    def decode(
        self, payload: memoryview, shapes: Sequence[Shape], params: Params, given: Given = ()
    ) -> Sequence[Tensor]:
        return _quantized.decode(payload, shapes, params, params["bits"])
