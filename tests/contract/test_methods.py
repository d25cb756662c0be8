"""What every method promises, over the whole registry: numpy and torch agree, and a fold is its branch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from adapterpack.adapter import Branch
from adapterpack.errors import UnsupportedAdapterError
from adapterpack.methods import METHODS
from adapterpack.methods._base import Entries, transforms
from adapterpack.methods._nonlinear import NONLINEARITIES
from adapterpack.tensors import Sparse
from tests._vit import EXAMPLES, array

BRANCHES = [pytest.param(b, id=f"{name}-{b.site}") for name, rows in EXAMPLES.items() for b in rows]
TRANSFORMING = [p for p in BRANCHES if transforms(METHODS[p.values[0].method])]
ADDING = [p for p in BRANCHES if not METHODS[p.values[0].method].replaces and p not in TRANSFORMING]
FOLDING = [p for p in ADDING if METHODS[p.values[0].method].foldable]


def test_every_method_has_an_example() -> None:
    assert set(EXAMPLES) == set(METHODS), "add a row to tests/_vit.py"


def shapes(branch: Branch) -> dict[str, tuple[int, ...]]:
    return {role: tensor.shape for role, tensor in branch.tensors.items()}


def scaled(branch: Branch) -> dict[str, np.ndarray]:
    method = METHODS[branch.method]
    factor = np.float32(branch.params.get("scale", 1.0))
    return {role: t.dense() * (factor if role in method.scaled else 1) for role, t in branch.tensors.items()}


def features(branch: Branch) -> tuple[int, int]:
    """(in, out) of the branch, from the shapes that its method asks of the site."""
    needed = METHODS[branch.method].features(shapes(branch), branch.params)
    if "input" in needed and "output" in needed:
        return needed["input"][0], needed["output"][0]
    if "weight" in needed and len(needed["weight"]) == 2:
        return needed["weight"][1], needed["weight"][0]
    width = next(iter(needed.values()))[-1]
    return width, width


def x_of(branch: Branch) -> np.ndarray:
    """Five tokens: one and a grid of 2×2."""
    return array(2, 5, features(branch)[0], seed=3, spread=1.0)


def linear(branch: Branch) -> bool:
    return not branch.tensors.keys() - {"weight", "bias", "down", "core", "up"} and branch.site.path not in (
        "cls_token",
        "blocks.1.norm2",
    )


@pytest.mark.parametrize("branch", BRANCHES)
def test_tensors_are_the_roles(branch: Branch) -> None:
    method = METHODS[branch.method]
    assert set(method.roles.required) <= branch.tensors.keys() <= set(method.roles.order)
    assert branch.params.keys() == method.settings.keys()
    assert set(method.scaled) <= set(method.roles.order)


@pytest.mark.parametrize("branch", ADDING)
def test_branch_is_the_same_in_numpy_and_torch(branch: Branch) -> None:
    if not linear(branch) and METHODS[branch.method].foldable:
        pytest.skip("no linear layer: there is no branch to run")
    method, t, x = METHODS[branch.method], scaled(branch), x_of(branch)
    before = {role: value.copy() for role, value in t.items()}
    here = method.branch(x, t, branch.params)
    there = method.branch(torch.from_numpy(x), {k: torch.from_numpy(v) for k, v in t.items()}, branch.params)
    assert here.shape == there.shape
    assert np.broadcast_shapes(here.shape, (2, 5, features(branch)[1])) == (2, 5, features(branch)[1])
    np.testing.assert_allclose(here, there.numpy(), rtol=0, atol=2e-6 * max(1.0, float(np.abs(here).max())))
    assert all(np.array_equal(before[role], t[role]) for role in t)


@pytest.mark.parametrize("branch", FOLDING)
@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_branch_is_the_product_with_its_delta(branch: Branch, framework: str) -> None:
    if not linear(branch):
        pytest.skip("no linear layer: there is no branch to run")
    method, x = METHODS[branch.method], x_of(branch).astype(np.float64)
    t: dict[str, Any] = {role: value.astype(np.float64) for role, value in scaled(branch).items()}
    if framework == "torch":
        t, x = {role: torch.from_numpy(value) for role, value in t.items()}, torch.from_numpy(x)
    gained = method.branch(x, t, branch.params)
    inward, outward = features(branch)
    weight, bias = np.zeros((outward, inward)), np.zeros(outward)
    for role, delta in method.delta(t, branch.params).items():
        add(weight if role == "weight" else bias, delta)
    expected = np.asarray(x) @ weight.T + bias
    found = np.broadcast_to(np.asarray(gained), expected.shape)  # a branch of a bias alone gives just that
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def add(target: np.ndarray, delta: Any) -> None:
    if isinstance(delta, Entries):
        np.add.at(target.reshape(-1), np.asarray(delta.positions), np.asarray(delta.values))
    else:
        target += np.asarray(delta)


@pytest.mark.parametrize("branch", FOLDING)
def test_delta_has_the_shape_that_features_asks_for(branch: Branch) -> None:
    method = METHODS[branch.method]
    needed = method.features(shapes(branch), branch.params)
    found = method.delta(scaled(branch), branch.params)
    assert found.keys() == needed.keys()
    for role, delta in found.items():
        if isinstance(delta, Entries):
            where = np.asarray(delta.positions)
            assert len(np.unique(where)) == len(where) and where.min() >= 0 and where.max() < np.prod(needed[role])
        else:
            assert delta.shape == needed[role]


@pytest.mark.parametrize("branch", FOLDING)
def test_sparse_tensors_pass_through_a_delta_as_entries(branch: Branch) -> None:
    given = {
        role: Entries(t.positions, t.values.dense()) if isinstance(t, Sparse) else t.dense()
        for role, t in branch.tensors.items()
    }
    found = METHODS[branch.method].delta(given, branch.params)
    assert all(found[role] is value for role, value in given.items() if isinstance(value, Entries))


def own_of(branch: Branch) -> dict[str, np.ndarray]:
    """Parameters that the branch's site may have: a linear layer's."""
    needed = METHODS[branch.method].features(shapes(branch), branch.params)
    shape = needed.get("weight", (needed.get("output", (7,))[0], needed.get("input", (9,))[0]))
    return {"weight": array(*shape, seed=6), "bias": array(shape[0], seed=7)}


@pytest.mark.parametrize("branch", TRANSFORMING)
def test_a_transform_is_the_same_in_numpy_and_torch(branch: Branch) -> None:
    method, t, own = METHODS[branch.method], scaled(branch), own_of(branch)
    assert transforms(method) and method.foldable and not method.replaces
    before = {name: value.copy() for name, value in (*t.items(), *own.items())}
    here = method.transform(own, t, branch.params)
    there = method.transform(*({k: torch.from_numpy(v) for k, v in given.items()} for given in (own, t)), branch.params)
    assert here.keys() == there.keys() <= own.keys()
    for role, new in here.items():
        assert new.shape == own[role].shape
        np.testing.assert_allclose(new, there[role].numpy(), rtol=0, atol=2e-6 * max(1.0, float(np.abs(new).max())))
    assert all(np.array_equal(before[name], {**t, **own}[name]) for name in before)
    with pytest.raises(NotImplementedError):
        method.delta(t, branch.params)


@pytest.mark.parametrize("branch", TRANSFORMING)
def test_what_runs_beside_gives_what_a_transform_does(branch: Branch) -> None:
    method, t, own = METHODS[branch.method], scaled(branch), own_of(branch)
    assert transforms(method)
    x = array(5, own["weight"].shape[1], seed=8)
    out = x @ own["weight"].T + own["bias"]
    if method.tap(branch.params) != "output":
        with pytest.raises(NotImplementedError):
            method.branch(x, t, branch.params)
        return
    new = {**own, **method.transform(own, t, branch.params)}
    np.testing.assert_allclose(
        out + method.branch(out, t, branch.params), x @ new["weight"].T + new["bias"], rtol=0, atol=1e-5
    )


def test_a_transform_leaves_out_what_the_site_lacks() -> None:
    t = {"factor": array(4), "shift": array(4, seed=1)}
    method = METHODS["affine"]
    assert transforms(method)
    assert method.transform({"weight": array(4, 3)}, {"factor": t["factor"]}, {"tap": "output"}).keys() == {"weight"}
    norm = method.transform({"weight": array(4), "bias": array(4, seed=2)}, t, {"tap": "output"})
    np.testing.assert_array_equal(norm["weight"], array(4) * t["factor"])
    np.testing.assert_allclose(norm["bias"], array(4, seed=2) * t["factor"] + t["shift"], atol=1e-7)


def test_dora_by_hand() -> None:
    """Row r of W + BA, divided by its length, times m[r]; a row of zeros stays one."""
    weight, down, up, length = array(3, 5), array(2, 5, seed=1), array(3, 2, seed=2), array(3, seed=3)
    weight[2], up[2] = 0, 0
    expected = np.zeros((3, 5))
    for r in range(2):
        row = weight[r].astype(np.float64) + sum(up[r, k] * down[k] for k in range(2))
        expected[r] = length[r] * row / np.sqrt(sum(value**2 for value in row))
    method = METHODS["dora"]
    assert transforms(method)
    found = method.transform({"weight": weight}, {"down": down, "up": up, "magnitude": length}, {"scale": 1.0})
    np.testing.assert_allclose(found["weight"], expected, rtol=0, atol=1e-6)


def test_convpass_against_torchs_convolution() -> None:
    """The paper's forward, with torch's Conv2d: patches as an image, each other token as an image of one pixel."""
    hidden, width, side = 3, 6, 4
    sizes = {"down": (hidden, width), "conv": (hidden, hidden, 3, 3), "up": (width, hidden)}
    t = {role: array(*size, seed=n, spread=1.0) for n, (role, size) in enumerate(sizes.items())}
    t |= {"down_bias": array(hidden), "conv_bias": array(hidden, seed=1), "up_bias": array(width)}
    w = {role: torch.from_numpy(value) for role, value in t.items()}
    for prefix in (0, 1, 2):
        x = torch.from_numpy(array(2, prefix + side * side, width, seed=9, spread=1.0))
        y = torch.nn.functional.linear(x, w["down"], w["down_bias"])
        y = y * torch.sigmoid(1.702 * y)
        image = y[:, prefix:].reshape(2, side, side, hidden).permute(0, 3, 1, 2)
        patches = torch.conv2d(image, w["conv"], w["conv_bias"], padding=1).flatten(2).mT
        alone = [
            torch.conv2d(y[:, i, :, None, None], w["conv"], w["conv_bias"], padding=1).flatten(2).mT
            for i in range(prefix)
        ]
        y = torch.cat([*alone, patches], dim=1)
        expected = torch.nn.functional.linear(y * torch.sigmoid(1.702 * y), w["up"], w["up_bias"])
        found = METHODS["convpass"].branch(x.numpy(), t, {"scale": 1.0, "prefix": prefix})
        np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=2e-5)


def test_fact_by_hand() -> None:
    """Rows j and columns k in blocks, each s·up·core[j, k]·down; here the scale is 1."""
    down, core, up = array(2, 4), array(3 * 3, 2 * 5, seed=1), array(6, 3, seed=2)
    expected = np.zeros((18, 20), np.float32)
    for j in range(3):
        for k in range(5):
            block = core[3 * j : 3 * j + 3, 2 * k : 2 * k + 2]
            expected[6 * j : 6 * j + 6, 4 * k : 4 * k + 4] = up @ block @ down
    t = {"down": down, "core": core, "up": up}
    assert METHODS["fact"].features({role: v.shape for role, v in t.items()}, {"scale": 1.0}) == {"weight": (18, 20)}
    np.testing.assert_allclose(METHODS["fact"].delta(t, {})["weight"], expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="do not fill"):
        METHODS["fact"].features({"down": (2, 4), "core": (9, 11), "up": (6, 3)}, {"scale": 1.0})


def test_convpass_needs_a_square_of_patches() -> None:
    t = {"down": array(2, 4), "conv": array(2, 2, 3, 3), "up": array(4, 2)}
    for tokens, prefix in ((7, 1), (1, 1), (4, 6)):
        with pytest.raises(UnsupportedAdapterError, match="square") as caught:
            METHODS["convpass"].branch(array(1, tokens, 4), t, {"scale": 1.0, "prefix": prefix})
        assert caught.value.reason == "unsupported-model"


TORCHS: dict[str, Any] = {
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "leaky_relu": torch.nn.functional.leaky_relu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": torch.nn.functional.relu,
    "silu": torch.nn.functional.silu,
    "tanh": torch.tanh,
}


@pytest.mark.parametrize("name", [*NONLINEARITIES])
def test_nonlinearities_are_torchs(name: str) -> None:
    x = np.concatenate([array(50, spread=3.0), np.float32([0, -0.0, 1e-5, -1e-5, 30, -30, 200, -200])])
    x, before = x[:, None].repeat(2, axis=1), x.copy()
    expected = TORCHS[name](torch.from_numpy(x)).numpy()
    for found in (NONLINEARITIES[name](x), NONLINEARITIES[name](torch.from_numpy(x)).numpy()):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=3e-6, atol=5e-7)
    assert np.array_equal(x[:, 0], before)


@pytest.mark.parametrize("params", [{"nonlinearity": "swish", "tap": "sum"}, {"nonlinearity": "relu", "tap": "beside"}])
def test_an_adapter_in_memory_with_an_unknown_setting(params: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no nonlinearity"):
        METHODS["adapter"].features({"down": (2, 4), "up": (4, 2)}, {**params, "scale": 1.0})


@pytest.mark.parametrize("name", sorted(METHODS))
def test_what_cannot_be_folded_says_so(name: str) -> None:
    method = METHODS[name]
    if not method.foldable:
        branch = EXAMPLES[name][0]
        with pytest.raises(NotImplementedError):
            method.delta(scaled(branch), branch.params)


def test_lora_and_adaptformer_by_hand() -> None:
    x, down, up = array(5, 6), array(2, 6, seed=1), array(6, 2, seed=2)
    t = {"down": down, "up": up}
    hidden = np.einsum("ni,hi->nh", x, down)
    np.testing.assert_allclose(METHODS["lora"].branch(x, t, {}), np.einsum("nh,oh->no", hidden, up), atol=1e-6)
    relu = np.where(hidden > 0, hidden, 0)
    np.testing.assert_allclose(METHODS["adaptformer"].branch(x, t, {}), np.einsum("nh,oh->no", relu, up), atol=1e-6)


def test_consolidator_against_the_published_indices() -> None:
    """ΔW[r, (m mod g)·c + m div g] = w[r, t], m = (r div (E/g))·c + t; without shuffle column m."""
    out, inward, groups = 12, 8, 4
    c, weight, x = inward // groups, array(12, 2, seed=4), array(3, 8, seed=5)
    for reorder in (False, True):
        expected = np.zeros((out, inward), np.float32)
        for r in range(out):
            for t in range(c):
                m = (r // (out // groups)) * c + t
                expected[r, (m % groups) * c + m // groups if reorder else m] = weight[r, t]
        found = METHODS["consolidator"].branch(x, {"weight": weight}, {"groups": groups, "reorder": reorder})
        np.testing.assert_allclose(found, x @ expected.T, atol=1e-6)
