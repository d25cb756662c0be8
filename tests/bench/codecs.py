"""Time to decode and encode the signs of one published file: plain, zstd, predictive with NumPy and with Numba."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from adapterpack.codecs import CODECS
from adapterpack.codecs._sign_layout import branch_params, plan, to_streams
from adapterpack.codecs._sign_model import decode_signs, encode_signs
from adapterpack.tensors import Quantized
from tests.bench.inputs import example
from tests.bench.timing import Case, Timed, interleave, table

_USING = ("numpy", "numba")


def report(rounds: int) -> str:
    """The codec table: milliseconds of CPU time for the adapter's signs, without the head."""
    cases = (("adaptformer", 32), ("lora", 32), ("lora", 1))
    rows = [row for method, dim in cases for row in _rows(method, dim, rounds)]
    title = "Codecs: the adapter's signs of one file, one process, ms of CPU time\n\n"
    return title + table(["method dim", "codec", "bytes", "bits/weight", "encode", "decode"], rows)


def _rows(method: str, dim: int, rounds: int) -> list[list[str]]:
    tensors = [t for b in example(method, dim).branches for t in b.tensors.values() if isinstance(t, Quantized)]
    weights = sum(t.entries for t in tensors)
    form = {name: value for name, value in tensors[0].form().items() if name != "bits"}
    made = {f"signs, {c}": _codec(tensors, "signs", {**form, "compression": c}) for c in ("none", "zstd")}
    using = _USING if importlib.util.find_spec("numba") else _USING[:1]
    made |= {f"predictive, {name}": _stream(tensors, name) for name in using}
    timed: dict[str, Timed] = {}
    for name, (_, encode, decode) in made.items():
        timed |= interleave({f"{name} encode": encode, f"{name} decode": decode}, max(3, rounds // 3))
    return [
        [f"{method} {dim}", name, f"{size:,}", f"{8 * size / weights:.3f}",
         f"{timed[f'{name} encode'].ms:.1f}", f"{timed[f'{name} decode'].ms:.1f}"]
        for name, (size, _, _) in made.items()
    ]  # fmt: skip


def _codec(tensors: list[Quantized], name: str, params: dict[str, Any]) -> tuple[int, Case, Case]:
    codec, shapes = CODECS[name], [t.shape for t in tensors]
    payload = codec.encode(tensors, params)
    return (
        len(payload),
        Case(lambda: codec.encode(tensors, params)),
        Case(lambda: codec.decode(memoryview(payload), shapes, params)),
    )


def _stream(tensors: list[Quantized], using: Any) -> tuple[int, Case, Case]:
    shapes = [t.shape for t in tensors]
    parts = plan(shapes, branch_params(shapes)) or ()
    streams = to_streams([np.asarray(t.codes()).reshape(t.shape) for t in tensors], parts)

    def settings(part: Any) -> dict[str, Any]:
        s = part.stream
        return {"lam": s.lam, "pooled": s.pooled, "kinds": s.kinds, "padding": s.padding, "using": using}

    def encode() -> list[bytes]:
        return [encode_signs(signs, **settings(part)) for signs, part in zip(streams, parts)]

    coded = encode()

    def decode() -> None:
        for data, part in zip(coded, parts):
            s = part.stream
            decode_signs(data, s.matrices, s.channels, s.units, **settings(part))

    return sum(map(len, coded)), Case(encode), Case(decode)
