"""The catalog as a Ray actor: replicas and front doors wait here for what changes, and report what they could not take.

It has no model. Ray starts it again when it dies; what was uploaded and removed since is then told again by the front
door, and until that has happened nobody is given a listing, so that nothing disappears for a moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorAlreadyExistsError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from adapterpack.errors import AdapterPackError, CallError, Reason
from adapterpack.serving.answers import Told
from adapterpack.serving.catalog import Catalog, Listing
from adapterpack.serving.entries import Entry
from adapterpack.serving.folder import Folder
from adapterpack.serving.journal import Change, Done
from adapterpack.serving.start import NAMESPACE

_CALLS = 10_000  # that may wait for news at one time
_TRIES, _TRY_SECONDS = 15, 0.2  # until a name counts as taken
_FORGOTTEN = 12.0  # seconds after which a replica that said nothing is not counted any more


@dataclass(frozen=True, slots=True)
class Report:
    """What a replica says of itself: which version it has, its notes, why it cannot work, and the pool's figures."""

    replica: str
    version: int = 0
    notes: tuple[str, ...] = ()
    failure: Told | None = None
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Overview:
    """The listing, and the replicas that were heard of lately."""

    epoch: str
    listing: Listing
    reports: tuple[Report, ...]

    @property
    def ready(self) -> tuple[Report, ...]:
        """Replicas that can answer."""
        return tuple(report for report in self.reports if report.failure is None and report.version > 0)


class Board:
    """The actor's class.

    Args:
        source: the folder or URL.
        seconds: between two looks into it.
    """

    def __init__(self, source: str, seconds: float) -> None:
        self._catalog = Catalog(Folder(source))
        self._shown = self._catalog.listing()  # whole, while the catalog may be in the middle of a look
        self._seconds = seconds
        self._reports: dict[str, tuple[float, Report]] = {}
        self._news = asyncio.Condition()
        context = ray.get_runtime_context()
        self._epoch = f"{context.get_actor_id()} {time.time_ns()}"
        self._complete = not context.was_current_actor_reconstructed
        self._lock = asyncio.Lock()  # the catalog is used by one thread at a time
        self._watching: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Start to watch; again after a restart, where the first caller does it."""
        async with self._lock:
            if self._watching is None:
                await self._look()
                self._catalog.version += time.time_ns() // 1000  # no board begins with a number that another one gave
                self._shown = self._catalog.listing()
                self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            async with self._lock:
                changed = await self._look()
            if changed:
                await self._tell()

    async def _look(self) -> bool:
        """Into the folder; whatever fails is said, and the next look is taken all the same."""
        before = self._shown.version
        (found,) = await asyncio.gather(asyncio.to_thread(self._catalog.scan), return_exceptions=True)
        if isinstance(found, BaseException):
            self._catalog.fail(found)
        self._shown = self._catalog.listing()
        return self._shown.version > before

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def overview(self, known: tuple[str, int] = ("", 0), seconds: float = 0) -> Overview:
        """The state; with `seconds`, as soon as it differs from the known epoch and version."""
        await self.begin()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._differs(known), max(seconds, 0.001))
        return Overview(self._epoch, self._shown, self._recent())

    async def listing(self, known: int = -1, seconds: float = 0) -> Listing | None:
        """What to serve, for a replica; None while a second board does not know everything yet."""
        await self.begin()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._differs((self._epoch, known)), max(seconds, 0.001))
        return self._shown if self._complete else None

    async def _differs(self, known: tuple[str, int]) -> None:
        async with self._news:
            await self._news.wait_for(lambda: self._complete and known != (self._epoch, self._shown.version))

    def _recent(self) -> tuple[Report, ...]:
        now = time.monotonic()
        self._reports = {name: row for name, row in self._reports.items() if now - row[0] < _FORGOTTEN}
        return tuple(report for _, report in self._reports.values())

    async def data(self, file: str, stamp: str) -> bytes | None:
        """A file's bytes, None where it changed meanwhile."""
        return self._catalog.data(file, stamp)

    async def report(self, report: Report) -> None:
        """A replica tells how it is."""
        self._reports[report.replica] = (time.monotonic(), report)

    async def refuse(self, entry: Entry, told: Told) -> None:
        """A replica could not take a file."""
        async with self._lock:
            self._catalog.refuse(entry.file, entry.stamp, told.reason, str(told.error()))
            self._shown = self._catalog.listing()
        await self._tell()

    async def change(self, change: Change) -> Done | Told:
        """Add, read again or remove; what went wrong is returned. A second board first learns what was before."""
        async with self._news:
            await self._news.wait_for(lambda: self._complete)
        return await self._apply(change)

    async def _apply(self, change: Change) -> Done | Told:
        try:
            async with self._lock:
                done = await asyncio.to_thread(self._changed, change)
                self._shown = self._catalog.listing()
        except AdapterPackError as error:
            return Told.of(error)
        await self._tell()
        return done

    def _changed(self, change: Change) -> Done:
        if change.kind == "add":
            entries = self._catalog.add(change.data, change.name, replace=change.replace)
        elif change.kind == "reread":
            entries = (self._catalog.reread(change.name),)
        else:
            entries = (self._catalog.remove(change.name),)
        return Done(entries, self._catalog.version)

    async def replay(self, changes: Sequence[Change]) -> None:
        """Everything that an earlier board was told; what does not apply any more is left out."""
        await self.begin()
        if not self._complete:
            for change in changes:
                await self._apply(change)
            self._complete = True
            await self._tell()


def create(name: str, source: str, seconds: float) -> Any:
    """Start a board; it ends with the process that started it.

    Args:
        name: of the application; its replicas would be taken over by a second one of that name, so that is refused.
        source, seconds: as for `Board`.

    Raises:
        CallError: `bad-call`, a service of that name runs on the cluster.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # the folder is here
    actor = ray.remote(Board).options(
        name=f"board of {name}",
        namespace=NAMESPACE,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=-1,
        max_concurrency=_CALLS,
        scheduling_strategy=here,
    )
    for _ in range(_TRIES):
        try:
            return actor.remote(source, seconds)
        except ActorAlreadyExistsError:  # perhaps of one that is just ending
            time.sleep(_TRY_SECONDS)
    hint = "give this one another --name, or end that one first"
    raise CallError(f"a service called {name} runs already", Reason.BAD_CALL, hint=hint)
