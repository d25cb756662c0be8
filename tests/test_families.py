"""Other families than the plain ViT: timm's own forward, with weights changed by hand, gives what loading gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

from adapterpack.adapter import Adapter, Backbone, Branch, Head, Site
from adapterpack.errors import UnsupportedAdapterError
from adapterpack.runtime.backbone import create_backbone, randomise
from adapterpack.runtime.export import export_folded
from adapterpack.runtime.families import classifier_path, features_of, mlp_ends, require_supported
from adapterpack.runtime.fingerprint import fingerprint
from adapterpack.runtime.load import load_adapter
from adapterpack.runtime.places import residual, resolve
from adapterpack.train.recipe import RECIPES
from adapterpack.train.trainee import Trainee
from tests._threads import one_thread
from tests._vit import array, branch, close, dense, same, snapshot

__all__ = ["one_thread"]  # a fixture

SIZE = 32
VIT = {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 32}
WINDOWS = {"embed_dim": 24, "depths": (1, 2), "num_heads": (2, 4), "img_size": 32, "window_size": 4}
STAGES = {"depths": (1, 2, 1, 1), "dims": (16, 32, 40, 48)}
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "swin": ("swin_tiny_patch4_window7_224", WINDOWS),
    "convnext": ("convnext_tiny", STAGES),
    "eva": ("eva02_tiny_patch14_224", {**VIT, "img_size": 28, "num_classes": 3}),
    "beit": ("beit_base_patch16_224", VIT),
    "deit": ("deit_tiny_patch16_224", VIT),
    "cait": ("cait_xxs24_224", VIT),
    "swinv2": ("swinv2_tiny_window8_256", WINDOWS),
    "convnext-conv": ("convnext_atto", STAGES),
}
MAIN = ("swin", "convnext", "eva")


def made(family: str, **more: Any) -> nn.Module:
    """A small model; its parameters differ enough for every one to matter."""
    name, kwargs = SMALL[family]
    model = timm.create_model(name, **{**kwargs, **more})
    randomise(model, 0)
    with torch.no_grad():
        for number, value in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(number)
            value.add_(torch.randn(value.shape, generator=generator) * 0.08)
    return model.requires_grad_(False).eval()


def pictures(family: str) -> torch.Tensor:
    size = SMALL[family][1].get("img_size", SIZE)
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def adapter(model: nn.Module, branches: Sequence[Branch], classes: int = 5) -> Adapter:
    head = Head(dense(classes, features_of(model), seed=7), dense(classes, seed=8)) if classes else None
    return Adapter("toy", "test", tuple(branches), head, backbone=Backbone("small", fingerprint(model)))


def lora(model: nn.Module, site: str, seed: int = 0) -> Branch:
    outward, inward = resolve(model, Site.parse(site)).shape("weight") or (0, 0)
    return branch(
        site, "lora", {"down": dense(2, inward, seed=seed), "up": dense(outward, 2, seed=seed + 1)}, scale=0.5
    )


def beside(model: nn.Module, site: str, seed: int = 0) -> Branch:
    width = residual(model, Site.parse(site)).width
    tensors = {"down": dense(3, width, seed=seed), "up": dense(width, 3, seed=seed + 1)}
    return branch(site, "adaptformer", tensors, scale=0.7)


def logits(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(x)
    return found


# site → (module whose weight is changed by hand, its rows)
Where = Callable[[Any], tuple[torch.Tensor, slice]]
LORA: dict[str, dict[str, Where]] = {
    "swin": {
        "layers.0.blocks.0.attn.qkv[q]": lambda m: (m.layers[0].blocks[0].attn.qkv.weight, slice(0, 24)),
        "layers.1.blocks.1.attn.qkv[v]": lambda m: (m.layers[1].blocks[1].attn.qkv.weight, slice(96, 144)),
        "layers.1.blocks.0.mlp.fc1": lambda m: (m.layers[1].blocks[0].mlp.fc1.weight, slice(None)),
        "layers.1.downsample.reduction": lambda m: (m.layers[1].downsample.reduction.weight, slice(None)),
    },
    "convnext": {
        "stages.0.blocks.0.mlp.fc1": lambda m: (m.stages[0].blocks[0].mlp.fc1.weight, slice(None)),
        "stages.1.blocks.1.mlp.fc2": lambda m: (m.stages[1].blocks[1].mlp.fc2.weight, slice(None)),
    },
    "eva": {
        "blocks.0.attn.qkv[q]": lambda m: (m.blocks[0].attn.qkv.weight, slice(0, 24)),
        "blocks.1.attn.qkv[k]": lambda m: (m.blocks[1].attn.qkv.weight, slice(24, 48)),
        "blocks.1.mlp.fc1": lambda m: (m.blocks[1].mlp.fc1.weight, slice(None)),
    },
    "beit": {"blocks.0.attn.qkv[v]": lambda m: (m.blocks[0].attn.qkv.weight, slice(48, 72))},
    "deit": {"blocks.1.attn.qkv[v]": lambda m: (m.blocks[1].attn.qkv.weight, slice(48, 72))},
    "cait": {
        "blocks.0.attn.qkv": lambda m: (m.blocks[0].attn.qkv.weight, slice(None)),
        "blocks.1.attn.qkv[v]": lambda m: (m.blocks[1].attn.qkv.weight, slice(48, 72)),
    },
    "swinv2": {"layers.1.blocks.0.attn.qkv[v]": lambda m: (m.layers[1].blocks[0].attn.qkv.weight, slice(96, 144))},
}  # fmt: skip


def head_by_hand(model: Any, task: Adapter) -> None:
    assert task.head is not None and task.head.bias is not None
    head = nn.Linear(*reversed(task.head.weight.shape))
    head.weight.data, head.bias.data = (torch.tensor(t.dense()) for t in (task.head.weight, task.head.bias))
    if hasattr(model.head, "fc"):
        model.head.fc = head
    else:
        model.head = head


@pytest.mark.parametrize("fold", ["auto", "never"])
@pytest.mark.parametrize("family", LORA)
def test_lora_is_what_changing_the_weights_by_hand_gives(family: str, fold: Any) -> None:
    model, x = made(family), pictures(family)
    task = adapter(model, [lora(model, site, seed) for seed, site in enumerate(LORA[family])])
    by_hand = made(family)
    for made_branch, where in zip(task.branches, LORA[family].values()):
        weight, rows = where(by_hand)
        down, up = (torch.tensor(made_branch.tensors[role].dense()) for role in ("down", "up"))
        weight[rows] += 0.5 * up @ down
    head_by_hand(by_hand, task)
    before = snapshot(model)
    plain = logits(model, x)
    loaded = load_adapter(task, model, fold=fold)
    found = logits(model, x)
    assert close(found, logits(by_hand, x)) and found.shape == (2, 5) and loaded.classes == 5
    loaded.unload()
    assert same(snapshot(model), before) and torch.equal(logits(model, x), plain)


MLPS = {
    "swin": ("layers.0.blocks.0.mlp", "layers.1.blocks.1.mlp"),
    "convnext": ("stages.0.blocks.0.mlp", "stages.1.blocks.1.mlp"),
    "convnext-conv": ("stages.0.blocks.0.mlp", "stages.1.blocks.1.mlp"),
    "eva": ("blocks.0.mlp", "blocks.1.mlp"),
    "beit": ("blocks.1.mlp",),
    "deit": ("blocks.0.mlp",),
    "cait": ("blocks.0.mlp", "blocks.1.mlp"),
}


def adaptformer_by_hand(model: nn.Module, task: Branch) -> None:
    """The block's own forward, with a sum in it: x + MLP(norm2(x)) + branch(x); in ConvNeXt, block(x) + branch(x)."""
    block = model.get_submodule(task.site.path.removesuffix(".mlp"))
    forward, down, up = block.forward, *(torch.tensor(task.tensors[role].dense()) for role in ("down", "up"))
    seen: list[torch.Tensor] = []

    def run(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        out = forward(x, *args, **kwargs)
        if "norm2" not in block._modules:
            gained = functional.relu(torch.einsum("bchw,dc->bdhw", x, down))
            return out + 0.7 * torch.einsum("bdhw,cd->bchw", gained, up)
        stream = seen.pop()
        return out + (0.7 * functional.relu(stream @ down.T) @ up.T).reshape(out.shape)

    if "norm2" in block._modules:
        norm = block.norm2.forward
        block.norm2.forward = lambda x: (seen.append(x), norm(x))[1]
    block.forward = run


@pytest.mark.parametrize("family", MLPS)
def test_adaptformer_is_what_a_sum_in_the_block_gives(family: str) -> None:
    model, x = made(family), pictures(family)
    task = adapter(model, [beside(model, site, seed) for seed, site in enumerate(MLPS[family])])
    by_hand = made(family)
    for one in task.branches:
        adaptformer_by_hand(by_hand, one)
    head_by_hand(by_hand, task)
    before, plain = snapshot(model), logits(model, x)
    loaded = load_adapter(task, model)
    assert close(logits(model, x), logits(by_hand, x))
    assert not close(logits(model, x)[:, :3], plain[:, :3])
    loaded.unload()
    assert same(snapshot(model), before)


def test_the_residual_stream_is_the_blocks() -> None:
    """Independently of any table: with an MLP that gives zeros, a block gives what norm2 was given."""
    for family in ("swin", "eva", "beit", "deit", "cait"):
        model = made(family)
        site = MLPS[family][0]
        block = model.get_submodule(site.removesuffix(".mlp"))
        seen: list[torch.Tensor] = []
        block.norm2.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].clone()))
        block.mlp.register_forward_hook(lambda _, args, out: torch.zeros_like(out))
        block.register_forward_hook(lambda _, args, out, seen=seen: seen.append(out.clone()))
        logits(model, pictures(family))
        assert torch.equal(seen[0].reshape(-1), seen[1].reshape(-1)), family


@pytest.mark.parametrize("family", ["eva", "beit", "swin", "cait"])
def test_keys_are_where_a_constant_does_not_matter(family: str) -> None:
    """Attention does not change when every key gains the same vector, which no other rows have in common."""
    model, x = made(family), pictures(family)
    site = next(site for site in LORA[family] if "qkv" in site).partition("[")[0]
    plain, changes = logits(model, x), {}
    for part in "qkv":
        start, length = resolve(model, Site(site, part)).rows or (0, 0)
        fresh = made(family)
        attention: Any = fresh.get_submodule(site.removesuffix(".qkv"))
        where = attention.qkv.bias
        if where is None:  # biases of q and v alone, and zeros for k
            where = getattr(attention, f"{part}_bias")
            start = 0
        with torch.no_grad():
            where[start : start + length] += torch.tensor(array(length, seed=3))
        changes[part] = float((logits(fresh, x) - plain).abs().max())
    if family != "eva":  # EVA turns keys by their position, so that a constant does matter
        assert changes["k"] < 1e-4 * max(changes["q"], changes["v"])
    assert changes["v"] > 1e-4
    assert family == "cait" or changes["q"] > 1e-4  # whose attention is nearly uniform with random weights


def test_evas_separate_projections() -> None:
    model, x = made("eva", qkv_fused=False), pictures("eva")
    task = adapter(model, [lora(model, "blocks.0.attn.qkv[q]"), lora(model, "blocks.1.attn.v_proj", 5)])
    by_hand: Any = made("eva", qkv_fused=False)
    for one, weight in zip(task.branches, (by_hand.blocks[0].attn.q_proj.weight, by_hand.blocks[1].attn.v_proj.weight)):
        weight += 0.5 * torch.tensor(one.tensors["up"].dense() @ one.tensors["down"].dense())
    head_by_hand(by_hand, task)
    with load_adapter(task, model):
        assert close(logits(model, x), logits(by_hand, x))


@pytest.mark.parametrize("family", ["beit", "swinv2"])
def test_a_layer_that_is_read_but_not_called(family: str) -> None:
    """A hook on it would do nothing: foldable methods change the weight even with fold="never", others are refused."""
    model = made(family)
    site = next(iter(LORA[family]))
    width = resolve(model, Site.parse(site)).shape("weight")[0]  # type: ignore[index]
    tensors = {"down": dense(2, width), "up": dense(width, 2)}
    before = snapshot(model)
    with pytest.raises(UnsupportedAdapterError, match="without calling") as error:
        load_adapter(
            adapter(model, [branch(site, "adapter", tensors, nonlinearity="gelu", scale=1.0, tap="output")]), model
        )
    assert error.value.reason == "unsupported-model" and same(snapshot(model), before)


@pytest.mark.parametrize(
    ("family", "site", "method", "told"),
    [
        ("convnext", "stem.0", "lora", "convolution"),
        ("convnext-conv", "stages.0.blocks.0.mlp.fc1", "lora", "convolution"),
        ("convnext", "stages.1.downsample.1", "lora", "convolution"),
        ("convnext", "stages.0.blocks.0.conv_dw", "lora", "convolution"),
        ("swin", "layers.0.blocks.0.attn.qkvx", "lora", "has qkv"),
        ("swin", "head.fc", "lora", "classifier"),
        ("swinv2", "layers.0.blocks.0.mlp", "adaptformer", "SwinTransformerV2Block"),
        ("swin", "layers.0.blocks.0.norm1", "adaptformer", "mlp or attn"),
        ("cait", "blocks.0.attn", "adaptformer", "around its attention"),
        ("swin", "layers.0.blocks.5.mlp", "adaptformer", "layers.0.blocks has 0"),
    ],
)
def test_refused_by_name(family: str, site: str, method: str, told: str) -> None:
    model = made(family)
    before = snapshot(model)
    one = branch(site, method, {"down": dense(2, 24), "up": dense(24, 2)}, scale=1.0)
    with pytest.raises(UnsupportedAdapterError, match=told) as error:
        load_adapter(adapter(model, [one]), model)
    assert site in str(error.value) and same(snapshot(model), before)


def test_rows_of_unknown_attentions_are_not_guessed() -> None:
    """TinyViT's are interleaved head by head; the whole of qkv is a site all the same."""
    with torch.device("meta"):
        model = timm.create_model("tiny_vit_5m_224")
    with pytest.raises(UnsupportedAdapterError, match="not known to be q, k and v"):
        resolve(model, Site.parse("stages.1.blocks.0.attn.qkv[q]"))
    assert resolve(model, Site.parse("stages.1.blocks.0.attn.qkv")).rows is None


def test_an_overridden_forward_is_another_block() -> None:
    class Mine(timm.models.swin_transformer.SwinTransformerBlock):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    block = made("swin").get_submodule("layers.0.blocks.0")
    assert mlp_ends(block) is not None
    block.__class__ = Mine
    assert mlp_ends(block) is None


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("resnet10t", "no linear layer"),
        ("deit_tiny_distilled_patch16_224", "two heads"),
        ("volo_d1_224", "two heads"),
        ("levit_128s", "two heads"),
        ("vgg11", "no linear layer"),
        ("inception_next_atto", "without a linear classifier"),
        ("crossvit_tiny_240", "without a linear classifier"),
    ],
)
def test_models_that_are_refused(name: str, told: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(UnsupportedAdapterError, match=told) as error:
        require_supported(model)
    assert error.value.reason == "unsupported-model"


# --- head, fingerprint, files ---


@pytest.mark.parametrize("family", ["swin", "convnext", "cait"])
def test_a_model_without_a_classifier_gets_one(family: str) -> None:
    model, x = made(family, num_classes=0), pictures(family)
    assert classifier_path(model) == ("head" if family == "cait" else "head.fc")
    task, before = adapter(model, []), snapshot(model)
    by_hand = made(family, num_classes=0)
    head_by_hand(by_hand, task)
    with load_adapter(task, model) as loaded:
        assert close(logits(model, x), logits(by_hand, x)) and loaded.classes == 5
    assert same(snapshot(model), before)


@pytest.mark.parametrize("family", ["swin", "convnext", "eva"])
def test_the_fingerprint_leaves_out_the_classifier_alone(family: str) -> None:
    model: Any = made(family, num_classes=4)
    first = fingerprint(model)
    assert fingerprint(model.state_dict()) == first
    head = model.get_submodule(classifier_path(model))
    with torch.no_grad():
        head.weight.add_(1)
    assert fingerprint(model) == first == fingerprint(model.state_dict())
    inside = model.head.norm if family == "convnext" else (model.fc_norm if family == "eva" else model.norm)
    with torch.no_grad():
        inside.bias.add_(1)  # ConvNeXt's last norm is in its head, and belongs to the backbone
    assert fingerprint(model) != first


@pytest.mark.parametrize("family", MAIN)
def test_folded_export_is_a_backbone_again(family: str, tmp_path: Path) -> None:
    model, x = made(family), pictures(family)
    sites = list(LORA[family])[:2]
    name, kwargs = SMALL[family]
    with load_adapter(adapter(model, [lora(model, site) for site in sites]), model, fold="always"):
        expected = logits(model, x)
        export_folded(model, tmp_path / "folded.safetensors")
    fresh = timm.create_model(
        name, **{**kwargs, "num_classes": 5}, checkpoint_path=str(tmp_path / "folded.safetensors")
    )
    assert torch.equal(logits(fresh.eval(), x), expected)


def test_random_backbones_by_name() -> None:
    made_one = create_backbone("convnext_atto", pretrained=False, seed=3)
    again = create_backbone("convnext_atto", pretrained=False, seed=3)
    assert fingerprint(made_one.model) == fingerprint(again.model)
    assert made_one.data.input_size[0] == 3
    assert bool(torch.isfinite(logits(made_one.model, torch.rand(1, 3, 64, 64))).all())


# --- training ---


@pytest.mark.parametrize(
    ("family", "method", "sites"),
    [
        ("swin", "lora", 6),
        ("swin", "adaptformer", 3),
        ("convnext", "lora", 10),
        ("convnext", "adaptformer", 5),
        ("eva", "lora", 4),  # whose qkv is read without being called
        ("eva", "adaptformer", 2),
        ("cait", "lora", 4),
        ("cait", "adaptformer", 2),
        ("beit", "lora", 4),
        ("beit", "adaptformer", 2),
    ],
)
def test_training_and_loading_agree(family: str, method: str, sites: int) -> None:
    torch.manual_seed(0)  # two hidden units may both be dead, and drop path may drop every step
    model, x = made(family), pictures(family)
    before = snapshot(model)
    recipe = replace(RECIPES[method], bits=32, dim=2, scale=1.0, drop_path=0.1)
    trainee = Trainee(model, recipe, 5)
    trainee.train()
    optimiser = torch.optim.SGD(list(trainee.trained().values()), 0.5)
    for _ in range(3):
        optimiser.zero_grad()
        functional.cross_entropy(trainee(x), torch.tensor([0, 3])).backward()
        optimiser.step()
    trainee.eval()
    expected = logits(trainee, x)
    task = trainee.adapter("toy", backbone=Backbone("small"))
    trainee.close()
    assert same(snapshot(model), before) and len(task.branches) == sites
    assert any(np.abs(one.tensors["up"].dense()).max() > 0 for one in task.branches)
    with load_adapter(task, model, check_fingerprint=False):
        assert close(logits(model, x), expected)


def test_training_refuses_what_it_cannot_do() -> None:
    """Statistics of batch norms would change without being part of an adapter."""
    model = timm.create_model("xcit_nano_12_p8_224")
    with pytest.raises(UnsupportedAdapterError, match="batch norm"):
        Trainee(model, replace(RECIPES["lora"], dim=2, scale=1.0), 5)
