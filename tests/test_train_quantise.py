"""The differentiable quantizer against the formulas written out, autograd, and the quantizer that packs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from adapterpack.codebooks import levels_of, nearest
from adapterpack.quantize import quantize_latent
from adapterpack.tensors import Quantized
from adapterpack.train.quantise import _table, quantise, stored

BITS = (1, 2, 4, 8)
EPS = 1e-5


def latents(*shape: int, seed: int = 0, spread: float = 0.05, shift: float = 0.01) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * spread + shift


def by_formula(w: torch.Tensor, bits: int) -> torch.Tensor:
    """ŵ = σ·(u + (Q(u) − u).detach()) + m, the levels compared one by one; gradients by autograd."""
    m, s = w.mean(), w.std(unbiased=True)
    u = (w - m) / (s + EPS)
    levels = torch.tensor(levels_of("normal-l1", bits).astype(np.float64))
    gaps = (u.detach().reshape(-1, 1) - levels).abs()
    q = levels[gaps.argmin(dim=1)].view_as(u)
    return s * (u + (q - u).detach()) + m


@pytest.mark.parametrize("bits", BITS)
def test_forward_is_the_papers_formula(bits: int) -> None:
    w = latents(3, 16, 24)
    found = quantise(w, bits)
    for one, expected in zip(found, w):
        assert (one - by_formula(expected, bits)).abs().max() < 1e-12


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("spread", [0.05, 1e-5, 3.0])
def test_gradient_is_autograds(bits: int, spread: float) -> None:
    w = latents(2, 8, 12, spread=spread, shift=spread / 5).requires_grad_(True)
    upstream = latents(2, 8, 12, seed=5, spread=1.0)
    (found,) = torch.autograd.grad((quantise(w, bits) * upstream).sum(), w)
    for k in range(2):
        alone = w[k].detach().requires_grad_(True)
        (expected,) = torch.autograd.grad((by_formula(alone, bits) * upstream[k]).sum(), alone)
        assert (found[k] - expected).abs().max() <= 1e-12 * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("bits", BITS)
def test_gradient_is_the_closed_form(bits: int) -> None:
    w = latents(1, 40).requires_grad_(True)
    g = latents(1, 40, seed=7, spread=1.0)
    (found,) = torch.autograd.grad((quantise(w, bits) * g).sum(), w)
    with torch.no_grad():
        m, s, n = w.mean(), w.std(unbiased=True), w.numel()
        rho, u = s / (s + EPS), (w - m) / (s + EPS)
        q = (quantise(w, bits) - m) / s
        mean = g.mean()
        expected = rho * (g - mean) + mean + (w - m) / ((n - 1) * s) * (g * (q - rho * u)).sum()
    assert (found - expected).abs().max() <= 1e-12


def test_equal_weights_have_a_gradient_that_is_a_number() -> None:
    w = torch.full((1, 6), 0.25, requires_grad=True)
    out = quantise(w, 1)
    out.sum().backward()
    assert torch.equal(out.detach(), w.detach()) and w.grad is not None and torch.isfinite(w.grad).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(768, 1), (32, 192), (5,), (3, 7)])
def test_trained_weights_are_the_stored_ones_to_the_bit(bits: int, shape: tuple[int, ...]) -> None:
    for seed in range(4):
        w = latents(2, *shape, seed=seed).float()
        used = quantise(w, bits)
        for one, latent in zip(used, w):
            kept = stored(latent, bits)
            assert isinstance(kept, Quantized) and kept.shape == shape
            assert kept.dense().tobytes() == one.numpy().tobytes()
            packer = quantize_latent(latent.numpy(), bits)
            assert kept.form() == packer.form()
            assert [part.tobytes() for part in kept.content()] == [part.tobytes() for part in packer.content()]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_thresholds_part_float32_numbers_as_the_exact_ones_do(bits: int) -> None:
    levels = levels_of("normal-l1", bits).astype(np.float64)
    exact = (levels[1:] + levels[:-1]) / 2
    used = _table(bits, torch.float32, torch.device("cpu"))[1].numpy()
    assert (used <= exact).all() and (np.nextafter(used, np.float32(np.inf)) > exact).all()
    assert bits < 8 or (used < exact).any()


def test_ties_and_thresholds_between_float32_numbers_fall_as_in_packing() -> None:
    levels = levels_of("normal-l1", 4).astype(np.float64)
    edges = ((levels[1:] + levels[:-1]) / 2).astype(np.float32)
    around = np.concatenate([edges, np.nextafter(edges, np.float32(9)), np.nextafter(edges, np.float32(-9))])
    mirrored = np.concatenate([around, -around])
    w = (mirrored / mirrored.std(ddof=1)).astype(np.float32)
    kept = stored(torch.from_numpy(w), 4)
    assert isinstance(kept, Quantized) and kept.offset is not None
    units = (w - kept.offset) / (kept.scale + np.float32(EPS))
    assert (kept.codes() == nearest(units, levels_of("normal-l1", 4))).all()


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (1, [0.674490]),
        (2, [0.377754, 1.265720]),
        (4, [0.105550, 0.319036, 0.540072, 0.775192, 1.034006, 1.333107, 1.707738, 2.265491]),
    ],
)
def test_levels_to_six_digits(bits: int, expected: list[float]) -> None:
    w = latents(1, 4000)
    units = (quantise(w, bits) - w.mean()) / w.std(unbiased=True)
    found = sorted({round(abs(value), 6) for value in units.reshape(-1).tolist()})
    assert found == pytest.approx(expected, abs=1.1e-6)


def test_32_bits_are_left_alone() -> None:
    w = latents(2, 3, 4).float()
    assert quantise(w, 32) is w
    kept = stored(w[0], 32)
    assert (kept.dense() == w[0].numpy()).all()


def test_one_bit_spread_shrinks_as_the_paper_says() -> None:
    w = latents(1, 20000)
    ratio = (quantise(w, 1).std() / w.std()).item()
    assert math.isclose(ratio, 0.67449, rel_tol=0.01)
