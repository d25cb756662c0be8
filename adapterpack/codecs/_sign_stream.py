"""The shape and parameters of one sign stream, and what is refused before any of its work is begun."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapterpack.codecs import _sign_tables as tables
from adapterpack.codecs._sign_tables import MAX_CHANNELS, MAX_LAMBDA, MAX_MATRICES, MAX_UNITS, visiting_order
from adapterpack.errors import CallError, CorruptFileError, Reason

U8 = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Stream:
    """What the bytes of a sign stream do not say themselves.

    Attributes:
        matrices: M.
        channels: C.
        units: U.
        lam: λ, the shrinkage, 1 … 255.
        pooled: whether matrices 2k and 2k + 1 learn from each other.
        kinds: T; matrix m uses set m mod T of adaptive weights.
        padding: units of the last matrix that are not coded and count as −1.
    """

    matrices: int
    channels: int
    units: int
    lam: int
    pooled: bool
    kinds: int
    padding: int = 0

    def rows(self, unit: int) -> int:
        """How many matrices, counted from the first, have this unit."""
        return self.matrices - (unit >= self.units - self.padding)

    def working_bytes(self) -> int:
        """An upper bound of the memory that coding needs, in bytes."""
        return self.matrices * self.units * (6 * 8 * self.units + 4 * self.channels + 4096) + (1 << 20)

    def least_bytes(self, *, is_given: bool = False) -> int:
        """A lower bound of the stream's length: nothing predicts the first unit and the first block, a bit a sign.

        Given tasks predict both, once the weights have been updated for the first time. It keeps a few bytes from
        asking for hours of work.
        """
        first_block = min(tables.BLOCKS[0], self.channels)
        units = min(self.units, tables.GROUP) if is_given else self.units
        bits = first_block * (self.matrices * units - max(0, self.padding - self.units + units))
        if not is_given:
            bits += (self.channels - first_block) * self.matrices
        return -(-bits // 32) * 4

    def check(self) -> None:
        """Refuse what would take the work out of bounds, or the integers out of the range where they are exact.

        Raises:
            CorruptFileError: `limit-exceeded` or `bad-parameter`.
        """
        _within("matrices", self.matrices, MAX_MATRICES)
        _within("channels", self.channels, MAX_CHANNELS)
        _within("units", self.units, MAX_UNITS)
        _parameter("lam", self.lam, 1, MAX_LAMBDA)
        _parameter("kinds", self.kinds, 1, self.matrices)
        _parameter("padding", self.padding, 0, self.units - 1)
        if self.pooled and self.matrices % 2:
            raise CorruptFileError(
                f"{self.matrices} matrices cannot learn from each other in pairs", Reason.BAD_PARAMETER,
                hint="pooled needs an even number",
            )  # fmt: skip


def _within(what: str, found: int, limit: int) -> None:
    if not 1 <= found <= limit:
        raise CorruptFileError(f"a sign stream of {found} {what}, expected 1 to {limit}", Reason.LIMIT)


def _parameter(what: str, found: int, least: int, most: int) -> None:
    if not least <= found <= most:
        raise CorruptFileError(f"{what} is {found}, expected {least} to {most}", Reason.BAD_PARAMETER)


def to_visited(stream: Stream, signs: U8) -> U8:
    """Signs [M, C, U] in the order they are coded: uint8 [U, M, C], contiguous.

    Raises:
        CorruptFileError: see `Stream.check`.
        CallError: `bad-call` for values other than 0 and 1, or padding that is not 0.
    """
    stream.check()
    if int(signs.max()) > 1:
        raise CallError(f"a sign is {int(signs.max())}, expected 0 or 1", Reason.BAD_CALL)
    if signs[-1, :, stream.units - stream.padding :].any():
        raise CallError("a padding unit has a plus sign", Reason.BAD_CALL, hint="padding is all minus")
    order = visiting_order(stream.channels)
    return np.ascontiguousarray(signs.transpose(2, 0, 1)[:, :, order], dtype=np.uint8)


def from_visited(visited: U8) -> U8:
    """The inverse of `to_visited`: uint8 [U, M, C] to uint8 [M, C, U]."""
    units, matrices, channels = visited.shape
    signs = np.empty((matrices, channels, units), np.uint8)
    signs[:, visiting_order(channels)] = visited.transpose(1, 2, 0)
    return signs
