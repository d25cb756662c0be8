"""Where a model runs: "auto", "cpu" or "cuda" as a person asks for it."""

from __future__ import annotations

import torch

from adapterpack.errors import CallError, Reason


def choose_device(name: str) -> str:
    """Either "cuda" or "cpu"; "auto" takes the GPU where there is one.

    Raises:
        CallError: `bad-call`, there is no GPU.
    """
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise CallError("there is no CUDA device here", Reason.BAD_CALL, hint="use --device cpu")
    return "cuda" if there and name != "cpu" else "cpu"
