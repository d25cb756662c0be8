"""An adapter's numbers as torch tensors: the scale is in them once, sparse stays sparse where it is added."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adapterpack.adapter import Head
from adapterpack.methods._base import Entries
from adapterpack.runtime.plan import plan
from adapterpack.runtime.values import Wanted, expand, values_of
from adapterpack.tensors import Dense, round_bfloat16
from tests._vit import EXAMPLES, WIDTH, adapter, array, branch, dense, lora, one_bit, sparse, vit

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
        ((found,),) = expand([Wanted([form], factor)], CPU)
        assert found.dtype == torch.float32 and np.array_equal(found, form.dense() * np.float32(factor))
        found += 1  # the memory is the caller's own
        assert np.array_equal(form.dense(), Dense(form.data.copy(), form.dtype).dense())


def test_every_example_has_all_its_roles() -> None:
    for rows in EXAMPLES.values():
        made = adapter(rows)
        steps = plan(made, vit(), "auto")
        for step, values in zip(steps, values_of(steps, made.head, CPU)):
            assert values.keys() == step.roles
