"""A front door's copy of what the board says, kept fresh; and the changes that a second board would have to be told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayActorError

from adapterpack.errors import CallError, Reason
from adapterpack.serving.answers import Told
from adapterpack.serving.board import Change, Overview
from adapterpack.serving.catalog import Entry, Refusal

_SECONDS = 1.0


class State:
    """The copy.

    Args:
        board: the catalog's actor.
        log: is told in one line of every file that is refused, and of a folder that cannot be listed.
    """

    def __init__(self, board: Any, log: Callable[[str], None]) -> None:
        self.overview: Overview | None = None
        self._board, self._log = board, log
        self._journal: list[Change] = []
        self._lock = asyncio.Lock()
        self._told: set[Refusal | str] = set()

    async def follow(self) -> None:
        """For ever."""
        while True:
            try:
                await self.refresh(_SECONDS)
            except RayActorError:
                await asyncio.sleep(_SECONDS)

    async def refresh(self, seconds: float = 0) -> Overview:
        """Ask the board; with `seconds`, wait so long for news."""
        known = self.overview
        at = (known.epoch, known.listing.version) if known is not None and seconds else ("", 0)
        found: Overview = await self._board.overview.remote(at, seconds)
        async with self._lock:
            if self.overview is not None and found.epoch != self.overview.epoch:
                await self._board.replay.remote(tuple(self._journal))
                found = await self._board.overview.remote()
            elif self.overview is not None and found.listing.version < self.overview.listing.version:
                return self.overview  # another task has asked later and been answered earlier
            self.overview = found
            self._say(found)
        return found

    def _say(self, found: Overview) -> None:
        news: set[Refusal | str] = {*found.listing.refused}
        news |= {found.listing.problem} if found.listing.problem else set()
        for item in sorted(news - self._told, key=str):
            self._log(item if isinstance(item, str) else f"refused {item.file}: {item.message}")
        self._told = news

    async def change(self, change: Change) -> Entry | None:
        """Have the board add, read again or remove.

        Raises:
            AdapterPackError: it would not.
        """
        try:
            done = await self._board.change.remote(change)
        except RayActorError as error:
            raise CallError("the list of tasks is being restored", Reason.IO, hint="try again") from error
        if isinstance(done, Told):
            raise done.error()
        self._journal.append(change)
        await self.refresh()
        return done if isinstance(done, Entry) else None
