"""Sign bits ⇄ words of a range coder, given the probability of each bit, wherever that comes from.

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
Words = NDArray[np.uint32]


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
        self._words = words_of(stream)
        self._coder = constriction.stream.queue.RangeDecoder(self._words)
        # What was read is encoded again beside it: the decoder tells neither how far it has read nor what it ignores.
        self._again = constriction.stream.queue.RangeEncoder()

    def read(self, chances: Chances) -> Bits:
        """The next n bits, int32 [n], whose probabilities of 1 are `chances` (float32 [n]).

        Raises:
            CorruptFileError: `bad-stream` where the words are no encoder's output.
        """
        try:
            bits: Bits = self._coder.decode(_BIT, chances)
        except AssertionError as error:
            raise not_canonical() from error
        self._again.encode(bits, _BIT, chances)
        return bits

    def finish(self) -> None:
        """Check that the stream is the one that the bits read would give.

        Raises:
            CorruptFileError: `bad-stream` for words missing, added or changed without effect on the bits.
        """
        if not np.array_equal(self._again.get_compressed(), self._words):
            raise not_canonical()


def words_of(stream: bytes | memoryview) -> Words:
    """The words of a stream, in the machine's byte order.

    Raises:
        CorruptFileError: `bad-stream` where it is no whole number of words.
    """
    if len(stream) % WORD.itemsize:
        raise CorruptFileError(f"a sign stream of {len(stream)} bytes is no whole number of words", Reason.BAD_STREAM)
    return np.frombuffer(stream, WORD).astype(np.uint32)


def not_canonical() -> CorruptFileError:
    """The error for words that no encoder writes."""
    return CorruptFileError("the words of a sign stream are not those that its signs give", Reason.BAD_STREAM)
