"""Codebooks: published digits, and the property that defines them, by the standard library's normal distribution."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterpack.codebooks import is_codebook, levels_of, nearest

PUBLISHED = {
    1: [0.674490],
    2: [0.377754, 1.265720],
    3: [0.202624, 0.625420, 1.113729, 1.792025],
    4: [0.105550, 0.319036, 0.540072, 0.775192, 1.034006, 1.333107, 1.707738, 2.265491],
}
NORMAL = NormalDist()


@pytest.mark.parametrize("bits", PUBLISHED)
def test_levels_to_six_digits(bits: int) -> None:
    half = PUBLISHED[bits]
    expected = [-v for v in reversed(half)] + half
    assert np.abs(levels_of("normal-l1", bits) - expected).max() < 6e-7


@pytest.mark.parametrize("bits", range(1, 9))
def test_levels_are_symmetric_ascending_and_read_only(bits: int) -> None:
    levels = levels_of("normal-l1", bits)
    assert levels.dtype == np.float32 and levels.shape == (2**bits,)
    assert (np.diff(levels) > 0).all()
    assert (levels == -levels[::-1]).all()
    assert not levels.flags.writeable


@pytest.mark.parametrize("bits", range(1, 9))
def test_each_level_is_the_median_of_its_cell(bits: int) -> None:
    """k-median: thresholds half way between levels, each level halves the probability of its cell."""
    levels = levels_of("normal-l1", bits).astype(np.float64)
    edges = (levels[1:] + levels[:-1]) / 2
    below = np.array([0.0, *(NORMAL.cdf(edge) for edge in edges), 1.0])
    medians = np.array([NORMAL.inv_cdf(p) for p in (below[1:] + below[:-1]) / 2])
    assert np.abs(medians - levels).max() < 1e-6


def test_the_unconverged_table_is_another_codebook() -> None:
    """What 500 rounds from zero give: end levels ±2.8095 and most inner levels near nothing."""
    levels = levels_of("normal-l1-500", 8).astype(np.float64)
    assert levels[-1] == pytest.approx(2.8095, abs=5e-5)
    assert levels_of("normal-l1", 8)[-1] == pytest.approx(3.774, abs=2e-2)
    assert int((np.abs(levels) < 1e-3).sum()) == 148
    assert int((np.abs(levels) < 1e-6).sum()) == 98


def test_the_unconverged_table_by_iteration() -> None:
    values = np.zeros(256)
    for _ in range(500):
        edges = (values[1:] + values[:-1]) / 2
        below = np.array([0.0, *map(NORMAL.cdf, edges), 1.0])
        values = np.array([NORMAL.inv_cdf(p) for p in (below[1:] + below[:-1]) / 2])
    assert np.abs(levels_of("normal-l1-500", 8) - values).max() < 1e-6


def test_unit() -> None:
    assert levels_of("unit", 1).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize(("name", "bits"), [("unit", 2), ("normal-l1", 0), ("normal-l1", 9), ("lloyd", 2)])
def test_unknown_codebooks(name: str, bits: int) -> None:
    assert not is_codebook(name, bits)
    with pytest.raises(KeyError):
        levels_of(name, bits)


@given(st.integers(1, 8), st.lists(st.floats(-6, 6, width=32), min_size=1, max_size=30))
def test_nearest_by_distance(bits: int, units: list[float]) -> None:
    levels = levels_of("normal-l1", bits).astype(np.float64)
    found = nearest(np.array(units, np.float32), levels_of("normal-l1", bits))
    for unit, code in zip(units, found):
        distances = np.abs(levels - unit)
        assert distances[code] <= distances.min() + 1e-12


def test_a_tie_goes_to_the_lower_level() -> None:
    levels = levels_of("normal-l1", 2)
    edges = (levels[1:].astype(np.float64) + levels[:-1]) / 2
    assert nearest(edges, levels).tolist() == [0, 1, 2]
    assert nearest(np.nextafter(edges, 9), levels).tolist() == [1, 2, 3]
    assert nearest(np.zeros(1), levels_of("unit", 1)).tolist() == [0]
