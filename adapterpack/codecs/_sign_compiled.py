"""The predictive sign model compiled by Numba: the same bytes as `_sign_model`, several times faster.

Optional. Importing it imports Numba, and its first use compiles for seconds or loads from Numba's cache, which takes
longer than a few files take without it; `_sign_model` decides. Arrays hold integers, in float64 where a loop is to be
vectorised (exact below 2^53), and names follow spec/codecs.md, "predictive-signs".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterpack.codecs import _sign_tables as tables
from adapterpack.codecs._range import WORD, not_canonical, words_of
from adapterpack.codecs._range_compiled import ONE, is_canonical, kernel, read, reading, seal, write, writing
from adapterpack.codecs._sign_stream import Stream

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]

_P = tables.probability_of_plus()
_CLASS = tables.confidence_class()
_Y = tables.Y_LIMIT
_X = tables.X_LIMIT
P_TABLE = np.concatenate([_P[-_Y:], _P[: _Y + 1]])  # at y + Y_LIMIT
AL_TABLE = np.concatenate([_CLASS[-_X:], _CLASS[: _X + 1]]) * tables.MISS_LEVELS  # at x + X_LIMIT
UM_THRESHOLDS = np.array(tables.UM_THRESHOLDS, np.int64)
AL, Q, UM, GROUP = tables.AL_LEVELS, tables.MISS_LEVELS, tables.UM_LEVELS, tables.GROUP
COLUMNS = AL + Q + UM
MU_LIMIT, STEP_LIMIT = tables.MU_LIMIT, tables.STEP_LIMIT
FIRST_WEIGHT, FIRST_H = tables.FIRST_WEIGHT, tables.FIRST_H

ODD, PAIRS = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333)
NIBBLES, BYTES = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0x0101010101010101)


def encode(stream: Stream, visited: U8) -> bytes:
    """Bits [U, M, C] in visiting order to a stream; both are checked already."""
    words = np.zeros(visited.size // 2 + 4, np.uint32)  # a sign costs at most 16 bits
    state = writing()
    _walk(visited, _bounds(stream), *_parameters(stream), words, state, True)
    count = seal(words, state)
    return bytes(words[:count].astype(WORD, copy=False).tobytes())


def decode(stream: Stream, data: bytes | memoryview) -> U8:
    """A stream to bits [U, M, C] in visiting order; the parameters are checked already.

    Raises:
        CorruptFileError: `bad-stream`.
    """
    words = words_of(data)
    visited = np.zeros((stream.units, stream.matrices, stream.channels), np.uint8)
    state = reading(words)
    _walk(visited, _bounds(stream), *_parameters(stream), words, state, False)
    if not is_canonical(words, state):
        raise not_canonical()
    return visited


def _bounds(stream: Stream) -> I64:
    return np.array(tables.block_bounds(stream.channels), np.int64)


def _parameters(stream: Stream) -> tuple[int, bool, int, int]:
    return stream.lam, stream.pooled, stream.kinds, stream.padding


@kernel
def _walk(
    visited: U8, bounds: I64, lam: int, pooled: bool, kinds: int, padding: int, words: U32, state: U64, encoding: bool
) -> None:
    """All symbols in stream order; `visited` is read when encoding and filled in when decoding."""
    units, matrices, _ = visited.shape
    gram = np.zeros((matrices, units, units))
    misses = np.zeros((matrices, units), np.int64)
    weights = np.full((kinds, COLUMNS), FIRST_WEIGHT)
    h = np.full((kinds, COLUMNS), FIRST_H)
    lower = np.zeros((matrices, units, units))
    r = np.zeros((matrices, units))
    um = np.zeros((matrices, units), np.int64)
    for number in range(len(bounds)):
        start, stop = bounds[number]
        if start:
            _factor_all(gram, start, lam, pooled, lower, r)
            _unreliability(misses, start, um)
        _code_block(
            visited[:, :, start:stop], start, kinds, padding, lower, r, um, weights, h, misses, words, state, encoding
        )
        _add_to_gram(visited[:, :, start:stop], gram)


@kernel
def _add_to_gram(bits: U8, gram: F64) -> None:
    """Agreements minus disagreements of any two units, counted in 64 channels at a time."""
    units, matrices, width = bits.shape
    chunks = (width + 63) // 64
    packed = np.empty((units, chunks), np.uint64)
    for m in range(matrices):
        packed[:] = 0
        for u in range(units):
            for c in range(width):
                packed[u, c >> 6] |= np.uint64(bits[u, m, c]) << np.uint64(c & 63)
        for i in range(units):
            for j in range(i + 1):
                disagreements = 0
                for k in range(chunks):
                    disagreements += _count_ones(packed[i, k] ^ packed[j, k])
                gram[m, i, j] += width - 2 * disagreements


@kernel
def _count_ones(word: Any) -> Any:
    word = word - ((word >> ONE) & ODD)
    word = (word & PAIRS) + ((word >> np.uint64(2)) & PAIRS)
    word = (word + (word >> np.uint64(4))) & NIBBLES
    return np.int64((word * BYTES) >> np.uint64(56))


@kernel
def _unreliability(misses: I64, n: int, um: I64) -> None:
    for m in range(misses.shape[0]):
        for u in range(misses.shape[1]):
            um[m, u] = 0
            for t in UM_THRESHOLDS:
                um[m, u] += 50 * (2 * misses[m, u] + 1) >= t * (n + 2)


@kernel
def _factor_all(gram: F64, n: int, lam: int, pooled: bool, lower: F64, r: F64) -> None:
    matrices, units, _ = gram.shape
    w = 0
    if pooled:
        w = 256 if n <= 128 else 256 * 128 // n
    total = 256 * n + 256 * lam + w * n
    rest = np.empty((units, units))
    for m in range(matrices):
        partner = m ^ 1 if pooled else m
        for j in range(units):
            for i in range(j):
                rest[i, j] = 256.0 * gram[m, j, i] + w * gram[partner, j, i]
            rest[j, j] = total
        _factor(rest, lower[m], r[m], 512.0 * total)


@kernel
def _factor(rest: F64, lower: F64, r: F64, total: float) -> None:
    """LDL of one matrix; `rest`[j, i] for i ≥ j is A(i, j) and is used up."""
    units = len(r)
    sums = np.zeros((units, units))  # [j, i]: of V(j, k)·L(i, k) over the columns done
    for j in range(units):
        column, known = rest[j], sums[j]
        for i in range(j, units):
            column[i] -= np.floor(known[i] * (1.0 / 16384.0))
        d = max(column[j], 1024.0)
        r[j] = np.floor(total / d)
        for i in range(j + 1, units):
            known[i] = np.floor(16384.0 * column[i] / d)
        for i in range(j + 1, units):
            lower[i, j] = known[i]
            v = column[i]
            for k in range(i, units):
                sums[i, k] += v * known[k]


@kernel
def _code_block(
    bits: U8, start: int, kinds: int, padding: int, lower: F64, r: F64, um: I64,
    weights: I64, h: I64, misses: I64, words: U32, state: U64, encoding: bool,
) -> None:  # fmt: skip
    units, matrices, width = bits.shape
    e = np.zeros((matrices, units, width))
    q = np.zeros((matrices, width), np.int64)
    x = np.zeros(width)
    mu = np.zeros(width)
    p = np.full(width, 32768, np.int64)
    cell = np.zeros(width, np.int64)
    sums_g = np.zeros((kinds, COLUMNS), np.int64)
    sums_h = np.zeros((kinds, COLUMNS), np.int64)
    cells_g = np.zeros((kinds, AL * Q), np.int64)
    cells_h = np.zeros((kinds, AL * Q), np.int64)
    of_cell = np.empty((kinds, AL * Q))
    _tabulate(weights, of_cell)
    for u in range(units):
        for m in range(matrices - (u >= units - padding)):
            kind = m % kinds
            if start:
                if u:
                    _predict(lower[m, u], r[m, u], e[m], u, mu, x)
                _chances(x, q[m], of_cell[kind], float(weights[kind, AL + Q + um[m, u]]), cell, p)
            if encoding:
                write(bits[u, m], p, words, state)
            else:
                read(bits[u, m], p, words, state)
            if start:
                misses[m, u] += _notice(bits[u, m], x, mu, q[m], e[m, u])
                _sum(bits[u, m], x, p, cell, um[m, u], cells_g[kind], cells_h[kind], sums_g[kind], sums_h[kind])
        if start and (u % GROUP == GROUP - 1 or u == units - 1):
            _update(weights, h, cells_g, cells_h, sums_g, sums_h)
            _tabulate(weights, of_cell)


@kernel
def _predict(row: F64, r: float, e: F64, u: int, mu: F64, x: F64) -> None:
    width = len(mu)
    mu[:] = 0.0
    done = u - u % 4
    for j in range(0, done, 4):  # four at a time saves loads and stores of mu
        for c in range(width):
            mu[c] += row[j] * e[j, c] + row[j + 1] * e[j + 1, c] + row[j + 2] * e[j + 2, c] + row[j + 3] * e[j + 3, c]
    for j in range(done, u):
        for c in range(width):
            mu[c] += row[j] * e[j, c]
    for c in range(width):
        mu[c] = min(max(np.floor(mu[c] * (1.0 / 16384.0)), -MU_LIMIT), MU_LIMIT)
        x[c] = min(max(np.floor(mu[c] * r * (1.0 / 4096.0)), -_X), _X)


@kernel
def _chances(x: F64, q: I64, of_cell: F64, of_um: float, cell: I64, p: I64) -> None:
    for c in range(len(x)):
        cell[c] = AL_TABLE[np.int64(x[c]) + _X] + q[c]
        y = min(max(np.floor(x[c] * (of_cell[cell[c]] + of_um) * (1.0 / 65536.0)), -_Y), _Y)
        p[c] = P_TABLE[np.int64(y) + _Y]


@kernel
def _notice(bits: U8, x: F64, mu: F64, q: I64, e: F64) -> Any:
    missed = 0
    for c in range(len(x)):
        sign = 8192.0 * bits[c] - 4096.0
        e[c] = sign - mu[c]
        miss = 1 if sign * x[c] < 0 else 0
        q[c] = min(q[c] + miss, Q - 1)
        missed += miss
    return missed


@kernel
def _sum(bits: U8, x: F64, p: I64, cell: I64, um: int, cells_g: I64, cells_h: I64, sums_g: I64, sums_h: I64) -> None:
    all_g = 0
    all_h = 0
    for c in range(len(x)):
        xi = np.int64(x[c])
        g = xi * (65536 * np.int64(bits[c]) - p[c])
        h = (xi * xi * ((p[c] * (65536 - p[c])) >> 16)) >> 16
        all_g += g
        all_h += h
        cells_g[cell[c]] += g
        cells_h[cell[c]] += h
    sums_g[AL + Q + um] += all_g
    sums_h[AL + Q + um] += all_h


@kernel
def _tabulate(weights: I64, of_cell: F64) -> None:
    for kind in range(len(weights)):
        for k in range(AL * Q):
            of_cell[kind, k] = weights[kind, k // Q] + weights[kind, AL + k % Q]


@kernel
def _update(weights: I64, h: I64, cells_g: I64, cells_h: I64, sums_g: I64, sums_h: I64) -> None:
    """One damped Newton step for all kinds; the sums are set to zero."""
    for kind in range(len(weights)):
        for k in range(AL * Q):
            sums_g[kind, k // Q] += cells_g[kind, k]
            sums_h[kind, k // Q] += cells_h[kind, k]
            sums_g[kind, AL + k % Q] += cells_g[kind, k]
            sums_h[kind, AL + k % Q] += cells_h[kind, k]
        for k in range(COLUMNS):
            h[kind, k] += sums_h[kind, k]
            step = 256 * sums_g[kind, k] // h[kind, k]
            weights[kind, k] += min(max(step, -STEP_LIMIT), STEP_LIMIT)
    cells_g[:] = 0
    cells_h[:] = 0
    sums_g[:] = 0
    sums_h[:] = 0
