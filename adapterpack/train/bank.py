"""The trained tensors of one run, kept by shape so that all of one shape are quantized together.

A LoRA of 48 matrices is two parameters, hence two quantizations a forward pass and two updates a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from adapterpack.tensors import Dense, Quantized
from adapterpack.train.quantise import quantise, stored


class Handle(NamedTuple):
    """Where a tensor is in the bank."""

    key: str
    row: int


class Bank(nn.Module):
    """Latent tensors and, after `refresh`, the weights they stand for.

    Tensors are added first, then sealed into parameters: one [k, *shape] for all tensors of a shape and bit width.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bits: dict[str, int] = {}
        self._waiting: dict[str, list[torch.Tensor]] = {}
        self._now: dict[str, tuple[torch.Tensor, ...]] = {}
        self.latents = nn.ParameterDict()

    def add(self, start: torch.Tensor, bits: int) -> Handle:
        """Take a tensor in.

        Args:
            start: what it starts from, float32.
            bits: 1 … 8, or 32.
        """
        key = "x".join(map(str, start.shape)) + f"_{bits}bit"
        rows = self._waiting.setdefault(key, [])
        self._bits[key] = bits
        rows.append(start)
        return Handle(key, len(rows) - 1)

    def seal(self, device: torch.device) -> None:
        """Make parameters of what was added."""
        for key, rows in self._waiting.items():
            self.latents[key] = nn.Parameter(torch.stack(rows).to(device, torch.float32))
        self._waiting.clear()

    def refresh(self) -> None:
        """Quantize everything anew; once at the beginning of a forward pass."""
        self._now = {key: quantise(self.latents[key], bits).unbind() for key, bits in self._bits.items()}

    def forget(self) -> None:
        """Let go of the graph of the last pass."""
        self._now = {}

    def weights(self, handle: Handle) -> torch.Tensor:
        """The weights of this pass."""
        return self._now[handle.key][handle.row]

    def stored(self, handle: Handle) -> Dense | Quantized:
        """The weights in the form that a file keeps."""
        return stored(self.latents[handle.key][handle.row], self._bits[handle.key])

    def matrices(self) -> Iterator[tuple[nn.Parameter, bool]]:
        """Every parameter, and whether it holds matrices."""
        for parameter in self.latents.values():
            yield parameter, parameter.ndim > 2
