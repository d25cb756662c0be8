"""One copy of the backbone with every task packed beside it: what Ray Serve runs as many times as asked.

It computes batches in one thread, keeps its tasks as the board says, and answers with values, never with tracebacks.
"""

from __future__ import annotations

import asyncio
import os
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from ray import serve

from adapterpack.errors import AdapterPackError, Reason
from adapterpack.runtime.backbone import create_backbone
from adapterpack.runtime.devices import choose_device
from adapterpack.runtime.images import decoded
from adapterpack.runtime.load import MissingFingerprintWarning
from adapterpack.runtime.pool.facts import Prediction
from adapterpack.runtime.pool.folded import predict_folded
from adapterpack.runtime.pool.pool import AdapterPool
from adapterpack.runtime.pool.predict import Picture
from adapterpack.serving.answers import Answer, Told, model_id
from adapterpack.serving.board import Report
from adapterpack.serving.holder import Holder
from adapterpack.serving.settings import FORMATS, Settings

_GRACE = 30.0  # seconds in which a service that is starting can read why a replica cannot work
_BEAT = 5.0  # seconds between two reports where nothing changes


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One image on its way through a batch."""

    image: Picture
    task: str
    top: int
    folded: bool


class Replica:
    """The class of the deployment; `service` gives it its options.

    Args:
        settings: of the service.
        board: the catalog's actor.
    """

    async def __init__(self, settings: Settings, board: Any) -> None:  # type: ignore[misc]  # Serve awaits it
        self._settings, self._board = settings, board
        self._report = Report(f"{uuid4().hex[:8]} pid {os.getpid()}")
        self._compute = ThreadPoolExecutor(1, "compute")
        self._failure: Told | None = None
        self._failed = 0.0
        self._batched.set_max_batch_size(settings.batch_size)  # type: ignore[attr-defined]
        self._batched.set_batch_wait_timeout_s(settings.batch_wait)  # type: ignore[attr-defined]
        self._following: asyncio.Task[None] | None = None
        try:
            await asyncio.to_thread(self._make)
        except AdapterPackError as error:
            self._failure, self._failed = Told.of(error), time.monotonic()
            self._report = replace(self._report, failure=self._failure)
            await board.report.remote(self._report)
            return
        await self._holder.follow(0)
        await self._tell()
        self._following = asyncio.create_task(self._follow())

    def _make(self) -> None:
        settings = self._settings
        device = choose_device(settings.device)
        made = create_backbone(settings.backbone)
        self._data = made.data
        wanted = settings.check_fingerprint and not made.note  # random weights match no fingerprint; the note says so
        self._pool = AdapterPool(
            made.model, device=device, memory_budget=settings.memory_budget, check_fingerprint=wanted
        )
        self._holder = Holder(self._pool, self._board)
        self._report = replace(self._report, notes=(made.note,) * bool(made.note))
        warnings.simplefilter("ignore", MissingFingerprintWarning)  # what a file says of its backbone is in the list

    async def _follow(self) -> None:
        """Do what the board says, for ever; a board that is being started again is waited for."""
        while True:
            await self._holder.follow(_BEAT)
            await self._tell()

    async def _tell(self) -> None:
        stats = self._pool.stats()
        figures = {"tasks": len(stats.tasks), "packed_bytes": stats.packed_bytes, "pid": os.getpid()}
        figures |= {"inflated_bytes": stats.inflated_bytes, "evictions": stats.evictions}
        self._report = replace(self._report, version=self._holder.version, figures=figures)
        await self._holder.heard(self._board.report.remote(self._report))

    def check_health(self) -> None:
        """Ray replaces a replica whose health check raises."""
        if self._failure is not None and time.monotonic() > self._failed + _GRACE:
            raise RuntimeError(self._failure.message)
        if self._following is not None and self._following.done():
            raise RuntimeError("this replica does not hear of new tasks any more") from self._following.exception()

    async def examine(self, data: bytes) -> Told | None:
        """Whether a file would be taken, without keeping it; None where it would."""
        return await self._holder.examine(data)

    async def classify(self, data: bytes, task: str, top: int, *, folded: bool = False) -> Answer | Told:
        """One image's classes.

        Args:
            data: the image file.
            task: its task.
            top: how many classes.
            folded: with the task in the backbone's weights; the caller gives the task as multiplexed model id as well,
                so that Ray prefers a replica that has it there.
        """
        if self._failure is not None:
            return Told("CallError", f"a replica cannot work: {self._failure.message}", Reason.IO.value)
        try:
            await self._holder.require(task)
            image = await asyncio.to_thread(decoded, data, FORMATS, self._settings.most_pixels)
            if folded:
                await self._hold(model_id(task))
            found: Answer | Told = await self._batched(Item(image, task, top, folded))
            if isinstance(found, Told) and found.reason == Reason.UNKNOWN_TASK.value:
                await self._holder.require(task)  # removed in between, and perhaps added again since
                found = await self._batched(Item(image, task, top, folded))
        except AdapterPackError as error:
            return Told.of(error)
        return found

    @serve.multiplexed(max_num_models_per_replica=1)  # type: ignore[untyped-decorator]
    async def _hold(self, model: str) -> str:
        """Tell Ray which task this replica has folded; the batch itself folds it."""
        return model

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.005)
    async def _batched(self, items: list[Item]) -> list[Answer | Told]:
        """A batch of mixed tasks; both numbers are set anew by `_make`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._compute, self._answers, items)

    def _answers(self, items: Sequence[Item]) -> list[Answer | Told]:
        """Mixed items together, then those of each folded task; an item that fails fails alone."""
        parts: dict[str, list[int]] = {}
        for number, item in enumerate(items):
            parts.setdefault(item.task if item.folded else "", []).append(number)
        out: dict[int, Answer | Told] = {}
        for task in sorted(parts):
            out |= dict(zip(parts[task], self._part([items[number] for number in parts[task]], task)))
        return [out[number] for number in range(len(items))]

    def _part(self, items: Sequence[Item], task: str) -> list[Answer | Told]:
        try:
            found = self._predicted(items, task)
        except AdapterPackError as error:
            if len(items) == 1:
                return [Told.of(error)]
            return [answer for item in items for answer in self._part([item], task)]
        return [_answer(row, item.top, len(items) if not i else 0) for i, (row, item) in enumerate(zip(found, items))]

    def _predicted(self, items: Sequence[Item], task: str) -> list[Prediction]:
        top, images = max(item.top for item in items), [item.image for item in items]
        if task:
            settings = self._holder.settings(task) or self._data
            return predict_folded(self._pool, images, task, settings, top)
        if self._pool.active is not None:
            self._pool.activate(None)  # once, where a mixed batch would take the task out and put it back
        return self._pool.predict(images, [item.task for item in items], top)


def _answer(found: Prediction, top: int, batch: int) -> Answer:
    rows = zip(found.indices, found.labels, found.probabilities)
    classes = [{"class": i, "label": label, "probability": round(p, 6)} for i, label, p in rows]
    return Answer({"task": found.task, "top": classes[:top]}, batch)
