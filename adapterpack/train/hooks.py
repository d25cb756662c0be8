"""Trained branches inside a forward pass: hooks on the model's own modules, nothing of its forward copied.

It knows how a gain gets into an output, not what a branch is made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from adapterpack.runtime.places import Place, Residual

Columns = tuple[int, int]


class Gaining(Protocol):
    """What a hook needs of a branch."""

    input_drop: float

    @property
    def tap(self) -> str: ...
    def reading(self, x: torch.Tensor) -> torch.Tensor: ...
    def gain(self, x: torch.Tensor) -> torch.Tensor: ...


class _AddColumns(torch.autograd.Function):
    """Add gains into columns of an output in place; the way back hands the gradient on without copying it."""

    @staticmethod
    def forward(ctx: Any, out: torch.Tensor, columns: Sequence[Columns], *gains: torch.Tensor) -> torch.Tensor:
        ctx.columns, ctx.dtypes = columns, [gain.dtype for gain in gains]
        ctx.mark_dirty(out)
        for where, gain in zip(columns, gains):
            out.narrow(-1, *where).add_(gain)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        parts = [grads[0].narrow(-1, *where).to(dtype) for where, dtype in zip(ctx.columns, ctx.dtypes)]
        return (grads[0], None, *parts)


class SiteHook:
    """Adds all branches of one module to its output: first those that read its input, then those that read the output.

    Branches that read the input share one dropout mask, as q, k and v do in SPT.
    """

    def __init__(self) -> None:
        self._inputs: list[tuple[Place, Gaining]] = []
        self._outputs: list[tuple[Place, Gaining]] = []

    def take(self, place: Place, branch: Gaining) -> None:
        """One branch more."""
        (self._outputs if branch.tap == "output" else self._inputs).append((place, branch))

    def __call__(self, module: nn.Module, args: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
        for kind in (self._inputs, self._outputs):
            if kind:
                x = kind[0][1].reading(args[0]) if kind is self._inputs else out
                out = _add(out, kind, x)
        return out


def _add(out: torch.Tensor, branches: Sequence[tuple[Place, Gaining]], x: torch.Tensor) -> torch.Tensor:
    if len(branches) == 1 and branches[0][0].rows is None:
        branch = branches[0][1]
        return out + branch.gain(branch.reading(x) if x is out else x)
    columns = [place.rows or (0, out.shape[-1]) for place, _ in branches]
    gains = []
    for (_, branch), where in zip(branches, columns):
        read = branch.reading(x.narrow(-1, *where)) if x is out else x
        gains.append(branch.gain(read))
    if x is out:  # a branch keeps what it read for its gradient
        out = out.clone()
    added: torch.Tensor = _AddColumns.apply(out, columns, *gains)  # type: ignore[no-untyped-call]
    return added


class ResidualHook:
    """Adds a branch to the residual stream: reads the input of the MLP's norm, adds where the MLP's path ends."""

    def __init__(self, branch: Gaining) -> None:
        self._branch, self._first = branch, False
        self._seen: torch.Tensor | None = None

    def read(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._seen = args[0].movedim(1, -1) if self._first else args[0]

    def add(self, module: nn.Module, args: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
        x, self._seen = self._seen, None
        if x is None:
            raise RuntimeError("the MLP's path ended before it began")
        gained = self._branch.gain(x)
        return out + (gained.movedim(-1, 1) if self._first else gained)

    def register(self, at: Residual) -> list[RemovableHandle]:
        """Hook it in; `.remove()` of both results takes it out again."""
        self._first = at.channels_first
        return [at.norm.register_forward_pre_hook(self.read), at.end.register_forward_hook(self.add)]
