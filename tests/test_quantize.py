"""Quantizers against torch's statistics, brute force and the formulas written out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapterpack.codebooks import levels_of
from adapterpack.errors import CallError
from adapterpack.quantize import quantize, quantize_latent, relative_error
from tests.factories import numbers

finite = st.floats(-100, 100, width=32)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(32, 768), (768, 1), (2,), (3, 4, 5)])
def test_latent_is_the_papers_formula(bits: int, shape: tuple[int, ...]) -> None:
    weights = numbers(bits, shape) + np.float32(0.01)
    found = quantize_latent(weights, bits)
    w = torch.from_numpy(weights).double()
    mean, std = w.mean(), torch.std(w, unbiased=True)
    assert found.offset is not None
    assert found.group == 0 and found.levels == "normal-l1" and found.scale.dtype == np.float32
    assert found.scale[0] == pytest.approx(std.item(), rel=1e-6)
    assert found.offset[0] == pytest.approx(mean.item(), rel=1e-5, abs=1e-9)
    units = ((w - mean) / (std + 1e-5)).reshape(-1)
    levels = torch.from_numpy(levels_of("normal-l1", bits).copy()).double()
    edges = (levels[1:] + levels[:-1]) / 2
    clear = (units[:, None] - edges).abs().min(dim=1).values > 1e-5  # beside a threshold rounding decides
    codes = torch.bucketize(units, edges)
    assert (torch.from_numpy(found.codes().astype(np.int64))[clear] == codes[clear]).all()


def test_latent_uses_epsilon_only_to_normalise() -> None:
    weights = np.array([-1e-6, 1e-6, 3e-6, -3e-6], np.float32)
    found = quantize_latent(weights, 2)
    assert found.scale[0] == pytest.approx(torch.std(torch.from_numpy(weights)).item(), rel=1e-6)
    assert set(found.codes().tolist()) <= {1, 2}  # all within ±0.3 of 1e-5: the inner levels


def test_latent_tie_goes_down() -> None:
    found = quantize_latent(np.array([-1.0, 0.0, 1.0], np.float32), 1)
    assert found.codes().tolist() == [0, 0, 1]


def test_latent_of_one_weight_is_refused() -> None:
    with pytest.raises(CallError) as error:
        quantize_latent(np.ones((1, 1), np.float32), 1)
    assert error.value.reason == "bad-call"


@given(st.lists(finite, min_size=2, max_size=9))
def test_one_bit_is_the_pair_of_cluster_means(values: list[float]) -> None:
    """No other two values for these codes are nearer; scale and offset are half difference and mean of the means."""
    weights = np.array(values, np.float32)
    found = quantize(weights, 1)
    codes = found.codes().astype(bool)
    approximation = found.dense().astype(np.float64)
    size = float(np.abs(weights).max()) + 1e-30
    for cluster in (codes, ~codes):
        if cluster.any():
            assert approximation[cluster] == pytest.approx(weights[cluster].mean(dtype=np.float64), abs=2e-6 * size)


@given(st.lists(finite, min_size=2, max_size=8), st.sampled_from([2, 3]))
def test_fit_is_least_squares(values: list[float], bits: int) -> None:
    """For the codes chosen, no scale and offset around the stored ones give a smaller error (numpy's lstsq agrees)."""
    weights = np.array(values, np.float32)
    found = quantize(weights, bits)
    chosen = levels_of("normal-l1", bits)[found.codes()].astype(np.float64)
    design = np.stack([chosen, np.ones_like(chosen)], axis=1)
    solution = np.linalg.lstsq(design, weights.astype(np.float64), rcond=None)[0]
    if solution[0] < 0:
        return  # a negative slope is never stored
    best = np.linalg.norm(design @ solution - weights)
    ours = np.linalg.norm(found.dense().astype(np.float64) - weights)
    assert ours <= best + 3e-6 * (np.abs(weights).max() + 1e-30) * len(values)


def test_one_bit_against_every_split() -> None:
    """Two clusters of sorted numbers are a split; after two rounds the best split is reached for separated data."""
    weights = np.concatenate([numbers(1, (20,)) - 1, numbers(2, (20,)) + 1])
    ordered = np.sort(weights.astype(np.float64))
    best = min(np.var(ordered[:k]) * k + np.var(ordered[k:]) * (40 - k) for k in range(1, 40))
    found = quantize(weights, 1).dense().astype(np.float64)
    assert ((found - weights) ** 2).sum() == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("group", [0, 8, 128])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_groups_are_fitted_alone(bits: int, group: int) -> None:
    weights = numbers(3, (300,)) * np.repeat(np.arange(1, 4, dtype=np.float32), 100)
    found = quantize(weights, bits, group).dense()
    width = group or 300
    for start in range(0, 300, width):
        alone = quantize(weights[start : start + width], bits).dense()
        assert np.allclose(found[start : start + width], alone, rtol=1e-6, atol=1e-7)


def test_more_bits_cost_less() -> None:
    weights = numbers(5, (64, 64))
    errors = [relative_error(weights, quantize(weights, bits).dense()) for bits in range(1, 9)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx(0.603, abs=0.01)  # sqrt(1 − 2/π): two cluster means of a normal
    assert errors[7] < 0.02


def test_refitting_beats_the_papers_quantizer() -> None:
    weights = numbers(6, (32, 64))
    latent = relative_error(weights, quantize_latent(weights, 1).dense())
    assert relative_error(weights, quantize(weights, 1).dense()) < latent


@pytest.mark.parametrize(("bits", "offset", "group"), list(itertools.product([1, 2, 8], [True, False], [0, 8])))
def test_constant_and_zero_tensors(bits: int, offset: bool, group: int) -> None:
    zero = quantize(np.zeros((3, 5), np.float32), bits, group, offset=offset)
    assert (zero.dense() == 0).all()
    assert not np.signbit(zero.scale).any()
    if offset:
        assert np.allclose(quantize(np.full((3, 5), 0.25, np.float32), bits, group).dense(), 0.25, rtol=1e-6)


def test_without_offset_one_bit_is_mean_magnitude() -> None:
    weights = numbers(7, (256,))
    found = quantize(weights, 1, 128, scale="float16", offset=False)
    assert found.levels == "unit" and found.offset is None
    magnitude = np.abs(weights.astype(np.float64)).reshape(2, 128).mean(axis=1)
    assert found.scale.tolist() == magnitude.astype(np.float16).tolist()
    assert ((found.dense() > 0) == (weights > 0)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_is_refused(value: float) -> None:
    for call in (quantize, quantize_latent):
        with pytest.raises(CallError) as error:
            call(np.array([1.0, value], np.float32), 1)
        assert error.value.reason == "not-finite"


def test_scales_beyond_float16_are_refused() -> None:
    with pytest.raises(CallError) as error:
        quantize(np.array([-1e6, 1e6], np.float32), 1, 8, scale="float16")
    assert error.value.reason == "not-finite"


def test_relative_error() -> None:
    one = np.array([3.0, 4.0], np.float32)
    assert relative_error(one, np.array([3.0, 3.0], np.float32)) == pytest.approx(0.2)
    assert relative_error(np.zeros(2, np.float32), np.zeros(2, np.float32)) == 0
    assert relative_error(np.zeros(2, np.float32), one) == float("inf")


def test_the_input_is_not_written_to() -> None:
    weights = numbers(8, (4, 8))
    weights.flags.writeable = False
    quantize(weights, 1)
    quantize_latent(weights, 4)


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_two_rounds_of_refitting(bits: int) -> None:
    """Codes from mean and deviation, then twice (fit, reassign), then a last fit; written out with numpy's lstsq."""
    weights = np.random.default_rng(9).gamma(0.7, size=500).astype(np.float32)  # skewed, so that rounds matter
    levels = levels_of("unit" if bits == 1 else "normal-l1", bits).astype(np.float64)
    edges = (levels[1:] + levels[:-1]) / 2
    slope, shift = weights.std(dtype=np.float64), weights.mean(dtype=np.float64)
    for _ in range(3):
        codes = np.searchsorted(edges, (weights - shift) / slope)
        design = np.stack([levels[codes], np.ones(500)], axis=1)
        slope, shift = np.linalg.lstsq(design, weights.astype(np.float64), rcond=None)[0]
    found = quantize(weights, bits)
    assert found.offset is not None
    assert found.scale[0] == pytest.approx(slope, rel=1e-5) and found.offset[0] == pytest.approx(shift, rel=1e-5)
    assert (found.codes() == codes).all()
