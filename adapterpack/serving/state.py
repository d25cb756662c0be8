"""A front door's copy of what the board says, kept fresh; and the changes that a second board would have to be told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayActorError

from adapterpack.errors import CallError, Reason
from adapterpack.serving.answers import Told
from adapterpack.serving.board import Overview
from adapterpack.serving.catalog import Refusal, failure
from adapterpack.serving.entries import Entry
from adapterpack.serving.journal import Change, Done, Journal

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
        self._journal = Journal()
        self._lock = asyncio.Lock()
        self._told: set[Refusal | str] = set()

    async def follow(self) -> None:
        """For ever, whatever happens; what is more than a board that is being started again is said, once."""
        said = ""
        while True:
            (found,) = await asyncio.gather(self.refresh(_SECONDS), return_exceptions=True)
            if not isinstance(found, BaseException):
                said = ""
                continue
            told = "" if isinstance(found, RayActorError) else failure(getattr(found, "cause", None) or found)
            if told and told != said:
                self._log(f"the list of tasks is not fresh: {told}")
            said = told or said
            await asyncio.sleep(_SECONDS)

    async def refresh(self, seconds: float = 0) -> Overview:
        """Ask the board; with `seconds`, wait so long for news."""
        known = self.overview
        at = (known.epoch, known.listing.version) if known is not None and seconds else ("", 0)
        found: Overview = await self._board.overview.remote(at, seconds)
        async with self._lock:
            if self.overview is not None and found.epoch != self.overview.epoch:
                await self._board.replay.remote(self._journal.changes)
                found = await self._board.overview.remote()
            elif self.overview is not None and found.listing.version < self.overview.listing.version:
                return self.overview  # another task has asked later and been answered earlier
            self.overview = found
            if all(report.version >= found.listing.version for report in found.ready):  # none of them can refuse it now
                self._journal.forget(found.listing)
            self._say(found)
        return found

    def _say(self, found: Overview) -> None:
        news: set[Refusal | str] = {*found.listing.refused}
        news |= {found.listing.problem} if found.listing.problem else set()
        for item in sorted(news - self._told, key=str):
            self._log(item if isinstance(item, str) else _line(item))
        self._told = news

    async def change(self, change: Change) -> tuple[Entry, ...]:
        """Have the board add, read again or remove.

        Returns:
            What it serves now, or what it served the removed task from.

        Raises:
            AdapterPackError: it would not.
        """
        try:
            done: Done | Told = await self._board.change.remote(change)
        except RayActorError as error:
            raise CallError("the list of tasks is being restored", Reason.IO, hint="try again") from error
        if isinstance(done, Told):
            raise done.error()
        self._journal.note(change, done)
        await self.refresh()
        return done.entries


def _line(refusal: Refusal) -> str:
    return f"refused {refusal.file}: {refusal.message.removeprefix(f'{refusal.file}: ')}"
