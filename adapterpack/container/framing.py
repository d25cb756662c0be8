"""The frame: magic, version, sizes and checksums around an opaque index.

    0   8  magic  89 41 50 4B 0D 0A 1A 0A
    8   1  major version          9   1  minor version          10  2  flags, zero
    12  4  head bytes (all before the first payload)            16  4  stored index bytes
    20  4  index bytes after inflating                          24  4  CRC-32 of the head without this field
    28     index · a CRC-32 for each segment · a SHA-256 digest for each task
    head   payloads, one after another to the end of the file

Integers are little-endian. Source: spec/README.md, "The frame".
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from adapterpack.container import deflate, limits
from adapterpack.errors import CorruptFileError, Reason, UnsupportedVersionError

MAGIC = b"\x89APK\r\n\x1a\n"
VERSION = (1, 0)
PEEK = 4096
_FIXED = struct.Struct("<8sBBHIIII")
FIXED_BYTES = _FIXED.size

_MANGLED = (b"\x89APK\n", b"\x89APK\r\r", b"\x89APK\r\n\x1a\r", b"\xc2\x89APK", b"\xef\xbf\xbdAPK", b"\x09APK", b"?APK")
_OTHERS = (
    (b"PK", "a ZIP archive: an Android package or a torch checkpoint", "an adapterpack .apk is no Android package; to "
     "read a checkpoint use `adapterpack pack`"),
    (b"GGUF", "a GGUF model", "convert the adapter with its own tools first"),
    (b"\x80", "a Python pickle", "adapterpack never unpickles; use `adapterpack pack` on a torch checkpoint"),
    (b"version https://git-lfs", "a Git LFS pointer", "run `git lfs pull` to fetch the file itself"),
    (b"<", "an HTML or XML page", "the download gave an error page; fetch the file again"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fixed:
    """The first 28 bytes.

    Attributes:
        version: (major, minor).
        head_bytes, stored_bytes, index_bytes: see the table above.
        checksum: CRC-32 as stored.
    """

    version: tuple[int, int]
    head_bytes: int
    stored_bytes: int
    index_bytes: int
    checksum: int


@dataclass(frozen=True, slots=True)
class Head:
    """A verified head: the index text, and the table behind it as bytes."""

    fixed: Fixed
    index: bytes
    table: bytes


def parse_fixed(first: bytes, file_bytes: int) -> Fixed:
    """Read the fixed part, believing no size before it is compared with the limits and the file.

    Args:
        first: the beginning of the file.
        file_bytes: the file's size.

    Raises:
        CorruptFileError, UnsupportedVersionError: each framing reason.
    """
    _check_magic(first, file_bytes)
    if len(first) < FIXED_BYTES:
        raise CorruptFileError(f"the file has {file_bytes} bytes, fewer than its fixed head", Reason.TRUNCATED)
    _, major, minor, flags, head, stored, index, checksum = _FIXED.unpack_from(first)
    _check_version(major, minor)
    if flags:
        raise CorruptFileError(f"reserved flags are {flags:#06x}", Reason.RESERVED_BITS, "byte 10", "expected 0")
    limits.require(head, limits.HEAD_BYTES, "head bytes", "byte 12")
    limits.require(index, limits.INDEX_BYTES, "index bytes", "byte 20")
    if FIXED_BYTES + stored > head or (head - FIXED_BYTES - stored) % 4:
        raise CorruptFileError(
            f"a head of {head:,} bytes cannot hold its index of {stored:,}", Reason.HEAD_SIZE, "byte 12"
        )
    if head > file_bytes:
        message = f"the file has {file_bytes:,} bytes, its head alone {head:,}: a truncated download?"
        raise CorruptFileError(message, Reason.TRUNCATED, "byte 12", "fetch it again")
    return Fixed((major, minor), head, stored, index, checksum)


def _check_magic(first: bytes, file_bytes: int) -> None:
    if first[:8] == MAGIC:
        return
    if file_bytes == 0:
        raise CorruptFileError("the file is empty", Reason.TRUNCATED, "byte 0", "fetch it again")
    if MAGIC.startswith(first[:8]):
        raise CorruptFileError(f"the file ends after {file_bytes} bytes", Reason.TRUNCATED, "byte 0", "fetch it again")
    if first.startswith(_MANGLED):
        hint = "transfer it in binary mode"
        raise CorruptFileError("the file was changed by a text-mode transfer", Reason.MANGLED_MAGIC, "byte 0", hint)
    for prefix, what, hint in _OTHERS:
        if first.startswith(prefix):
            raise CorruptFileError(f"this is {what}", Reason.OTHER_FORMAT, "byte 0", hint)
    if first[8:9] == b"{":
        hint = "use `adapterpack pack` to convert it"
        raise CorruptFileError("this is a safetensors file", Reason.OTHER_FORMAT, "byte 0", hint)
    text = f"the file begins with {first[:8]!r}, not an adapterpack file"
    raise CorruptFileError(text, Reason.BAD_MAGIC, "byte 0", "if it is an adapter, use `adapterpack pack`")


def _check_version(major: int, minor: int) -> None:
    if major == 0:
        raise CorruptFileError(f"version {major}.{minor} does not exist", Reason.BAD_VERSION, "byte 8")
    if major > VERSION[0]:
        message = f"the file has format version {major}.{minor}, this reader knows {VERSION[0]}.x"
        raise UnsupportedVersionError(message, Reason.NEWER_VERSION, "byte 8", "upgrade adapterpack")


def open_head(head: bytes, fixed: Fixed) -> Head:
    """Verify the checksum and inflate the index.

    Args:
        head: exactly `fixed.head_bytes` bytes.

    Raises:
        CorruptFileError: `checksum-mismatch` or `index-compression`.
    """
    if head_checksum(head) != fixed.checksum:
        raise CorruptFileError(
            "the head does not match its checksum", Reason.CHECKSUM, "byte 24", "fetch the file again"
        )
    end = FIXED_BYTES + fixed.stored_bytes
    return Head(fixed, deflate.decompress(head[FIXED_BYTES:end], fixed.index_bytes), head[end:])


def head_checksum(head: bytes) -> int:
    """CRC-32 of everything in the head but the checksum field."""
    return zlib.crc32(head[FIXED_BYTES:], zlib.crc32(head[: FIXED_BYTES - 4]))


def build_head(index: bytes, table: bytes) -> bytes:
    """Frame an index text and its table.

    Raises:
        CorruptFileError: `limit-exceeded`: the writer obeys the reader's limits.
    """
    limits.require(len(index), limits.INDEX_BYTES, "index bytes")
    stored = deflate.compress(index)
    size = FIXED_BYTES + len(stored) + len(table)
    limits.require(size, limits.HEAD_BYTES, "head bytes")
    fields = (MAGIC, *VERSION, 0, size, len(stored), len(index))
    head = _FIXED.pack(*fields, 0) + stored + table
    return _FIXED.pack(*fields, head_checksum(head)) + head[FIXED_BYTES:]
