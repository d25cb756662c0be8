"""The fixed numbers of the predictive sign model: limits, thresholds, visiting order and the probability table.

Everything here is part of the format and is plain integers; nothing is learned and nothing depends on a machine.
Source: spec/codecs.md, "predictive-signs".
"""

from __future__ import annotations

from functools import lru_cache
from math import gcd

import numpy as np
from numpy.typing import NDArray

MAX_MATRICES, MAX_CHANNELS, MAX_UNITS, MAX_LAMBDA = 128, 4096, 512, 255

BLOCKS = (2, 2, 4, 8, 16, 16, 32, 48, 64, 96)  # channels; every later block has LAST_BLOCK
LAST_BLOCK = 120
GROUP = 8  # units between two updates of the weights

MU_LIMIT = 8192  # predictions, 12 fraction bits
X_LIMIT = 3072  # log-odds, 8 fraction bits
Y_LIMIT = 2815  # calibrated log-odds, 8 fraction bits
STEP_LIMIT = 8192  # one change of a weight, 16 fraction bits
FIRST_WEIGHT = 21845  # three of them make 1.0
FIRST_H = 6_553_600
MISS_LEVELS = 8
AL_THRESHOLDS = (77, 205, 384, 640, 1024, 1536, 2048, 2560)
AL_LEVELS = len(AL_THRESHOLDS) + 1
UM_THRESHOLDS = (2, 5, 10, 20, 30)
UM_LEVELS = len(UM_THRESHOLDS) + 1

# 65536 / (1 + e^(-k/4)), rounded; the largest is one below 65536 so that neither sign is ever impossible
KNOTS = (
    32768, 36843, 40793, 44511, 47911, 50941, 53581, 55834, 57724, 59287, 60565, 61598, 62428, 63090, 63615,
    64030, 64357, 64614, 64816, 64974, 65097, 65194, 65269, 65328, 65374, 65410, 65438, 65459, 65476, 65489,
    65500, 65508, 65514, 65519, 65523, 65526, 65528, 65530, 65531, 65532, 65533, 65534, 65534, 65535, 65535,
)  # fmt: skip


def visiting_order(channels: int) -> NDArray[np.int64]:
    """The channels in the order they are coded: 0, σ, 2σ, … modulo the count; int64 [channels]."""
    stride = max(1, 618 * channels // 1000)
    while gcd(stride, channels) != 1:
        stride -= 1
    return np.arange(channels, dtype=np.int64) * stride % channels


def block_bounds(channels: int) -> list[tuple[int, int]]:
    """Where each block of the visiting sequence starts and stops."""
    bounds, start, number = [], 0, 0
    while start < channels:
        width = BLOCKS[number] if number < len(BLOCKS) else LAST_BLOCK
        bounds.append((start, min(start + width, channels)))
        start, number = start + width, number + 1
    return bounds


@lru_cache(maxsize=1)
def probability_of_plus() -> NDArray[np.int64]:
    """P(y) in 1/65536 at index y, negative ones counted from the end; int64 [5631]. Read-only."""
    y = np.arange(Y_LIMIT + 1)
    knots, k, f = np.array(KNOTS, np.int64), y >> 6, y & 63
    positive = (knots[k] * (64 - f) + knots[k + 1] * f + 32) >> 6
    return _read_only(np.concatenate([positive, 65536 - positive[:0:-1]]))


@lru_cache(maxsize=1)
def confidence_class() -> NDArray[np.int64]:
    """How many thresholds |x| reaches, at index x, negative ones counted from the end; int64 [6145]. Read-only."""
    positive = np.searchsorted(AL_THRESHOLDS, np.arange(X_LIMIT + 1), side="right").astype(np.int64)
    return _read_only(np.concatenate([positive, positive[:0:-1]]))


def _read_only(table: NDArray[np.int64]) -> NDArray[np.int64]:
    table.flags.writeable = False
    return table
