"""What is served of one `.apk`: its tasks and their facts, checked through and through; an upload task by task.

Which of them may be served beside others is `catalog`'s affair.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapterpack import _files
from adapterpack.container.names import TASK_NAMES, fits_task
from adapterpack.errors import CallError, Reason
from adapterpack.packing.bundle import Bundle, open_bundle
from adapterpack.packing.cross import standalone
from adapterpack.packing.join import join
from adapterpack.packing.sizes import describe_file

UPLOAD = "upload:"


@dataclass(frozen=True, slots=True)
class Entry:
    """A file that is served, or one task of an uploaded one.

    Attributes:
        file: its name in the folder, or "upload:" and the task's name.
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
        return self.file.startswith(UPLOAD)


def checked_entry(file: str, data: bytes, name: str = "") -> Entry:
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
    return Entry(file, _stamp(data), name, tasks)


def separate_entries(entry: Entry, data: bytes) -> list[tuple[Entry, bytes]]:
    """An upload's tasks, each with a file of its own."""
    if len(entry.tasks) == 1:
        (task,) = entry.tasks
        return [(dataclasses.replace(entry, file=UPLOAD + task), data)]
    bundle = open_bundle(data)
    found = []
    for task in bundle.tasks:
        part = join([standalone(bundle, task)], bundle.backbone)
        (facts,) = describe_file(open_bundle(part))["tasks"]
        found.append((Entry(UPLOAD + task, _stamp(part), "", {task: facts}), part))
    return found


def _stamp(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
