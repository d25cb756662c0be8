"""Where bytes come from and go to: paths, bytes, file objects, URLs; and atomic writing.

Nothing here knows the format. URLs are the affair of `stores`.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Protocol, Union

from adapterpack.errors import AdapterPackError, CallError, CorruptFileError, MissingFileError, Reason, Translating

_READ = os.O_RDONLY | getattr(os, "O_BINARY", 0)  # Windows would end lines in its own way

SourceLike = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, BinaryIO]


class Source(Protocol):
    """Random access to a run of bytes.

    Attributes:
        name: for messages; never stored in a file.
    """

    name: str

    def size(self) -> int: ...

    def read_at(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only where the source ends."""
        ...


class BytesSource:
    """Bytes in memory."""

    name = "<bytes>"

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data = bytes(data)

    def size(self) -> int:
        return len(self._data)

    def read_at(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]


class PathSource:
    """A regular file, opened for each read, so that no handle outlives a call.

    Raises:
        MissingFileError: nothing is there.
        CallError: `not-a-file` for a folder, pipe or device.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = self._path = os.fsdecode(path)  # who opens it may call it otherwise
        with os_errors(self.name):
            mode = os.stat(self.name)  # noqa: PTH116 (a Path takes four times as long to make and ask)
        if not stat.S_ISREG(mode.st_mode):
            raise CallError(f"{self.name} is no regular file", Reason.NOT_A_FILE, hint="give the path of a file")
        self._size = mode.st_size

    def size(self) -> int:
        return self._size

    def read_at(self, offset: int, length: int) -> bytes:
        left = min(length, max(self._size - offset, 0))
        with os_errors(self.name):
            file = os.open(self._path, _READ)
            try:
                os.lseek(file, offset, os.SEEK_SET)
                data = os.read(file, left)
                while len(data) < left and (more := os.read(file, left - len(data))):  # 2 GiB at most at once
                    data += more
            finally:
                os.close(file)
        return data


class FileObjectSource:
    """A seekable binary file object; its position is restored after each read."""

    def __init__(self, file: BinaryIO) -> None:
        self.name = str(getattr(file, "name", "<file object>"))
        if isinstance(file, io.TextIOBase):
            raise CallError(
                "the file object gives text", Reason.BAD_CALL, hint='open it in binary mode: open(path, "rb")'
            )
        self._file = file
        self._refuse_closed()
        if not getattr(file, "seekable", lambda: True)():  # a memory map says nothing, and can
            raise CallError("the file object cannot seek", Reason.BAD_CALL, hint="pass its bytes: open(f.read())")

    def size(self) -> int:
        here = self._file.tell()
        self._file.seek(0, io.SEEK_END)
        end = self._file.tell()
        self._file.seek(here)
        return end

    def read_at(self, offset: int, length: int) -> bytes:
        self._refuse_closed()
        here = self._file.tell()
        try:
            self._file.seek(offset)
            return self._file.read(length)
        finally:
            self._file.seek(here)

    def _refuse_closed(self) -> None:
        if getattr(self._file, "closed", False):
            raise CallError(f"{self.name} is closed", Reason.BAD_CALL, hint="keep it open, or give its path")


def source_of(source: SourceLike) -> Source:
    """Anything that can be opened, as a `Source`.

    Raises:
        MissingFileError, CallError: see the classes.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return BytesSource(source)
    if isinstance(source, str) and "://" in source:
        from adapterpack.stores import open_url  # most files lie on this disk

        return open_url(source)
    if isinstance(source, (str, os.PathLike)):
        return PathSource(source)
    if hasattr(source, "read") and hasattr(source, "seek"):
        return FileObjectSource(source)
    raise CallError(f"cannot open a {type(source).__name__}", Reason.BAD_CALL, hint="give a path, bytes, file or URL")


def read_exactly(source: Source, offset: int, length: int, what: str) -> bytes:
    """`length` bytes from `offset`.

    Raises:
        CorruptFileError: `truncated`, when the source changed or ended meanwhile.
    """
    data = source.read_at(offset, length)
    if len(data) != length:
        message = f"{what}: {len(data):,} of {length:,} bytes are there"
        raise CorruptFileError(message, Reason.TRUNCATED, f"byte {offset + len(data)}", "fetch the file again")
    return data


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raise before any work is done when `path` exists and may not be replaced.

    Raises:
        CallError: `file-exists`, or `not-a-file` for a folder, pipe or device, which `force` does not replace either.
    """
    try:
        with os_errors(str(path)):
            path.lstat()
            folder, special = path.is_dir(), path.exists() and not path.is_file()  # of what a link leads to
    except MissingFileError:
        return
    if special:
        found = "a folder" if folder else "no regular file"
        raise CallError(f"{path} is {found}", Reason.NOT_A_FILE, hint="give a file name for the output")
    if not force:
        raise CallError(f"{path} exists already", Reason.FILE_EXISTS, hint="use --force to replace it")


def refuse_output(path: Path, *, force: bool) -> None:
    """As `refuse_existing`, and where the folder of `path` is not there or may not be written to: before long work.

    Raises:
        CallError: as `refuse_existing`; `io-error`.
        MissingFileError: there is no such folder.
    """
    refuse_existing(path, force=force)
    refuse_no_folder(path)
    folder = path.absolute().parent
    if not os.access(folder, os.W_OK):
        raise CallError(f"{folder} may not be written to", Reason.IO, hint="check its permissions")


def refuse_no_folder(path: Path) -> None:
    """Refuse an output in a folder that is not there: a misspelt one is not made.

    Raises:
        MissingFileError.
    """
    if not path.absolute().parent.is_dir():
        raise MissingFileError(f"{path}: no such folder", Reason.MISSING_FILE, hint="make it first")


def write_atomic(path: str | os.PathLike[str], data: bytes, *, force: bool) -> None:
    """Write a whole file or nothing: a temporary file beside it, flushed to disk, then renamed.

    A symbolic link at `path` is replaced, never followed.

    Raises:
        CallError: `file-exists` without `force`; `io-error` when the disk is full or the folder is not writable.
    """
    target = Path(path)
    refuse_existing(target, force=force)
    with os_errors(str(target)):
        temporary = target.with_name(f".{target.name[:50]}.{os.urandom(6).hex()}.tmp")
        try:
            with temporary.open("xb") as file:  # refuses a file or link of that name, and heeds the umask
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            _put_in_place(temporary, target, force=force)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)


def write_all(files: Mapping[Path, bytes], *, force: bool) -> None:
    """Write several files that belong together; when one fails, those before it are put back as they were.

    Raises:
        CallError: as `write_atomic`.
    """
    for path in files:
        refuse_existing(path, force=force)
    undo: list[tuple[Path, bytes | None]] = []
    try:
        for path, data in files.items():
            with os_errors(str(path)):
                before = path.read_bytes() if path.exists() else None
            write_atomic(path, data, force=force)
            undo.append((path, before))
    except BaseException:
        for path, before in reversed(undo):
            if before is None:
                path.unlink(missing_ok=True)
            else:
                write_atomic(path, before, force=True)
        raise


def _put_in_place(temporary: Path, target: Path, *, force: bool) -> None:
    if force:
        temporary.replace(target)
        return
    try:
        os.link(temporary, target)  # unlike rename, refuses a file that appeared meanwhile
    except OSError:  # it exists by now, or this is a file system without hard links
        refuse_existing(target, force=False)
        temporary.replace(target)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself last. The file is in place already, so a system that cannot do this is no error."""
    with contextlib.suppress(OSError, AttributeError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class os_errors(Translating):
    """What the system raises, as errors of ours that name the file; a `ValueError` is a NUL in the path."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name or "''"  # an empty path

    def translate(self, error: BaseException) -> AdapterPackError | None:
        name = self._name
        if isinstance(error, FileNotFoundError):
            return MissingFileError(f"{name}: no such file or folder", Reason.MISSING_FILE, hint="check the path")
        if isinstance(error, OSError):
            hint = "check its permissions" * isinstance(error, PermissionError)
            return CallError(f"{name}: {error.strerror or error}", Reason.IO, hint=hint)
        return CallError(f"{name!r} is no path: {error}", Reason.BAD_CALL) if isinstance(error, ValueError) else None


def make_folder(path: Path) -> None:
    """Create a folder and its parents where missing.

    Raises:
        CallError: `io-error`.
    """
    with os_errors(str(path)):
        path.mkdir(parents=True, exist_ok=True)


def list_folder(path: Path) -> tuple[str, ...]:
    """The names of the regular files in a folder, sorted; none where there is no folder.

    Raises:
        CallError: `io-error`.
    """
    with os_errors(str(path)):
        return tuple(sorted(entry.name for entry in path.iterdir() if entry.is_file())) if path.exists() else ()
