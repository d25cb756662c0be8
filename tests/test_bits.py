"""Bit packing against a bit-by-bit loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterpack import bits


def slow_pack(codes: list[int], width: int) -> bytes:
    stream = sum(code << (i * width) for i, code in enumerate(codes))
    return stream.to_bytes((len(codes) * width + 7) // 8, "little")


@st.composite
def coded(draw: st.DrawFn, widest: int) -> tuple[int, list[int]]:
    width = draw(st.integers(0, widest))
    return width, draw(st.lists(st.integers(0, (1 << width) - 1), max_size=70))


@given(coded(32))
def test_pack_is_least_significant_bit_first(case: tuple[int, list[int]]) -> None:
    width, codes = case
    packed = bits.pack(np.array(codes, np.int64), width)
    assert packed.tobytes() == slow_pack(codes, width)
    assert len(packed) == bits.packed_bytes(len(codes), width)
    assert bits.unpack_wide(packed, len(codes), width).tolist() == codes


@given(coded(8).filter(lambda case: case[0] > 0))
def test_unpack_is_the_inverse(case: tuple[int, list[int]]) -> None:
    width, codes = case
    packed = bits.pack(np.array(codes, np.uint8), width)
    assert bits.unpack(packed, len(codes), width).tolist() == codes
    assert bits.padding_is_zero(packed, len(codes), width)


def test_a_worked_example() -> None:
    assert bits.pack(np.array([1, 0, 0, 0, 0, 0, 0, 0, 1], np.uint8), 1).tobytes() == b"\x01\x01"
    assert bits.pack(np.array([0b101, 0b011, 0b110], np.uint8), 3).tobytes() == bytes([0b10011101, 0b1])


@pytest.mark.parametrize("width", [1, 2, 4])
def test_the_halves_of_every_byte_give_its_codes(width: int) -> None:
    table = bits.codes_of_nibble(width)
    for byte, halves in enumerate(bits.NIBBLES):
        codes = table[halves].reshape(-1)
        assert codes.tolist() == [byte >> (i * width) & ((1 << width) - 1) for i in range(8 // width)]
    assert not table.flags.writeable
    assert not bits.NIBBLES.flags.writeable


@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 7))
def test_padding_bits_are_seen(count: int, width: int, bit: int) -> None:
    packed = bits.pack(np.zeros(count, np.uint8), width).copy()
    packed[-1] |= 1 << bit
    used = count * width % 8
    assert bits.padding_is_zero(packed, count, width) == (used == 0 or bit < used)


def test_sizes_are_exact_integers() -> None:
    assert bits.packed_bytes(2**62 + 1, 8) == 2**62 + 1
    assert bits.packed_bytes(0, 5) == 0
