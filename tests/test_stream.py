"""Branches on the residual stream, before and after attention and MLP: against the blocks' formulas written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

from adapterpack import AdapterPool
from adapterpack.adapter import Branch, Site
from adapterpack.errors import UnsupportedAdapterError
from adapterpack.packing.bundle import open_bundle
from adapterpack.runtime.backbone import randomise
from adapterpack.runtime.families import _PRENORM, _PRENORM_ATTENTION
from adapterpack.runtime.load import load_adapter
from adapterpack.runtime.places import residual
from tests._pool import alone, file_of, relative
from tests._vit import WIDTH, adapter, bent, branch, close, dense, images, lora_qv, same, snapshot, vit

Stream = Callable[[torch.Tensor], torch.Tensor]


def gains(made: Branch) -> Stream:
    """What a branch gives, in float64."""
    t = {role: torch.from_numpy(tensor.dense()).double() for role, tensor in made.tensors.items()}
    function = getattr(functional, str(made.params["nonlinearity"]))

    def run(x: torch.Tensor) -> torch.Tensor:
        hidden = function(x.double() @ t["down"].T + t.get("down_bias", 0))
        return (made.params["scale"] * (hidden @ t["up"].T + t.get("up_bias", 0))).to(x.dtype)

    return run


def by_hand(model: Any, number: int, made: list[Branch]) -> Any:
    """A ViT whose block `number` has the branches: a forward of its own, in the words of the page."""
    block = model.blocks[number]
    found = {(str(b.site).rsplit(".", 1)[1], b.params["tap"]): gains(b) for b in made}

    def forward(r: torch.Tensor, **_: Any) -> torch.Tensor:
        for part, norm, inner in (("attn", block.norm1, block.attn), ("mlp", block.norm2, block.mlp)):
            after = r + inner(norm(r))
            if (part, "residual") in found:
                after = after + found[part, "residual"](r)
            if (part, "sum") in found:
                after = after + found[part, "sum"](after)
            r = after
        return r

    block.forward = forward
    return model


CASES: dict[str, list[Branch]] = {
    "sum at attn": [bent("blocks.1.attn", "relu", "sum", 0.9, biases=True)],
    "sum at mlp": [bent("blocks.1.mlp", "silu", "sum", 1.1, biases=True)],
    "residual at attn": [bent("blocks.1.attn", "gelu", "residual", 0.7)],
    "residual at mlp": [bent("blocks.1.mlp", "tanh", "residual", 0.8, biases=True)],
    "all four": [
        bent(f"blocks.1.{part}", name, tap, scale, biases=tap == "sum")
        for part, name, tap, scale in (
            ("mlp", "relu", "sum", 0.5), ("attn", "gelu", "residual", 0.6), ("attn", "silu", "sum", 0.7),
            ("mlp", "leaky_relu", "residual", 0.8),
        )
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_by_hand_and_gone_to_the_bit(case: str) -> None:
    model, x = vit(), images()
    expected, before, plain = by_hand(vit(), 1, CASES[case])(x), snapshot(model), vit()(x)
    assert not close(plain, expected)
    for order in (CASES[case], CASES[case][::-1]):
        with load_adapter(adapter(order, model, classes=0), model):
            assert close(model(x), expected)
        assert same(snapshot(model), before) and torch.equal(model(x), plain)


@torch.no_grad()
def test_beside_the_attention_adaptformer_reads_what_its_norm_reads() -> None:
    model, x = vit(), images()
    tensors = {"down": dense(3, WIDTH), "up": dense(WIDTH, 3)}
    made = branch("blocks.1.attn", "adaptformer", tensors, scale=0.7)
    twin = bent("blocks.1.attn", "relu", "residual", 0.7)
    with load_adapter(adapter([made], model, classes=0), model):
        assert close(model(x), by_hand(vit(), 1, [twin])(x))


@torch.no_grad()
@pytest.mark.parametrize("end", ["first in both", "last in one"])
def test_two_that_read_one_sum_act_in_the_order_of_their_settings(end: str) -> None:
    """In whatever order they are given, also where a file has to group them otherwise."""
    model, x = vit(), images()
    first, second = (bent("blocks.1.mlp", name, "sum", 0.9) for name in ("relu", "tanh"))
    expected = by_hand(vit(), 1, [first])
    inner, gained = expected.blocks[1].forward, gains(second)
    expected.blocks[1].forward = lambda r, **_: inner(r) + gained(inner(r))
    other = bent("blocks.0.mlp", "tanh" if end == "last in one" else "relu", "sum", 0.9)
    expected.blocks[0] = by_hand(vit(), 0, [other]).blocks[0]
    for rows in ([first, second, other], [other, second, first]):
        made = adapter(rows, model, classes=0)
        for one in (made, open_bundle(file_of(made)).read()):
            with load_adapter(one, model):
                assert close(model(x), expected(x))


@pytest.mark.parametrize("gather", [True, False])
@torch.no_grad()
def test_mixed_batches(gather: bool) -> None:
    """Rows of tasks with branches on the stream, with LoRA, and with both, among each other."""
    tasks = {f"task{i}": case for i, case in enumerate(CASES.values())}
    tasks |= {"lora": lora_qv(), "both": [*lora_qv(), *CASES["all four"]]}
    model = vit()
    made = {name: adapter(rows, model, name=name) for name, rows in tasks.items()}
    pool = AdapterPool(model)
    pool._engine.gather = gather
    for one in made.values():
        pool.add(file_of(one))
    names = [*made, *reversed(made)]
    x, before = images(len(names)), snapshot(model)
    found = pool(x, tasks=names)
    for i, name in enumerate(names):
        expected = alone(file_of(made[name]), name, model, x[i : i + 1])[0]
        assert relative(found[i], expected) < 2e-6, name
    assert same(snapshot(model), before)


def small(name: str, **sizes: Any) -> Any:
    model = timm.create_model(name, **sizes)
    randomise(model, 0)
    with torch.no_grad():
        for number, value in enumerate(model.parameters()):
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(number)) * 0.08)
    return model.requires_grad_(False).eval()


WINDOWS = {"embed_dim": 24, "depths": (1, 2), "num_heads": (2, 4), "img_size": 32, "window_size": 4}
VIT = {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 32}
STAGES = {"depths": (1, 2, 1, 1), "dims": (16, 32, 40, 48)}
FAMILIES: dict[str, tuple[str, dict[str, Any], str, bool]] = {
    "swin": ("swin_tiny_patch4_window7_224", WINDOWS, "layers.1.blocks.0", True),
    "beit": ("beit_base_patch16_224", VIT, "blocks.1", True),
    "cait": ("cait_xxs24_224", VIT, "blocks.1", False),
    "convnext": ("convnext_tiny", STAGES, "stages.1.blocks.0", False),
}


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_sum_at_the_mlp_is_what_the_block_gives(family: str) -> None:
    name, sizes, where, _ = FAMILIES[family]
    model, twin = small(name, **sizes), small(name, **sizes)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    width, first = residual(model, Site.parse(f"{where}.mlp")).width, family == "convnext"
    made = bent(f"{where}.mlp", "relu", "sum", 0.9)
    made = Branch(made.site, made.method, made.params, {"down": dense(3, width), "up": dense(width, 3)})
    gain = gains(made)

    def after(module: nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor:
        return out + (gain(out.movedim(1, -1)).movedim(-1, 1) if first else gain(out))

    twin.get_submodule(where).register_forward_hook(after)
    with load_adapter(adapter([made], classes=0), model, check_fingerprint=False):
        assert close(model(x), twin(x))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_sum_at_the_attention_is_what_the_next_norm_reads(family: str) -> None:
    name, sizes, where, known = FAMILIES[family]
    model, site = small(name, **sizes), Site.parse(f"{where}.attn")
    if not known:
        reason = "missing-site" if family == "convnext" else "unsupported-model"
        with pytest.raises(UnsupportedAdapterError) as caught:
            residual(model, site)
        assert caught.value.reason == reason and where in str(caught.value)
        return
    at, seen = residual(model, site), {}
    block = model.get_submodule(where)
    at.norm.register_forward_pre_hook(lambda _, args: seen.update(before=args[0].clone()))
    at.end.register_forward_hook(lambda _, args, out: seen.update(given=out.clone()))
    block.norm2.register_forward_pre_hook(lambda _, args: seen.update(after=args[0].clone()))
    model(torch.rand(2, 3, 32, 32))
    expected = (seen["before"] + seen["given"]).reshape(seen["after"].shape)
    assert not np.allclose(seen["given"], 0) and torch.allclose(expected, seen["after"], atol=1e-6)


def test_around_the_attention_is_known_of_blocks_that_are_known_around_the_mlp() -> None:
    assert _PRENORM_ATTENTION < _PRENORM


def test_a_width_that_does_not_fit() -> None:
    model = vit()
    before = snapshot(model)
    tensors = {"down": dense(3, 40), "up": dense(40, 3)}
    made = branch("blocks.0.attn", "adapter", tensors, nonlinearity="relu", scale=1.0, tap="sum")
    with pytest.raises(UnsupportedAdapterError) as caught:
        load_adapter(adapter([*lora_qv(), made], model), model)
    assert caught.value.reason == "site-shape" and "blocks.0.attn" in str(caught.value)
    assert same(snapshot(model), before)
