"""Where a run computes: device, number format, and how several processes share a batch (through `accelerate`)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from adapterpack.errors import CallError, Reason


@dataclass(frozen=True, slots=True)
class Hardware:
    """One process's part of the machine.

    Attributes:
        device: that it computes on.
        bf16: whether products are computed in bfloat16.
        rank, world: which process of how many.
        accelerator: accelerate's, where there are several.
    """

    device: torch.device
    bf16: bool
    rank: int = 0
    world: int = 1
    accelerator: Any = None

    def autocast(self) -> AbstractContextManager[Any]:
        """The number format of a forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    @contextmanager
    def faster(self, model: nn.Module) -> Iterator[None]:
        """Attention in plain products for the time of training on a processor in bfloat16: twice as fast there."""
        fused = [m for m in model.modules() if getattr(m, "fused_attn", False)] if self._slow_fused else []
        for module in fused:
            module.fused_attn = False  # type: ignore[assignment]
        try:
            yield
        finally:
            for module in fused:
                module.fused_attn = True  # type: ignore[assignment]

    @property
    def _slow_fused(self) -> bool:
        return self.bf16 and self.device.type == "cpu"

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the sum of all gradients; of a process that had no image of a batch they are zeros."""
        if self.accelerator is None:
            return
        trained = list(parameters)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        sums = self.total(torch.cat([grad.reshape(-1) for grad in grads]))
        for parameter, found in zip(trained, torch.split(sums, [p.numel() for p in trained])):
            parameter.grad = found.view_as(parameter)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes."""
        if self.accelerator is None:
            return values
        found: torch.Tensor = self.accelerator.reduce(values, reduction="sum")
        return found

    def of_first(self, value: Any) -> Any:
        """What the first process has: a file may lie there alone, and a start drawn elsewhere be rounded otherwise."""
        if self.accelerator is None:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()


def choose(device: str, precision: str) -> Hardware:
    """The hardware of this process.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:1".
        precision: "auto" takes bf16 where the hardware computes in it, "float32", "bf16".

    Raises:
        CallError: `bad-call`, no such device; `missing-extra`, several processes without accelerate.
    """
    there = torch.cuda.is_available()
    if device.startswith("cuda") and not there:
        raise CallError("there is no CUDA device here", Reason.BAD_CALL, hint="use --device cpu")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return _shared(device, precision)
    chosen = torch.device("cuda" if there and device == "auto" else "cpu" if device == "auto" else device)
    return Hardware(chosen, _bf16(precision, chosen))


def _shared(device: str, precision: str) -> Hardware:
    try:
        from accelerate import Accelerator  # optional: only runs over several processes need it
    except ImportError as error:
        hint = "pip install 'adapterpack[train]'"
        raise CallError("training with several processes needs accelerate", Reason.MISSING_EXTRA, hint=hint) from error
    accelerator = Accelerator(cpu=device == "cpu")
    chosen = accelerator.device
    return Hardware(chosen, _bf16(precision, chosen), accelerator.process_index, accelerator.num_processes, accelerator)


def _bf16(precision: str, device: torch.device) -> bool:
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(native()) if native is not None else False


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers that follow from `seed` alone; the caller's own sequence goes on afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield
