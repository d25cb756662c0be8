"""The range coder compiled by Numba: the same words as `_range`, bit by bit, for kernels to call.

Importing it imports Numba. All arithmetic is of unsigned 64-bit integers, modulo 2^64 as spec/codecs.md gives it.
Numba's cache notices a change of a kernel's own file only: after an edit here, delete `_sign_compiled`'s too.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
Function = TypeVar("Function", bound=Callable[..., Any])

_numba: Any = importlib.import_module("numba")

B32, B24, B16 = np.uint64(32), np.uint64(24), np.uint64(16)
LOW = np.uint64(0xFFFFFFFF)
ONE, ZERO = np.uint64(1), np.uint64(0)
MOST = np.uint64(16777214)
# of the coder's state: range; lower (writing) or point − lower (reading); words so far; whether one was impossible
WIDTH, PLACE, WORDS, BAD = 0, 1, 2, 3


def kernel(function: Function) -> Function:
    """Compile on first use, or load from Numba's cache."""
    # the only floating-point numbers are exact integers, so the order of their sums is free; other threads may run
    options = {"fastmath": {"reassoc", "contract"}, "nogil": True}
    try:
        compiled: Function = _numba.njit(cache=True, **options)(function)
    except RuntimeError:  # there is no folder that Numba could keep its cache in
        compiled = _numba.njit(**options)(function)
    return compiled


def writing() -> U64:
    """The state before the first bit is written."""
    return np.array([2**64 - 1, 0, 0, 0], np.uint64)


def reading(words: U32) -> U64:
    """The state before the first bit is read."""
    first, second = [*map(int, words[:2]), 0, 0][:2]
    return np.array([2**64 - 1, (first << 32) + second, 2, 0], np.uint64)


def is_canonical(words: U32, state: U64) -> bool:
    """Whether `words`, all of whose bits have been read, are what writing the same bits gives.

    A writer ends with the first number at or above `lower` whose last word is zero, and leaves that zero out unless
    `lower + range` begins with the same word.
    """
    width, above, consumed, bad = map(int, state)
    high, low = (int(words[k]) if k < len(words) else 0 for k in (consumed - 2, consumed - 1))
    lower = ((high << 32) + low - above) % 2**64
    last = (lower + 2**32 - 1) % 2**64 >> 32
    count = consumed - 1 + ((lower + width) % 2**64 >> 32 == last)
    return not bad and len(words) == count and above == -lower % 2**32


@kernel
def read(bits: U8, p: I64, words: U32, state: U64) -> None:
    """Fill in `bits` with the next ones, whose probabilities of 1 are p/65536; missing words count as 0."""
    width, diff, position, bad = state[WIDTH], state[PLACE], np.int64(state[WORDS]), state[BAD]
    for c in range(len(p)):
        scale = width >> B24
        part = scale * ((np.uint64(65536 - p[c]) * MOST >> B16) + ONE)
        whole = scale << B24
        bad |= np.uint64(diff >= whole)
        plus = diff >= part
        bits[c] = plus
        diff = diff - part if plus else diff
        width = whole - part if plus else part
        if width <= LOW:
            word = np.uint64(words[position]) if position < len(words) else ZERO
            width, diff, position = width << B32, (diff << B32) | word, position + 1
    state[WIDTH], state[PLACE], state[WORDS], state[BAD] = width, diff, np.uint64(position), bad


@kernel
def write(bits: U8, p: I64, words: U32, state: U64) -> None:
    """Append `bits`, whose probabilities of 1 are p/65536; a bit needs up to half a word."""
    width, lower, position = state[WIDTH], state[PLACE], np.int64(state[WORDS])
    for c in range(len(p)):
        scale = width >> B24
        part = scale * ((np.uint64(65536 - p[c]) * MOST >> B16) + ONE)
        if bits[c]:
            lower += part
            if lower < part:
                _carry(words, position)
            width = (scale << B24) - part
        else:
            width = part
        if width <= LOW:
            words[position] = lower >> B32
            width, lower, position = width << B32, lower << B32, position + 1
    state[WIDTH], state[PLACE], state[WORDS] = width, lower, np.uint64(position)


@kernel
def _carry(words: U32, position: Any) -> None:
    """Add one to the words written so far, as one long number."""
    position -= 1
    while words[position] == LOW:
        words[position] = 0
        position -= 1
    words[position] += np.uint32(1)


@kernel
def seal(words: U32, state: U64) -> Any:
    """Write what is left, up to two words; returns how many words there are in all."""
    width, lower, position = state[WIDTH], state[PLACE], np.int64(state[WORDS])
    point = lower + LOW
    if point < lower:
        _carry(words, position)
    words[position] = point >> B32
    return position + 1 + np.int64((lower + width) >> B32 == point >> B32)
