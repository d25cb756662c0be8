"""What the signs of earlier tasks at the same places say: one more input to the calibration of the sign model.

Runs from one seed keep part of their common start, so a sign is likelier that of a run before it. The first of the
given tasks leads; how many of the others agree with it decides which weight its sign gets. All quantities are integers,
kept in float64 as in `_sign_block`. Source: spec/codecs.md, "Given tasks".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapterpack.codecs._sign_stream import Stream, to_visited
from adapterpack.errors import CallError, Reason

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

MAX_GIVEN = 64  # tasks
MOST = 8  # agreement of the others beyond this counts as this
CLASSES = 2 * MOST + 1
FIRST_H, STEP_LIMIT = 102_400, 65_536  # what was learned elsewhere is soon known to hold, or not
ONE = 256.0  # log-odds of 1, 8 fraction bits


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """Earlier signs in visiting order.

    Attributes:
        lead: bits of the first task, uint8 [U, M, C].
        agreement: min(max(a, −8), 8) + 8 for a = agreements minus disagreements of the others with it, uint8 [U, M, C].
    """

    lead: U8
    agreement: U8


def given_of(stream: Stream, earlier: Iterable[U8]) -> Given | None:
    """Signs uint8 [M, C, U] of each earlier task, the leading one first; None where there is none.

    Raises:
        CallError: `bad-call` for more than 64 tasks, another shape than the stream's, values other than 0 and 1.
    """
    lead: U8 | None = None
    agreement = np.zeros(0, np.int8)
    for count, signs in enumerate(earlier):
        if count == MAX_GIVEN or signs.shape != (stream.matrices, stream.channels, stream.units):
            message = f"given task {count + 1} of shape {signs.shape}"
            raise CallError(message, Reason.BAD_CALL, hint=f"at most {MAX_GIVEN}, shaped as the signs to be coded")
        bits = to_visited(stream, signs)
        if lead is None:
            lead, agreement = bits, np.zeros(bits.shape, np.int8)
        else:
            agreement += 1 - 2 * (bits ^ lead).view(np.int8)
    if lead is None:
        return None
    return Given(lead, (np.clip(agreement, -MOST, MOST) + MOST).view(np.uint8))


class GivenWeights:
    """The adaptive weights of the leading sign, one for each kind and class of agreement, and their step sizes' H."""

    def __init__(self, kinds: int) -> None:
        self._weights = np.zeros(kinds * CLASSES)
        self._h = np.full(kinds * CLASSES, float(FIRST_H))
        self.table = self._weights / 65536

    def update(self, cell: I64, g: F64, h: F64) -> None:
        """One damped Newton step from the terms of each symbol (all of one shape)."""
        size = len(self._h)
        self._h += np.bincount(cell.reshape(-1), h.reshape(-1), size)
        steps = np.floor(256 * np.bincount(cell.reshape(-1), g.reshape(-1), size) / self._h)
        self._weights += np.clip(steps, -STEP_LIMIT, STEP_LIMIT)
        self.table = self._weights / 65536


class GivenBlock:
    """The given signs of one block of channels, used unit by unit as `Block` is."""

    def __init__(self, given: Given, weights: GivenWeights, kinds: int, start: int, stop: int) -> None:
        self._weights = weights
        kind = CLASSES * (np.arange(given.lead.shape[1])[:, None] % kinds)
        self._cell: I64 = given.agreement[:, :, start:stop] + kind
        self._z = given.lead[:, :, start:stop] * (2 * ONE) - ONE

    def shift(self, unit: int, rows: int) -> F64:
        """What the given signs add to y before it is rounded, float64 [rows, channels of the block]."""
        shift: F64 = self._weights.table[self._cell[unit, :rows]]
        shift *= self._z[unit, :rows]
        self._z[unit, rows:] = 0  # lanes without this unit teach nothing
        return shift

    def learn(self, first: int, error: F64, variance: F64) -> None:
        """Take notice of up to eight units.

        Args:
            first: the first of them.
            error: 65536·bit − P, float64 [units, M, channels of the block].
            variance: (P·(65536 − P)) ≫ 16, over 65536, alike.
        """
        units = slice(first, first + len(error))
        z = self._z[units]
        self._weights.update(self._cell[units], error * z, variance * z * z)
