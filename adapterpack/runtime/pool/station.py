"""Where rows part: a stand-in for a module's forward that gives each row of a batch what its own task's module would.

It knows the batch of the thread that runs it, and nothing of how tasks are kept or where batches come from.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from adapterpack.errors import Reason, UnsupportedAdapterError
from adapterpack.runtime.fold import deltas, write
from adapterpack.runtime.pool.parts import Gain, Override, Part, Product, Segment


class Batch:
    """What the stations must know of the batch that runs in this thread: whose rows are where.

    `seen` keeps the residual stream between the two ends of an attention or an MLP.
    """

    __slots__ = ("products", "rows", "seen", "segments")

    def __init__(self, segments: Sequence[Segment], products: Mapping[Station, Sequence[Product]]) -> None:
        self.segments, self.products = segments, products
        self.rows = segments[-1].stop
        self.seen: dict[Hashable, torch.Tensor] = {}

    def narrowed(self, start: int, stop: int) -> Batch:
        """The same for some rows only, for the modules inside one that runs in parts."""
        inside = [s for s in self.segments if s.start >= start and s.stop <= stop]
        return Batch([Segment(s.start - start, s.stop - start, s.parts) for s in inside], {})


class Running(threading.local):
    """What belongs to one thread: its batch, and memory for weights that a task changes, used again and again."""

    def __init__(self) -> None:
        self.batch: Batch | None = None
        self._depth = 0
        self._scratch: dict[tuple[object, ...], torch.Tensor] = {}

    @contextmanager
    def on(self, batch: Batch) -> Iterator[None]:
        """Run a batch, or within one, some of its rows."""
        before, self.batch = self.batch, batch
        self._depth += 1
        try:
            yield
        finally:
            self.batch = before
            self._depth -= 1

    def copy(self, source: torch.Tensor, name: str) -> torch.Tensor:
        """A copy that lasts as long as the rows that run with it; new memory costs more than copying, on the CPU."""
        if source.device.type != "cpu":
            return source.detach().clone()
        key = (self._depth, name, source.shape, source.dtype)
        kept = self._scratch.get(key)
        if kept is None:
            kept = self._scratch[key] = torch.empty_like(source, requires_grad=False)
        return kept.copy_(source.detach())


class Station:
    """Stands in for a method of a module of the twin, and gives each row what its own task's module would.

    Args:
        module: of the twin.
        method: "forward", or another method that reads the module's own parameters.
        running: holds the batch of each thread.
    """

    __slots__ = ("_is_linear", "_plain", "_running", "method", "module")

    def __init__(self, module: nn.Module, method: str, running: Running) -> None:
        self.module, self.method, self._running = module, method, running
        self._plain = getattr(module, method)
        self._is_linear = type(module) is nn.Linear

    def __call__(self, x: torch.Tensor, *rest: Any, **more: Any) -> Any:
        batch = self._running.batch
        if batch is None or len(x) != batch.rows:
            rows = "no" if batch is None else batch.rows
            text = f"a {type(self.module).__name__} gets {len(x)} rows for {rows} images"
            raise UnsupportedAdapterError(text, Reason.UNSUPPORTED_MODEL, hint="run its tasks one at a time")
        found = [(segment, part) for segment in batch.segments if (part := segment.parts.get(self)) is not None]
        if any(part.reads for _, part in found):
            batch.seen[self] = x
        if not any(part.overrides for _, part in found):
            out = self._plain(x, *rest, **more)
        elif self._is_linear and not torch.is_autocast_enabled(x.device.type):
            out = self._linear(batch, x)
            self._shift(found, out)
        else:
            runs = self._runs(batch, cut_at_shifts=True)
            out = torch.cat([self._piece(batch, run, x, rest, more) for run in runs])
        return self._gained(batch, found, x, out)

    def _linear(self, batch: Batch, x: torch.Tensor) -> torch.Tensor:
        """All pieces of a linear layer, each written where it belongs; where a bias alone differs, the backbone's."""
        width = self.module._parameters["weight"].shape[0]  # type: ignore[union-attr]
        out = x.new_empty(*x.shape[:-1], width)
        for start, stop, part in self._runs(batch, cut_at_shifts=False):
            now = self.module._parameters if part is None else self._with(part.overrides)._parameters
            rows, target = x[start:stop].flatten(0, -2), out[start:stop].view(-1, width)
            weight, bias = now["weight"], now["bias"]
            if bias is None:
                torch.mm(rows, weight.t(), out=target)  # type: ignore[union-attr]
            else:
                torch.addmm(bias, rows, weight.t(), out=target)  # type: ignore[union-attr]
        return out

    def _shift(self, found: list[tuple[Segment, Part]], out: torch.Tensor) -> None:
        """Add the difference of biases, which saves cutting the product into pieces."""
        for segment, part in found:
            if part.shifts:
                before = self.module._parameters["bias"]
                after = self._with(part.overrides)._parameters["bias"]
                gained = _required(after, "bias").double() - _required(before, "bias").double()
                out[segment.start : segment.stop].add_(gained.to(out.dtype))

    def _runs(self, batch: Batch, *, cut_at_shifts: bool) -> Iterator[tuple[int, int, Part | None]]:
        """Neighbouring rows that use the same parameters."""
        start = 0
        for segment in batch.segments:
            part = segment.parts.get(self)
            if part is not None and part.overrides and (cut_at_shifts or not part.shifts):
                if start < segment.start:
                    yield start, segment.start, None
                yield segment.start, segment.stop, part
                start = segment.stop
        if start < batch.rows:
            yield start, batch.rows, None

    def _piece(self, batch: Batch, run: tuple[int, int, Part | None], x: torch.Tensor, rest: Any, more: Any) -> Any:
        start, stop, part = run
        plain = self._plain if part is None else getattr(self._with(part.overrides), self.method)
        with self._running.on(batch.narrowed(start, stop)):
            return plain(x[start:stop], *rest, **more)

    def _with(self, overrides: Sequence[Override]) -> nn.Module:
        """The module with a task's parameters, until it is asked for another task's."""
        other = shallow(self.module)
        other.__dict__.pop(self.method, None)
        now = other.__dict__["_parameters"] = dict(self.module._parameters)
        own: set[str] = set()  # copies made here; a replacement is the task's, and is not written to
        for override in overrides:
            place, replaces = replace(override.place, module=other), override.method.replaces
            for role, delta in deltas(override.method, override.tensors, override.params, place).items():
                name = place.name(role)
                if replaces and place.rows is None:
                    now[name] = delta
                    own.discard(name)
                    continue
                if name not in own:
                    now[name] = self._running.copy(_required(now[name], name), name)
                    own.add(name)
                write(_required(place.tensor(role), name), delta, replaces=replaces)
        return other

    def _gained(self, batch: Batch, found: list[tuple[Segment, Part]], x: torch.Tensor, out: Any) -> Any:
        gaining = [(segment, gain) for segment, part in found for gain in part.gains]
        products = batch.products.get(self, ())
        if not gaining and not products:
            return out
        if not isinstance(self.module, nn.Linear) and not _fresh(out, _needed(batch, gaining, x)):
            out = out.clone()
        for product in products:
            _multiply(product, x, out)
        for segment, gain in gaining:
            if not (products and gain.stacked):
                _add(gain, batch, segment, x, out)
        for _, gain in gaining:
            if gain.source is not None:
                batch.seen.pop(gain.source, None)
        return out


def _add(gain: Gain, batch: Batch, segment: Segment, x: torch.Tensor, out: torch.Tensor) -> None:
    rows = slice(segment.start, segment.stop)
    target = out[rows] if gain.rows is None else out[rows].narrow(-1, *gain.rows)
    read = _read(gain, batch, rows, x, target)
    target.add_(gain.method.branch(read, gain.tensors, gain.params))


def _read(gain: Gain, batch: Batch, rows: slice, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """What a branch reads, for its rows."""
    tap = gain.method.tap(gain.params)
    if gain.source is None:
        return target if tap == "output" else x[rows]
    if tap != "sum":
        return batch.seen[gain.source][rows]
    return target if gain.whole else batch.seen[gain.source][rows] + target


def _multiply(product: Product, x: torch.Tensor, out: torch.Tensor) -> None:
    """Two launches for one range of columns, three for two."""
    rows, count = slice(product.start, product.stop), product.stop - product.start
    tokens, onto = x[rows].reshape(count, -1, x.shape[-1]), out[rows].view(count, -1, out.shape[-1])
    hidden = torch.bmm(tokens, product.down.mT)
    at = 0
    for columns, up in product.ups:
        target = onto if columns is None else onto.narrow(-1, *columns)
        target.baddbmm_(hidden[..., at : at + up.shape[1]], up)
        at += up.shape[1]


def _needed(batch: Batch, gaining: Sequence[tuple[Segment, Gain]], x: torch.Tensor) -> list[torch.Tensor]:
    """What is read again later: the residual stream; that is what a norm read, not this module's x."""
    beside = all(gain.source is not None for _, gain in gaining)
    return [*batch.seen.values()] if beside else [x, *batch.seen.values()]


def _fresh(out: torch.Tensor, others: Sequence[torch.Tensor]) -> bool:
    """Whether writing to `out` leaves the others alone."""
    here = out.untyped_storage().data_ptr()
    return all(other.untyped_storage().data_ptr() != here for other in others)


def _required(found: torch.Tensor | None, name: str) -> torch.Tensor:
    if found is None:
        raise RuntimeError(f"the plan let {name} through")
    return found


def shallow(module: nn.Module) -> nn.Module:
    """Another module that shares everything with this one."""
    other: nn.Module = object.__new__(type(module))
    other.__dict__.update(module.__dict__)
    return other
