"""Hooks: which columns they write, and what they leave alone."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from adapterpack.adapter import Branch, Site
from adapterpack.methods import METHODS
from adapterpack.runtime.attach import Hooks, ResidualHook, attached_sites
from adapterpack.runtime.load import load_adapter
from adapterpack.runtime.places import Place, Residual
from tests._pool import relative
from tests._vit import adapter, adaptformer, images, lora_qv, vit

GELU = {"nonlinearity": "gelu", "scale": 1.0, "tap": "output"}


def tensors(inward: int, out: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"down": torch.randn(2, inward, generator=generator), "up": torch.randn(out, 2, generator=generator)}


@torch.no_grad()
def test_writes_its_columns_only() -> None:
    layer, x = nn.Linear(5, 12), torch.randn(2, 3, 5)
    plain, t = layer(x), tensors(5, 4)
    hooks = Hooks()
    hooks.attach(Place(Site("a"), layer, rows=(4, 4)), Site("a"), METHODS["lora"], t, {"scale": 1.0})
    found = layer(x)
    assert torch.equal(found[..., :4], plain[..., :4]) and torch.equal(found[..., 8:], plain[..., 8:])
    assert torch.allclose(found[..., 4:8], plain[..., 4:8] + x @ t["down"].T @ t["up"].T, atol=1e-5)
    hooks.remove()
    assert torch.equal(layer(x), plain)


@torch.no_grad()
def test_a_module_that_returns_its_input_does_not_change_it() -> None:
    module, x = nn.Identity(), torch.randn(2, 4)
    before = x.clone()
    Hooks().attach(Place(Site("a"), module), Site("a"), METHODS["adapter"], tensors(4, 4), GELU)
    assert not torch.equal(module(x), before) and torch.equal(x, before)


@torch.no_grad()
def test_residual_reads_before_the_norm_and_keeps_nothing() -> None:
    norm, end, x, h = nn.LayerNorm(4), nn.Identity(), torch.randn(2, 4), torch.randn(2, 4)
    t = tensors(4, 4)
    hooks = Hooks()
    hooks.attach_residual(
        Residual(norm, end, 4),
        Site("a"),
        METHODS["adaptformer"],
        t,
        {"scale": 1.0},
        torch.empty(0, dtype=torch.float32),
    )
    norm(x)
    before = h.clone()
    assert torch.allclose(end(h), h + (x @ t["down"].T).clamp(min=0) @ t["up"].T, atol=1e-5)
    assert torch.equal(h, before)
    hook = next(iter(end._forward_hooks.values())).__self__
    assert isinstance(hook, ResidualHook) and not vars(hook._seen)
    hooks.remove()
    assert not end._forward_hooks and not norm._forward_pre_hooks


def test_hooks_can_be_copied_and_pickled() -> None:
    hook = ResidualHook(Site("a"), METHODS["adaptformer"], tensors(4, 4), {"scale": 1.0})
    for twin in (copy.deepcopy(hook), pickle.loads(pickle.dumps(hook))):
        assert twin.site == Site("a") and torch.equal(twin.tensors["up"], hook.tensors["up"])


def test_attached_sites_ignores_the_hooks_of_others() -> None:
    model = vit()
    model.norm.register_forward_hook(lambda module, args, out: None)
    assert attached_sites(model) == []
    Hooks().attach(Place(Site("norm"), model.norm), Site("norm"), METHODS["adapter"], tensors(48, 48), GELU)
    assert attached_sites(model) == ["norm"]


@pytest.mark.parametrize("first", ["inference", "grad"])
def test_tensors_cut_out_in_one_mode_serve_in_the_other(first: str) -> None:
    """A hook makes its tensors when it is first run, which must not decide what it can do later."""
    model = vit()
    load_adapter(adapter([*lora_qv(), *adaptformer()]), model, fold="never", check_fingerprint=False)
    with torch.inference_mode(first == "inference"):
        expected = model(images(2))
    x = images(2).requires_grad_()
    model(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    with torch.inference_mode():
        assert torch.equal(model(images(2)), expected)


@pytest.mark.parametrize("rows", [lora_qv(), adaptformer()])
def test_an_attached_model_can_be_compiled_as_a_whole(rows: list[Branch]) -> None:
    model = vit()
    load_adapter(adapter(rows), model, fold="never", check_fingerprint=False)
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(model), backend="eager", fullgraph=True)
    with torch.no_grad():
        for x in (images(2), images(2) * 0.5):
            assert relative(compiled(x), model(x)) < 1e-6
