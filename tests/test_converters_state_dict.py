"""State dicts in the three trainers' names, written out here by hand, against dense sums of what they mean."""

# ruff: noqa: E501 (a bad case a line)

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from adapterpack.adapter import Adapter, DataSettings
from adapterpack.converters._base import Hints
from adapterpack.converters.petl_vit import PetlVit
from adapterpack.converters.spt_mask import SptMask
from adapterpack.converters.state_dict import adapter_from
from adapterpack.errors import AdapterPackError
from adapterpack.quantize import quantize_latent
from adapterpack.tensors import same_tensor
from tests._converter_samples import CLASSES, DEPTH, WIDTH, backbone, normal, petl_adapter, silent

State = dict[str, NDArray[np.float32]]
BASE = backbone()
HINTS = Hints(backbone=BASE)


def head() -> State:
    return {"head.weight": normal(7, CLASSES, WIDTH), "head.bias": normal(8, CLASSES)}


def petl_state(method: str = "lora", dim: int = 4) -> State:
    """The latents from which `petl_adapter` is quantized."""
    modules = {"lora": ("attn.lora_q", "attn.lora_v"), "adaptformer": ("adapter_mlp",)}[method]
    state: State = {}
    for block in range(DEPTH):
        for k, module in enumerate(modules):
            state[f"blocks.{block}.{module}.adapter_down.weight"] = normal(10 * block + k, dim, WIDTH)
            state[f"blocks.{block}.{module}.adapter_up.weight"] = normal(100 + 10 * block + k, WIDTH, dim)
    return state | head()


def consolidator_state(groups: tuple[int, ...] = (8,), seed: int = 50) -> State:
    """A full state dict: trained biases and norms, frozen weights as convolutions."""
    state = {name: value for name, value in BASE.items() if ".attn." not in name and ".mlp." not in name}
    for i in range(DEPTH):
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            name = f"blocks.{i}.{layer}"
            weight, bias = BASE[f"{name}.weight"], BASE[f"{name}.bias"]
            state[f"{name}.fc_origin.weight"] = weight[:, :, None]
            state[f"{name}.fc_origin.bias"] = bias + np.float32(1)
            for k, g in enumerate(groups):
                state[f"{name}.fc_rep_branches.{k}.group_fc.weight"] = normal(
                    seed + k, len(weight), weight.shape[1] // g, 1
                )
                state[f"{name}.fc_rep_branches.{k}.group_fc.bias"] = normal(seed + 9 + k, len(weight))
        state[f"blocks.{i}.norm1.weight"] = normal(60 + i, WIDTH)
    return state | head()


def spt_state(variant: str = "lora") -> tuple[State, SptMask]:
    """Everything that SPT trains, at least once, and the mask it belongs to."""
    state = {name: value for name, value in BASE.items() if ".attn.qkv." not in name} | head()
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(DEPTH):
        for part, letter in enumerate("qkv"):
            rows = slice(part * WIDTH, (part + 1) * WIDTH)
            for role in ("weight", "bias"):
                state[f"blocks.{i}.attn.{letter}.{role}"] = BASE[f"blocks.{i}.attn.qkv.{role}"][rows]
        for name in ("attn.k.weight", "attn.v.weight", "mlp.fc1.bias", "norm2.weight"):
            shapes[f"blocks.{i}.{name}"] = state[f"blocks.{i}.{name}"].shape
    at = {"blocks.0.attn.k.weight": [0, 17, 255], "blocks.0.norm2.weight": [3], "blocks.1.mlp.fc1.bias": [5, 63]}
    starts = dict(zip(shapes, np.cumsum([0, *(int(np.prod(shape)) for shape in shapes.values())])))
    indexes = np.array([starts[name] + p for name in shapes for p in at.get(name, [])], np.int64)
    matrices = ((True, False, False, True, False, False), (False, False, False, False, True, False))
    for module, out, into in (
        ("blocks.0.attn.structured_q", 16, 16),
        ("blocks.0.attn.structured_proj", 16, 16),
        ("blocks.1.mlp.structured_fc1", 64, 16),
    ):
        last = 1 if variant == "lora" else 2
        state[f"{module}.learnable.0.weight"] = normal(70, 8, into if variant == "lora" else out)
        state[f"{module}.learnable.{last}.weight"] = normal(71, out, 8)
        if variant == "adapter":
            state |= {f"{module}.learnable.0.bias": normal(72, 8), f"{module}.learnable.2.bias": normal(73, out)}
    state["blocks.0.attn.k.sparse_weight"] = normal(74, 3)
    state["blocks.1.mlp.fc1.sparse_bias"] = normal(75, 2)
    state["blocks.1.attn.q.bias"] = normal(76, WIDTH)
    state["blocks.0.norm1.bias"] = normal(77, WIDTH)
    state["cls_token"] = normal(78, 1, 1, WIDTH)
    vectors = ("blocks.1.attn.q.bias", "blocks.0.norm1.bias")
    return state, SptMask(shapes, indexes, matrices, vectors, 0, 0.0)


def tensors_of(adapter: Adapter) -> dict[tuple[str, str, str], Any]:
    return {(str(b.site), b.method, role): tensor for b in adapter.branches for role, tensor in b.tensors.items()}


@pytest.mark.parametrize("method", ["lora", "adaptformer"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_petl_latents_are_quantized_as_in_training(method: str, bits: int, tmp_path: Path) -> None:
    settings = {"scale": 10.0, "bit": bits, "dim": 4, "method": method, "num_class": CLASSES, "dataset": "cifar"}
    imported = adapter_from(petl_state(method) | BASE, settings, replace(HINTS, backbone_name="small_vit"), "run")
    assert imported.adapter.same_as(petl_adapter(method, bits))
    assert imported.notes == (f"dropped {len(BASE)} frozen tensors equal to the backbone's",)
    PetlVit().write(imported.adapter, tmp_path / "x.bin", force=False)


def test_petl_floats_stay_dense_and_a_bihead_has_one_bit() -> None:
    state = petl_state()
    adapter = adapter_from(state, {"scale": 1.0, "bit": 32}, Hints(), "run").adapter
    found = tensors_of(adapter)
    assert np.array_equal(
        found["blocks.1.attn.qkv[v]", "lora", "up"].data, state["blocks.1.attn.lora_v.adapter_up.weight"]
    )
    del state["head.bias"]
    adapter = adapter_from(state, {"scale": 1.0, "bit": 4, "method": "lora-bihead"}, Hints(), "run").adapter
    assert adapter.head is not None and adapter.head.bias is None
    assert same_tensor(adapter.head.weight, quantize_latent(state["head.weight"], 1))


def test_a_head_has_one_bit_only_where_that_is_said() -> None:
    """A head that lost its bias must not be quantized for it."""
    state, said = petl_state(), {"scale": 1.0, "bit": 4}
    del state["head.bias"]
    with pytest.raises(AdapterPackError, match=r"head\.bias is missing .*bihead") as caught:
        adapter_from(state, said, Hints(), "run")
    assert caught.value.reason == "missing-tensor"
    for more, bits in (({"bihead": True}, 1), ({"method": "lora-bihead"}, 1), ({"head_bias": "none"}, 32)):
        found = adapter_from(state, {**said, **more}, Hints(), "run").adapter.head
        assert found is not None and found.bias is None and getattr(found.weight, "bits", 32) == bits
    with pytest.raises(AdapterPackError, match=r"head\.bias is missing"):
        adapter_from(state, {**said, "method": "lora"}, Hints(), "run")


@pytest.mark.parametrize("variant", ["lora", "adapter"])
def test_spt_and_consolidator_need_the_heads_bias(variant: str) -> None:
    state, mask = spt_state(variant)
    for values, settings, given in ((state, {}, mask), (consolidator_state(), {"reorder": True}, None)):
        bare = {name: value for name, value in values.items() if name != "head.bias"}
        with pytest.raises(AdapterPackError, match=r"head\.bias is missing") as caught:
            adapter_from(bare, settings, HINTS, "run", given)
        assert caught.value.reason == "missing-tensor"
        none = {name: value for name, value in bare.items() if name != "head.weight"}
        assert any("no head" in note for note in adapter_from(none, settings, HINTS, "run", given).notes)


def test_values_quantized_already_are_not_quantized_again() -> None:
    state = petl_state()
    name = "blocks.0.attn.lora_q.adapter_up.weight"
    state[name] = quantize_latent(state[name], 1).dense()
    with pytest.raises(AdapterPackError, match="quantized already") as caught:
        adapter_from(state, {"scale": 1.0, "bit": 1}, Hints(), "run")
    assert caught.value.reason == "bad-source"


@pytest.mark.parametrize(
    ("groups", "reorder"),
    [((8,), True), ((8,), False), ((8, 8), True), ((4, 8), True), ((4, 8), False), ((2, 4, 8), False)],
)
def test_consolidator_is_the_sum_of_its_branches(groups: tuple[int, ...], reorder: bool) -> None:
    state = consolidator_state(groups)
    imported = adapter_from(state, {"reorder": reorder}, HINTS, "run")
    for i in range(DEPTH):
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            name = f"blocks.{i}.{layer}"
            here = [b for b in imported.adapter.sites[name] if b.method == "consolidator"]
            assert len(here) == (1 if not reorder else len(set(groups)))
            weight = state[f"{name}.fc_origin.weight"]
            expected = np.zeros(weight.shape[:2])
            for k, g in enumerate(groups):
                expected += spread(state[f"{name}.fc_rep_branches.{k}.group_fc.weight"][:, :, 0], g, reorder=reorder)
            found = sum(spread(b.tensors["weight"].dense(), b.params["groups"], reorder=reorder) for b in here)
            assert np.abs(found - expected).max() < 1e-6
            bias = state[f"{name}.fc_origin.bias"]
            for k in range(len(groups)):
                bias = bias + state[f"{name}.fc_rep_branches.{k}.group_fc.bias"]
            assert np.array_equal(tensors_of(imported.adapter)[name, "replace", "bias"].data, bias)
    trained = {key for key in tensors_of(imported.adapter) if key[1] == "replace" and "norm" in key[0]}
    assert trained == {(f"blocks.{i}.norm1", "replace", "weight") for i in range(DEPTH)}
    assert imported.notes == (f"dropped {8 + 4 + 3 * DEPTH + 2} frozen tensors equal to the backbone's",)


def spread(weight: NDArray[np.float32], groups: int, *, reorder: bool) -> NDArray[np.float64]:
    outward, c = weight.shape
    out = np.zeros((outward, c * groups))
    for r in range(outward):
        for t in range(c):
            m = r // (outward // groups) * c + t
            out[r, (m % groups) * c + m // groups if reorder else m] = weight[r, t]
    return out


def test_consolidator_without_a_backbone_keeps_what_its_recipe_trains() -> None:
    imported = adapter_from(consolidator_state(), {"reorder": False}, Hints(), "run")
    kept = {key[0] for key in tensors_of(imported.adapter) if key[1] == "replace"}
    layers = {
        f"blocks.{i}.{m}"
        for i in range(DEPTH)
        for m in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "norm1", "norm2")
    }
    assert kept == layers | {"norm"}
    assert imported.notes[1:] == ("dropped 12 frozen tensors (not compared: no backbone was given)",)
    assert imported.notes[0].startswith("2 blocks, as many as the file has")


def test_a_backbone_with_the_mean_of_its_patches_tells_its_depth() -> None:
    """timm calls its last norm otherwise."""
    pooled = {name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: v for name, v in BASE.items()}
    state = {name: value for name, value in petl_state().items() if not name.startswith("blocks.1.")}
    with pytest.raises(AdapterPackError, match=r"blocks\.1\.attn"):
        adapter_from(state, LORA, Hints(backbone=pooled), "run")


@pytest.mark.parametrize("variant", ["lora", "adapter"])
def test_spt(variant: str) -> None:
    state, mask = spt_state(variant)
    imported = adapter_from(state, {}, HINTS, "run", mask)
    found = tensors_of(imported.adapter)
    assert imported.adapter.method == f"spt-{variant}"
    assert np.array_equal(
        found["blocks.0.attn.qkv[q]", variant, "down"].data, state["blocks.0.attn.structured_q.learnable.0.weight"]
    )
    params = {str(b.site): b.params for b in imported.adapter.branches if b.method == variant}
    taps = [
        {"nonlinearity": "gelu", "tap": tap} if variant == "adapter" else {} for tap in ("output", "input", "output")
    ]
    assert [params[site] for site in ("blocks.0.attn.qkv[q]", "blocks.0.attn.proj", "blocks.1.mlp.fc1")] == [
        {"scale": 1.0, **tap} for tap in taps
    ]
    sparse = np.zeros(256, np.float32)
    sparse[[0, 17, 255]] = state["blocks.0.attn.k.sparse_weight"]
    assert np.array_equal(found["blocks.0.attn.qkv[k]", "sparse", "weight"].dense(), sparse.reshape(16, 16))
    assert list(found["blocks.1.mlp.fc1", "sparse", "bias"].positions) == [5, 63]
    replaced = {key: tensor.data for key, tensor in found.items() if key[1] == "replace"}
    assert replaced.keys() == {
        ("blocks.1.attn.qkv[q]", "replace", "bias"),
        ("blocks.0.norm1", "replace", "bias"),
        ("cls_token", "replace", "value"),
    }
    assert np.array_equal(replaced["blocks.1.attn.qkv[q]", "replace", "bias"], state["blocks.1.attn.q.bias"])
    assert any("1 mask entries on LayerNorms" in note for note in imported.notes)
    bare = adapter_from(state, {}, Hints(), "run", mask)
    assert bare.adapter.same_as(imported.adapter)
    assert "not compared" in bare.notes[-1]


def test_recipes_keep_their_preprocessing_at_the_backbones_size() -> None:
    own = DataSettings((3, 32, 48), (0.4,) * 3, (0.2,) * 3, "bilinear", 0.9, "center")
    imagenet = DataSettings((3, 32, 48), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    hints = replace(HINTS, data=own)
    assert adapter_from(consolidator_state(), {"reorder": True}, hints, "run").adapter.data == imagenet
    state, mask = spt_state()
    assert adapter_from(state, {}, hints, "run", mask).adapter.data == imagenet
    assert adapter_from(head(), {}, hints, "run").adapter.data == own
    assert adapter_from(head(), {}, HINTS, "run").adapter.data is None
    grey = replace(hints, data=replace(own, input_size=(1, 8, 8), mean=(0.1,), std=(0.3,)))
    found = adapter_from(consolidator_state(), {"reorder": True}, grey, "run").adapter.data
    assert found == DataSettings((1, 8, 8), (0.1,), (0.3,))


def test_plain_names() -> None:
    tuned = BASE | head() | {"blocks.0.norm1.bias": normal(1, WIDTH), "cls_token": normal(2, 1, 1, WIDTH)}
    imported = adapter_from(tuned, {}, HINTS, "run")
    assert set(tensors_of(imported.adapter)) == {
        ("blocks.0.norm1", "replace", "bias"),
        ("cls_token", "replace", "value"),
    }
    assert adapter_from(head(), {}, Hints(), "run").adapter.method == "linear"
    listed = adapter_from(tuned, {"trained": ["blocks.*.norm1.bias"]}, Hints(), "run").adapter
    assert set(tensors_of(listed)) == {(f"blocks.{i}.norm1", "replace", "bias") for i in range(DEPTH)}
    own = BASE | {"pre_logits.fc.weight": normal(3, 2, 2)}
    assert "dropped" in adapter_from(own | head(), {}, Hints(backbone=own), "run").notes[0]


Change = Callable[[State], object]
LORA = {"scale": 1.0, "bit": 1}
BAD: dict[str, tuple[State, dict[str, Any], Hints, Change, str, str]] = {
    "missing matrix": (petl_state(), LORA, Hints(), lambda s: s.pop("blocks.1.attn.lora_v.adapter_up.weight"), "missing-tensor", "blocks.1.attn.lora_v.adapter_up"),
    "missing everywhere": (petl_state(dim=4), LORA, Hints(), lambda s: [s.pop(k) for k in list(s) if "_up" in k], "missing-tensor", "up"),
    "no value anywhere": (petl_state(), LORA, Hints(), lambda s: [s.pop(k) for k in list(s) if "lora_v" in k], "missing-tensor", "blocks.0.attn.lora_v.adapter_down.weight"),
    "missing block": (petl_state(), LORA | {"depth": 3}, Hints(), lambda s: None, "missing-tensor", "blocks.2."),
    "missing block of a known backbone": (petl_state(), LORA | {"backbone": "vit_base_patch16_224_in21k"}, Hints(), lambda s: None, "missing-tensor", "blocks.2."),
    "extra matrix": (petl_state(), LORA, Hints(), lambda s: s.update({"blocks.0.attn.lora_k.adapter_up.weight": normal(0, 16, 4)}), "unmapped-tensor", "lora_k"),
    "unknown key": (petl_state(), LORA, Hints(), lambda s: s.update({"foo": normal(0, 3)}), "unmapped-tensor", "foo"),
    "wrong rank": (petl_state(), LORA, Hints(), lambda s: s.update({"blocks.0.attn.lora_q.adapter_down.weight": normal(0, 8, 16)}), "bad-shape", "8 rows"),
    "a vector for a matrix": (petl_state(), LORA, Hints(), lambda s: s.update({"blocks.0.attn.lora_q.adapter_down.weight": normal(0, 64)}), "bad-shape", "2 dimension"),
    "another dim": (petl_state(), LORA | {"dim": 8}, Hints(), lambda s: None, "conflicting-settings", "dim"),
    "another num_class": (petl_state(), LORA | {"num_class": 6}, Hints(), lambda s: None, "conflicting-settings", "num_class"),
    "another method": (petl_state(), LORA | {"method": "adaptformer"}, Hints(), lambda s: None, "conflicting-settings", "method"),
    "bihead with a bias": (petl_state(), LORA | {"method": "lora-bihead"}, Hints(), lambda s: None, "conflicting-settings", "bihead"),
    "no scale": (petl_state(), {"bit": 1}, Hints(), lambda s: None, "missing-field", "scale"),
    "no bit": (petl_state(), {"scale": 1.0}, Hints(), lambda s: None, "missing-field", "bit"),
    "3 bits": (petl_state(), {"scale": 1.0, "bit": 3}, Hints(), lambda s: None, "bad-parameter", "bit is 3"),
    "frozen without a backbone": (petl_state() | BASE, LORA, Hints(), lambda s: None, "bad-call", "--backbone"),
    "a changed frozen matrix": (petl_state() | BASE, LORA, HINTS, lambda s: s.update({"pos_embed": normal(0, 1, 5, 16)}), "backbones-differ", "pos_embed"),
    "another backbone's shape": (petl_state() | BASE, LORA, HINTS, lambda s: s.update({"norm.bias": normal(0, 8)}), "site-shape", "norm.bias"),
    "another backbone's depth": (BASE | head(), {}, HINTS, lambda s: s.update({"blocks.7.norm1.bias": normal(0, 16)}), "missing-site", "blocks.7.norm1.bias"),
    "trained nothing": (BASE | head(), {"trained": ["nrom.*"]}, HINTS, lambda s: None, "bad-call", "nrom"),
    "two trainers": (petl_state(), LORA, HINTS, lambda s: s.update({"blocks.0.attn.q.sparse_bias": normal(0, 1)}), "ambiguous-source", "spt"),
    "no reorder": (consolidator_state(), {}, HINTS, lambda s: None, "missing-field", "reorder"),
    "norms left out": (consolidator_state(), {"reorder": True}, HINTS, lambda s: s.pop("blocks.1.norm2.bias"), "missing-tensor", "blocks.1.norm2.bias"),
    "biases left out": (consolidator_state(), {"reorder": True}, HINTS, lambda s: s.pop("blocks.0.mlp.fc1.fc_origin.bias"), "missing-tensor", "fc_origin.bias"),
    "a branch left out": (consolidator_state((4, 8)), {"reorder": True}, HINTS, lambda s: s.pop("blocks.1.mlp.fc2.fc_rep_branches.1.group_fc.weight"), "missing-tensor", "fc_rep_branches.1"),
    "a layer's branches left out": (consolidator_state(), {"reorder": True}, HINTS, lambda s: [s.pop(k) for k in list(s) if ".fc1.fc_rep" in k], "missing-tensor", "blocks.0.mlp.fc1.fc_rep_branches.0.group_fc.weight"),
    "the first branch left out": (consolidator_state((4, 8)), {"reorder": True}, HINTS, lambda s: [s.pop(k) for k in list(s) if "branches.0." in k], "missing-tensor", "fc_rep_branches.0"),
    "weights left out": (consolidator_state((4, 8)), {"reorder": True}, HINTS, lambda s: [s.pop(k) for k in list(s) if "branches.1.group_fc.weight" in k], "missing-tensor", "fc_rep_branches.1.group_fc.weight"),
    "a layer's biases left out": (consolidator_state((4, 8)), {"reorder": True}, HINTS, lambda s: [s.pop(k) for k in list(s) if "fc1.fc_rep_branches.1.group_fc.bias" in k], "missing-tensor", "blocks.0.mlp.fc1.fc_rep_branches.1.group_fc.bias"),
    "other frozen weights": (consolidator_state(), {"reorder": True}, HINTS, lambda s: s.update({"blocks.1.mlp.fc1.fc_origin.weight": normal(0, 64, 16, 1)}), "backbones-differ", "blocks.1.mlp.fc1.fc_origin.weight"),
    "groups that do not divide": (consolidator_state(), {"reorder": True}, HINTS, lambda s: s.update({"blocks.1.mlp.fc1.fc_rep_branches.0.group_fc.weight": normal(0, 64, 3, 1)}), "bad-shape", "64, 3"),
    "nothing trained": (dict(BASE), {}, HINTS, lambda s: None, "bad-source", "nothing"),
    "a head without weight": (petl_state(), LORA, Hints(), lambda s: s.pop("head.weight"), "missing-tensor", "head.weight"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_explained_is_named(what: str) -> None:
    state, settings, hints, change, reason, name = BAD[what]
    state = dict(state)
    change(state)
    with pytest.raises(AdapterPackError) as caught:
        adapter_from(state, settings, hints, "run")
    assert (caught.value.reason, name in str(caught.value)) == (reason, True), caught.value


SPT_BAD: dict[str, tuple[Change, str, str]] = {
    "module not in the mask": (lambda s: s.update({f"blocks.1.attn.structured_k.learnable.{i}.weight": normal(0, *shape) for i, shape in ((0, (8, 16)), (1, (16, 8)))}), "unmapped-tensor", "blocks.1.attn.k"),
    "module missing": (lambda s: [s.pop(k) for k in list(s) if "structured_fc1" in k], "missing-tensor", "blocks.1.mlp.fc1"),
    "entries missing": (lambda s: s.pop("blocks.0.attn.k.sparse_weight"), "missing-tensor", "blocks.0.attn.k.sparse_weight"),
    "entries the mask has not": (lambda s: s.update({"blocks.0.attn.v.sparse_weight": normal(0, 2)}), "unmapped-tensor", "blocks.0.attn.v.sparse_weight"),
    "another number of entries": (lambda s: s.update({"blocks.0.attn.k.sparse_weight": normal(0, 4)}), "bad-shape", "3 positions"),
    "a vector missing": (lambda s: s.pop("blocks.1.attn.q.bias"), "missing-tensor", "blocks.1.attn.q.bias"),
    "no class token": (lambda s: s.pop("cls_token"), "missing-tensor", "cls_token"),
}  # fmt: skip


@pytest.mark.parametrize("what", SPT_BAD)
def test_spt_must_agree_with_its_mask(what: str) -> None:
    change, reason, name = SPT_BAD[what]
    state, mask = spt_state()
    change(state)
    with pytest.raises(AdapterPackError) as caught:
        adapter_from(state, {}, HINTS, "run", mask)
    assert (caught.value.reason, name in str(caught.value)) == (reason, True), caught.value


def test_spt_modules_without_a_mask_are_told_to_be_uncompared() -> None:
    state, mask = spt_state()
    state = {name: value for name, value in state.items() if ".sparse_" not in name}
    assert any("mask" in note for note in adapter_from(state, {}, HINTS, "run").notes)
    assert not any("without" in note for note in adapter_from(spt_state()[0], {}, HINTS, "run", mask).notes)


@pytest.mark.parametrize("variant", ["lora", "adapter"])
def test_an_spt_module_is_whole(variant: str) -> None:
    """One tensor less, whichever: an adapter without a bias would give other logits."""
    state, mask = spt_state(variant)
    names = [name for name in state if ".learnable." in name]
    assert len(names) == 3 * (2 if variant == "lora" else 4)
    for name in names:
        with pytest.raises(AdapterPackError, match=name.replace(".", r"\.")) as caught:
            adapter_from({n: value for n, value in state.items() if n != name}, {}, HINTS, "run", mask)
        assert caught.value.reason == "missing-tensor"


@pytest.mark.parametrize("hints", [Hints(), HINTS])
def test_nothing_goes_missing_in_silence(hints: Hints) -> None:
    cases: list[tuple[State, dict[str, Any], SptMask | None]] = [
        (petl_state(), LORA, None),
        (petl_state("adaptformer"), LORA, None),
        (consolidator_state((4, 8)), {"reorder": True}, None),
        *((state, {}, mask) for state, mask in map(spt_state, ("lora", "adapter"))),
    ]
    for state, settings, mask in cases:
        assert silent(state, lambda s, w=settings, m=mask: adapter_from(s, w, hints, "run", m)) == []


def test_spt_entries_need_the_mask() -> None:
    with pytest.raises(AdapterPackError, match=r"param_req_") as caught:
        adapter_from(spt_state()[0], {}, HINTS, "run")
    assert caught.value.reason == "missing-tensor"
