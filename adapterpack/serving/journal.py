"""The changes that a second board would have to be told, and no more: an upload is held as long as it is served.

It asks nobody and decides nothing; `state` tells it what was done and what is served.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from adapterpack.serving.catalog import Listing
from adapterpack.serving.entries import Entry

Mark = tuple[str, str]  # an entry's file and stamp


@dataclass(frozen=True, slots=True)
class Change:
    """What was asked for over HTTP; a second board is told all of them again.

    Attributes:
        kind: "add", "reread" or "remove".
        name: task to remove, file to read again, or the name of what is added.
        data: of what is added.
        replace: as for `Catalog.add`.
    """

    kind: str
    name: str
    data: bytes = b""
    replace: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """A change that was made.

    Attributes:
        entries: that it made, or that it took a task from, as they were.
        version: of the first listing that shows it.
    """

    entries: tuple[Entry, ...]
    version: int


class Journal:
    """Changes that were made, the oldest first."""

    def __init__(self) -> None:
        self._rows: list[tuple[Change, Done]] = []

    @property
    def changes(self) -> tuple[Change, ...]:
        """What to tell a second board, which begins with the folder as it is."""
        return tuple(change for change, _ in self._rows)

    def note(self, change: Change, done: Done) -> None:
        """Keep a change; those that it makes needless are forgotten, as a file that is read again has all its tasks."""
        marks = _marks(done.entries)
        if change.kind == "reread":
            files = {file for file, _ in marks}
            self._rows = [row for row in self._rows if not {file for file, _ in _marks(row[1].entries)} <= files]
            return
        if change.kind == "add":  # the very same bytes again
            self._rows = [row for row in self._rows if not _marks(row[1].entries) <= marks]
        self._rows.append((change, done))

    def forget(self, listing: Listing) -> None:
        """Drop uploads of which nothing is served any more, and removals from files that are not what they were."""
        here = _marks(listing.files)
        late = [_marks(done.entries) for _, done in self._rows if done.version > listing.version]  # it cannot show them
        adds = [_marks(done.entries) for change, done in self._rows if change.kind == "add"]
        known = here.union(*late, *(marks for marks in adds if marks & here))
        self._rows = [(change, done) for change, done in self._rows if _holds(change, done, here.union(*late), known)]


def _holds(change: Change, done: Done, here: frozenset[Mark], known: frozenset[Mark]) -> bool:
    marks = _marks(done.entries)
    return bool(marks & here) if change.kind == "add" else marks <= known


def _marks(entries: Iterable[Entry]) -> frozenset[Mark]:
    return frozenset((entry.file, entry.stamp) for entry in entries)
