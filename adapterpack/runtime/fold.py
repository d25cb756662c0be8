"""Branches inside the backbone: their deltas added into the parameters in place, and taken out again to the bit.

Subtracting a delta is not exact, so the entries that a fold writes to are kept as they were; undoing copies them back.
Sums are formed in float32 (float64 for a float64 backbone) and rounded once. Parameters keep their memory, so graphs
and compiled models that point to it stay valid.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from adapterpack.methods._base import Delta, Entries, Method, Params, transforms
from adapterpack.runtime.places import Place


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """What a fold overwrote: the site's rows of a parameter, or only some entries of them.

    Attributes:
        place, role: which parameter; it is looked up again, in case the model was moved or cast meanwhile.
        values: the old values, the rows' shape, or [n] with `positions`.
        positions: int64 [n] into the flattened rows, or None.
    """

    place: Place
    role: str
    values: torch.Tensor
    positions: torch.Tensor | None = None

    def undo(self) -> None:
        target = self.place.tensor(self.role)
        if target is None:  # somebody deleted the parameter: there is nothing left to restore
            return
        if self.positions is None:
            target.copy_(self.values)
        else:
            _put(target, self.positions.to(target.device), self.values.to(target.device, target.dtype))


@dataclass(frozen=True, slots=True, eq=False)
class Swapped:
    """The parameter that another one stands in for."""

    module: nn.Module
    name: str
    original: nn.Parameter

    def undo(self) -> None:
        now, before = self.module._parameters[self.name], self.original
        if now is not None and (now.device, now.dtype) != (before.device, before.dtype):
            before.data = before.data.to(now.device, now.dtype)  # the model was moved or cast meanwhile
        self.module._parameters[self.name] = before


_NOTHING = torch.empty(0, dtype=torch.uint8)


class Arena:
    """Memory for what folds overwrite, in a few large blocks: on the CPU the operating system backs those with large
    pages, where the page faults of many small copies cost as much as the fold itself."""

    BLOCK = 32 << 20  # bytes; pages that are never written to take no memory

    def __init__(self) -> None:
        self._free = _NOTHING

    def copy(self, source: torch.Tensor) -> torch.Tensor:
        """A copy of a tensor."""
        if source.device.type != "cpu":
            return source.detach().clone()
        size = source.numel() * source.element_size()
        if self._free.numel() < size:
            self._free = torch.from_numpy(np.empty(max(size, self.BLOCK), np.uint8))
        block, self._free = self._free[:size], self._free[-(-size // 64) * 64 :]
        return block.view(source.dtype).view(source.shape).copy_(source.detach())


def deltas(method: Method, tensors: Mapping[str, Any], params: Params, place: Place) -> dict[str, Delta]:
    """What each parameter gains; a low-rank product is left as its two factors, so that adding it is one pass.

    `W.addmm_(up, down)` takes two thirds of the time of `W += up @ down` and rounds at most as often. Of a transform it
    is what the site's parameters, as they are now, are short of the new ones.
    """
    if method.name == "lora":
        return {"weight": (tensors["up"], tensors["down"])}
    if not transforms(method):
        return method.delta(tensors, params)
    found = {role: place.tensor(role) for role in ("weight", "bias")}
    own = {role: _wide(tensor.detach()) for role, tensor in found.items() if tensor is not None}
    near = {role: tensor.to(own["weight"].device, own["weight"].dtype) for role, tensor in tensors.items()}
    return {role: new - own[role] for role, new in method.transform(own, near, params).items()}


def fold(place: Place, role: str, delta: Delta, *, replaces: bool, undo: ExitStack, arena: Arena) -> None:
    """Write a delta into a parameter, in place.

    Args:
        place: the site.
        role: "weight", "bias" or "value".
        delta: in the site's shape, a pair of factors, or `Entries`.
        replaces: the delta is the new value instead.
        undo: is told how to undo it, before anything is written.
        arena: where the old values are kept.
    """
    target = _required(place.tensor(role), place, role)
    undo.callback(_keep(place, role, target, delta, arena).undo)
    write(target, delta, replaces=replaces)


def swap(place: Place, role: str, delta: Delta, *, replaces: bool, undo: ExitStack) -> None:
    """Put another parameter in the place of one, with the delta in it; the old one is not written to."""
    name = place.name(role)
    original = place.module._parameters[name]
    if original is None:
        raise RuntimeError(f"the plan let {role} at {place.site} through")
    changed = original.detach().clone()
    write(_required(place.view(changed), place, role), delta, replaces=replaces)
    undo.callback(Swapped(place.module, name, original).undo)
    place.module._parameters[name] = nn.Parameter(changed, requires_grad=original.requires_grad)


def write(target: torch.Tensor, delta: Any, *, replaces: bool) -> None:
    """Add a delta to a tensor in place, or put it there."""
    if replaces:
        target.copy_(delta)
    elif isinstance(delta, Entries):
        positions, values = _on(delta.positions, target), delta.values.to(target.device)
        old = _get(target, positions)
        _put(target, positions, (_wide(old) + values).to(target.dtype))
    else:
        work = _wide(target)
        if isinstance(delta, tuple):
            work.addmm_(*(factor.to(work.device, work.dtype) for factor in delta))
        else:
            work.add_(delta.to(work.device))
        if work is not target:
            target.copy_(work)


def _required(found: torch.Tensor | None, place: Place, role: str) -> torch.Tensor:
    if found is None:
        raise RuntimeError(f"the plan let {role} at {place.site} through")
    return found


def _keep(place: Place, role: str, target: torch.Tensor, delta: Delta, arena: Arena) -> Kept:
    if not isinstance(delta, Entries):
        return Kept(place, role, arena.copy(target))
    positions = _on(delta.positions, target)
    return Kept(place, role, _get(target, positions), positions)


def _wide(values: torch.Tensor) -> torch.Tensor:
    """The tensor itself where it is wide enough to add in, else a float32 copy."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def _on(positions: Any, target: torch.Tensor) -> torch.Tensor:
    """Positions as a torch tensor; methods give numpy's where they follow from shapes alone."""
    if isinstance(positions, torch.Tensor):
        return positions.to(target.device)
    return torch.tensor(positions, device=target.device)


def _get(target: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return target.detach().take(positions)


def _put(target: torch.Tensor, positions: torch.Tensor, values: torch.Tensor) -> None:
    target.put_(positions, values)
