"""Which files and tasks are served, which files are refused and why: the one place that decides it.

Plain state without Ray and without torch. What only a model can tell (does the adapter fit?) the replicas report back
with `refuse`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from adapterpack.errors import AdapterPackError, CallError, MissingFileError, Reason, UnsupportedAdapterError
from adapterpack.serving.entries import UPLOAD, Entry, checked_entry, separate_entries
from adapterpack.serving.folder import Folder


@dataclass(frozen=True, slots=True)
class Refusal:
    """A file that is not served, and why."""

    file: str
    stamp: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Listing:
    """What is served at one moment; the version grows with every change."""

    version: int
    files: tuple[Entry, ...]
    refused: tuple[Refusal, ...] = ()
    problem: str = ""

    @property
    def tasks(self) -> dict[str, Entry]:
        """The file of every task."""
        return {task: entry for entry in self.files for task in entry.tasks}


@dataclass(slots=True)
class _Held:
    """An entry with its bytes, and the one that it took the place of."""

    entry: Entry
    data: bytes
    before: _Held | None = field(default=None)


class Catalog:
    """The state.

    Args:
        folder: what to watch.
    """

    def __init__(self, folder: Folder) -> None:
        self.version = 0
        self.problem = ""
        self._folder = folder
        self._held: dict[str, _Held] = {}
        self._refused: dict[str, Refusal] = {}
        self._marks: dict[str, str | None] = {}  # None for what the next scan is to look at again

    def listing(self) -> Listing:
        """What is served now."""
        entries = tuple(self._held[file].entry for file in sorted(self._held))
        return Listing(self.version, entries, tuple(self._refused[f] for f in sorted(self._refused)), self.problem)

    def data(self, file: str, stamp: str) -> bytes | None:
        """A file's bytes, None where it changed meanwhile."""
        held = self._held.get(file)
        return held.data if held is not None and held.entry.stamp == stamp else None

    def scan(self) -> bool:
        """Look into the folder once; whether anything changed.

        A folder that cannot be listed changes nothing but `problem`: what was served stays served.
        """
        before = self.version
        try:
            marks = self._folder.marks()
        except AdapterPackError as error:
            self._say(str(error))
            return self.version > before
        self._say("")
        self._forget_gone(marks)
        for file, mark in marks.items():
            if self._marks.get(file) != mark:
                self._marks[file] = mark
                self._take(file)
        return self.version > before

    def _say(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            self._changed()

    def _changed(self) -> None:
        """A new version; files that were refused for a name that others had are looked at again."""
        self.version += 1
        for refusal in self._refused.values():
            if refusal.reason == Reason.DUPLICATE_NAME.value and refusal.file in self._marks:
                self._marks[refusal.file] = None

    def _forget_gone(self, marks: Mapping[str, str]) -> None:
        for file in [file for file in self._marks if file not in marks]:
            del self._marks[file]
            gone = self._held.pop(file, None), self._refused.pop(file, None)
            if gone != (None, None):
                self._changed()

    def _take(self, file: str) -> None:
        """Serve a new or changed file, or refuse it and go on with what it was before."""
        try:
            self._read(file)
        except AdapterPackError as error:
            self._refuse(Refusal(file, "", error.reason, str(error)))
            if error.reason == Reason.IO.value:  # a disk or a net, which may be better the next time
                self._marks[file] = None
        except Exception as error:  # a fault of ours: named in the listing, raised, and not tried again
            self._refuse(Refusal(file, "", "internal", failure(error)))
            raise

    def fail(self, error: BaseException) -> None:
        """Say that a scan ended with an error that none of this package is."""
        self._say(f"looking into the folder failed: {failure(error)}")

    def _read(self, file: str) -> None:
        data = self._folder.read(file)
        entry = checked_entry(file, data)
        self._require_free([entry])
        self._hold(entry, data)

    def _hold(self, entry: Entry, data: bytes) -> None:
        held = self._held.get(entry.file)
        if held is not None and (held.entry.stamp, held.entry.alias) == (entry.stamp, entry.alias):
            held.entry = entry
        else:
            if held is not None:
                held.before = None  # one step back is enough
            self._held[entry.file] = _Held(entry, data, held)
        self._refused.pop(entry.file, None)
        self._changed()

    def _require_free(self, entries: Iterable[Entry]) -> None:
        taken = self.listing().tasks
        for mine, task in [(entry.file, task) for entry in entries for task in entry.tasks]:
            if task in taken and taken[task].file != mine:
                text = f"the task {task} is in {taken[task].file} already"
                hint = "remove one of them, or give one another name"
                raise UnsupportedAdapterError(text, Reason.DUPLICATE_NAME, hint=hint)

    def _refuse(self, refusal: Refusal) -> None:
        if self._refused.get(refusal.file) != refusal:
            self._refused[refusal.file] = refusal
            self.version += 1

    def refuse(self, file: str, stamp: str, reason: str, message: str) -> None:
        """A replica could not take a file: go back to what it was before, if it was anything."""
        held = self._held.get(file)
        if held is None or held.entry.stamp != stamp:
            return
        if held.before is not None:
            self._held[file] = held.before
        else:
            del self._held[file]
        self._changed()
        self._refuse(Refusal(file, stamp, reason, message))

    def add(self, data: bytes, name: str = "", *, replace: bool = False) -> tuple[Entry, ...]:
        """Serve the tasks of an uploaded file, until the service ends: all of them or none.

        Each is an entry of its own, so that each can be replaced and removed whatever it was uploaded with.

        Raises:
            AdapterPackError: it is damaged, or a task of one of its names is served already.
        """
        found = separate_entries(checked_entry("", data, name), data)
        self._require_free([entry for entry, _ in found])
        for entry, _ in found:
            if entry.file in self._held and not replace:
                text = f"the task {entry.file.removeprefix(UPLOAD)} is served already"
                raise CallError(text, Reason.DUPLICATE_NAME, hint="remove it first, or add with replace=true")
        for entry, part in found:
            self._hold(entry, part)
        return tuple(entry for entry, _ in found)

    def reread(self, file: str) -> Entry:
        """Serve a file of the folder again, with every task that was removed from it.

        Raises:
            MissingFileError: `missing-file`, no such file in the folder.
            AdapterPackError: it is refused.
        """
        marks = self._folder.marks()
        if file not in marks:
            raise MissingFileError(f"{file} is not in the served folder", Reason.MISSING_FILE, hint="upload it instead")
        self._marks[file] = marks[file]
        self._read(file)
        return self._held[file].entry

    def remove(self, task: str) -> Entry:
        """Stop serving a task until its file changes or is read again; the folder is left as it is.

        Returns:
            The entry that had it.

        Raises:
            CallError: `unknown-task`.
        """
        entry = self.listing().tasks.get(task)
        if entry is None:
            raise CallError(f"there is no task {task!r}", Reason.UNKNOWN_TASK, hint="GET /v1/tasks lists them")
        left = {name: facts for name, facts in entry.tasks.items() if name != task}
        if left or not entry.uploaded:
            self._held[entry.file].entry = dataclasses.replace(entry, tasks=left)
        else:
            del self._held[entry.file]
        self._changed()
        return entry


def failure(error: BaseException) -> str:
    """One line on an error that nobody foresaw."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
