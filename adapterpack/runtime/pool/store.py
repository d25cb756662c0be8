"""Tasks that wait in memory, packed.

A source is read once and verified whole; what is kept are its own bytes, so a task costs what its file does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Union

from adapterpack import _files
from adapterpack.adapter import Adapter
from adapterpack.container.index import TaskEntry
from adapterpack.packing.bundle import Bundle, open_bundle
from adapterpack.packing.decode import assemble
from adapterpack.packing.join import join

_AT_ONCE = 16 << 20  # bytes


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A task that waits.

    Attributes:
        task: its name in its file.
        held: a file of this task alone; or the file in memory that it shares with the tasks it was coded with.
        packed_bytes: its share of what is held.
        method, classes: for `stats`.
    """

    task: str
    held: Union[bytes, Bundle]
    packed_bytes: int
    method: str
    classes: int | None

    def opened(self) -> Bundle:
        return self.held if isinstance(self.held, Bundle) else open_bundle(self.held)

    def read(self) -> Adapter:
        """Decode it, checksums and digest verified again."""
        return self.opened().read(self.task)


def packed_tasks(source: _files.SourceLike) -> Iterator[tuple[Packed, Adapter]]:
    """Every task of a file, to be kept and as decoded for checks, one after another.

    Raises:
        AdapterPackError: as `open` and `Bundle.read`.
    """
    bundle = _in_memory(source)
    shared = any(segment.given for entry in bundle.index.tasks for segment in entry.segments)
    for entry, content in bundle.contents():
        held: bytes | Bundle = bundle if shared else _alone(bundle, entry)
        size = len(held) if isinstance(held, bytes) else _share(bundle, entry)
        adapter = assemble(entry, content, bundle.backbone)
        classes = None if adapter.head is None else adapter.head.classes
        yield Packed(entry.name, held, size, entry.method, classes), adapter


def _in_memory(source: _files.SourceLike) -> Bundle:
    """The file opened in memory, so that what is verified is what is kept; a large one is refused by its head first."""
    there = _files.source_of(source)
    size = there.size()
    if size > _AT_ONCE:
        Bundle(there)
    held = _files.BytesSource(_files.read_exactly(there, 0, size, "the file"))
    held.name = there.name
    return Bundle(held)


def _alone(bundle: Bundle, entry: TaskEntry) -> bytes:
    if len(bundle.tasks) == 1:
        return bundle.source.read_at(0, bundle.file_bytes)
    return join([bundle.encoded(entry.name)], bundle.backbone)


def _share(bundle: Bundle, entry: TaskEntry) -> int:
    """A task's own payload and its part of the head."""
    head = bundle.file_bytes - sum(other.payload_bytes() for other in bundle.index.tasks)
    return entry.payload_bytes() + -(-head // len(bundle.tasks))
