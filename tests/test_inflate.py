"""Expansion with torch gives the bits that numpy's gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterpack.quantize import quantize
from adapterpack.runtime.inflate import inflate_on
from adapterpack.stacks import QuantizedStack, stack_of
from adapterpack.tensors import Quantized

CPU = torch.device("cpu")


@settings(max_examples=60, deadline=None)
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
    stack = stack_of([quantize(values * k, bits, group, scale=scale, offset=offset) for k in (1, 2)])
    assert isinstance(stack, QuantizedStack)
    found = inflate_on(stack, CPU, factor)
    assert found.dtype == torch.float32 and np.array_equal(found.numpy(), stack.inflate(factor))


def test_nothing_to_expand() -> None:
    empty = Quantized((0, 3), 1, "unit", 0, np.zeros(0, np.uint8), np.zeros(0, np.float32), None)
    stack = stack_of([empty, empty])
    assert isinstance(stack, QuantizedStack) and inflate_on(stack, CPU).shape == (2, 0, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("group", [0, 32])
def test_equal_on_the_device(bits: int, group: int) -> None:
    stack = stack_of([quantize(np.random.default_rng(0).standard_normal((32, 768)).astype(np.float32), bits, group)])
    assert isinstance(stack, QuantizedStack)
    found = inflate_on(stack, torch.device("cuda"), 0.1)
    assert found.is_cuda and np.array_equal(found.cpu().numpy(), stack.inflate(0.1))
