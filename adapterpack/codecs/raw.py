"""Codec `raw`: plain float32, float16 or bfloat16, little-endian, row-major; byte planes where compressed.

Parameters: dtype, compression. Source: spec/codecs.md, "raw".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from adapterpack.codecs._base import Given, Params, only, parameter
from adapterpack.codecs._sections import COMPRESSIONS, Reader, Writer
from adapterpack.errors import CorruptFileError, Reason
from adapterpack.stacks import DenseStack, Runs, entries_of, runs_of
from adapterpack.tensors import DENSE_DTYPES, Dense, Shape, Tensor, numel, require_finite, widen_bfloat16


@dataclass(frozen=True, slots=True)
class Raw:
    """Dense tensors of one dtype, one after another."""

    name: str = "raw"
    takes_given: bool = False

    def form(self, params: Params) -> dict[str, Any]:
        only(params, ("dtype", "compression"))
        parameter(params, "compression", COMPRESSIONS)
        return {"dtype": parameter(params, "dtype", tuple(DENSE_DTYPES))}

    def decoded_bytes(self, shapes: Sequence[Shape], params: Params) -> int:
        return 4 * entries_of(shapes)

    def payload_bytes(self, shapes: Sequence[Shape], params: Params) -> int | None:
        if params["compression"] != "none":
            return None
        return DENSE_DTYPES[params["dtype"]].itemsize * entries_of(shapes)

    def encode(self, tensors: Sequence[Tensor], params: Params, given: Given = ()) -> bytes:
        dtype = params["dtype"]
        parts = [np.asarray(t.data, DENSE_DTYPES[dtype]).reshape(-1) for t in tensors if isinstance(t, Dense)]
        values = np.concatenate(parts)
        require_finite(values, dtype, "raw")
        writer = Writer(params["compression"])
        writer.numbers(values)
        return writer.payload()

    def decode(
        self, payload: memoryview, shapes: Sequence[Shape], params: Params, given: Given = ()
    ) -> Sequence[Tensor]:
        dtype = params["dtype"]
        reader = Reader(payload, params["compression"])
        values = reader.numbers(entries_of(shapes), DENSE_DTYPES[dtype])
        reader.done()
        if not np.isfinite(widen_bfloat16(values) if dtype == "bfloat16" else values).all():
            raise CorruptFileError("a tensor holds NaN or infinity", Reason.NOT_FINITE)
        columns: list[list[DenseStack]] = []
        at = 0
        for run in runs_of(shapes):
            widths = [numel(shape) for shape in run.shapes]
            end = at + run.count * sum(widths)
            rows = values[at:end].reshape(run.count, sum(widths))
            cut = zip(run.shapes, widths, accumulate(widths))
            columns.append(
                [DenseStack(rows[:, stop - w : stop].reshape(run.count, *shape), dtype) for shape, w, stop in cut]
            )
            at = end
        return Runs(columns)
