"""Codec `predictive-signs`: the signs of trained matrices in well under a bit each, exactly.

A unit's sign at a channel is predicted from the units before it, by what the channels before it have shown; matrices of
one segment learn from each other. Scales and offsets are stored as in `signs`. A stream that coding would not shrink is
stored as plain packed bits. Parameters: those of `signs`, and join, lam, pooled, units (see `_sign_layout`). The same
signs of earlier tasks, where they are given, are one more thing to predict from (see `_sign_given`).
Source: spec/codecs.md, "predictive-signs".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adapterpack.codecs import _quantized
from adapterpack.codecs._base import Given, Params
from adapterpack.codecs._sections import Reader, Writer
from adapterpack.codecs._sign_layout import branch_params, head_params, plan
from adapterpack.codecs._sign_planes import EXTRA, MAX_SIGNS, check_params, take_plane, working_bytes, write_plane
from adapterpack.tensors import Quantized, Shape, Tensor, numel


@dataclass(frozen=True, slots=True)
class PredictiveSigns:
    """Quantized matrices of 1 bit."""

    name: str = "predictive-signs"
    takes_given: bool = True

    def form(self, params: Params) -> dict[str, Any]:
        check_params(params)
        return _quantized.form_of(params, 1, EXTRA)

    def decoded_bytes(self, shapes: Sequence[Shape], params: Params) -> int:
        return 6 * sum(map(numel, shapes)) + working_bytes(shapes, params)

    def payload_bytes(self, shapes: Sequence[Shape], params: Params) -> int | None:
        return None

    def encode(self, tensors: Sequence[Tensor], params: Params, given: Given = ()) -> bytes:
        writer = Writer(params["compression"])
        write_plane(writer, [t for t in tensors if isinstance(t, Quantized)], params, given)
        _quantized.write_scales(writer, tensors, _quantized.layout_of(params, 1))
        return writer.payload()

    def decode(
        self, payload: memoryview, shapes: Sequence[Shape], params: Params, given: Given = ()
    ) -> Sequence[Tensor]:
        reader = Reader(payload, params["compression"])
        plane = take_plane(reader, shapes, params, given)
        layout = _quantized.layout_of(params, 1)
        scales, offsets = _quantized.read_scales(reader, layout.sizes(shapes)[1], layout)
        reader.done()
        return _quantized.assemble(np.concatenate(plane.decode()), scales, offsets, shapes, layout)


def candidate_params(part: str, shapes: Sequence[Shape]) -> list[dict[str, Any]]:
    """Parameters worth trying for the matrices of a part of a file; none where the model does not apply."""
    if part == "head":
        tried = [head_params()]
    else:
        plain = branch_params(shapes)
        tried = [plain, branch_params(shapes, join=2)] if plain["join"] == 1 else [plain]
    small = sum(map(numel, shapes)) <= MAX_SIGNS
    return [params for params in tried if small and plan(shapes, params) is not None]
