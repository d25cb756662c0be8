"""Calibration in a model: what the branches read, what the fit does to their outputs, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from adapterpack.adapter import Adapter, Branch, Head
from adapterpack.methods import METHODS
from adapterpack.packing.options import Options
from adapterpack.packing.requantize import requantize
from adapterpack.runtime import activations as module
from adapterpack.runtime import families
from adapterpack.runtime.activations import collect
from adapterpack.runtime.calibrate import calibrate
from adapterpack.runtime.load import load_adapter
from adapterpack.tensors import Dense, Quantized, same_tensor
from tests._vit import EXAMPLES, WIDTH, adapter, array, branch, dense, images, same, snapshot, sparse, vit
from tests.test_families import adapter as in_model
from tests.test_families import beside, lora, pictures
from tests.test_families import made as made_in

KEYS = {"lora": "blocks.1.attn.qkv[v]", "adaptformer": "blocks.1.mlp"}


def floats(branches: Sequence[Branch], seed: int = 0) -> list[Branch]:
    """The same branches with float32 tensors of other numbers."""
    return [
        Branch(b.site, b.method, b.params, {r: Dense(array(*t.shape, seed=seed + i)) for r, t in b.tensors.items()})
        for i, b in enumerate(branches)
    ]


def original(*names: str, model: nn.Module) -> Adapter:
    rows = [row for name in names for row in floats(EXAMPLES[name], 10 * len(name))]
    return adapter(rows, model, head=Head(dense(4, WIDTH, seed=3), dense(4, seed=4)))


def read_at(model: nn.Module, site: str, x: torch.Tensor) -> torch.Tensor:
    """What a branch at a site reads, by a hook of the test's own."""
    found: list[torch.Tensor] = []
    name = "norm2" if site.endswith("mlp") else "attn.qkv"
    at = model.get_submodule(f"{'.'.join(site.split('.')[:2])}.{name}")
    with torch.no_grad():
        handle = at.register_forward_pre_hook(lambda _, args: found.append(args[0].clone()))
        model(x)
        handle.remove()
    return found[0].reshape(-1, found[0].shape[-1])


@pytest.mark.parametrize("name", KEYS)
def test_what_branches_read(name: str) -> None:
    model, x = vit(), images(3)
    made = original(name, model=model)
    before = snapshot(model)
    seen = collect(made, model, x)
    assert same(snapshot(model), before)
    number = next(i for i, row in enumerate(made.branches) if str(row.site) == KEYS[name])
    with load_adapter(made, model), torch.no_grad():
        expected = read_at(model, KEYS[name], x)
        features = model.forward_head(model.forward_features(x), pre_logits=True)
    assert seen.branches.keys() == set(range(len(made.branches)))
    torch.testing.assert_close(seen.branches[number], expected, rtol=1e-4, atol=1e-4)
    assert seen.head is not None
    torch.testing.assert_close(seen.head, features, rtol=1e-4, atol=1e-4)


def test_a_sample_of_tokens_with_the_first_and_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = vit(), images(3)
    made = original("lora", model=model)
    whole = collect(made, model, x).branches[0].reshape(3, -1, WIDTH)
    monkeypatch.setattr(module, "TOKENS", 12)
    one, other = (collect(made, model, x).branches[0] for _ in range(2))
    assert torch.equal(one, other) and one.shape == (12, WIDTH)
    assert torch.equal(one.reshape(3, 4, WIDTH)[:, 0], whole[:, 0])
    assert all((row == whole.reshape(-1, WIDTH)).all(dim=1).any() for row in one)


def output_error(before: Branch, after: Branch, x: torch.Tensor) -> float:
    """Relative error of a branch's output, from its formula in numpy."""
    method = METHODS[before.method]

    def out(row: Branch) -> np.ndarray:
        factors = {r: row.params.get("scale", 1.0) if r in method.scaled else 1.0 for r in row.tensors}
        values = {r: t.dense().astype(np.float64) * factors[r] for r, t in row.tensors.items()}
        return np.asarray(method.branch(x.numpy().astype(np.float64), values, row.params))

    return float(np.linalg.norm(out(after) - out(before)) / np.linalg.norm(out(before)))


@pytest.mark.parametrize(("bits", "group"), [(1, 0), (1, 16), (2, 0), (4, 32), (8, 0)])
def test_outputs_come_nearer_and_the_report_is_right(bits: int, group: int) -> None:
    model, x = vit(), images(6)
    made = original("lora", "adaptformer", "adapter", "consolidator", model=model)
    alone = {str(row.site): row for row in made.branches}  # the report names a tensor by its site
    made = replace(made, branches=tuple(alone.values()))
    coded, costs = requantize(made, Options(bits=bits, head_bits=bits, group=group))
    before = snapshot(model)
    found = calibrate(made, coded, model, x)
    assert same(snapshot(model), before) and not found.unmeasured
    assert [cost.tensor for cost in found.costs] == [cost.tensor for cost in costs]
    seen, rows = collect(made, model, x), {cost.tensor: cost for cost in found.costs}
    better = 0
    for number, (old, plain, new) in enumerate(zip(made.branches, coded.branches, found.adapter.branches)):
        last = [role for role in METHODS[old.method].roles.order if f"{old.site}.{role}" in rows][-1]
        cost = rows[f"{old.site}.{last}"]
        assert cost.output_after is not None and cost.output_before is not None
        assert cost.output_before == pytest.approx(output_error(old, plain, seen.branches[number]), rel=1e-4)
        assert cost.output_after == pytest.approx(output_error(old, new, seen.branches[number]), rel=1e-4)
        assert cost.output_after <= cost.output_before * (1 + 1e-12)
        better += cost.output_after < cost.output_before
        for role, tensor in new.tensors.items():
            unfitted = plain.tensors[role]
            assert tensor.form() == unfitted.form()
            assert not isinstance(tensor, Quantized) or np.array_equal(tensor.packed, unfitted.packed)
    assert better > len(made.branches) / 2
    for cost, first in zip(found.costs, costs):
        assert cost.unfitted_error == first.relative_error  # the weights themselves may only get further away
        assert cost.relative_error >= first.relative_error * 0.999


def test_logits_of_a_fitted_head_come_nearer() -> None:
    """On images that the fit has not seen."""
    model, x = vit(), images(40)
    made = original("lora", model=model)
    coded, _ = requantize(made, Options(head_bits=1))
    found = calibrate(made, coded, model, x[:32]).adapter
    assert found.head is not None and all(a is b for a, b in zip(found.branches[0].tensors, made.branches[0].tensors))
    logits = []
    for one in (made, coded, found):
        with load_adapter(one, model), torch.no_grad():
            logits.append(model(x[32:]))
    plain, fitted = ((other - logits[0]).norm() for other in logits[1:])
    assert fitted < plain


def test_what_no_branch_gives_out_is_named_and_left() -> None:
    """A replaced parameter has no output of its own, and floats have no scales."""
    model = vit()
    token = {"value": dense(1, 1, WIDTH, seed=3)}
    rows = [branch("cls_token", "replace", token), *floats(EXAMPLES["lora"][:2])]
    made = adapter(rows, model, head=Head(dense(4, WIDTH)))
    coded, costs = requantize(made, Options(bits=1, head_bits=16))
    found = calibrate(made, coded, model, images(2))
    assert found.unmeasured == ("cls_token.value",)
    assert same_tensor(found.adapter.branches[0].tensors["value"], coded.branches[0].tensors["value"])
    told = {cost.tensor: cost.output_after for cost in found.costs}
    assert told["cls_token.value"] is None and told["head.weight"] is None and len(told) == len(costs)
    assert told["blocks.0.attn.qkv[q].down"] is not None


def test_codes_that_the_source_had_stay_to_the_bit() -> None:
    model = vit()
    made = adapter(EXAMPLES["lora"], model)
    coded, costs = requantize(made, Options(bits=1))
    found = calibrate(made, coded, model, images(2))
    assert not costs and not found.costs and found.adapter.same_as(made)


def test_sparse_branches() -> None:
    model = vit()
    rows = [branch("blocks.0.attn.qkv[v]", "sparse", {"weight": sparse(WIDTH, WIDTH, count=40)})]
    made = adapter(rows, model)
    found = calibrate(made, requantize(made, Options(bits=1))[0], model, images(3))
    (cost,) = found.costs
    assert cost.output_after is not None and cost.output_before is not None
    assert cost.output_after < cost.output_before


# --- other families: windows, channels first, four dimensions ---

PLACES = {
    "swin": ("layers.0.blocks.0.attn.qkv[q]", "layers.1.blocks.1.mlp.fc1"),
    "convnext": ("stages.0.blocks.0.mlp.fc1",),
    "eva": ("blocks.0.attn.qkv[q]",),
    "beit": ("blocks.0.attn.qkv[v]",),
    "deit": ("blocks.1.attn.qkv[v]",),
    "cait": ("blocks.1.attn.qkv[v]",),
}


def in_family(family: str, model: nn.Module) -> Adapter:
    block = next(name for name, _ in families.blocks_of(model))
    rows = [lora(model, site) for site in PLACES[family]]
    return in_model(model, [*rows, beside(model, f"{block}.mlp")])


@pytest.mark.parametrize("family", PLACES)
def test_what_branches_of_other_families_read(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it where there is room; else the first row of each image, and no more of any than of another."""
    model, x = made_in(family), pictures(family)
    before, adapter = snapshot(model), in_family(family, model)
    whole = collect(adapter, model, x)
    assert same(snapshot(model), before) and whole.branches.keys() == set(range(len(adapter.branches)))
    found: list[torch.Tensor] = []
    with load_adapter(adapter, model, fold="never"), torch.no_grad():
        path = adapter.branches[0].site.path
        at = model.get_submodule(path.removesuffix(".qkv") if family in ("eva", "beit") else path)  # see reads_weight
        handle = at.register_forward_pre_hook(lambda _, args: found.append(args[0].clone()))
        model(x)
        handle.remove()
    torch.testing.assert_close(whole.branches[0], found[0].reshape(-1, found[0].shape[-1]))
    monkeypatch.setattr(module, "TOKENS", 6)
    some, again = collect(adapter, model, x), collect(adapter, model, x)
    for number, rows in some.branches.items():
        every = whole.branches[number].reshape(len(x), -1, rows.shape[-1])
        kept = rows.reshape(len(x), -1, rows.shape[-1])
        assert torch.equal(rows, again.branches[number]) and kept.shape[1] == min(3, every.shape[1])
        assert torch.equal(kept[:, 0], every[:, 0])
        assert all((row == picture).all(dim=1).any() for kept_of, picture in zip(kept, every) for row in kept_of)


@pytest.mark.parametrize("family", ["swin", "convnext", "eva", "beit"])
def test_fitting_in_other_families(family: str) -> None:
    model, x = made_in(family), pictures(family)
    before, adapter = snapshot(model), in_family(family, model)
    coded, _ = requantize(adapter, Options(bits=1))
    found = calibrate(adapter, coded, model, x)
    assert same(snapshot(model), before) and not found.unmeasured
    last = {cost.tensor.rpartition(".")[0]: cost for cost in found.costs if cost.tensor.endswith("up")}
    assert len(last) == len(adapter.branches)
    gained = [(c.output_before or 0) - (c.output_after or 0) for c in last.values()]
    assert min(gained) >= 0 and max(gained) > 0.01
