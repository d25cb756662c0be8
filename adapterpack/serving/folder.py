"""The `.apk` files of a folder or of anything that fsspec lists, with a mark each that changes when the file does.

It reads; it never writes, and it leaves the folder only where a link in it leads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath, PurePosixPath

from adapterpack import _files
from adapterpack._walk import files_in, unreadable
from adapterpack.errors import CallError, MissingFileError, Reason
from adapterpack.packing.bundle import Bundle
from adapterpack.stores.urls import list_url

_SUFFIX = ".apk"
_MARKS = ("size", "etag", "ETag", "mtime", "LastModified", "last_modified", "created", "sha256")


class Folder:
    """A folder, or a URL.

    Args:
        source: a path, or a URL such as `s3://bucket/tasks`.

    Raises:
        MissingFileError: `missing-file`, no such folder.
        CallError: `not-a-file`, the path is no folder; `missing-extra` where a URL needs fsspec.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._remote = "://" in source
        self._urls: dict[str, str] = {}
        self.marks()

    def marks(self) -> Mapping[str, str]:
        """Every file's name inside the folder, with `/` between its parts, and its mark.

        Raises:
            AdapterPackError: the folder cannot be listed.
        """
        return self._remote_marks() if self._remote else dict(sorted(self._local_marks().items()))

    def _local_marks(self) -> dict[str, str]:
        root = Path(self.source)
        try:
            there, folder = root.exists(), root.is_dir()
        except OSError as error:
            unreadable(error)
        if not folder:
            kind = CallError if there else MissingFileError
            reason = Reason.NOT_A_FILE if there else Reason.MISSING_FILE
            raise kind(f"{self.source} is no folder", reason, hint="give a folder of .apk files, or a URL")
        found = {}
        for path in files_in(root):
            inside = path.relative_to(root)
            if _is_served(inside):
                found[inside.as_posix()] = _local_mark(path)
        return found

    def _remote_marks(self) -> dict[str, str]:
        found = {}
        for name, facts in sorted(list_url(self.source).items()):
            if _is_served(PurePosixPath(name)):
                self._urls[name] = facts["url"]
                found[name] = " ".join(f"{key}={facts[key]}" for key in _MARKS if facts.get(key) is not None)
        return found

    def read(self, name: str) -> bytes:
        """A file's bytes, by the name that `marks` gave; of one whose head is not ours, no more than that is read.

        Raises:
            AdapterPackError: it cannot be read, or its head is no good.
        """
        source = _files.source_of(self._urls[name] if self._remote else Path(self.source, name))
        source.name = name
        Bundle(source)
        return _files.read_exactly(source, 0, source.size(), name)


def _is_served(path: PurePath) -> bool:
    """Not what is hidden, or in a hidden folder: there, mounted volumes and editors keep second copies of files."""
    return path.suffix == _SUFFIX and not any(part.startswith(".") for part in path.parts)


def _local_mark(path: Path) -> str:
    try:
        facts = path.stat()
    except OSError as error:  # gone meanwhile, or a link to nothing: reading it will say so
        return f"unreadable: {error.errno}"
    return f"{facts.st_size} {facts.st_mtime_ns} {facts.st_ino}"
