"""Sections: the runs of bytes that a payload is made of, plain or compressed.

With compression "none" sections follow one another with nothing between. With "zstd" each begins with its stored
length (LEB128); a stored length equal to the raw length means plain bytes, a smaller one a zstd frame. Raw lengths are
known to both sides. Numbers are compressed as byte planes. Source: spec/codecs.md, "Sections" and "Byte planes".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterpack.codecs import zstd
from adapterpack.errors import CorruptFileError, Reason

COMPRESSIONS = ("none", "zstd")
_MAX_VARINT = 5  # 35 bits: a section is never longer than a file may be


def varint(value: int) -> bytes:
    """Unsigned LEB128, shortest form."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


class Writer:
    """Collects sections into a payload."""

    def __init__(self, compression: str) -> None:
        self._zstd = compression == "zstd"
        self._parts: list[bytes] = []

    def section(self, data: bytes) -> None:
        """Append one section; compressed only where that is smaller."""
        if not self._zstd:
            self._parts.append(data)
            return
        frame = zstd.compress(data) if data else data
        self._parts.append(varint(min(len(frame), len(data))))
        self._parts.append(frame if len(frame) < len(data) else data)

    def plain(self, data: bytes) -> None:
        """Append bytes as they are, in either compression."""
        self._parts.append(data)

    def number(self, value: int) -> None:
        """Append a bare LEB128 number."""
        self._parts.append(varint(value))

    def numbers(self, values: NDArray[Any]) -> None:
        """Append 16- or 32-bit numbers: as they are, or as one section a byte plane."""
        if not self._zstd:
            self._parts.append(np.ascontiguousarray(values).tobytes())
            return
        for plane in planes(values):
            self.section(plane)

    def payload(self) -> bytes:
        return b"".join(self._parts)


class Reader:
    """Takes the sections of a payload in turn; every byte must be used."""

    def __init__(self, payload: memoryview, compression: str) -> None:
        self._payload = payload
        self._zstd = compression == "zstd"
        self._at = 0

    def section(self, size: int) -> memoryview:
        """The next section, of exactly `size` raw bytes.

        Raises:
            CorruptFileError: `payload-size` or `zstd-frame`.
        """
        if not self._zstd:
            return self._take(size)
        stored = self.number()
        if stored > size:
            raise CorruptFileError(f"a section of {size:,} bytes is stored in {stored:,}", Reason.PAYLOAD_SIZE)
        data = self._take(stored)
        return data if stored == size else memoryview(zstd.decompress(bytes(data), size))

    def number(self) -> int:
        """The next LEB128 number, which must be in its shortest form."""
        value = 0
        for i in range(_MAX_VARINT):
            byte = self._take(1)[0]
            value |= (byte & 0x7F) << (7 * i)
            if byte < 0x80:
                if byte == 0 and i:
                    break
                return value
        raise CorruptFileError("a length is not in its shortest form", Reason.PAYLOAD_SIZE, f"payload byte {self._at}")

    def numbers(self, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """The next `count` numbers of a 16- or 32-bit dtype."""
        if not self._zstd:
            return np.frombuffer(self._take(count * dtype.itemsize), dtype)
        return unplanes([self.section(count) for _ in range(dtype.itemsize)], dtype)

    def plain(self, size: int) -> memoryview:
        """The next `size` bytes as they are, in either compression."""
        return self._take(size)

    def rest(self) -> memoryview:
        """All bytes that are left."""
        return self._take(len(self._payload) - self._at)

    def done(self) -> None:
        """Refuse bytes that no section claimed."""
        left = len(self._payload) - self._at
        if left:
            raise CorruptFileError(f"{left:,} bytes too many in a payload", Reason.PAYLOAD_SIZE)

    def _take(self, size: int) -> memoryview:
        data = self._payload[self._at : self._at + size]
        if len(data) != size:
            raise CorruptFileError(f"a payload ends {size - len(data):,} bytes early", Reason.PAYLOAD_SIZE)
        self._at += size
        return data


def planes(values: NDArray[Any]) -> list[bytes]:
    """Byte planes of 16- or 32-bit patterns rotated left by one bit, most significant plane first.

    The rotation moves the sign to the bottom, so that the first plane of float32 and bfloat16 is the exponent alone:
    the only part of trained floats that compresses well.
    """
    width = values.dtype.itemsize
    raw = np.ascontiguousarray(values).reshape(-1).view(f"<u{width}")
    rotated = ((raw << 1) | (raw >> (8 * width - 1))).astype(f"<u{width}")
    columns = rotated.view(np.uint8).reshape(-1, width)
    return [columns[:, i].tobytes() for i in reversed(range(width))]


def unplanes(parts: list[memoryview], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The inverse of `planes`."""
    width = dtype.itemsize
    columns = np.empty((len(parts[0]), width), np.uint8)
    for i, part in enumerate(parts):
        columns[:, width - 1 - i] = np.frombuffer(part, np.uint8)
    rotated = columns.reshape(-1).view(f"<u{width}")
    return ((rotated >> 1) | (rotated << (8 * width - 1))).astype(f"<u{width}").view(dtype)
