"""Time to pack: the published dump to `.apk` in both profiles, against saving float32 tensors with safetensors."""

from __future__ import annotations

from safetensors.numpy import save

from tests.bench.inputs import DIMS, METHODS, example
from tests.bench.sizes import dense_tensors, packed
from tests.bench.timing import Case, interleave, table


def report(rounds: int) -> str:
    """The pack table."""
    rows = []
    for method in METHODS:
        for dim in DIMS:
            adapter = example(method, dim)
            tensors = dense_tensors(adapter)
            timed = interleave(
                {
                    "st": Case(lambda t=tensors: save(t)),
                    "fast": Case(lambda a=adapter: packed(a, "fast")),
                    "small": Case(lambda a=adapter: packed(a, "small")),
                },
                rounds,
            )
            rows.append([f"{method} {dim}", *(f"{timed[name].ms:.2f}" for name in ("st", "fast", "small"))])
    title = "Pack in memory, ms of CPU time (safetensors: saving the float32 tensors)\n\n"
    return title + table(["method dim", "safetensors f32", "apk fast", "apk small"], rows)
