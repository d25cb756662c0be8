"""A second decoder of sign streams, written from the specification alone: standard library, plain integers, no arrays.

Slow (about ten microseconds a sign) and small on purpose. `decode` returns the signs, or raises `BadStream`.
"""

from __future__ import annotations

import struct
from math import gcd

BLOCKS = [2, 2, 4, 8, 16, 16, 32, 48, 64, 96]
KNOTS = [
    32768, 36843, 40793, 44511, 47911, 50941, 53581, 55834, 57724, 59287, 60565, 61598, 62428, 63090, 63615,
    64030, 64357, 64614, 64816, 64974, 65097, 65194, 65269, 65328, 65374, 65410, 65438, 65459, 65476, 65489,
    65500, 65508, 65514, 65519, 65523, 65526, 65528, 65530, 65531, 65532, 65533, 65534, 65534, 65535, 65535,
]  # fmt: skip
AL, UM = [77, 205, 384, 640, 1024, 1536, 2048, 2560], [2, 5, 10, 20, 30]
MASK = 2**64 - 1


class BadStream(Exception):
    """The words are not what an encoder writes for these parameters."""


class RangeDecoder:
    """Bits out of 32-bit words; words that are missing count as 0."""

    def __init__(self, data: bytes) -> None:
        if len(data) % 4:
            raise BadStream("not a whole number of words")
        self.words = struct.unpack(f"<{len(data) // 4}I", data)
        self.consumed, self.lower, self.range, self.point = 0, 0, MASK, 0
        self.next_word()
        self.next_word()

    def next_word(self) -> None:
        word = self.words[self.consumed] if self.consumed < len(self.words) else 0
        self.point = (self.point << 32 | word) & MASK
        self.consumed += 1

    def bit(self, p: int) -> int:
        scale = self.range >> 24
        quantile = ((self.point - self.lower) & MASK) // scale
        if quantile >= 1 << 24:
            raise BadStream("impossible words")
        split = ((65536 - p) * 16777214 >> 16) + 1
        plus = quantile >= split
        if plus:
            self.lower = (self.lower + scale * split) & MASK
        self.range = scale * (2**24 - split if plus else split)
        if self.range < 1 << 32:
            self.lower, self.range = self.lower << 32 & MASK, self.range << 32
            self.next_word()
        return int(plus)

    def finish(self) -> None:
        """The words must be those that encoding the same bits gives."""
        last = (self.lower + 2**32 - 1 & MASK) >> 32
        count = self.consumed - 1 + ((self.lower + self.range & MASK) >> 32 == last)
        if len(self.words) != count or self.point - self.lower & MASK != -self.lower & 0xFFFFFFFF:
            raise BadStream("not the words of an encoder")


class RangeEncoder:
    """The mirror image, as one long number: the stream is `lower`, whose carries reach words written before."""

    def __init__(self) -> None:
        self.lower, self.range, self.shifts = 0, MASK, 0

    def bit(self, p: int, bit: int) -> None:
        scale = self.range >> 24
        split = ((65536 - p) * 16777214 >> 16) + 1
        self.lower += scale * split * bit
        self.range = scale * (2**24 - split if bit else split)
        if self.range < 1 << 32:
            self.lower, self.range, self.shifts = self.lower << 32, self.range << 32, self.shifts + 1

    def finish(self) -> bytes:
        if self.range == MASK:
            return b""
        number, count = self.lower + 2**32 - 1 >> 32, self.shifts + 1
        if (number ^ (self.lower + self.range >> 32)) & 0xFFFFFFFF == 0:
            number, count = number << 32, count + 1
        return struct.pack(f"<{count}I", *(number >> 32 * k & 0xFFFFFFFF for k in reversed(range(count))))


def probability(y: int) -> int:
    """P(y), the probability of + in 1/65536."""
    k, f = abs(y) >> 6, abs(y) & 63
    p = (KNOTS[k] * (64 - f) + KNOTS[k + 1] * f + 32) >> 6
    return p if y >= 0 else 65536 - p


def clamp(a: int, k: int) -> int:
    return max(-k, min(k, a))


def visiting_order(channels: int) -> list[int]:
    step = max(1, 618 * channels // 1000)
    while gcd(step, channels) != 1:
        step -= 1
    return [k * step % channels for k in range(channels)]


def blocks(channels: int) -> list[tuple[int, int]]:
    found, start = [], 0
    while start < channels:
        width = BLOCKS[len(found)] if len(found) < len(BLOCKS) else 120
        found.append((start, min(start + width, channels)))
        start += width
    return found


TABLES = (9, 8, 6, 17)  # weights of al, q', um, and of the leading given task's sign
FIRST, FIRST_H, STEP = (21845, 21845, 21845, 0), (6553600, 6553600, 6553600, 102400), (8192, 8192, 8192, 65536)


class Model:
    """What has been learned, and the prediction of one sign."""

    def __init__(self, M: int, U: int, lam: int, pooled: bool, kinds: int) -> None:
        self.M, self.U, self.lam, self.pooled, self.kinds = M, U, lam, pooled, kinds
        self.gram = [[[0] * U for _ in range(U)] for _ in range(M)]
        self.misses = [[0] * U for _ in range(M)]
        self.weights = [[[first] * n for n, first in zip(TABLES, FIRST)] for _ in range(kinds)]
        self.h = [[[first] * n for n, first in zip(TABLES, FIRST_H)] for _ in range(kinds)]
        self.clear_sums()

    def clear_sums(self) -> None:
        self.g_sums = [[[0] * n for n in TABLES] for _ in range(self.kinds)]
        self.h_sums = [[[0] * n for n in TABLES] for _ in range(self.kinds)]

    def start_block(self, n: int) -> None:
        self.um = [[sum(50 * (2 * f + 1) >= t * (n + 2) for t in UM) for f in row] for row in self.misses]
        self.factors = [self.factor(m, n) for m in range(self.M)] if n else []

    def factor(self, m: int, n: int) -> tuple[list[list[int]], list[int]]:
        """L and R of one matrix."""
        w = 0 if not self.pooled else 256 if n <= 128 else 256 * 128 // n
        total = 256 * n + 256 * self.lam + w * n
        own, other = self.gram[m], self.gram[m ^ 1 if self.pooled else m]
        L = [[0] * self.U for _ in range(self.U)]
        V = [[0] * self.U for _ in range(self.U)]
        R = []
        for j in range(self.U):
            for i in range(j, self.U):
                a = total if i == j else 256 * own[i][j] + w * other[i][j]
                V[i][j] = a - (sum(V[j][k] * L[i][k] for k in range(j)) >> 14)
            d = max(V[j][j], 1024)
            for i in range(j + 1, self.U):
                L[i][j] = (V[i][j] << 14) // d
            R.append(512 * total // d)
        return L, R

    def predict(self, m: int, u: int, e: list[int]) -> tuple[int, int]:
        """μ and x from the innovations of the units before."""
        if not self.factors or u == 0:
            return 0, 0
        L, R = self.factors[m]
        mu = clamp(sum(a * b for a, b in zip(L[u], e)) >> 14, 8192)
        return mu, clamp(mu * R[u] >> 12, 3072)

    def calibrate(self, m: int, u: int, x: int, q: int, z: int, a: int) -> tuple[int, list[tuple[int, int]]]:
        """The probability of +, and of each table the weight that it used with its input."""
        used = [(sum(t <= abs(x) for t in AL), x), (min(q, 7), x), (self.um[m][u], x), (a, z)]
        y = sum(table[k] * v for table, (k, v) in zip(self.weights[m % self.kinds], used))
        return probability(clamp(y >> 16, 2815)), used

    def note(self, m: int, p: int, bit: int, used: list[tuple[int, int]]) -> None:
        for table, (k, v) in enumerate(used):
            self.g_sums[m % self.kinds][table][k] += v * (65536 * bit - p)
            self.h_sums[m % self.kinds][table][k] += v * v * (p * (65536 - p) >> 16) >> 16

    def update_weights(self) -> None:
        for kind in range(self.kinds):
            for table in range(len(TABLES)):
                for k in range(len(self.weights[kind][table])):
                    self.h[kind][table][k] += self.h_sums[kind][table][k]
                    step = 256 * self.g_sums[kind][table][k] // self.h[kind][table][k]
                    self.weights[kind][table][k] += clamp(step, STEP[table])
        self.clear_sums()

    def end_block(self, m: int, signs: list[int]) -> None:
        """Add one channel of one matrix to its Gram matrix."""
        for i in range(self.U):
            for j in range(self.U):
                self.gram[m][i][j] += signs[i] * signs[j]


Signs = list[list[list[int]]]  # bits, [M][C][U]


def given_input(given: tuple[Signs, ...], m: int, c: int, u: int) -> tuple[int, int]:
    """z and a: the leading task's sign as log-odds of 1, and how much the others agree with it."""
    if not given:
        return 0, 8
    lead, *others = (2 * signs[m][c][u] - 1 for signs in given)
    return 256 * lead, clamp(sum(s * lead for s in others), 8) + 8


def decode(
    data: bytes, M: int, C: int, U: int, lam: int, pooled: bool, kinds: int,
    padding: int = 0, given: tuple[Signs, ...] = (),
) -> Signs:  # fmt: skip
    """Signs as bits; padding units are 0. `given`: those of earlier tasks, the leading one first."""
    decoder, model, order = RangeDecoder(data), Model(M, U, lam, pooled, kinds), visiting_order(C)
    bits = [[[0] * U for _ in range(C)] for _ in range(M)]
    for start, stop in blocks(C):
        model.start_block(start)
        lanes = {(m, c): ([], [0]) for m in range(M) for c in order[start:stop]}  # innovations, misses
        for u in range(U):
            for (m, c), (e, q) in lanes.items():
                if m == M - 1 and u >= U - padding:
                    continue
                mu, x = model.predict(m, u, e)
                p, used = model.calibrate(m, u, x, q[0], *given_input(given, m, c, u))
                bit = bits[m][c][u] = decoder.bit(p)
                missed = x * (2 * bit - 1) < 0
                e.append(4096 * (2 * bit - 1) - mu)
                q[0] += missed
                model.misses[m][u] += missed
                model.note(m, p, bit, used)
            if (start or given) and (u % 8 == 7 or u == U - 1):
                model.update_weights()
        for m, c in lanes:
            model.end_block(m, [2 * bit - 1 for bit in bits[m][c]])
    decoder.finish()
    return bits
