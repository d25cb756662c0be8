"""A replica's tasks kept as the board says: new files added, changed ones replaced, the rest removed.

What the pool refuses goes back to the board with its reason, and everything else goes on.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable
from typing import Any

from ray.exceptions import RayActorError

from adapterpack.adapter import DataSettings
from adapterpack.errors import AdapterPackError, CallError, Reason
from adapterpack.packing.bundle import Bundle, open_bundle
from adapterpack.packing.cross import standalone
from adapterpack.packing.join import join
from adapterpack.runtime.images import require_input
from adapterpack.runtime.pool.pool import AdapterPool
from adapterpack.serving.answers import Told
from adapterpack.serving.catalog import Listing
from adapterpack.serving.entries import Entry

_PAUSE = 0.5  # seconds until a board that died is asked again


class Holder:
    """Tasks of one pool.

    Args:
        pool: empty.
        board: the catalog's actor.
    """

    def __init__(self, pool: AdapterPool, board: Any) -> None:
        self.version = -1
        self._pool, self._board = pool, board
        self._from: dict[str, Entry] = {}  # each task's, as it was taken
        self._lock = asyncio.Lock()

    async def follow(self, seconds: float) -> None:
        """Wait for news, at most so long, and do what they say."""
        listing = await self.heard(self._board.listing.remote(self.version if seconds else -1, seconds))
        if listing is None:
            await asyncio.sleep(_PAUSE)
        else:
            await self._reconcile(listing)

    async def heard(self, asked: Awaitable[Any]) -> Any:
        """The board's answer; None while it is being started again."""
        try:
            return await asked
        except RayActorError:
            return None

    async def require(self, task: str) -> None:
        """Wait for a task that the board has and this replica has not yet.

        Raises:
            CallError: `unknown-task`.
        """
        if task in self._pool:
            return
        await self.follow(0)
        if task not in self._pool:
            raise CallError(f"there is no task {task!r}", Reason.UNKNOWN_TASK, hint="GET /v1/tasks lists them")

    def settings(self, task: str) -> DataSettings | None:
        """The preprocessing that a task's file records."""
        entry = self._from.get(task)
        facts = {} if entry is None else entry.tasks[task]
        if not facts.get("data"):
            return None
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in facts["data"].items()}
        return DataSettings(**known)

    async def _reconcile(self, listing: Listing) -> None:
        async with self._lock:
            if listing.version == self.version:
                return
            done = [await self._add(entry) for entry in listing.files if not self._has(entry)]
            wanted = listing.tasks
            for task in self._pool.tasks:
                if task not in wanted:
                    self._from.pop(task, None)
                    await asyncio.to_thread(self._pool.remove, task)
            if all(done):
                self.version = listing.version

    def _has(self, entry: Entry) -> bool:
        """Whether every task of the entry is here, and from this entry and no other."""
        wanted = _mark(entry)
        mine = (self._from.get(task) for task in entry.tasks)
        return all(one is not None and _mark(one) == wanted for one in mine)

    async def _add(self, entry: Entry) -> bool:
        """Take or refuse an entry; False where its bytes did not come, so that it is asked for again."""
        data = await self.heard(self._board.data.remote(entry.file, entry.stamp))
        if data is None:  # changed meanwhile, or the board died
            return False
        try:
            await asyncio.to_thread(self._put, data, entry)
        except AdapterPackError as error:
            await self.heard(self._board.refuse.remote(entry, Told.of(error)))
        else:
            self._from |= dict.fromkeys(entry.tasks, entry)
        return True

    def _put(self, data: bytes, entry: Entry) -> None:
        """The entry's tasks; those of its file that were removed since are another file's to give."""
        bundle = self._fitting(data)
        left = [task for task in bundle.tasks if task in entry.tasks]
        if not entry.alias and len(left) < len(bundle.tasks):
            data = join([standalone(bundle, task) for task in left], bundle.backbone)
        self._pool.add(data, name=entry.alias or None, replace=True)

    def _fitting(self, data: bytes) -> Bundle:
        """A file whose tasks all want pictures that the backbone takes; else none of their requests could be answered.

        Raises:
            UnsupportedAdapterError: `site-shape` or `bad-parameter`.
        """
        bundle = open_bundle(data)
        for entry in bundle.index.tasks:
            if entry.data is not None:
                require_input(self._pool.model, entry.data)
        return bundle

    async def examine(self, data: bytes) -> Told | None:
        """Whether the pool would take a file of any number of tasks; None where it would."""
        async with self._lock:
            try:
                await asyncio.to_thread(self._try_out, data)
            except AdapterPackError as error:
                return Told.of(error)
        return None

    def _try_out(self, data: bytes) -> None:
        bundle = self._fitting(data)
        for task in bundle.tasks:
            alias = f"examined-{secrets.token_hex(8)}"
            self._pool.add(join([standalone(bundle, task)], bundle.backbone), name=alias)
            self._pool.remove(alias)


def _mark(entry: Entry) -> tuple[str, str, str]:
    return entry.file, entry.stamp, entry.alias
