"""Checksums of segments and digests of tasks.

A *checksum* is the CRC-32 of a segment's stored bytes. A *digest* is the SHA-256 of a task's decoded content in
canonical form: the same adapter has the same digest whatever codec, profile or compression level wrote it, and
whatever it is called. Source: spec/README.md, "Digest".
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from adapterpack.container import strict_json
from adapterpack.container.index import Index, TaskEntry, TensorRow, data_json, group_json

DIGEST_BYTES = 32
_PREFIX = b"adapterpack digest 1\n"
_LARGE = 32_768  # bytes


def checksum(payload: bytes | memoryview) -> int:
    """CRC-32 of a segment's stored bytes."""
    return _crc32()(payload)


@lru_cache(maxsize=1)
def _crc32() -> Callable[[bytes | memoryview], int]:
    """The same function from zlib-ng where that is installed; looked for when a payload is read, not when a file is
    inspected."""
    try:
        from zlib_ng.zlib_ng import crc32
    except ImportError:
        return zlib.crc32
    return crc32


def table_bytes(index: Index) -> int:
    """Size of the table behind the index: 4 bytes a segment, 32 a task."""
    return sum(4 * len(task.segments) + DIGEST_BYTES for task in index.tasks)


def describe(task: TaskEntry, forms: Sequence[Mapping[str, Any] | None], labels: Sequence[str] | None) -> bytes:
    """Everything about a task's content but the numbers, as one JSON text.

    Args:
        task: its index entry.
        forms: the form of each segment's tensors, None for labels and skipped segments.
        labels: class names.
    """

    def rows(tensors: Mapping[str, TensorRow]) -> dict[str, Any]:
        return {role: {"form": forms[row.segment], "shape": list(row.shape)} for role, row in sorted(tensors.items())}

    return strict_json.dumps(
        {
            "data": None if task.data is None else data_json(task.data),
            "groups": [group_json(group, rows(group.tensors)) for group in task.groups],
            "head": rows(task.head),
            "labels": None if labels is None else list(labels),
        }
    )


def digest(description: bytes, contents: Iterable[Any]) -> bytes:
    """SHA-256 of the prefix, the description, a line feed, and every tensor's content in file order: 32 bytes."""
    sha = hashlib.sha256(_PREFIX + description + b"\n")
    small: list[Any] = []
    for part in contents:  # many small parts are hashed together, large ones where they are
        if part.nbytes < _LARGE:
            small.append(part)
        else:
            sha.update(b"".join(small))
            sha.update(part)
            small.clear()
    sha.update(b"".join(small))
    return sha.digest()


def file_digest(digests: Sequence[bytes]) -> bytes:
    """The digest of a whole file: its only task's, or the SHA-256 of all its tasks' digests in order."""
    return digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()
