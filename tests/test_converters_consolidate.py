"""Consolidation against dense matrices written out from the permutation's formula."""

from __future__ import annotations

from math import gcd

import numpy as np
import pytest
from numpy.typing import NDArray

from adapterpack.converters.consolidate import consolidate
from adapterpack.methods.consolidator import positions

F64 = NDArray[np.float64]


def dense(weight: NDArray[np.float32], groups: int, *, reorder: bool) -> F64:
    """Row r, tap t of a branch lands in column (m mod g)·c + m div g with m = (r div (E/g))·c + t, or in m."""
    outward, c = weight.shape
    out = np.zeros((outward, c * groups))
    for r in range(outward):
        for t in range(c):
            m = r // (outward // groups) * c + t
            out[r, (m % groups) * c + m // groups if reorder else m] = weight[r, t]
    return out


def branches(groups: tuple[int, ...], outward: int, inward: int) -> list[tuple[int, NDArray[np.float32]]]:
    rng = np.random.default_rng(len(groups))
    return [(g, rng.uniform(0.5, 1, (outward, inward // g)).astype(np.float32)) for g in groups]


# branches, Σ entries, union with reorder, union without: qkv of ViT-B/16, 2304×768
TABLE = [
    ((384,), 4608, 4608, 4608),
    ((384, 384), 9216, 4608, 4608),
    ((192, 384), 13824, 13800, 9216),
    ((256, 384), 11520, 11496, 7680),
    ((96, 192, 384), 32256, 32076, 18432),
]


@pytest.mark.parametrize(("groups", "total", "with_reorder", "without"), TABLE)
@pytest.mark.parametrize("reorder", [True, False])
def test_the_published_shape(
    groups: tuple[int, ...], total: int, with_reorder: int, without: int, reorder: bool
) -> None:
    parts = branches(groups, 2304, 768)
    assert sum(weight.size for _, weight in parts) == total
    expected = sum(dense(weight, g, reorder=reorder) for g, weight in parts)
    assert np.count_nonzero(expected) == (with_reorder if reorder else without)
    joined = consolidate(parts, reorder=reorder)
    found = sum(dense(weight, g, reorder=reorder) for g, weight in joined)
    assert np.abs(found - expected).max() <= 4e-7
    assert all(weight.dtype == np.float32 and weight.shape == (2304, 768 // g) for g, weight in joined)
    kept = [g for g, _ in joined]
    if reorder:
        assert kept == sorted(set(groups))
        assert sum(weight.size for _, weight in joined) <= 1.01 * with_reorder
    else:
        assert kept == ([256, 384] if groups == (256, 384) else [min(groups)])


@pytest.mark.parametrize(("outward", "inward"), [(768, 768), (2304, 768), (3072, 768), (768, 3072)])
@pytest.mark.parametrize("groups", [(384,), (384, 192), (96, 64, 384), (384, 256)])
@pytest.mark.parametrize("reorder", [True, False])
def test_every_layer(outward: int, inward: int, groups: tuple[int, ...], reorder: bool) -> None:
    parts = branches(groups, outward, inward)
    expected = sum(dense(weight, g, reorder=reorder) for g, weight in parts)
    joined = consolidate(parts, reorder=reorder)
    assert np.abs(sum(dense(weight, g, reorder=reorder) for g, weight in joined) - expected).max() <= 4e-7
    if not reorder:  # nothing that is kept lies inside another
        assert all(gcd(a, b) not in (a, b) for a, _ in joined for b, _ in joined if a != b)


def test_equal_groups_are_added_in_float32() -> None:
    parts = branches((4, 4, 4), 8, 8)
    ((groups, weight),) = consolidate(parts, reorder=True)
    assert groups == 4
    assert np.array_equal(weight, (parts[0][1] + parts[1][1]) + parts[2][1])


def test_one_branch_stays_as_it_is_and_inputs_are_untouched() -> None:
    parts = branches((2, 4), 8, 8)
    before = [weight.copy() for _, weight in parts]
    ((groups, _),) = consolidate(parts, reorder=False)
    assert groups == 2
    assert all(np.array_equal(weight, old) for (_, weight), old in zip(parts, before))
    assert np.array_equal(consolidate(parts[:1], reorder=False)[0][1], before[0])


@pytest.mark.parametrize("reorder", [True, False])
def test_the_method_puts_entries_where_the_formula_does(reorder: bool) -> None:
    ((groups, weight),) = branches((6,), 12, 18)
    flat = np.zeros(12 * 18)
    flat[positions(12, 3, 6, reorder)] = weight.reshape(-1)
    assert np.array_equal(flat.reshape(12, 18), dense(weight, groups, reorder=reorder))
