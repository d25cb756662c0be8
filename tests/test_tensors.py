"""Forms of tensors: dequantisation and bfloat16 against formulas written out, one number at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapterpack.codebooks import levels_of
from adapterpack.errors import CallError
from adapterpack.stacks import QuantizedStack, stack_of
from adapterpack.tensors import (
    Dense,
    Quantized,
    Sparse,
    groups_of,
    numel,
    require_finite,
    round_bfloat16,
    same_tensor,
    widen_bfloat16,
)
from tests.factories import FORMS, dense, in_form, numbers

SHAPES = [(1,), (7,), (8,), (5, 9), (2, 3, 4), (16, 16), (33, 1)]


def random_quantized(seed: int, shape: tuple[int, ...], bits: int, group: int, offset: bool, scale: str) -> Quantized:
    rng = np.random.default_rng(seed)
    count, groups = numel(shape), groups_of(numel(shape), group)
    codes = rng.integers(0, 2**bits, count)
    stream = sum(int(code) << (i * bits) for i, code in enumerate(codes))
    packed = np.frombuffer(stream.to_bytes((count * bits + 7) // 8, "little"), np.uint8)
    levels = "unit" if bits == 1 and seed % 2 else "normal-l1"
    scales = rng.uniform(0, 3, groups).astype(scale)
    return Quantized(
        shape, bits, levels, group, packed, scales, rng.normal(size=groups).astype(scale) if offset else None
    )


def naive(tensor: Quantized, factor: float = 1.0) -> np.ndarray:
    """`levels[code] * scale + offset`, each operation rounded to float32, one weight at a time."""
    levels = levels_of(tensor.levels, tensor.bits)
    stream = int.from_bytes(tensor.packed.tobytes(), "little")
    out = np.empty(tensor.entries, np.float32)
    for i in range(tensor.entries):
        code = stream >> (i * tensor.bits) & ((1 << tensor.bits) - 1)
        g = i // tensor.group if tensor.group else 0
        value = np.float32(levels[code]) * np.float32(tensor.scale[g])
        if tensor.offset is not None:
            value = value + np.float32(tensor.offset[g])
        out[i] = value if factor == 1 else value * np.float32(factor)
    return out.reshape(tensor.shape)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("group", [0, 8, 16, 64])
@pytest.mark.parametrize("factor", [1.0, 0.1, 10.0])
def test_inflate_equals_the_formula_to_the_bit(bits: int, group: int, factor: float) -> None:
    for i, shape in enumerate(SHAPES):
        form = (shape, bits, group, bool(i % 2) ^ (bits > 4), "float16" if i % 3 == 0 else "float32")
        tensors = [random_quantized(seed, *form) for seed in (i, i + 100, i + 200)]
        stack = stack_of(tensors)
        assert isinstance(stack, QuantizedStack) and [*map(same_tensor, stack, tensors)] == [True] * 3
        room = np.full(stack.room + 5, np.nan, np.float32)
        for values in (stack.inflate(factor), stack.inflate(factor, room)):
            assert values.dtype == np.float32 and values.shape == (3, *shape)
            for tensor, row in zip(tensors, values):
                assert row.tobytes() == naive(tensor, factor).tobytes()
        assert np.isnan(room[-5:]).all()


def test_dense_of_one_is_inflate_of_many() -> None:
    tensors = [random_quantized(seed, (5, 9), 1, 0, True, "float32") for seed in (0, 2, 4)]
    stack = stack_of(tensors)
    assert stack is not None
    for tensor, values in zip(tensors, stack.inflate()):
        assert tensor.dense().tobytes() == values.tobytes()


def test_inflate_of_nothing() -> None:
    empty = Quantized((0,), 2, "normal-l1", 0, np.zeros(0, np.uint8), np.zeros(0, np.float32), None)
    assert empty.dense().shape == (0,)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=40))
def test_bfloat16_rounds_as_torch_does(values: list[float]) -> None:
    ours = round_bfloat16(np.array(values, np.float32))
    theirs = torch.tensor(values, dtype=torch.float32).to(torch.bfloat16)
    assert ours.tobytes() == theirs.view(torch.int16).numpy().tobytes()
    assert widen_bfloat16(ours).tobytes() == theirs.to(torch.float32).numpy().tobytes()


def test_bfloat16_ties_go_to_even() -> None:
    raw = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x80000000, 0x00000001], np.uint32)
    assert round_bfloat16(raw.view(np.float32)).tolist() == [0x3F80, 0x3F82, 0x3F81, 0x8000, 0]
    assert round_bfloat16(np.array(1.0, np.float32)).shape == ()


def test_dense_values_are_exact() -> None:
    values = np.array([1.5, -0.0, 6.1e-5, 65504.0], np.float32)
    assert dense(values).dense().tobytes() == values.tobytes()
    assert dense(values, "float16").dense().tolist() == values.astype(np.float16).astype(np.float32).tolist()
    assert dense(values, "bfloat16").dense().tolist() == torch.tensor(values).bfloat16().float().tolist()


def test_sparse_writes_zeros_out() -> None:
    tensor = Sparse((2, 3), np.array([1, 5], np.int64), Dense(np.array([2.0, -3.0], np.float32)))
    assert tensor.dense().tolist() == [[0, 2, 0], [0, 0, -3]]
    assert tensor.entries == 2
    assert b"".join(tensor.content())[:24] == np.array([2, 1, 5], "<i8").tobytes()


@pytest.mark.parametrize("form", FORMS)
def test_same_tensor_sees_every_bit(form: str) -> None:
    one, again = in_form(numbers(1, (6, 16)), form), in_form(numbers(1, (6, 16)), form)
    assert same_tensor(one, again)
    assert not same_tensor(one, in_form(numbers(2, (6, 16)), form))
    assert not same_tensor(one, in_form(numbers(1, (16, 6)), form))
    for other in FORMS:
        if other != form:
            assert not same_tensor(one, in_form(numbers(1, (6, 16)), other))


def test_same_tensor_tells_zeros_apart() -> None:
    assert not same_tensor(Dense(np.array([0.0], np.float32)), Dense(np.array([-0.0], np.float32)))


def test_content_is_row_major_and_little_endian() -> None:
    values = numbers(1, (3, 4))
    turned = Dense(np.asfortranarray(values))
    assert b"".join(turned.content()) == values.astype("<f4").tobytes()
    assert b"".join(Dense(values.astype(">f4")).content()) == values.astype("<f4").tobytes()


@pytest.mark.parametrize(
    ("count", "group", "groups"), [(0, 0, 0), (0, 8, 0), (1, 0, 1), (8, 8, 1), (9, 8, 2), (17, 8, 3)]
)
def test_groups_of(count: int, group: int, groups: int) -> None:
    assert groups_of(count, group) == groups


def test_numel_does_not_wrap() -> None:
    assert numel((2**32, 2**32, 4)) == 2**66
    assert numel(()) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_require_finite(value: float) -> None:
    values = np.array([1.0, value], np.float32)
    for dtype in ("float32", "float16"):
        with pytest.raises(CallError) as error:
            require_finite(values.astype(dtype), dtype, "somewhere")
        assert error.value.reason == "not-finite" and error.value.where == "somewhere"
    with pytest.raises(CallError):
        require_finite(round_bfloat16(np.array([np.inf], np.float32)), "bfloat16", "x")
    require_finite(np.array([0x7F7F], np.uint16), "bfloat16", "the largest bfloat16 is fine")
