"""Serving on a GPU: wall time between two moments at which the device has nothing left to do."""

from __future__ import annotations

import time
import warnings

import torch

from tests.bench.serving import On, first_use, folded, mixed, swaps


def report(rounds: int) -> str:
    """The tables of `serving` with the backbone on the GPU, in float32 and bfloat16."""
    if not torch.cuda.is_available():
        return "On a GPU: not measured, this machine has none"
    warnings.simplefilter("ignore")  # the made-up tasks carry no fingerprint
    single, half = (On("cuda", dtype, 12, _clock) for dtype in (torch.float32, torch.bfloat16))
    with torch.no_grad():
        tables = [mixed(rounds, half), mixed(rounds, single), folded(rounds, half), swaps(rounds, half)]
        tables += [swaps(rounds, single), first_use(rounds, single)]
    return f"On {torch.cuda.get_device_name()}, wall time\n\n" + "\n\n".join(tables)


def _clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()
