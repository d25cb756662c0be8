"""Sign bits ⇄ words of a range coder, given the probability of each bit; knows nothing of where the probabilities come from.

The coder is that of `constriction` 0.5 (32-bit words, 64-bit state, 24-bit probabilities). A probability k/65536 is
exact in float32, so the words depend on integers only; spec/codecs.md gives the coder in integers.
"""

from __future__ import annotations

import constriction
import numpy as np
from numpy.typing import NDArray

from adapterpack.errors import CorruptFileError, Reason

WORD = np.dtype("<u4")
_BIT = constriction.stream.model.Bernoulli(perfect=False)

Chances = NDArray[np.float32]
Bits = NDArray[np.int32]


class RangeWriter:
    """Bits in, words out."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()

    def write(self, bits: Bits, chances: Chances) -> None:
        """Append bits (int32 [n]) whose probabilities of 1 are `chances` (float32 [n])."""
        self._coder.encode(bits, _BIT, chances)

    def finish(self) -> bytes:
        """Everything appended, as little-endian words; no bits give no words."""
        return bytes(self._coder.get_compressed().astype(WORD, copy=False).tobytes())


class RangeReader:
    """Words in, bits out."""

    def __init__(self, stream: bytes | memoryview) -> None:
        """Start reading.

        Raises:
            CorruptFileError: `bad-stream` where `stream` is no whole number of words.
        """
        check_word_length(len(stream))
        words = np.frombuffer(stream, WORD).astype(np.uint32)
        self._words = len(words)
        self._coder = constriction.stream.queue.RangeDecoder(words)
        # The decoder does not tell how far it has read. Where it has got to follows from bits and probabilities alone,
        # and the encoder does tell, so the same bits are encoded beside it.
        self._counter = constriction.stream.queue.RangeEncoder()

    def read(self, chances: Chances) -> Bits:
        """The next n bits, int32 [n], whose probabilities of 1 are `chances` (float32 [n]).

        Raises:
            CorruptFileError: `bad-stream` where the words are no encoder's output.
        """
        try:
            bits: Bits = self._coder.decode(_BIT, chances)
        except AssertionError as error:
            raise impossible_words() from error
        self._counter.encode(bits, _BIT, chances)
        return bits

    def finish(self) -> None:
        """Check that the stream ends where the bits do.

        Raises:
            CorruptFileError: `bad-stream`.
        """
        renormalised = self._counter.pos()[0]
        check_consumed(self._words, 0 if self._counter.is_empty() else renormalised + 2)


def check_word_length(length: int) -> None:
    """Raise `bad-stream` unless `length` bytes are whole words."""
    if length % WORD.itemsize:
        raise CorruptFileError(f"a sign stream of {length} bytes is no whole number of 4-byte words", Reason.BAD_STREAM)


def check_consumed(words: int, consumed: int) -> None:
    """Raise `bad-stream` unless a decoder that consumed so many words was given as many, or one fewer."""
    if consumed - words not in (0, 1):
        expected = f"{consumed - 1} or {consumed}" if consumed else "0"
        raise CorruptFileError(f"the sign stream has {words} words, expected {expected}", Reason.BAD_STREAM)


def impossible_words() -> CorruptFileError:
    """The error for words that no encoder writes."""
    return CorruptFileError("the sign stream holds words that no encoder writes", Reason.BAD_STREAM)
