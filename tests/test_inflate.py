"""Expansion with torch gives the bits that numpy's gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterpack.quantize import quantize, quantize_latent
from adapterpack.runtime.inflate import inflate_on
from adapterpack.tensors import Quantized, inflate

CPU = torch.device("cpu")


@settings(max_examples=60, deadline=None)
def one_by_one(
    tensors: list[Quantized], factors: list[float] | None = None, device: torch.device = CPU
) -> list[torch.Tensor]:
    found = {i: row for places, stack in inflate_on(tensors, device, factors) for i, row in zip(places, stack)}
    assert sorted(found) == list(range(len(tensors)))
    return [found[i] for i in sorted(found)]


@given(
    bits=st.integers(1, 8),
    group=st.sampled_from([0, 1, 8, 32, 33]),
    shape=st.sampled_from([(1, 2), (3, 5), (8, 16), (67,), (2, 3, 7)]),
    scale=st.sampled_from(["float32", "float16"]),
    offset=st.booleans(),
    factor=st.sampled_from([1.0, 0.1, 100.0, -3.7]),
    seed=st.integers(0, 99),
)
def test_equal_to_numpy(
    bits: int, group: int, shape: tuple[int, ...], scale: str, offset: bool, factor: float, seed: int
) -> None:
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    made = [quantize(values * k, bits, group, scale=scale, offset=offset) for k in (1, 2)]
    for found, expected in zip(one_by_one(made, [factor] * len(made)), inflate(made, [factor] * len(made))):
        assert found.dtype == torch.float32 and np.array_equal(found.numpy(), expected)


def test_mixture_keeps_its_order() -> None:
    rng = np.random.default_rng(0)
    made = [
        quantize_latent(rng.standard_normal(shape).astype(np.float32), bits)
        for shape, bits in [((4, 8), 1), ((8, 4), 1), ((4, 8), 2), ((4, 8), 1)]
    ]
    factors = [0.01, 1.0, -3.0, 0.5]
    for found, expected in zip(one_by_one(made, factors), inflate(made, factors), strict=True):
        assert np.array_equal(found.numpy(), expected)


def test_nothing_to_expand() -> None:
    empty = Quantized((0, 3), 1, "unit", 0, np.zeros(0, np.uint8), np.zeros(0, np.float32), None)
    assert one_by_one([]) == [] and one_by_one([empty])[0].shape == (0, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("group", [0, 32])
def test_equal_on_the_device(bits: int, group: int) -> None:
    made = [quantize(np.random.default_rng(0).standard_normal((32, 768)).astype(np.float32), bits, group)]
    (found,) = one_by_one(made, [0.1], torch.device("cuda"))
    assert found.is_cuda and np.array_equal(found.cpu().numpy(), inflate(made, [0.1])[0])
