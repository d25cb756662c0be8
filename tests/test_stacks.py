"""Stacks, runs and groups: what is kept together is, one by one, what was put in."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterpack.adapter import Branch, Branches, Site
from adapterpack.codecs import CODECS
from adapterpack.errors import CorruptFileError
from adapterpack.quantize import quantize
from adapterpack.stacks import (
    DenseStack,
    QuantizedStack,
    Run,
    Runs,
    Shapes,
    entries_of,
    group_content,
    in_runs,
    runs_of,
    stack_of,
)
from adapterpack.tensors import Dense, Quantized, Sparse, Tensor, round_bfloat16, same_tensor

RNG = np.random.default_rng(7)


def numbers(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def dense(*shape: int, dtype: str = "float32") -> Dense:
    values = numbers(*shape)
    return Dense(round_bfloat16(values) if dtype == "bfloat16" else values.astype(dtype), dtype)


def signs(*shape: int) -> Quantized:
    return quantize(numbers(*shape), 1)


def sparse(*shape: int) -> Sparse:
    return Sparse(shape, np.array([1, 3]), dense(2))


def bytes_of(parts: Any) -> bytes:
    return b"".join(np.ascontiguousarray(part).tobytes() for part in parts)


# --- stacks


@pytest.mark.parametrize("make", [dense, signs, lambda *s: quantize(numbers(*s), 4, 8, scale="float16", offset=False)])
def test_a_stack_gives_back_its_tensors(make: Any) -> None:
    tensors = [make(3, 5) for _ in range(4)]
    stack = stack_of(tensors)
    assert isinstance(stack, (DenseStack, QuantizedStack)) and len(stack) == 4
    assert [*map(same_tensor, stack, tensors)] == [True] * 4
    assert same_tensor(stack[-1], tensors[-1]) and [*map(same_tensor, stack[1:3], tensors[1:3])] == [True] * 2
    with pytest.raises(IndexError):
        stack[4]
    assert stack_of(stack) is stack
    assert np.array_equal(stack.inflate(), np.stack([t.dense() for t in tensors]))


def test_a_stack_of_dense_tensors_keeps_its_form_and_gives_new_memory() -> None:
    for dtype in ("float32", "float16", "bfloat16"):
        one = dense(2, 3, dtype=dtype)
        stack = stack_of([one])
        assert isinstance(stack, DenseStack) and same_tensor(stack[0], one)
        before = one.dense().copy()
        stack.inflate()[:] = 0
        assert np.array_equal(one.dense(), before)


@pytest.mark.parametrize(
    "tensors",
    [
        [],
        [dense(2, 3), dense(3, 2)],
        [dense(2, 3), dense(2, 3, dtype="float16")],
        [dense(2, 3), signs(2, 3)],
        [signs(2, 3), quantize(numbers(2, 3), 2)],
        [signs(2, 3), quantize(numbers(2, 3), 1, offset=False)],
        [sparse(2, 3)],
    ],
)
def test_what_makes_no_stack(tensors: list[Tensor]) -> None:
    assert stack_of(tensors) is None


def test_a_number_alone_stays_an_array() -> None:
    stack = stack_of([Dense(np.array(2.5, np.float32)), Dense(np.array(-1.0, np.float32))])
    assert stack is not None and isinstance(stack[1].data, np.ndarray) and stack[1].data.shape == ()  # type: ignore[union-attr]


# --- runs

TENSORS = st.sampled_from([(2, 3), (5,), (4, 4), (1, 9)])
RUNS = st.lists(st.tuples(st.lists(TENSORS, min_size=1, max_size=3), st.integers(1, 4)), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(runs=RUNS, codec=st.sampled_from(["raw", "signs", "codebook"]))
def test_payloads_are_cut_the_same_with_and_without_runs(runs: list[tuple[list[Any], int]], codec: str) -> None:
    shapes = Shapes(Run(tuple(one), count) for one, count in runs)
    plain = [shape for one, count in runs for shape in one * count]
    assert list(shapes) == plain and len(shapes) == len(plain) and shapes[0] == plain[0] and shapes[1:] == plain[1:]
    assert entries_of(shapes) == entries_of(plain) == sum(int(np.prod(shape)) for shape in plain)
    made: list[Tensor] = [
        dense(*s) if codec == "raw" else quantize(numbers(*s), 1 + 2 * (codec != "signs")) for s in plain
    ]
    params = {**{k: v for k, v in made[0].form().items() if codec != "signs" or k != "bits"}, "compression": "none"}
    payload = memoryview(CODECS[codec].encode(made, params))
    for given_shapes in (shapes, plain):
        found = CODECS[codec].decode(payload, given_shapes, params)
        assert len(found) == len(made) and all(map(same_tensor, found, made))
        assert [run.count for run in runs_of(given_shapes)] == [
            len(run[0]) for run in in_runs(found, given_shapes).columns
        ]


def test_plain_lists_are_cut_into_the_same_columns() -> None:
    shapes = Shapes([Run(((2, 3), (5,)), 3), Run(((4,),), 1)])
    tensors: list[Tensor] = [sparse(*shape) for shape in shapes]
    found = in_runs(tensors, shapes)
    assert list(found) == tensors and in_runs(found, shapes) is found and len(found) == 7 and found[2] is tensors[2]
    assert found.columns == [[tensors[0:6:2], tensors[1:6:2]], [[tensors[6]]]]
    assert found[1:4] == tensors[1:4] and found[-1] is tensors[-1] and len(Runs(())) == 0


@pytest.mark.parametrize("site", [0, 1, 2])
def test_padding_is_checked_at_every_site(site: int) -> None:
    made: list[Tensor] = [signs(3, 3) for _ in range(3)]  # 9 bits in 2 bytes
    params = {**{k: v for k, v in made[0].form().items() if k != "bits"}, "compression": "none"}
    payload = bytearray(CODECS["signs"].encode(made, params))
    shapes = Shapes([Run(((3, 3),), 3)])
    assert len(CODECS["signs"].decode(memoryview(payload), shapes, params)) == 3
    payload[2 * site + 1] |= 0x80
    with pytest.raises(CorruptFileError) as caught:
        CODECS["signs"].decode(memoryview(payload), shapes, params)
    assert caught.value.reason == "padding-bits"


# --- what the digest covers


@pytest.mark.parametrize(
    "columns",
    [
        [[signs(3, 5) for _ in range(3)]],
        [[signs(3, 5) for _ in range(3)], [dense(5, dtype="bfloat16") for _ in range(3)]],
        [[quantize(numbers(9), 3, 8, scale="float16") for _ in range(3)], [signs(4, 4) for _ in range(3)]],
        [[sparse(2, 3) for _ in range(2)], [signs(4, 4) for _ in range(2)]],
        [[dense(300, 300) for _ in range(2)], [dense(7) for _ in range(2)]],
        [[dense(3000) for _ in range(200)], [signs(4, 4) for _ in range(200)]],  # more than is copied at a time
    ],
)
def test_the_content_of_a_group_is_that_of_its_tensors_site_by_site(columns: list[list[Tensor]]) -> None:
    expected = bytes_of(part for site in zip(*columns) for tensor in site for part in tensor.content())
    assert bytes_of(group_content(columns)) == expected
    assert bytes_of(group_content([stack_of(column) or column for column in columns])) == expected


# --- branches


def branches(count: int, params: dict[str, Any], block: int = 0) -> list[Branch]:
    return [
        Branch(Site(f"blocks.{block + i}.attn.proj"), "lora", params, {"down": signs(2, 4), "up": signs(4, 2)})
        for i in range(count)
    ]


def test_branches_by_group_and_one_by_one() -> None:
    one, other = {"scale": 1.0}, {"scale": 2.0}
    made = [*branches(3, one), *branches(2, other, 3), *branches(1, one, 5)]
    found = Branches.of(made)
    assert [len(group.sites) for group in found.groups] == [3, 2, 1] and Branches.of(found) is found
    again = Branches(found.groups)  # made anew from the columns
    assert len(again) == 6 and again[1:3] == tuple(again)[1:3] and again[-1] is list(again)[-1]
    for branch, before in zip(again, made, strict=True):
        assert (branch.site, branch.method, branch.params) == (before.site, before.method, before.params)
        assert branch.tensors == before.tensors and list(branch.tensors) == list(before.tensors)


def test_equal_settings_make_one_group_and_copies_do_not_grow() -> None:
    made = [branch for i in range(4) for branch in branches(1, {"scale": 1.0}, i)]
    found = Branches.of(made)
    assert len(found.groups) == 1
    again = Branches(found.groups)
    before = len(pickle.dumps(again))
    assert len(list(again)) == 4 and len(pickle.dumps(again)) == before
    assert [b.site for b in pickle.loads(pickle.dumps(again))] == [b.site for b in made]


def test_what_makes_another_group() -> None:
    (first,) = branches(1, params := {"scale": 1.0})
    down, up = first.tensors["down"], first.tensors["up"]
    others = [
        Branch(first.site, "dora", params, first.tensors),
        Branch(first.site, "lora", {"scale": 1}, first.tensors),
        Branch(first.site, "lora", {"scale": True}, first.tensors),
        Branch(first.site, "lora", params, {"down": down}),
        Branch(first.site, "lora", params, {"down": signs(3, 4), "up": up}),
    ]
    for one, other in itertools.permutations([first, *others], 2):
        assert len(Branches.of([one, other]).groups) == 2
