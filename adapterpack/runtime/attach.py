"""Branches beside the backbone: forward hooks that add what a branch gives, and nothing to the parameters.

A hook holds its branch's tensors in the backbone's dtype and finds everything else in the forward pass, so one model
may run in several threads at once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from adapterpack.adapter import Site
from adapterpack.methods._base import Method, Params
from adapterpack.runtime.places import Place, Residual

Tensors = Mapping[str, torch.Tensor]


class SiteHook:
    """Adds a branch to the output of a module, or to its q, k or v columns.

    Args:
        site: for messages.
        method: gives the branch.
        tensors: by role, scale included, in the backbone's dtype.
        params: the method's settings.
        rows: (start, length) of the columns that it writes, or None for all.
    """

    __slots__ = ("method", "params", "rows", "site", "tensors")

    def __init__(
        self, site: Site, method: Method, tensors: Tensors, params: Params, rows: tuple[int, int] | None
    ) -> None:
        self.site, self.method, self.tensors, self.params, self.rows = site, method, tensors, params, rows

    def __call__(self, module: nn.Module, args: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
        reads_output = self.method.tap(self.params) == "output"
        x = self._columns(out) if reads_output else args[0]
        self.tensors = _following(self.tensors, x)
        gained = self.method.branch(x, self.tensors, self.params)
        if not isinstance(module, nn.Linear):  # whose output is always new, and not needed for its own gradient
            out = out.clone()
        self._columns(out).add_(gained)
        return out

    def _columns(self, out: torch.Tensor) -> torch.Tensor:
        return out if self.rows is None else out.narrow(-1, *self.rows)


class ResidualHook:
    """Adds a branch to the residual stream: reads the input of a norm, adds where the path behind it ends.

    The tensor that was read is kept for the running thread only, between the two calls. With tap "sum" the branch gets
    the stream behind that end: what was read and what the path gives, or, with `whole`, the latter alone.

    Args:
        seen: where it is kept, by the hook's id as text (`torch.compile` takes no number); may serve many hooks.
    """

    __slots__ = ("_seen", "channels_first", "method", "params", "site", "tensors", "whole")

    def __init__(
        self,
        site: Site,
        method: Method,
        tensors: Tensors,
        params: Params,
        *,
        channels_first: bool = False,
        whole: bool = False,
        seen: threading.local | None = None,
    ) -> None:
        self.site, self.method, self.tensors, self.params = site, method, tensors, params
        self.channels_first, self.whole = channels_first, whole
        self._seen = threading.local() if seen is None else seen

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles without the thread's own part."""
        make = partial(ResidualHook, channels_first=self.channels_first, whole=self.whole)
        return make, (self.site, self.method, self.tensors, self.params)

    def read(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        vars(self._seen)[str(id(self))] = self._last(args[0])

    def add(self, module: nn.Module, args: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
        x = vars(self._seen).pop(str(id(self)))
        if self.method.tap(self.params) == "sum":
            x = self._last(out) if self.whole else x + self._last(out)
        self.tensors = _following(self.tensors, x)
        gained: torch.Tensor = self.method.branch(x, self.tensors, self.params)
        if self.channels_first:
            gained = gained.movedim(-1, 1)
        return out + gained.to(out.dtype)

    def _last(self, x: torch.Tensor) -> torch.Tensor:
        """With the channels as the last dimension."""
        return x.movedim(1, -1) if self.channels_first else x


_AT_ONCE = 64  # numbers of hooks: Python forgets what it knows of a class whenever one of its attributes is set


class Hooks:
    """Hooks that are taken away together: torch's own handles, one a hook, take three times as long to make."""

    __slots__ = ("_added", "_numbers", "_seen")

    def __init__(self) -> None:
        self._added: list[tuple[dict[int, Any], int]] = []
        self._numbers: list[int] = []
        self._seen = threading.local()

    def attach(self, place: Place, site: Site, method: Method, tensors: Tensors, params: Params) -> None:
        """Hook a branch to a module's output."""
        weight = place.module._parameters.get("weight")
        hook = SiteHook(site, method, _like(tensors, weight), params, place.rows)
        self._add(place.module._forward_hooks, hook)

    def attach_residual(
        self, at: Residual, site: Site, method: Method, tensors: Tensors, params: Params, like: torch.Tensor
    ) -> None:
        """Hook a branch to the residual stream; its tensors come in the dtype and on the device of `like`."""
        tensors = _like(tensors, like)
        ends = {"channels_first": at.channels_first, "whole": at.whole}
        hook = ResidualHook(site, method, tensors, params, **ends, seen=self._seen)
        self._add(at.norm._forward_pre_hooks, hook.read)
        self._add(at.end._forward_hooks, hook.add)

    def remove(self) -> None:
        """Take all of them away; a second call does nothing."""
        while self._added:
            hooks, number = self._added.pop()
            hooks.pop(number, None)

    def _add(self, hooks: dict[int, Any], hook: Any) -> None:
        """As `register_forward_hook` does without its options; torch numbers all hooks of a process."""
        if not self._numbers:
            first = RemovableHandle.next_id
            RemovableHandle.next_id = first + _AT_ONCE
            self._numbers = list(range(first + _AT_ONCE - 1, first - 1, -1))
        number = self._numbers.pop()
        hooks[number] = hook
        self._added.append((hooks, number))


def attached(model: nn.Module) -> Iterator[SiteHook | ResidualHook]:
    """The branches that run beside the model, in module order."""
    for module in model.modules():
        for hook in module._forward_hooks.values():
            owner = getattr(hook, "__self__", hook)
            if isinstance(owner, (SiteHook, ResidualHook)):
                yield owner


def attached_sites(model: nn.Module) -> list[str]:
    """The sites at which branches run beside the model, in module order."""
    return [str(hook.site) for hook in attached(model)]


def _following(tensors: Tensors, x: torch.Tensor) -> Tensors:
    """The tensors where the model is now: it may have been moved or cast since, and hooks are not parameters."""
    first = next(iter(tensors.values()))
    if first.device == x.device and (first.dtype == x.dtype or torch.is_autocast_enabled(x.device.type)):
        return tensors
    return {role: tensor.to(x.device, x.dtype) for role, tensor in tensors.items()}


def _like(tensors: Tensors, like: torch.Tensor | None) -> Tensors:
    """In the dtype and on the device of the parameter beside which the branch runs."""
    if like is None or (like.dtype is torch.float32 and like.is_cpu):
        return tensors
    return {role: tensor.to(like.device, like.dtype) for role, tensor in tensors.items()}
