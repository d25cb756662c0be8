"""The two ways to run a pool's tasks on one backbone, mixed or active, and who may touch the model meanwhile.

It knows packed tasks by what they hold; the names that a pool gives them, it does not keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from adapterpack.adapter import Adapter
from adapterpack.runtime.backbone import require_vit, unwrap
from adapterpack.runtime.devices import require_device
from adapterpack.runtime.fingerprint import fingerprint
from adapterpack.runtime.load import features_of, memory_errors, require_backbone
from adapterpack.runtime.plan import Fold, check_head, plan
from adapterpack.runtime.pool.active import Chosen, Front
from adapterpack.runtime.pool.batch import batch_of, heads, order_of, runs_of
from adapterpack.runtime.pool.cache import Cache
from adapterpack.runtime.pool.graphs import graphs_for
from adapterpack.runtime.pool.lock import ModelLock
from adapterpack.runtime.pool.ready import Ready, make_ready, mixed_plan
from adapterpack.runtime.pool.store import Packed
from adapterpack.runtime.pool.twin import Twin


class Engine:
    """A backbone, its twin for mixed batches, and the inflated tasks.

    Args:
        model: a timm `VisionTransformer`, or one under `torch.compile`.
        fold: how an active task goes in.
        budget: bytes of inflated tasks that may stay between calls, or None.
        head_classes: see `AdapterPool`.
        device: where to move the model first, or None.
        cuda_graphs: see `AdapterPool`.
        alive: whether a task is still in the pool, so that what was inflated for a removed one is not kept.

    Attributes:
        model: the `VisionTransformer` itself.
        lock: reading to run the model as it is, writing to change what is in it.
    """

    def __init__(
        self,
        model: nn.Module,
        fold: Fold,
        budget: int | None,
        head_classes: int | None,
        device: str | torch.device | None,
        cuda_graphs: Sequence[int],
        alive: Callable[[Packed], bool],
    ) -> None:
        self.model = unwrap(model)
        require_vit(self.model)
        self.front = Front(model, fold, head_classes)
        self.front.require_free()
        where = next(self.model.parameters()).device if device is None else require_device(device)
        self.graphs = graphs_for(cuda_graphs, where)
        if device is not None:
            self.model.to(where)
        self.twin = Twin(self.model)
        self.cache = Cache(budget, alive)
        self.lock = ModelLock()
        self.gather = False
        self._fold = fold
        self._made_for: object = None
        self._fingerprint: str | None = None
        self._settle()

    def check(self, adapter: Adapter, *, compare: bool) -> None:
        """Everything that could go wrong with a task later; `compare` its backbone's fingerprint as well.

        Raises:
            AdapterPackError: as `load`.
        """
        mixed_plan(adapter, self.twin)
        if self._fold == "always":
            plan(adapter, self.twin.model, "always")
        check_head(adapter, features_of(self.twin.model))
        if compare and adapter.backbone.fingerprint is not None:
            require_backbone(adapter, self._backbone())

    def _backbone(self) -> str:
        """The backbone's fingerprint, computed once."""
        if self._fingerprint is None:
            with self.frozen():
                self._fingerprint = fingerprint(self.model)
        return self._fingerprint

    def ready(self, tasks: Mapping[str, Packed]) -> dict[str, Ready]:
        """Inflated tasks by name.

        Raises:
            CallError: `out-of-memory`.
        """
        self.follow()
        with memory_errors(), torch.inference_mode(False), torch.no_grad():
            return dict(zip(tasks, self.cache.get_all([*tasks.values()], Ready, self._inflate)))

    def _inflate(self, task: Packed) -> Ready:
        return make_ready(task.read(), self.twin, gather=self.gather)

    def choose(self, name: str, task: Packed) -> Chosen:
        """A task ready to go into the model, see `Front.choose`."""
        with torch.inference_mode(False), torch.no_grad():
            return self.cache.get(task, Chosen, lambda found: self.front.choose(name, found))

    def answer(self, images: torch.Tensor, names: Sequence[str], ready: Mapping[str, Ready]) -> list[torch.Tensor]:
        """Logits of a mixed batch, a vector a row.

        Raises:
            CallError: `out-of-memory`.
            UnsupportedAdapterError: `already-loaded`.
        """
        order = order_of(names, ready)
        like = next(self.model.parameters())
        with self.frozen(), memory_errors(), torch.inference_mode(False), torch.no_grad():
            rows = images.to(like.device, like.dtype)
            if order != sorted(order):
                rows = rows[torch.tensor(order, device=rows.device)]
            runs = runs_of([names[i] for i in order], ready)
            features = None if self.graphs is None else self.graphs.features(self.twin, rows, runs)
            if features is None:
                gather = self.gather and not torch.is_autocast_enabled(rows.device.type)
                features = self.twin.features(rows, batch_of(runs, gather=gather))
            found = heads(self.twin.model, features, runs)
        out: list[Any] = [None] * len(order)
        for row, logits in zip(order, found):
            out[row] = logits
        return out

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """The backbone's own weights: beside other readers where no active task has changed them, else alone.

        Raises:
            UnsupportedAdapterError: `already-loaded`.
        """
        with self.lock.reading():
            self.front.require_free()
            if not self.front.changed:
                yield
                return
        with self.lock.writing():
            chosen = self.front.chosen
            self.front.show(None)
            try:
                yield
            finally:
                self.front.show(chosen)

    def follow(self) -> None:
        """Begin again where the model was moved or cast since."""
        if self._made_for == _place(self.model):
            return
        with self.lock.writing():
            chosen = self.front.chosen
            self.front.show(None)
            self.front.forget()
            self.cache.clear()
            if self.graphs is not None:
                self.graphs.clear()
            self._settle()
            if chosen is not None:
                self.front.show(self.choose(chosen.name, chosen.task))

    def _settle(self) -> None:
        self._made_for = _place(self.model)
        self.gather = next(self.model.parameters()).device.type != "cpu"


def _place(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    first = next(model.parameters())
    return first.device, first.dtype
