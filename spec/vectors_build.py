"""Building blocks of the test vectors: any frame, any index text, any payload, with checksums that fit them.

Used by `make_vectors.py` only. What it can build is deliberately more than the package can write.
"""

from __future__ import annotations

import copy
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapterpack.container import deflate, framing, strict_json

Json = dict[str, Any]
Row = tuple[str, str, bytes, str, str]  # name, reason, file, why, source
Change = Callable[[Json], object]


@dataclass(frozen=True)
class Vector:
    """One file and what it must give; `reason` is None for a good one."""

    name: str
    data: bytes
    why: str
    source: str = ""
    reason: str | None = None

    @property
    def file(self) -> str:
        return f"{'bad' if self.reason else 'good'}/{self.name}.apk"


@dataclass
class Parts:
    """A file taken apart. Fields that are None are computed from the others."""

    index: Json | bytes
    payloads: list[bytes]
    digests: list[bytes]
    magic: bytes = framing.MAGIC
    version: tuple[int, int] = (1, 0)
    flags: int = 0
    deflated: bytes | None = None
    table: bytes | None = None
    sizes: dict[str, int] = field(default_factory=dict)  # "head", "stored", "index", "checksum" as they are to be said
    tail: bytes = b""

    @property
    def text(self) -> bytes:
        return self.index if isinstance(self.index, bytes) else strict_json.dumps(self.index)

    def build(self) -> bytes:
        text = self.text
        stored = deflate.compress(text) if self.deflated is None else self.deflated
        table = self.table
        if table is None:
            table = b"".join(struct.pack("<I", zlib.crc32(p)) for p in self.payloads) + b"".join(self.digests)
        said = {"head": 28 + len(stored) + len(table), "stored": len(stored), "index": len(text), **self.sizes}
        fixed = struct.pack(
            "<8sBBHIII", self.magic, *self.version, self.flags, said["head"], said["stored"], said["index"]
        )
        checksum = said.get("checksum", zlib.crc32(stored + table, zlib.crc32(fixed)))
        return fixed + struct.pack("<I", checksum) + stored + table + b"".join(self.payloads) + self.tail


def take_apart(data: bytes) -> Parts:
    """The parts of a good file."""
    fixed = framing.parse_fixed(data, len(data))
    head = framing.open_head(data[: fixed.head_bytes], fixed)
    index = strict_json.loads(head.index)
    payloads, at = [], fixed.head_bytes
    for task in index["tasks"]:
        for segment in task["segments"]:
            payloads.append(data[at : at + segment["bytes"]])
            at += segment["bytes"]
    table = head.table[4 * len(payloads) :]
    return Parts(index, payloads, [table[i : i + 32] for i in range(0, len(table), 32)])


def edited(parts: Parts, change: Callable[[Json], object]) -> bytes:
    """The file with its index changed in place; checksums follow, digests stay."""
    changed = copy.deepcopy(parts)
    assert isinstance(changed.index, dict)
    change(changed.index)
    return changed.build()


def with_text(parts: Parts, text: bytes) -> bytes:
    """The file with another index text."""
    changed = copy.deepcopy(parts)
    changed.index = text
    return changed.build()


def with_frame(parts: Parts, **fields: Any) -> bytes:
    """The file with other fields of `Parts`."""
    changed = copy.deepcopy(parts)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed.build()


def one_segment(codec: str, params: Json, payload: bytes, *shapes: Sequence[int]) -> bytes:
    """A file of one task whose tensors, one site each, all lie in one segment. Its digest is zeros: no reader that
    checks the payload first gets that far."""
    groups = [
        {"method": "replace", "params": {}, "sites": [f"site{i}"], "tensors": {"value": {"segment": 0, "shape": [*s]}}}
        for i, s in enumerate(shapes)
    ]
    segment = {"bytes": len(payload), "codec": codec, "params": params}
    task = {"groups": groups, "method": "test", "name": "t", "segments": [segment]}
    return Parts({"backbone": {}, "tasks": [task]}, [payload], [bytes(32)]).build()


def zstd_frame(
    blocks: Sequence[tuple[int, int, bytes]],
    *,
    size: int | None = None,
    window: int | None = None,
    flags: int = 0,
    extra: bytes = b"",
) -> bytes:
    """A zstd frame by hand (RFC 8878).

    Args:
        blocks: (type, size, data): 0 raw, 1 one byte repeated, 3 reserved.
        size: content size to declare in 4 bytes, None for none.
        window: window descriptor byte; None makes a single segment.
        flags: further bits of the frame header descriptor.
        extra: bytes between window descriptor and content size (a dictionary id).
    """
    descriptor = flags | (0x80 if size is not None else 0) | (0x20 if window is None else 0)
    out = b"\x28\xb5\x2f\xfd" + bytes([descriptor]) + (b"" if window is None else bytes([window])) + extra
    out += b"" if size is None else struct.pack("<I", size)
    for i, (kind, length, data) in enumerate(blocks):
        out += struct.pack("<I", length << 3 | kind << 1 | (i == len(blocks) - 1))[:3] + data
    return out


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def in_task(change: Change) -> Change:
    return lambda index: change(index["tasks"][0])


def in_group(change: Change) -> Change:
    return lambda index: change(index["tasks"][0]["groups"][0])


def to(**fields: Any) -> Change:
    return lambda place: place.update(fields)
