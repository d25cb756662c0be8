"""An opened file: the verified index at once, payloads when asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from adapterpack import _files
from adapterpack.adapter import Adapter, Backbone
from adapterpack.container import digest, framing
from adapterpack.container.framing import Fixed
from adapterpack.container.given import chain
from adapterpack.container.index import Index, TaskEntry
from adapterpack.container.limits import Limits
from adapterpack.container.parse import parse_index
from adapterpack.errors import AdapterPackError, CallError, CorruptFileError, Reason, Translating, printable
from adapterpack.packing.decode import Content, assemble, decode_task
from adapterpack.packing.earlier import Earlier
from adapterpack.packing.encode import EncodedTask


class Bundle:
    """One `.apk` file, of one task or many.

    Opening reads the head only (one read of 4 KB where it fits) and verifies it; a task's payload is read, verified
    against its checksums and its digest, and decoded by `read`. Use `adapterpack.open` to make one.

    Args:
        at_once: up to this size a file is read with one read, payloads included.

    Attributes:
        source: where the bytes come from.
        file_bytes: size of the file.
        index: what the head says.
        format_version: "major.minor".
    """

    def __init__(self, source: _files.Source, limits: Limits | None = None, at_once: int = 0) -> None:
        self.source = source
        self.file_bytes = source.size()
        if not isinstance(limits, (Limits, type(None))):
            text = f"limits is of type {type(limits).__name__}"
            raise CallError(text, Reason.BAD_CALL, hint="expected adapterpack.Limits(decoded_bytes=…)")
        self._limits = limits or Limits()
        with _Naming(source):
            self._open(at_once)

    def _open(self, at_once: int) -> None:
        fixed, first = _read_head(self.source, self.file_bytes, at_once if self.file_bytes <= at_once else 0)
        self._whole = first if len(first) == self.file_bytes <= at_once else b""
        opened = framing.open_head(first[: fixed.head_bytes], fixed)
        self.index: Index = parse_index(opened.index)
        self.format_version = f"{fixed.version[0]}.{fixed.version[1]}"
        self._starts = _check_sizes(self.index, fixed, len(opened.table), self.file_bytes)
        count = sum(len(task.segments) for task in self.index.tasks)
        self._checksums = [int.from_bytes(opened.table[4 * i : 4 * i + 4], "little") for i in range(count)]
        rest = opened.table[4 * count :]
        self.digests = [rest[i : i + digest.DIGEST_BYTES] for i in range(0, len(rest), digest.DIGEST_BYTES)]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks' names, in file order."""
        return tuple(task.name for task in self.index.tasks)

    @property
    def backbone(self) -> Backbone:
        return self.index.backbone

    @property
    def digest(self) -> str:
        """ "sha256:…" over the decoded content of all tasks."""
        return f"sha256:{digest.file_digest(self.digests).hex()}"

    def task_digest(self, task: str | None = None) -> str:
        """ "sha256:…" over the decoded content of one task."""
        return f"sha256:{self.digests[self._number(task)].hex()}"

    def read(self, task: str | None = None) -> Adapter:
        """Decode one task, and before it those that it was coded with (`bundle --cross-task`).

        Args:
            task: its name; may be left out where the file has only one.

        Raises:
            CallError: `unknown-task`.
            CorruptFileError, UnsupportedVersionError: the payload is damaged, or newer than this reader.
        """
        entry, content = self.index.tasks[self._number(task)], self.content(task)
        with _Naming(self.source):
            return assemble(entry, content, self.backbone)

    def content(self, task: str | None = None) -> Content:
        """Decode one task, segment by segment as it is stored."""
        number = self._number(task)
        *_, (_, content) = self._decoded(chain(self.index, number))
        return content

    def contents(self) -> Iterator[tuple[TaskEntry, Content]]:
        """Decode every task in turn, each once."""
        return self._decoded(range(len(self.tasks)))

    def encoded(self, task: str | None = None) -> EncodedTask:
        """One task's payloads as stored, checksums verified, nothing decoded."""
        number = self._number(task)
        with _Naming(self.source):
            return EncodedTask(
                self.index.tasks[number], tuple(map(bytes, self._payloads(number))), self.digests[number]
            )

    def verify(self, tasks: Sequence[str] | None = None) -> Iterator[str]:
        """Decode tasks in turn, yielding each name once its checksums and digest are verified.

        Args:
            tasks: which, and with them those that they were coded with; None for all. They come in file order.
        """
        if isinstance(tasks, str):
            raise CallError(f"tasks is {tasks!r}", Reason.BAD_CALL, hint="give a list of names")
        numbers: Sequence[int] = range(len(self.tasks))
        if tasks is not None:
            numbers = sorted({n for task in tasks for n in chain(self.index, self._number(task))})
        for entry, _ in self._decoded(numbers):
            yield entry.name

    def _decoded(self, numbers: Sequence[int]) -> Iterator[tuple[TaskEntry, Content]]:
        """Decode tasks, ascending; one that a later one is given is kept until that is decoded."""
        earlier = Earlier(self.index, numbers)
        for n in numbers:
            entry = self.index.tasks[n]
            with _Naming(self.source):
                payloads = self._payloads(n)
                content = decode_task(entry, payloads, self.digests[n], self._limits, f"index.tasks[{n}]", earlier)
            yield entry, content
            earlier.keep(n, entry.name, content.segments)

    def _number(self, task: str | None) -> int:
        if task is None and len(self.tasks) == 1:
            return 0
        if task not in self.tasks:
            shown = ", ".join(self.tasks[:8]) + (", …" if len(self.tasks) > 8 else "")
            what = "the file has several tasks" if task is None else f"there is no task {task!r}"
            raise CallError(f"{self.source.name}: {what}", Reason.UNKNOWN_TASK, hint=f"choose one of {shown}")
        return self.tasks.index(task)

    def _payloads(self, number: int) -> list[memoryview]:
        entry = self.index.tasks[number]
        first = sum(len(task.segments) for task in self.index.tasks[:number])
        size = entry.payload_bytes()
        start = self._starts[number]
        if self._whole:
            data = memoryview(self._whole)[start : start + size]
        else:
            data = memoryview(_files.read_exactly(self.source, start, size, f"task {entry.name}"))
        out: list[memoryview] = []
        at = 0
        for i, segment in enumerate(entry.segments):
            payload = data[at : at + segment.size]
            if digest.checksum(payload) != self._checksums[first + i]:
                where = f"index.tasks[{number}].segments[{i}]"
                message = f"segment {i} of task {entry.name!r} does not match its checksum"
                raise CorruptFileError(message, Reason.CHECKSUM, where, "fetch the file again")
            out.append(payload)
            at += segment.size
        return out


def open_bundle(source: _files.SourceLike, limits: Limits | None = None) -> Bundle:
    """Open a path, bytes, file object or URL."""
    return Bundle(_files.source_of(source), limits)


def read_adapter(source: _files.SourceLike, task: str | None = None) -> Adapter:
    """Decode one task of a file, see `Bundle.read`; a small file is read at once, which a remote one needs most."""
    return Bundle(_files.source_of(source), at_once=_AT_ONCE).read(task)


_AT_ONCE = 1 << 19  # bytes: most files of one task


class _Naming(Translating):
    """Errors about what a file holds begin with its name, once; bytes and nameless file objects have none."""

    __slots__ = ("_name",)

    def __init__(self, source: _files.Source) -> None:
        self._name = source.name

    def translate(self, error: BaseException) -> AdapterPackError | None:
        name = self._name
        if not isinstance(error, AdapterPackError) or name.startswith("<"):
            return None
        if error.message.startswith(f"{printable(name)}:"):
            return None
        return type(error)(f"{name}: {error.message}", Reason(error.reason), error.where, error.hint)


def _read_head(source: _files.Source, file_bytes: int, size: int) -> tuple[Fixed, bytes]:
    """What was read of the file's beginning, at least the head."""
    first = source.read_at(0, max(size, framing.PEEK))
    fixed = framing.parse_fixed(first, file_bytes)
    if fixed.head_bytes > len(first):
        first += _files.read_exactly(source, len(first), fixed.head_bytes - len(first), "head")
    return fixed, first


def _check_sizes(index: Index, fixed: Fixed, table: int, file_bytes: int) -> list[int]:
    """Where each task's payload starts; the sizes must add up to the file's.

    Raises:
        CorruptFileError: `head-size`, `truncated`, `trailing-bytes`.
    """
    if table != digest.table_bytes(index):
        message = f"{table:,} bytes of checksums, expected {digest.table_bytes(index):,}"
        raise CorruptFileError(message, Reason.HEAD_SIZE, "byte 12")
    starts = [fixed.head_bytes]
    for task in index.tasks:
        starts.append(starts[-1] + task.payload_bytes())
    if starts[-1] > file_bytes:
        message = f"the file has {file_bytes:,} bytes, its index says {starts[-1]:,}: a truncated download?"
        raise CorruptFileError(message, Reason.TRUNCATED, f"byte {file_bytes}", "fetch it again")
    if starts[-1] < file_bytes:
        message = f"{file_bytes - starts[-1]:,} bytes after the last payload"
        raise CorruptFileError(message, Reason.TRAILING_BYTES, f"byte {starts[-1]}")
    return starts
