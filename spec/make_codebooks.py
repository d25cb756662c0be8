"""Print `adapterpack/codebooks.py`'s tables: the L1-optimal quantizers of a standard normal.

Run by hand: `python spec/make_codebooks.py`. The printed numbers are the format; this script only explains them.
Source: methods of Jie et al. 2023 (k-median iteration from all-zero levels).
"""

from __future__ import annotations

from itertools import pairwise
from statistics import NormalDist

import numpy as np

NORMAL = NormalDist()


def step(levels: list[float]) -> list[float]:
    """Thresholds are midpoints of levels; a new level is the median of its cell."""
    edges = [0.0] + [NORMAL.cdf((a + b) / 2) for a, b in pairwise(levels)] + [1.0]
    return [NORMAL.inv_cdf((a + b) / 2) for a, b in pairwise(edges)]


def from_zero(bits: int, iterations: int) -> list[float]:
    levels = [0.0] * 2**bits
    for _ in range(iterations):
        levels = step(levels)
    return levels


def converged(bits: int) -> list[float]:
    """Newton's method on levels − step(levels) = 0, from equal-probability medians; plain iteration is too slow."""
    n = 2**bits
    levels = [NORMAL.inv_cdf((k + 0.5) / n) for k in range(n)]
    for _ in range(2000):
        levels = step(levels)
    for _ in range(20):
        base = np.array(step(levels))
        jacobian = np.zeros((n, n))
        for k in range(n):  # d step_j / d level_k is non-zero for neighbours only
            h = 1e-6
            up, down = list(levels), list(levels)
            up[k] += h
            down[k] -= h
            jacobian[:, k] = (np.array(step(up)) - np.array(step(down))) / (2 * h)
        levels = list(np.array(levels) - np.linalg.solve(np.eye(n) - jacobian, np.array(levels) - base))
    return levels


def positive_half(levels: list[float]) -> str:
    """Averaged with the mirrored negative half, rounded to float32, as hexadecimal bit patterns."""
    n = len(levels)
    half = [(levels[n // 2 + k] - levels[n // 2 - 1 - k]) / 2 for k in range(n // 2)]
    return " ".join(f"{v:08x}" for v in np.array(half, np.float32).view(np.uint32))


if __name__ == "__main__":
    for b in range(1, 9):
        print("normal-l1", b, positive_half(converged(b)))
    print("normal-l1-500", 8, positive_half(from_zero(8, 500)))
