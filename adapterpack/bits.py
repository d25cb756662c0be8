"""Bits in bytes: the one place that knows how codes are packed.

Code i of `bits` bits occupies bits i·bits … i·bits + bits − 1 of the stream, its least significant bit first;
bit j of the stream is bit j mod 8 (0 = least significant) of byte j div 8. Pad bits of the last byte are zero.
Source: spec/codecs.md, "Bit order".
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` bits take; exact Python integers, no overflow."""
    return (count * bits + 7) // 8


def pack(codes: NDArray[Any], bits: int) -> U8:
    """Pack codes below 2**bits.

    Args:
        codes: unsigned integers [n], each < 2**bits.
        bits: 0 … 32.

    Returns:
        uint8 [ceil(n·bits/8)].
    """
    if bits == 8:
        return np.ascontiguousarray(codes, np.uint8)
    if bits == 1:
        return np.packbits(codes.astype(np.uint8, copy=False), bitorder="little")
    wide = codes.astype(np.uint32, copy=False)
    planes = ((wide[:, None] >> np.arange(bits, dtype=np.uint32)) & 1).astype(np.uint8)
    return np.packbits(planes.reshape(-1), bitorder="little")


def unpack(packed: U8, count: int, bits: int) -> U8:
    """The inverse of `pack` for bits 1 … 8: uint8 [count]. Bytes beyond what is needed are ignored."""
    if bits == 8:
        return packed[:count]
    stream = np.unpackbits(packed, count=count * bits, bitorder="little")
    if bits == 1:
        return stream
    weights = (1 << np.arange(bits)).astype(np.uint8)
    codes: U8 = (stream.reshape(count, bits) * weights).sum(axis=1, dtype=np.uint8)
    return codes


def unpack_wide(packed: U8, count: int, bits: int) -> NDArray[np.int64]:
    """The inverse of `pack` for bits 0 … 32: int64 [count]."""
    stream = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    codes = np.zeros(count, np.int64)
    for k in range(bits):  # plane by plane: widening all bits at once would take eight times the memory
        codes |= stream[:, k].astype(np.int64) << k
    return codes


NIBBLES = np.stack([np.arange(256) % 16, np.arange(256) // 16], axis=1)  # the lower and the upper half of every byte
NIBBLES.flags.writeable = False


@lru_cache(maxsize=4)
def codes_of_nibble(bits: int) -> U8:
    """The 4/bits codes in every possible half of a byte: uint8 [16, 4/bits], for bits 1, 2, 4. Read-only."""
    table = unpack(np.arange(16, dtype=np.uint8), 16 * 8 // bits, bits).reshape(16, 8 // bits)[:, : 4 // bits]
    table.flags.writeable = False
    return table


def padding_is_zero(packed: U8, count: int, bits: int) -> bool:
    """Whether the unused high bits of the last byte are zero, as the canonical form requires."""
    used = count * bits % 8
    return used == 0 or int(packed[-1]) >> used == 0
