"""`AdapterPool`: many tasks on one frozen backbone, packed while they wait, in one batch together or one at a time.

It knows the tasks' names and checks what it is asked; how tasks are kept, run and folded is in the modules beside it.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from adapterpack._files import SourceLike
from adapterpack.errors import CallError, Reason
from adapterpack.runtime.images import require_classes
from adapterpack.runtime.load import MissingFingerprintWarning
from adapterpack.runtime.plan import FOLDS, Fold
from adapterpack.runtime.pool.batch import require_batch, require_names
from adapterpack.runtime.pool.engine import Engine
from adapterpack.runtime.pool.facts import PoolStats, Prediction, TaskInfo
from adapterpack.runtime.pool.names import info_of, new_names, stats_of, unknown
from adapterpack.runtime.pool.predict import Picture, inputs_of, predictions, require_pictures
from adapterpack.runtime.pool.store import Packed, packed_tasks


class AdapterPool:
    """Tasks of `.apk` files on one frozen timm ViT.

    A task waits as the bytes of its file and is inflated when it is first used. `pool(images, tasks=[…])` answers a
    batch in which each image has its own task, in one pass; `activate` puts one task into the model itself.

    All methods may be called from several threads, on a GPU in one stream. Calls of the model itself are the caller's:
    use `using` where other threads may activate or remove tasks meanwhile. While the pool lives, the backbone's weights
    belong to it.

    Args:
        model: a timm `VisionTransformer`, also one under `torch.compile` (which then can activate what can be folded).
        fold: how `activate` puts a task in: "auto", "always" or "never", as for `load`.
        memory_budget: bytes of inflated tasks that may stay between calls, the least recently used go first; None for
            no limit.
        device: where to move the model first; None leaves it where it is.
        check_fingerprint: False accepts adapters of any backbone of the right shape.
        head_classes: gives the model one head of that many rows for all activated tasks (the spare logits are minus
            infinity), so that activating never changes a shape; None gives each task a head of its own size.
        cuda_graphs: sizes of mixed batches, such as (1, 8, 32), whose forward pass is captured as a CUDA graph at its
            first use; a batch is filled up to the next size. For LoRA tasks of one rank and one set of sites; other
            batches run as without.

    Attributes:
        model: as given.

    Raises:
        UnsupportedAdapterError: `unsupported-model`, or `already-loaded`: a task is in the model.
        CallError: `bad-call`; also where `cuda_graphs` is given and the model is on no GPU.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        fold: Fold = "auto",
        memory_budget: int | None = None,
        device: str | torch.device | None = None,
        check_fingerprint: bool = True,
        head_classes: int | None = None,
        cuda_graphs: Sequence[int] = (),
    ) -> None:
        _check_arguments(fold, memory_budget, head_classes)
        self.model = model
        self._engine = Engine(model, fold, memory_budget, head_classes, device, cuda_graphs, self._holds)
        self._check_fingerprint = check_fingerprint
        self._tasks: dict[str, Packed] = {}
        self._table = threading.Lock()  # around `_tasks`; taken inside the engine's lock, never around it

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names, in the order in which they were added."""
        with self._table:
            return tuple(self._tasks)

    @property
    def active(self) -> str | None:
        """The task that is in the model, or None."""
        chosen = self._engine.front.chosen
        return None if chosen is None else chosen.name

    def _holds(self, task: Packed) -> bool:
        with self._table:
            return any(task is known for known in self._tasks.values())

    def __contains__(self, name: object) -> bool:
        with self._table:
            return name in self._tasks

    def __len__(self) -> int:
        with self._table:
            return len(self._tasks)

    def add(self, source: SourceLike, *, name: str | None = None, replace: bool = False) -> tuple[str, ...]:
        """Add the task or all tasks of a file, verified whole; all are added or none.

        Args:
            source: path, bytes, seekable binary file object, or URL that fsspec opens.
            name: what to call it here, for a file of one task.
            replace: put it in the place of a task of the same name, also of the active one.

        Returns:
            The names added.

        Raises:
            CorruptFileError, UnsupportedVersionError, MissingFileError: as `load`.
            BackboneMismatchError, UnsupportedAdapterError: it does not belong to this backbone.
            CallError: `duplicate-name`, `bad-call`, `out-of-memory`.

        Warns:
            MissingFingerprintWarning: a file has no fingerprint to compare.
        """
        found: list[Packed] = []
        nameless = False
        for packed, adapter in packed_tasks(source):
            self._engine.check(adapter, compare=self._check_fingerprint)
            nameless |= adapter.backbone.fingerprint is None
            found.append(packed)
        added = new_names(found, name)
        if replace:
            self._add_or_replace(added)
        else:
            self._add_new(added)
        if nameless and self._check_fingerprint:
            text = f"{next(iter(added))} does not say which backbone it was trained on: it was not compared"
            warnings.warn(text, MissingFingerprintWarning, stacklevel=2)
        return tuple(added)

    def remove(self, name: str) -> None:
        """Forget a task; where it was active, the model is the frozen backbone again. Running calls end as they began.

        Raises:
            CallError: `unknown-task`.
        """
        with self._engine.lock.writing():
            task = self._packed(name)
            if self.active == name:
                self._engine.front.show(None)
            with self._table:
                del self._tasks[name]
            self._engine.cache.drop(task)

    def activate(self, name: str | None) -> None:
        """Make the model answer for one task, or be the frozen backbone again, to the bit.

        Parameters keep their memory. The task is read and inflated before the model is locked.

        Raises:
            CallError: `unknown-task`, `out-of-memory`; `bad-call`, more classes than `head_classes`.
            UnsupportedAdapterError: `not-foldable`; `unsupported-model`, a compiled model and what must be attached;
                `already-loaded`, an adapter that something else put into the model.
        """
        front, done = self._engine.front, False
        while not done:
            self._engine.follow()
            task, now = None if name is None else self._packed(name), front.chosen
            known = now is not None and now.name == name and now.task is task
            chosen = now if known else None if task is None else self._engine.choose(str(name), task)
            with self._engine.lock.writing():
                front.require_free()
                if name is not None and self._packed(name) is not task:
                    continue  # replaced meanwhile
                if front.chosen is not chosen:
                    front.show(chosen)
                done = True

    @contextmanager
    def using(self, name: str | None) -> Iterator[nn.Module]:
        """The model with one task in it, which no other thread changes meanwhile; afterwards what was active before."""
        with self._engine.lock.writing():
            before = self.active
            self.activate(name)
            try:
                yield self.model
            finally:
                self.activate(before if before in self else None)

    def __call__(self, images: torch.Tensor, tasks: Sequence[str]) -> list[torch.Tensor]:
        """One pass over a batch in which each image has its own task.

        What is active does not matter: the answer is that of each task unfolded, and what was active is so afterwards.

        Args:
            images: [n, channels, height, width], preprocessed, of any float dtype and on any device.
            tasks: n names.

        Returns:
            n vectors [classes of its task], in the order of the images.

        Raises:
            CallError: `unknown-task`, `bad-call`, `out-of-memory`.
            UnsupportedAdapterError: `site-shape`, images of another size; `already-loaded`.
        """
        names = require_batch(self._engine.model, images, tasks)
        if not names:
            return []
        return self._engine.answer(images, names, self._engine.ready(self._all_packed(names)))

    def predict(self, images: Sequence[Picture], tasks: Sequence[str], top: int = 5) -> list[Prediction]:
        """The most probable classes of each image, each preprocessed as its own task wants it.

        Args:
            images: n pictures in memory (`PIL.Image.Image`) or paths.
            tasks: n names.
            top: how many classes to give, at most the number of the task's classes.

        Raises:
            MissingFileError, CorruptFileError: an image that cannot be read.
            CallError, UnsupportedAdapterError: as for a call.
        """
        pictures = require_pictures(images, top)
        names = require_names(len(pictures), tasks)
        ready = self._engine.ready(self._all_packed(names))
        wanted = [ready[name] for name in names]
        for name, task in ready.items():
            if not task.head:
                require_classes(self._engine.twin.model, name)
        logits: list[Any] = [None] * len(names)
        for rows, batch in inputs_of(self._engine.model, pictures, wanted):
            for row, values in zip(rows, self._engine.answer(batch, [names[row] for row in rows], ready)):
                logits[row] = values
        return predictions(names, wanted, logits, top)

    def stats(self) -> PoolStats:
        """What is where, at one moment."""
        with self._table:
            tasks = dict(self._tasks)
        return stats_of(tasks, self._engine.cache, self._engine.front, self._engine.graphs)

    def info(self, name: str) -> TaskInfo:
        """What a task's packed bytes say of it.

        Raises:
            CallError: `unknown-task`.
        """
        return info_of(name, self._packed(name), self._engine.cache)

    def _add_new(self, added: dict[str, Packed]) -> None:
        """New names can be active nowhere, so that running calls need not end first."""
        with self._table:
            twice = next((name for name in added if name in self._tasks), None)
            if twice is not None:
                text = f"there is a task {twice!r} already"
                raise CallError(text, Reason.DUPLICATE_NAME, hint="remove it first, or add with replace=True")
            self._tasks.update(added)

    def _add_or_replace(self, added: dict[str, Packed]) -> None:
        front = self._engine.front
        with self._engine.lock.writing():
            self._engine.follow()
            active = self.active
            if active is not None and active in added:
                front.show(self._engine.choose(active, added[active]))
            with self._table:
                old = [self._tasks[name] for name in added if name in self._tasks]
                self._tasks.update(added)
            for task in old:
                self._engine.cache.drop(task)

    def _packed(self, name: str) -> Packed:
        return self._all_packed([name])[name]

    def _all_packed(self, names: Sequence[str]) -> dict[str, Packed]:
        """Each task once, all at one moment.

        Raises:
            CallError: `unknown-task`.
        """
        with self._table:
            for name in names:
                if not isinstance(name, str) or name not in self._tasks:
                    raise unknown(name, list(self._tasks))
            return {name: self._tasks[name] for name in names}


def _check_arguments(fold: Fold, memory_budget: int | None, head_classes: int | None) -> None:
    if fold not in FOLDS:
        raise CallError(f"fold is {fold!r}", Reason.BAD_CALL, hint=f"expected one of {', '.join(FOLDS)}")
    for name, value, least in (("memory_budget", memory_budget, 0), ("head_classes", head_classes, 1)):
        if value is not None and (type(value) is not int or value < least):
            raise CallError(f"{name} is {value!r}", Reason.BAD_CALL, hint=f"expected None or at least {least}")
