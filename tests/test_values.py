"""An adapter's numbers as torch tensors: the scale is in them once, sparse stays sparse where it is added."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from adapterpack.adapter import Branches, Head
from adapterpack.methods._base import Entries
from adapterpack.packing.bundle import open_bundle
from adapterpack.quantize import quantize
from adapterpack.runtime.load import load_adapter
from adapterpack.runtime.plan import plan
from adapterpack.runtime.values import expand, values_of
from adapterpack.tensors import Dense, Quantized, round_bfloat16
from tests._pool import file_of
from tests._vit import (
    DEPTH,
    EXAMPLES,
    WIDTH,
    adapter,
    adaptformer,
    array,
    branch,
    dense,
    lora,
    lora_qv,
    one_bit,
    sparse,
    vit,
)

CPU = torch.device("cpu")


def test_scale_is_applied_once_and_only_to_what_the_method_scales() -> None:
    made = adapter([lora("blocks.0.attn.proj", scale=0.1)])
    (values, _) = values_of(plan(made, vit(), "auto"), made.head, CPU)
    t = made.branches[0].tensors
    assert np.array_equal(values["down"], t["down"].dense())
    assert np.array_equal(values["up"], t["up"].dense() * np.float32(0.1))


def test_head_comes_last() -> None:
    made = adapter([lora("blocks.0.attn.proj")], head=Head(one_bit(4, WIDTH), dense(4)))
    found = values_of(plan(made, vit(), "never"), made.head, CPU)
    assert len(found) == 2 and np.array_equal(found[-1]["bias"], dense(4).data)
    assert values_of([], None, CPU) == [{}]


def test_sparse() -> None:
    tensor = sparse(4 * WIDTH, WIDTH)
    made = adapter([branch("blocks.1.mlp.fc1", "sparse", {"weight": tensor})])
    entries = values_of(plan(made, vit(), "auto"), None, CPU)[0]["weight"]
    assert isinstance(entries, Entries) and np.array_equal(entries.positions, tensor.positions)
    assert np.array_equal(entries.values, tensor.values.dense())
    attached = values_of(plan(made, vit(), "never"), None, CPU)[0]["weight"]
    assert np.array_equal(attached, tensor.dense())
    replaced = adapter([branch("norm", "replace", {"bias": sparse(WIDTH)})])
    for fold in ("auto", "never"):  # a new value is the whole vector, zeros included
        assert np.array_equal(values_of(plan(replaced, vit(), fold), None, CPU)[0]["bias"], sparse(WIDTH).dense())


@pytest.mark.parametrize("factor", [1.0, 0.1, -10.0])
def test_dense_forms_and_their_memory(factor: float) -> None:
    values = array(3, 4)
    forms = [Dense(values), Dense(values.astype(np.float16), "float16"), Dense(round_bfloat16(values), "bfloat16")]
    for form in forms:
        form.data.flags.writeable = False
        (found,) = expand([form], factor, CPU)
        assert found.dtype == torch.float32 and np.array_equal(found, form.dense() * np.float32(factor))
        found += 1  # the memory is the caller's own
        assert np.array_equal(form.dense(), Dense(form.data.copy(), form.dtype).dense())


def odd(seed: int) -> Quantized:
    """Three by 48 weights of 4 bits in groups of 32: nothing is a whole number of bytes, groups or tensors."""
    made = quantize(array(3, WIDTH, seed=seed), 3, 32)
    assert isinstance(made, Quantized)
    return made


MIXED = [
    *lora_qv(),
    *adaptformer(),
    *[lora(f"blocks.{i}.mlp.fc1", out=4 * WIDTH, rank=3, seed=i, scale=float(1 + i // 2)) for i in range(3)],
    *[
        branch(f"blocks.{i}.attn.proj", "lora", {"down": odd(i), "up": dense(WIDTH, 3, seed=i)}, scale=0.3)
        for i in range(3)
    ],
    *[branch(f"blocks.{i}.mlp.fc2", "sparse", {"weight": sparse(WIDTH, 4 * WIDTH, seed=i)}) for i in range(2)],
]


@pytest.mark.parametrize("fold", ["auto", "never"])
@pytest.mark.parametrize("way", ["in memory", "small", "fast"])
def test_every_branch_gets_its_own_numbers(fold: Any, way: str) -> None:
    made = adapter(MIXED, head=Head(one_bit(5, WIDTH)))
    read = made if way == "in memory" else open_bundle(file_of(made, profile=way)).read()
    assert max(len(group.sites) for group in Branches.of(read.branches).groups) == 2 * DEPTH
    model = vit()
    steps = plan(read, model, fold)
    *values, head = values_of(steps, read.head, CPU)
    expected = {(str(b.site), b.method): b for b in made.branches}
    assert len(steps) == len(expected) == len({(str(step.site), step.method.name) for step in steps})
    for step, found in zip(steps, values, strict=True):
        tensors = expected[str(step.site), step.method.name].tensors
        assert list(found) == sorted(tensors)
        for role, tensor in tensors.items():
            factor = np.float32(step.params.get("scale", 1.0) if role in step.method.scaled else 1.0)
            if isinstance(found[role], Entries):
                dense_again = torch.zeros(tensor.shape).flatten()
                dense_again[found[role].positions] = found[role].values
                assert step.how == "fold" and np.array_equal(dense_again.reshape(tensor.shape), tensor.dense())
            else:
                assert np.array_equal(found[role], tensor.dense() * factor)
    assert np.array_equal(head["weight"], one_bit(5, WIDTH).dense())


def test_a_sparse_factor_of_a_product_is_written_out() -> None:
    made = adapter([branch("blocks.0.attn.proj", "lora", {"down": sparse(4, WIDTH), "up": dense(WIDTH, 4)}, scale=2.0)])
    plain = replace(
        made, branches=[replace(b, tensors={r: Dense(t.dense()) for r, t in b.tensors.items()}) for b in made.branches]
    )
    for fold in ("always", "never"):
        one, other = vit(), vit()
        load_adapter(made, one, fold=fold, check_fingerprint=False)
        load_adapter(plain, other, fold=fold, check_fingerprint=False)
        x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        assert torch.equal(one(x), other(x))


def test_tensors_of_one_block_are_pickled_each_by_itself() -> None:
    made = adapter(lora_qv())
    (values, *_) = values_of(plan(made, vit(), "never"), None, CPU)
    alone = {role: tensor.clone() for role, tensor in values.items()}
    assert len(pickle.dumps(values)) == len(pickle.dumps(alone))


def test_every_example_has_all_its_roles() -> None:
    for rows in EXAMPLES.values():
        made = adapter(rows)
        steps = plan(made, vit(), "auto")
        for step, values in zip(steps, values_of(steps, made.head, CPU)):
            assert values.keys() == step.roles
