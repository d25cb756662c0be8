"""Where a model runs: "auto", "cpu" or "cuda" as a person asks for it, or a device by torch's own name."""

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


def require_device(device: str | torch.device) -> torch.device:
    """A device that can hold tensors.

    Raises:
        CallError: `bad-call`, there is none of that name here.
    """
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        text = f"cannot use the device {device}: {str(error).splitlines()[0][:200]}"
        raise CallError(text, Reason.BAD_CALL, hint="expected cpu, cuda or cuda:0") from error
    if found.type == "meta":
        raise CallError("the device meta holds no numbers", Reason.BAD_CALL, hint="expected cpu, cuda or cuda:0")
    return found
