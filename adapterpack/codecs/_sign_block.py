"""The predictive model of signs, one block of channels at a time: factor, predict, calibrate, learn.

All quantities are integers. They are kept in float64, where they and every partial sum of a matrix product are exact
below 2^53, so no BLAS, thread count or order of summation can change a bit; a factor 2^-k folded into a table is exact
too. Names follow spec/codecs.md, "predictive-signs"; this module neither reads nor writes a stream.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from adapterpack.codecs import _sign_tables as tables
from adapterpack.codecs._sign_given import Given, GivenBlock, GivenWeights
from adapterpack.codecs._sign_stream import Stream

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

CELLS = tables.AL_LEVELS * tables.MISS_LEVELS  # (al, q') pairs of one kind

# indexed by x or y, a negative value counting from the end
_AL_CELL = tables.confidence_class() * tables.MISS_LEVELS
_P = tables.probability_of_plus()
_CHANCE = (_P / 65536).astype(np.float32)
_P_FLOAT = _P.astype(np.float64)
_VARIANCE = ((_P * (65536 - _P)) >> 16) / 65536


class Weights:
    """The adaptive weights of every kind: one table each for al, q' and um, and their step sizes' H."""

    def __init__(self, kinds: int) -> None:
        columns = tables.AL_LEVELS + tables.MISS_LEVELS + tables.UM_LEVELS
        self._weights = np.full((kinds, columns), float(tables.FIRST_WEIGHT))
        self._h = np.full((kinds, columns), float(tables.FIRST_H))
        self._tabulate()

    def _tabulate(self) -> None:
        al, q, um = np.split(self._weights / 65536, (tables.AL_LEVELS, tables.AL_LEVELS + tables.MISS_LEVELS), axis=1)
        self.of_cell = (al[:, :, None] + q[:, None, :]).reshape(-1)
        self.of_um = um.reshape(-1)

    def update(self, g: F64, h: F64) -> None:
        """One damped Newton step from sums over symbols, both [kinds, 9 + 8 + 6]."""
        self._h += h
        self._weights += np.clip(np.floor(256 * g / self._h), -tables.STEP_LIMIT, tables.STEP_LIMIT)
        self._tabulate()


class Learned:
    """What earlier blocks taught: Gram matrices, misses of each unit, weights; and what earlier tasks say."""

    def __init__(self, stream: Stream, given: Given | None = None) -> None:
        self.given = given
        self.given_weights = GivenWeights(stream.kinds)
        self.gram = np.zeros((stream.matrices, stream.units, stream.units))
        self.misses = np.zeros((stream.matrices, stream.units), np.int64)
        self.weights = Weights(stream.kinds)

    def add(self, bits: U8, block: Block) -> None:
        """Take over a finished block, `bits` being [U, M, channels]."""
        signs = bits.transpose(1, 0, 2).astype(np.float32)  # sums of at most 120 terms are exact in it
        signs *= 2
        signs -= 1
        self.gram += signs @ signs.transpose(0, 2, 1)
        self.misses += block.missed.sum(axis=2).T


def regularised(stream: Stream, gram: F64, n: int) -> tuple[F64, int]:
    """A [M, U, U] and N from the Gram matrices of the n channels known so far."""
    w = (256 if n <= 128 else 256 * 128 // n) if stream.pooled else 0
    total = 256 * n + 256 * stream.lam + w * n
    a = 256 * gram
    if w:
        a += w * gram.reshape(-1, 2, *gram.shape[1:])[:, ::-1].reshape(gram.shape)
    diagonal = np.arange(stream.units)
    a[:, diagonal, diagonal] = total
    return a, total


def factor(a: F64) -> tuple[F64, F64]:
    """LDL of symmetric matrices in integers, column by column.

    Args:
        a: A [M, U, U]; only the lower triangle is read.

    Returns:
        L / 2^14 [M, U, U], zero on and above the diagonal, and D [M, U].
    """
    lower, v = np.zeros_like(a), np.zeros_like(a)
    diagonal = np.empty(a.shape[:2])
    for j in range(a.shape[1]):
        known = np.matmul(lower[:, j:, :j], v[:, j, :j, None])[:, :, 0]
        column = a[:, j:, j] - np.floor(known, out=known)
        v[:, j:, j] = column
        np.maximum(column[:, 0], 1024, out=diagonal[:, j])
        lower[:, j + 1 :, j] = np.floor(16384 * column[:, 1:] / diagonal[:, j, None]) / 16384
    return lower, diagonal


class Block:
    """One block of channels; lanes are its (matrix, channel) pairs, and a step handles one unit of all lanes.

    `predict` and `learn` alternate, unit by unit. The first rows of a lane array are the matrices that have the unit.

    Attributes:
        missed: whether the prediction had the wrong sign, bool [U, M, channels of the block].
    """

    def __init__(self, stream: Stream, learned: Learned, start: int, stop: int) -> None:
        self._units, self._kinds, self._weights = stream.units, stream.kinds, learned.weights
        self._given: GivenBlock | None = None
        if learned.given is not None:
            self._given = GivenBlock(learned.given, learned.given_weights, stream.kinds, start, stop)
        self._is_blind = start == 0 and self._given is None
        lanes = (stream.matrices, stop - start)
        self.missed = np.zeros((stream.units, *lanes), np.bool_)
        if self._is_blind:
            return
        a, total = regularised(stream, learned.gram, start)
        self._lower, diagonal = factor(a)
        self._r = np.floor(512 * total / diagonal)[:, :, None] / 4096
        kind = np.arange(stream.matrices)[:, None] % stream.kinds
        reached = [50 * (2 * learned.misses + 1) >= t * (start + 2) for t in tables.UM_THRESHOLDS]
        self._um = np.sum(reached, axis=0) + tables.UM_LEVELS * kind
        self._q = np.repeat(CELLS * kind, lanes[1], axis=1)  # q' as an offset into its kind's cells
        self._q_most = CELLS * kind + tables.MISS_LEVELS - 1
        self._e = np.empty((stream.matrices, stream.units, lanes[1]))
        self._mu = np.zeros(lanes)
        self._x = np.zeros((tables.GROUP, *lanes))
        self._y = np.zeros((tables.GROUP, *lanes), np.int64)
        self._cell = np.zeros((tables.GROUP, *lanes), np.int64)

    def predict(self, unit: int, rows: int) -> F32:
        """The probability of +, float32 [rows, channels of the block], exact multiples of 2^-16."""
        if self._is_blind:
            return np.full((rows, self.missed.shape[2]), 0.5, np.float32)
        slot = unit % tables.GROUP
        x, mu = self._x[slot, :rows], self._mu[:rows]
        self._x[slot, rows:] = 0  # lanes without this unit teach nothing
        if unit:
            np.matmul(self._lower[:rows, unit, None, :unit], self._e[:rows, :unit], out=mu[:, None])
            _floor_and_clamp(mu, tables.MU_LIMIT)
        np.multiply(mu, self._r[:rows, unit], out=x)
        _floor_and_clamp(x, tables.X_LIMIT)
        return self._calibrate(unit, slot, rows)

    def _calibrate(self, unit: int, slot: int, rows: int) -> F32:
        x, cell = self._x[slot, :rows], self._cell[slot, :rows]
        np.add(_AL_CELL[x.astype(np.int64)], self._q[:rows], out=cell)
        y = self._weights.of_cell[cell]
        y += self._weights.of_um[self._um[:rows, unit, None]]
        y *= x
        if self._given is not None:
            y += self._given.shift(unit, rows)
        _floor_and_clamp(y, tables.Y_LIMIT)
        self._y[slot, :rows] = y
        chances: F32 = _CHANCE[self._y[slot, :rows]]
        return chances

    def learn(self, unit: int, rows: int, bits: U8) -> None:
        """Take notice of one unit's bits; `bits` holds those of all units so far, [U, M, channels of the block]."""
        if self._is_blind:
            return
        slot = unit % tables.GROUP
        signs = bits[unit, :rows].astype(np.float64)  # ±4096
        signs *= 8192
        signs -= 4096
        np.subtract(signs, self._mu[:rows], out=self._e[:rows, unit])
        signs *= self._x[slot, :rows]
        missed = np.less(signs, 0, out=self.missed[unit, :rows])
        q = self._q[:rows]
        q += missed
        np.minimum(q, self._q_most[:rows], out=q)
        if slot == tables.GROUP - 1 or unit == self._units - 1:
            self._learn_weights(unit - slot, bits[unit - slot : unit + 1])

    def _learn_weights(self, first: int, bits: U8) -> None:
        count = len(bits)
        x, y, cell = self._x[:count], self._y[:count], self._cell[:count]
        g: F64 = np.asarray(65536.0 * bits)
        g -= _P_FLOAT[y]
        if self._given is not None:
            self._given.learn(first, g, _VARIANCE[y])
        g *= x
        h = _VARIANCE[y]
        h *= x
        h *= x
        np.floor(h, out=h)
        um = self._um[:, first : first + count].T
        self._weights.update(self._by_weight(g, cell, um), self._by_weight(h, cell, um))

    def _by_weight(self, terms: F64, cell: I64, um: I64) -> F64:
        """Sums of `terms` [units, M, channels] over the symbols that used each weight, [kinds, 9 + 8 + 6]."""
        cells = np.bincount(cell.reshape(-1), terms.reshape(-1), CELLS * self._kinds)
        cells = cells.reshape(self._kinds, tables.AL_LEVELS, tables.MISS_LEVELS)
        units = np.bincount(um.reshape(-1), terms.sum(axis=2).reshape(-1), tables.UM_LEVELS * self._kinds)
        return np.concatenate([cells.sum(axis=2), cells.sum(axis=1), units.reshape(self._kinds, -1)], axis=1)


def _floor_and_clamp(values: F64, limit: int) -> None:
    np.floor(values, out=values)
    np.minimum(values, limit, out=values)
    np.maximum(values, -limit, out=values)
