"""Methods that change what a module does, in a live model: folded, attached, beside other branches, and out again."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from adapterpack.adapter import Branch
from adapterpack.errors import UnsupportedAdapterError
from adapterpack.runtime.load import load_adapter
from adapterpack.runtime.plan import plan
from adapterpack.tensors import Sparse
from tests._vit import (
    EXAMPLES,
    WIDTH,
    about_one,
    adapter,
    array,
    branch,
    close,
    dense,
    images,
    lora,
    same,
    snapshot,
    sparse,
    vit,
)

SITE = "blocks.1.attn.qkv[v]"
ROWS = slice(2 * WIDTH, 3 * WIDTH)
FACTOR, SHIFT, INPUT = about_one(WIDTH), dense(WIDTH, seed=4), about_one(WIDTH, seed=5)
DORA = {"down": dense(2, WIDTH), "up": dense(WIDTH, 2), "magnitude": dense(WIDTH, seed=6)}
ADAPTER = {"down": dense(3, WIDTH, seed=7), "up": dense(WIDTH, 3, seed=8)}
ALL: dict[str, Branch] = {
    "adapter-out": branch(SITE, "adapter", ADAPTER, nonlinearity="gelu", scale=0.7, tap="output"),
    "lora": lora(SITE, rank=2),
    "dora": branch(SITE, "dora", DORA, scale=0.5),
    "sparse": branch(SITE, "sparse", {"weight": sparse(WIDTH, WIDTH), "bias": sparse(WIDTH)}),
    "affine-in": branch(SITE, "affine", {"factor": INPUT}, tap="input"),
    "adapter-in": branch(SITE, "adapter", ADAPTER, nonlinearity="silu", scale=0.3, tap="input"),
    "affine-out": branch(SITE, "affine", {"factor": FACTOR, "shift": SHIFT}, tap="output"),
    "replace": branch(SITE, "replace", {"bias": dense(WIDTH, seed=9)}),
}


def gelu(x: torch.Tensor) -> torch.Tensor:
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + torch.exp(-x))


def value(tensor: Any) -> torch.Tensor:
    return torch.from_numpy(tensor.dense()).double()


def new_parameters(names: Sequence[str], weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The page's first steps, written out."""
    if "replace" in names:
        bias = value(ALL["replace"].tensors["bias"])
    if "affine-out" in names:
        weight, bias = value(FACTOR)[:, None] * weight, value(FACTOR) * bias + value(SHIFT)
    if "affine-in" in names:
        weight = weight * value(INPUT)
    if "dora" in names:
        moved = weight + 0.5 * value(DORA["up"]) @ value(DORA["down"])
        weight = value(DORA["magnitude"])[:, None] * moved / torch.linalg.norm(moved, dim=1, keepdim=True)
    if "lora" in names:
        weight = weight + 0.5 * value(ALL["lora"].tensors["up"]) @ value(ALL["lora"].tensors["down"])
    if "sparse" in names:
        weight, bias = weight + value(ALL["sparse"].tensors["weight"]), bias + value(ALL["sparse"].tensors["bias"])
    return weight, bias


def by_hand(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """The page's four steps on the v rows of block 1."""
    qkv: Any = model.get_submodule("blocks.1.attn.qkv")
    weight, bias = new_parameters(names, qkv.weight.detach().double()[ROWS], qkv.bias.detach().double()[ROWS])
    down, up = value(ADAPTER["down"]), value(ADAPTER["up"])

    def forward(module: nn.Module, args: tuple[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
        x = args[0].double()
        z = x @ weight.T + bias
        if "adapter-in" in names:
            z = z + 0.3 * silu(x @ down.T) @ up.T
        if "adapter-out" in names:
            z = z + 0.7 * gelu(z @ down.T) @ up.T
        return torch.cat([out[..., : ROWS.start], z.to(out.dtype)], dim=-1)

    qkv.register_forward_hook(forward)
    return model


@pytest.mark.parametrize("fold", ["auto", "never"])
@pytest.mark.parametrize(
    "names", [*itertools.combinations(("affine-in", "affine-out", "dora", "lora"), 2), ("affine-out",), tuple(ALL)]
)
def test_several_branches_at_one_site(names: tuple[str, ...], fold: Any) -> None:
    model, x = vit(), images()
    with torch.no_grad():
        expected = by_hand(vit(), names)(x)
        before = snapshot(model)
        for order in (names, names[::-1]):
            with load_adapter(adapter([ALL[name] for name in order], model, classes=0), model, fold=fold):
                assert close(model(x), expected)
            assert same(snapshot(model), before)


@pytest.mark.parametrize("fold", ["auto", "never"])
def test_the_whole_projection_comes_before_its_parts(fold: Any) -> None:
    whole = branch("blocks.1.attn.qkv", "affine", {"factor": dense(144), "shift": dense(144, seed=1)}, tap="output")
    part = branch(SITE, "affine", {"factor": FACTOR, "shift": SHIFT}, tap="output")
    model, twin, x = vit(), vit(), images()
    qkv: Any = twin.get_submodule("blocks.1.attn.qkv")
    with torch.no_grad():
        qkv.weight.mul_(torch.from_numpy(array(144))[:, None])
        qkv.bias.mul_(torch.from_numpy(array(144))).add_(torch.from_numpy(array(144, seed=1)))
        qkv.weight[ROWS] *= torch.from_numpy(FACTOR.dense())[:, None]
        qkv.bias[ROWS] = qkv.bias[ROWS] * torch.from_numpy(FACTOR.dense()) + torch.from_numpy(SHIFT.dense())
        for rows in ([whole, part], [part, whole]):
            with load_adapter(adapter(rows, model, classes=0), model, fold=fold):
                assert close(model(x), twin(x))


@pytest.mark.parametrize("name", ["affine", "dora", "convpass"])
def test_folded_and_attached_agree_in_every_dtype(name: str) -> None:
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.float32, 2e-4), (torch.bfloat16, 0.1)):
        model = vit().to(dtype)
        x, found = images().to(dtype), []
        before = snapshot(model)
        for fold in ("auto", "never"):
            with load_adapter(adapter(EXAMPLES[name]), model, fold=fold, check_fingerprint=False), torch.no_grad():
                found.append(model(x))
            assert same(snapshot(model), before)
        assert close(found[0], found[1], tolerance)
        assert not close(found[0], vit(num_classes=4).to(dtype)(x).detach(), tolerance)


def test_what_alone_would_be_a_hook_is_a_weight_beside_others() -> None:
    alone = plan(adapter([ALL["affine-out"]]), vit(), "never")
    beside = plan(adapter([ALL["affine-out"], lora("blocks.1.attn.qkv[q]")]), vit(), "never")
    assert [step.how for step in alone] == ["hook"]
    assert [(step.method.name, step.how) for step in beside] == [("affine", "swap"), ("lora", "hook")]


def test_a_module_without_a_bias() -> None:
    """A factor folds; a shift has no bias to go into and runs beside the module."""
    model, x = vit(qkv_bias=False), images()
    factor = branch("blocks.0.attn.qkv", "affine", {"factor": about_one(144)}, tap="output")
    shifted = branch("blocks.0.attn.qkv", "affine", {"factor": about_one(144), "shift": dense(144)}, tap="output")
    assert [step.how for b in (factor, shifted) for step in plan(adapter([b]), model, "auto")] == ["fold", "hook"]
    twin: Any = vit(qkv_bias=False)
    qkv = twin.blocks[0].attn.qkv
    qkv.weight.data *= torch.from_numpy(about_one(144).dense())[:, None]
    qkv.bias = nn.Parameter(torch.from_numpy(array(144)))
    with load_adapter(adapter([shifted], model, classes=0), model), torch.no_grad():
        assert close(model(x), twin(x))


def test_a_sparse_factor_is_zero_elsewhere() -> None:
    where = np.array([3, 40], np.int64)
    thin = branch(SITE, "affine", {"factor": Sparse((WIDTH,), where, dense(2))}, tap="output")
    model, found = vit(), []
    for fold in ("auto", "never"):
        with load_adapter(adapter([thin], model, classes=0), model, fold=fold), torch.no_grad():
            found.append(model(images()))
    assert close(found[0], found[1])


REFUSED: dict[str, tuple[Branch, str, str]] = {
    "length": (branch(SITE, "affine", {"factor": dense(47)}, tap="output"), "site-shape", "47"),
    "input-length": (branch("blocks.0.mlp.fc2", "affine", {"factor": dense(48)}, tap="input"), "site-shape", "192"),
    "input-of-a-norm": (branch("norm", "affine", {"factor": dense(48)}, tap="input"), "missing-site", "input"),
    "no-weight": (branch("blocks.0.attn", "affine", {"factor": dense(48)}, tap="input"), "missing-site", "weight"),
    "parameter": (branch("cls_token", "affine", {"factor": dense(48)}, tap="output"), "missing-site", "output"),
    "shift-of-input": (
        branch(SITE, "affine", {"factor": dense(48), "shift": dense(48)}, tap="input"),
        "site-shape",
        "not shifted",
    ),
    "dora-rows": (branch("blocks.0.mlp.fc1", "dora", DORA, scale=1.0), "site-shape", "192"),
    "convpass-width": (
        branch(
            "blocks.0.attn",
            "convpass",
            {"down": dense(2, 40), "conv": dense(2, 2, 3, 3), "up": dense(40, 2)},
            scale=1.0,
            prefix=1,
        ),
        "site-shape",
        "40",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("fold", ["auto", "never"])
def test_refused_by_name_and_untouched(case: str, fold: Any) -> None:
    odd, reason, word = REFUSED[case]
    model = vit()
    before = snapshot(model)
    with pytest.raises(UnsupportedAdapterError, match=word) as caught:
        load_adapter(adapter([lora("blocks.2.attn.qkv[q]"), odd], model), model, fold=fold)
    assert caught.value.reason == reason and str(odd.site) in str(caught.value)
    assert same(snapshot(model), before)


def test_convpass_cannot_be_folded() -> None:
    with pytest.raises(UnsupportedAdapterError, match="convpass") as caught:
        plan(adapter(EXAMPLES["convpass"]), vit(), "always")
    assert caught.value.reason == "not-foldable"


@pytest.mark.parametrize("fold", ["auto", "never"])
def test_a_shift_where_no_bias_can_take_it(fold: Any) -> None:
    """What a LoRA adds is not multiplied, also where the affine has to stay beside a layer without a bias."""
    model, site = vit(qkv_bias=False), "blocks.0.attn.qkv"
    layer, x = model.blocks[0].attn.qkv, torch.from_numpy(array(2, 3, WIDTH))
    factor, shift, down, up = about_one(3 * WIDTH), dense(3 * WIDTH), dense(4, WIDTH), dense(3 * WIDTH, 4)
    both = [
        branch(site, "affine", {"factor": factor, "shift": shift}, tap="output"),
        branch(site, "lora", {"down": down, "up": up}, scale=0.5),
    ]
    weight = value(factor)[:, None] * layer.weight.double() + 0.5 * value(up) @ value(down)
    expected = x.double() @ weight.T + value(shift)
    with load_adapter(adapter(both), model, fold=fold, check_fingerprint=False):
        torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-4)


def test_dora_cannot_act_on_a_shift_that_stays_beside() -> None:
    site = "blocks.0.attn.qkv"
    parts = {"down": dense(2, WIDTH), "up": dense(3 * WIDTH, 2), "magnitude": dense(3 * WIDTH)}
    affine = {"factor": about_one(3 * WIDTH), "shift": dense(3 * WIDTH)}
    both = [branch(site, "affine", affine, tap="output"), branch(site, "dora", parts, scale=0.5)]
    with pytest.raises(UnsupportedAdapterError, match="no bias for the shift"):
        plan(adapter(both), vit(qkv_bias=False), "auto")
