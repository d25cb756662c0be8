"""Which files and tasks are served, which files are refused and why: the one place that decides it.

Plain state without Ray and without torch. What only a model can tell (does the adapter fit?) the replicas report back
with `refuse`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from adapterpack import _files
from adapterpack.container.names import TASK_NAMES, fits_task
from adapterpack.errors import AdapterPackError, CallError, Reason, UnsupportedAdapterError
from adapterpack.packing.bundle import Bundle
from adapterpack.packing.sizes import describe_file
from adapterpack.serving.folder import Folder

_UPLOAD = "upload:"


@dataclass(frozen=True, slots=True)
class Entry:
    """A file that is served.

    Attributes:
        file: its name in the folder, or "upload:" and a task's name.
        stamp: SHA-256 of its bytes, shortened.
        alias: the name that its one task goes by; "" for its own.
        tasks: what it gives, as `inspect --json` has it, without those that were removed.
    """

    file: str
    stamp: str
    alias: str
    tasks: Mapping[str, Mapping[str, Any]]

    @property
    def uploaded(self) -> bool:
        return self.file.startswith(_UPLOAD)


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
        self._marks: dict[str, str] = {}

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
            if refusal.reason == Reason.DUPLICATE_NAME.value:
                self._marks.pop(refusal.file, None)

    def _forget_gone(self, marks: Mapping[str, str]) -> None:
        for file in [file for file in self._marks if file not in marks]:
            del self._marks[file]
            gone = self._held.pop(file, None), self._refused.pop(file, None)
            if gone != (None, None):
                self._changed()

    def _take(self, file: str) -> None:
        """Serve a new or changed file, or refuse it and go on with what it was before."""
        try:
            data = self._folder.read(file)
            self._hold(_checked(file, data), data)
        except AdapterPackError as error:
            self._refuse(Refusal(file, "", error.reason, str(error)))

    def _hold(self, entry: Entry, data: bytes) -> None:
        self._require_free(entry)
        held = self._held.get(entry.file)
        if held is not None and (held.entry.stamp, held.entry.alias) == (entry.stamp, entry.alias):
            held.entry = entry
        else:
            if held is not None:
                held.before = None  # one step back is enough
            self._held[entry.file] = _Held(entry, data, held)
        self._refused.pop(entry.file, None)
        self._changed()

    def _require_free(self, entry: Entry) -> None:
        for task, other in self.listing().tasks.items():
            if task in entry.tasks and other.file != entry.file:
                hint = "remove one of them, or give one another name"
                raise UnsupportedAdapterError(
                    f"the task {task} is in {other.file} already", Reason.DUPLICATE_NAME, hint=hint
                )

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

    def add(self, data: bytes, name: str = "", *, replace: bool = False) -> Entry:
        """Serve an uploaded file, until the service ends.

        Raises:
            AdapterPackError: it is damaged, or a task of that name is served already.
        """
        entry = _checked("", data, name)
        entry = dataclasses.replace(entry, file=_UPLOAD + next(iter(entry.tasks)))
        if entry.file in self._held and not replace:
            text = f"the task {entry.file.removeprefix(_UPLOAD)} is served already"
            raise CallError(text, Reason.DUPLICATE_NAME, hint="remove it first, or add with replace=true")
        self._require_no_less(entry)
        self._hold(entry, data)
        return entry

    def _require_no_less(self, entry: Entry) -> None:
        """Refuse to replace an upload by one without some of its tasks: those nobody asked to remove."""
        held = self._held.get(entry.file)
        lost = [] if held is None else sorted(held.entry.tasks.keys() - entry.tasks.keys())
        if lost:
            text = f"{entry.file.removeprefix(_UPLOAD)} was uploaded together with {', '.join(lost)}"
            raise CallError(text, Reason.DUPLICATE_NAME, hint="add them together again, or remove them first")

    def reread(self, file: str) -> Entry:
        """Serve a file of the folder again, with every task that was removed from it.

        Raises:
            CallError: `missing-file`, no such file in the folder.
            AdapterPackError: it is refused.
        """
        marks = self._folder.marks()
        if file not in marks:
            raise CallError(f"{file} is not in the served folder", Reason.MISSING_FILE, hint="upload it instead")
        self._marks[file] = marks[file]
        data = self._folder.read(file)
        self._hold(_checked(file, data), data)
        return self._held[file].entry

    def remove(self, task: str) -> None:
        """Stop serving a task until its file changes or is read again; the folder is left as it is.

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


def _checked(file: str, data: bytes, name: str = "") -> Entry:
    """A file's tasks, all its checksums and digests verified.

    Raises:
        AdapterPackError: it is damaged, several tasks shall have one name, or one that no task may have.
    """
    if name and not fits_task(name):
        raise CallError(f"a task cannot be called {name[:80]!r}", Reason.BAD_CALL, hint=TASK_NAMES)
    source = _files.BytesSource(data)
    source.name = file or "the upload"
    bundle = Bundle(source)
    for _ in bundle.verify():
        pass
    tasks = {task["name"]: task for task in describe_file(bundle)["tasks"]}
    if name and len(tasks) != 1:
        text = f"the file has {len(tasks)} tasks, which cannot all be called {name}"
        raise CallError(text, Reason.BAD_CALL, hint="leave the name out, or split the file")
    if name:
        (facts,) = tasks.values()
        tasks = {name: {**facts, "name": name}}
    return Entry(file, hashlib.sha256(data).hexdigest()[:32], name, tasks)
