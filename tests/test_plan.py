"""What loading decides before it touches anything."""

from __future__ import annotations

from typing import Any

import pytest

from adapterpack.methods import METHODS
from adapterpack.runtime.places import Place, Residual
from adapterpack.runtime.plan import plan
from tests._vit import EXAMPLES, adapter, adaptformer, bent, branch, dense, lora_qv, same, snapshot, vit

# bare parameters, norms, an input that is multiplied, a convolution: a hook on the output could not do it
SWAPPED = {
    ("sparse", "cls_token"),
    ("sparse", "blocks.1.norm2"),
    ("affine", "blocks.2.mlp.fc2"),
    ("affine", "patch_embed.proj"),
}


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("fold", ["auto", "never"])
def test_how_each_method_goes_in(name: str, fold: Any) -> None:
    steps = plan(adapter(EXAMPLES[name]), vit(), fold)
    found = {str(step.site): step.how for step in steps}
    for site, how in found.items():
        if name == "adaptformer" or (name == "adapter" and site.endswith((".attn", ".mlp"))):
            assert how == "residual"
        elif METHODS[name].foldable and fold == "auto":
            assert how == "fold"
        elif name in ("replace", "dora") or (name, site) in SWAPPED:
            assert how == "swap"
        else:
            assert how == "hook"
    assert all(isinstance(step.at, Residual if step.how == "residual" else Place) for step in steps)


def test_replacements_first_and_output_readers_last() -> None:
    tensors = {"down": dense(2, 48), "up": dense(48, 2)}
    reader = branch("blocks.0.attn.proj", "adapter", tensors, nonlinearity="gelu", scale=1.0, tap="output")
    last = bent("blocks.0.mlp", "relu", "sum", 1.0)
    rows = [last, reader, *lora_qv(), *adaptformer(), *EXAMPLES["replace"]]
    steps = plan(adapter(rows), vit(), "auto")
    kinds = [step.order for step in steps]
    assert (
        kinds == sorted(kinds)
        and [(step.site, step.params) for step in steps[-2:]] == [(b.site, b.params) for b in (reader, last)]
        and steps[0].method.name == "replace"
    )


def test_planning_touches_nothing() -> None:
    model = vit()
    before = snapshot(model)
    plan(adapter([b for rows in EXAMPLES.values() for b in rows]), model, "never")
    assert same(snapshot(model), before)


def test_one_check_serves_branches_of_one_shape_but_not_of_another() -> None:
    rows = lora_qv()
    odd = branch("blocks.1.mlp.fc1", "lora", rows[0].tensors, scale=0.5)
    with pytest.raises(ValueError, match=r"blocks\.1\.mlp\.fc1.*\[48, 48\]"):
        plan(adapter([*rows, odd]), vit(), "auto")
