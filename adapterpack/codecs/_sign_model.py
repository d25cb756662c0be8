"""Signs of several matrices ⇄ one range-coded stream of well under a bit each.

Encoder and decoder walk through the same model (`_sign_block`) and differ only in where a unit's bits come from; with
Numba, `_sign_compiled` does the same walk to the same bytes. Which matrices share a stream, `_sign_layout` says.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adapterpack.codecs._range import RangeReader, RangeWriter
from adapterpack.codecs._sign_block import Block, Learned
from adapterpack.codecs._sign_given import Given
from adapterpack.codecs._sign_stream import Stream, from_visited, to_visited
from adapterpack.codecs._sign_tables import block_bounds
from adapterpack.errors import CallError, CorruptFileError, Reason

U8 = NDArray[np.uint8]
Implementation = Literal["numpy", "numba"]
# Loading Numba and its cached kernels takes as long as NumPy takes longer for so many signs (0.26 s, 75 ns a sign).
WORTH_LOADING = 3_500_000
# (bits [matrices, channels] to read or to fill in, their probabilities of 1)
CodeBits = Callable[[U8, NDArray[np.float32]], None]


def implementation(signs: int, wanted: str = "auto") -> Implementation:
    """Which of the two implementations to use; they give the same bytes.

    Args:
        signs: how many the caller will code in this process.
        wanted: "auto" takes Numba where it is imported already, or is installed and loading it pays; "numpy" and
            "numba" decide.

    Raises:
        CallError: `missing-extra` for "numba" where it cannot be imported, `bad-call` for anything else.
    """
    if wanted not in ("auto", "numpy", "numba"):
        raise CallError(f"implementation is {wanted!r}", Reason.BAD_CALL, hint="expected auto, numpy or numba")
    loaded = (
        sys.modules.get("numba") is not None
    )  # then it costs nothing, and a server that wants it only has to import it
    if wanted == "numpy" or (wanted == "auto" and signs < WORTH_LOADING and not loaded):
        return "numpy"
    try:
        importlib.import_module("numba")
    except ImportError as error:  # absent, or it does not know this NumPy
        if wanted == "numba":
            raise CallError(f"numba cannot be used: {error}", Reason.MISSING_EXTRA, hint="pip install numba") from error
        return "numpy"
    return "numba"


def encode_signs(
    signs: U8, *, lam: int, pooled: bool, kinds: int, padding: int = 0,
    given: Given | None = None, using: Implementation = "numpy",
) -> bytes:  # fmt: skip
    """Signs to a stream.

    Args:
        signs: uint8 [M, C, U], 1 for plus and 0 for minus; padding units are 0.
        lam: λ, the shrinkage, 1 … 255.
        pooled: whether matrices 2k and 2k + 1 learn from each other.
        kinds: sets of adaptive weights.
        padding: units of the last matrix that are not coded.
        given: what earlier tasks have at the same places.
        using: see `implementation`; with `given`, NumPy in any case.

    Returns:
        Little-endian 32-bit words.

    Raises:
        CorruptFileError: `limit-exceeded` or `bad-parameter`.
        CallError: `bad-call` for values other than 0 and 1, or padding that is not 0.
    """
    matrices, channels, units = signs.shape
    stream = Stream(matrices, channels, units, lam, pooled, kinds, padding)
    visited = to_visited(stream, signs)
    if using == "numba" and given is None:
        from adapterpack.codecs import _sign_compiled

        return _sign_compiled.encode(stream, visited)
    writer = RangeWriter()

    def write(bits: U8, chances: NDArray[np.float32]) -> None:
        writer.write(bits.reshape(-1).astype(np.int32), chances.reshape(-1))

    _walk(Learned(stream, given), stream, visited, write)
    return writer.finish()


def decode_signs(
    stream: bytes | memoryview, M: int, C: int, U: int, *,
    lam: int, pooled: bool, kinds: int, padding: int = 0,
    given: Given | None = None, using: Implementation = "numpy",
) -> U8:  # fmt: skip
    """The inverse of `encode_signs`.

    Args:
        stream: what `encode_signs` wrote.
        M: matrices.
        C: channels.
        U: units.
        lam: λ, the shrinkage, 1 … 255.
        pooled: whether matrices 2k and 2k + 1 learn from each other.
        kinds: sets of adaptive weights.
        padding: units of the last matrix that were not coded.
        given: what the encoder was given.
        using: see `implementation`; with `given`, NumPy in any case.

    Returns:
        uint8 [M, C, U].

    Raises:
        CorruptFileError: `limit-exceeded`, `bad-parameter` or `bad-stream`.
    """
    expected = Stream(M, C, U, lam, pooled, kinds, padding)
    expected.check()
    least = expected.least_bytes(is_given=given is not None)
    if len(stream) < least:
        raise CorruptFileError(f"a sign stream of {len(stream)} bytes, expected at least {least}", Reason.BAD_STREAM)
    if using == "numba" and given is None:
        from adapterpack.codecs import _sign_compiled

        return from_visited(_sign_compiled.decode(expected, stream))
    reader = RangeReader(stream)
    visited = np.zeros((U, M, C), np.uint8)

    def read(bits: U8, chances: NDArray[np.float32]) -> None:
        bits[:] = reader.read(chances.reshape(-1)).reshape(bits.shape)

    _walk(Learned(expected, given), expected, visited, read)
    reader.finish()
    return from_visited(visited)


def _walk(learned: Learned, stream: Stream, visited: U8, code: CodeBits) -> None:
    """All symbols in stream order: block, unit, matrix, channel. `visited` is read or filled in by `code`."""
    for start, stop in block_bounds(stream.channels):
        bits = visited[:, :, start:stop]
        block = Block(stream, learned, start, stop)
        for unit in range(stream.units):
            rows = stream.rows(unit)
            code(bits[unit, :rows], block.predict(unit, rows))
            block.learn(unit, rows, bits)
        learned.add(bits, block)
