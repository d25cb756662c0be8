"""The papers' quantizer as a differentiable function: the same rule as `adapterpack.quantize.quantize_latent`.

Statistics are summed in float64 and rounded once, a weight is `level · std + mean` with each operation rounded, so the
trained forward uses the very numbers that a file decodes to. The gradient passes straight through the rounding to a
level, and through mean and standard deviation. It knows nothing of modules.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from adapterpack import bits as bitstream
from adapterpack.codebooks import levels_of
from adapterpack.quantize import EPSILON
from adapterpack.tensors import Dense, Quantized

LEVELS = "normal-l1"  # at 8 bits the public code stops before its table has converged, which is `normal-l1-500`


class Codes(NamedTuple):
    """Latents [k, n] as codes: index of each level [k, n], deviation and mean [k, 1]."""

    codes: torch.Tensor
    std: torch.Tensor
    mean: torch.Tensor


@lru_cache(maxsize=64)
def _table(bits: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels [2**bits] and thresholds [2**bits − 1].

    A threshold lies half-way between two levels and may be no float32. Rounded down, it parts float32 numbers as the
    exact one does.
    """
    levels = levels_of(LEVELS, bits)
    exact = (levels[1:].astype(np.float64) + levels[:-1]) / 2
    if dtype == torch.float32:
        single = exact.astype(np.float32)
        exact = np.where(single > exact, np.nextafter(single, np.float32(-np.inf)), single)
    return torch.tensor(levels).to(device, dtype), torch.tensor(exact).to(device, dtype)


@torch.no_grad()
def encode(latents: torch.Tensor, bits: int) -> Codes:
    """Mean, unbiased deviation, and the nearest level of (w − mean)/(std + 1e-5), a tie going to the lower level.

    Args:
        latents: float [k, n]: k tensors, n ≥ 2 weights each.
        bits: 1 … 8.
    """
    variance, mean = torch.var_mean(latents.double(), dim=1, keepdim=True, correction=1)
    std, mean = variance.sqrt().to(latents.dtype), mean.to(latents.dtype)
    if bits == 1:  # the only threshold is 0, and a difference of two numbers is 0 only where they are equal
        return Codes(latents > mean, std, mean)
    units = (latents - mean) / (std + EPSILON)
    return Codes(torch.bucketize(units, _table(bits, latents.dtype, latents.device)[1], out_int32=True), std, mean)


def decode(codes: Codes, bits: int) -> torch.Tensor:
    """The weights that codes stand for, [k, n]; to the bit what `Quantized.dense` gives."""
    levels, _ = _table(bits, codes.std.dtype, codes.std.device)
    if bits == 1:
        low, high = (level * codes.std + codes.mean for level in levels)
        return torch.where(codes.codes, high, low)
    return levels[codes.codes] * codes.std + codes.mean


class _Quantise(torch.autograd.Function):
    """ŵ = σ·Q(u) + m with u = (w − m)/(σ + ε); see `gradient` for the way back."""

    @staticmethod
    def forward(ctx: Any, latents: torch.Tensor, bits: int) -> torch.Tensor:
        codes = encode(latents, bits)
        ctx.bits = bits
        ctx.save_for_backward(latents, *codes)
        return decode(codes, bits)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        latents, *codes = ctx.saved_tensors
        return gradient(grads[0], latents, Codes(*codes), ctx.bits), None


def gradient(grad: torch.Tensor, latents: torch.Tensor, codes: Codes, bits: int) -> torch.Tensor:
    """∂L/∂w = ρ(g − ḡ) + ḡ + (w − m)/((n − 1)σ) · Σ g_i(Q_i − ρu_i), with g = ∂L/∂ŵ and ρ = σ/(σ + ε).

    Args:
        grad: of the quantized weights, [k, n].
        latents: [k, n].
        codes: of the latents.
        bits: 1 … 8.

    Source: derived from Jie et al. 2023, `QLinear`: straight-through on Q alone, m and σ not detached.
    """
    levels, _ = _table(bits, latents.dtype, latents.device)
    wide = codes.std + EPSILON
    rho = codes.std / wide
    centred = latents - codes.mean
    total = grad.sum(dim=1, keepdim=True)
    if bits == 1:
        above = (grad * codes.codes).sum(dim=1, keepdim=True)
        chosen = levels[1] * above + levels[0] * (total - above)
    else:
        chosen = (grad * levels[codes.codes]).sum(dim=1, keepdim=True)
    through = chosen - rho / wide * (grad * centred).sum(dim=1, keepdim=True)
    n = latents.shape[1]
    tiny = torch.finfo(latents.dtype).tiny
    slope = through / ((n - 1) * codes.std.clamp(min=tiny))
    slope = torch.where(codes.std > 0, slope, 0.0)  # equal weights have no direction to grow apart in
    return torch.addcmul(rho * grad + (1 - rho) * total / n, centred, slope)


def quantise(latents: torch.Tensor, bits: int) -> torch.Tensor:
    """k latents of one shape at once, [k, *shape] → weights of that shape; with 32 bits they are their own weights."""
    if bits == 32:
        return latents
    return _Quantise.apply(latents.flatten(1), bits).view(latents.shape)  # type: ignore[no-any-return, no-untyped-call]


def stored(latent: torch.Tensor, bits: int) -> Dense | Quantized:
    """One latent in the form a file keeps: exactly the weights that `quantise` gives on the same device."""
    plain = latent.detach().float()
    if bits == 32:
        return Dense(plain.cpu().numpy().copy())
    codes, std, mean = encode(plain.reshape(1, -1), bits)
    packed = bitstream.pack(codes[0].to("cpu", torch.uint8).numpy(), bits)
    scale, offset = (part.reshape(1).cpu().numpy().copy() for part in (std, mean))
    return Quantized(tuple(latent.shape), bits, LEVELS, 0, packed, scale, offset)


def truncated_normal(shape: tuple[int, ...], std: float, limit: float) -> torch.Tensor:
    """A start from the normal distribution, cut at ±`limit`."""
    return torch.nn.init.trunc_normal_(torch.empty(shape), std=std, a=-limit, b=limit)


def uniform(shape: tuple[int, ...], limit: float) -> torch.Tensor:
    """A start from the uniform distribution on ±`limit`."""
    return torch.empty(shape).uniform_(-limit, limit)


def linear_start(shape: tuple[int, ...]) -> torch.Tensor:
    """What `nn.Linear` starts from: uniform on ±1/√fan_in."""
    return uniform(shape, 1 / math.sqrt(shape[1]))
