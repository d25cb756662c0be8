"""PEFT folders, made by PEFT itself: the same outputs after loading, the way back, and refusals by name."""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models import VisionTransformer
from torch import nn

from adapterpack import Branch, Dense, Head, Site
from adapterpack.adapter import Adapter, Backbone, DataSettings
from adapterpack.converters import CONVERTERS, recognise
from adapterpack.converters._base import Hints
from adapterpack.converters.peft import Peft
from adapterpack.errors import AdapterPackError, CorruptFileError, UnsupportedAdapterError
from adapterpack.exchange import pack, unpack
from adapterpack.runtime.load import load_adapter
from adapterpack.tensors import F32
from tests._hf import (
    CLASSES,
    DEPTH,
    WIDTH,
    close,
    digest_of,
    fill,
    hf_model,
    images,
    outputs,
    quiet,
    timm_model,
    timm_twin,
)

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
PEFT = CONVERTERS["peft"]


def trained(model: nn.Module, config: Any) -> Any:
    """A model of PEFT's with random numbers in everything that it trains."""
    import peft

    with quiet():
        made = peft.get_peft_model(model, config)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(7)
        for name, value in made.named_parameters():
            if "magnitude" in name or "ia3_" in name:
                value.mul_(1 + 0.5 * torch.rand(value.shape, generator=generator))
            elif value.requires_grad:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    return made.eval()


def lora(**settings: Any) -> Any:
    import peft

    return peft.LoraConfig(**{"r": 3, "lora_alpha": 6, "target_modules": ["qkv", "fc1"], **settings})


def saved(model: Any, folder: Path, **options: Any) -> Path:
    with quiet():
        model.save_pretrained(folder, **options)
    return folder


def reads(folder: Path, model: nn.Module, **hints: Any) -> torch.Tensor:
    """What a timm model gives with the folder's adapter in it."""
    adapter = PEFT.read(folder, Hints(**hints)).adapter
    with load_adapter(adapter, model, check_fingerprint=False), torch.no_grad():
        return model(images())


def theirs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(images())


HF_TARGETS: dict[str, list[list[str] | str]] = {
    "vit": [["query", "value"], ["query", "key", "value", "dense"], r".*layer\.\d.attention\.attention\.(query|value)"],
    "deit": [["key", "attention.output.dense"], ["intermediate.dense", "output.dense"]],
    "dinov2": [["query", "value"], ["fc1", "fc2", "key"]],
    "clip": [["q_proj", "v_proj"], ["k_proj", "out_proj", "fc1", "fc2"]],
}


@pytest.mark.parametrize(("kind", "targets"), [(kind, t) for kind, rows in HF_TARGETS.items() for t in rows])
def test_lora_on_hugging_face_models(kind: str, targets: list[str] | str, tmp_path: Path) -> None:
    head = kind in ("vit", "deit")
    base = hf_model(kind, head)
    twin = timm_twin(kind, base, CLASSES if head else 0)
    model = trained(base, lora(target_modules=targets, modules_to_save=["classifier"] if head else None))
    folder = saved(model, tmp_path / "made")
    assert recognise(folder) is PEFT
    assert close(reads(folder, twin), outputs(kind, model, images()))
    if isinstance(targets, str) or "query" in targets or "q_proj" in targets:
        assert any(b.site.part == "q" for b in PEFT.read(folder, Hints()).adapter.branches)


@pytest.mark.parametrize(
    ("kind", "head"), [("clip-classifier", "classifier"), ("clip-projection", "visual_projection")]
)
def test_clips_heads(kind: str, head: str, tmp_path: Path) -> None:
    base = hf_model(kind)
    twin = timm_twin(kind, base, CLASSES)
    model = trained(base, lora(target_modules=["q_proj", "fc2"], modules_to_save=[head]))
    folder = saved(model, tmp_path / "made")
    assert close(reads(folder, twin), outputs(kind, model, images()))
    assert any("mean of the patches" in note for note in PEFT.read(folder, Hints()).notes) == (head == "classifier")


def test_all_biases_of_a_hugging_face_model(tmp_path: Path) -> None:
    base = hf_model("vit")
    twin = timm_twin("vit", base, CLASSES)
    model = trained(base, lora(target_modules=["query", "dense"], modules_to_save=["classifier"], bias="all"))
    folder = saved(model, tmp_path / "made")
    assert close(reads(folder, twin), outputs("vit", model, images()))
    assert len({b.site.path for b in PEFT.read(folder, Hints()).adapter.branches if b.method == "replace"}) == 14


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"fc1": 5, r"blocks.1.attn.qkv": 2},
        "alpha_pattern": {"qkv": 1, "blocks.0.mlp.fc1": 9},
    },
    "lora-bias": {"lora_bias": True},
    "biases": {"bias": "all", "modules_to_save": ["head"]},
    "own-biases": {"bias": "lora_only"},
    "norms": {"modules_to_save": ["norm", "norm2", "head"]},
    "some-layers": {"layers_to_transform": [1], "layers_pattern": "blocks"},
    "without": {"target_modules": ["qkv", "proj"], "exclude_modules": ["patch_embed.proj"]},
    "patches": {"target_modules": ["proj"]},
    "patches-bias": {"target_modules": ["proj"], "lora_bias": True},
    "dora": {"use_dora": True, "target_modules": ["qkv", "fc2"]},
    "gaussian": {"init_lora_weights": "gaussian"},
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_of_lora(case: str, tmp_path: Path) -> None:
    base = timm_model()
    settings = {"modules_to_save": ["head"], **SETTINGS[case]}
    fresh = timm_model()
    model = trained(base, lora(**settings))
    folder = saved(model, tmp_path / "made")
    assert close(reads(folder, fresh), theirs(model))


def test_ia3(tmp_path: Path) -> None:
    import peft

    fresh = timm_model()
    config = peft.IA3Config(target_modules=["qkv", "fc2"], feedforward_modules=["fc2"], modules_to_save=["head"])
    model = trained(timm_model(), config)
    folder = saved(model, tmp_path / "made")
    assert close(reads(folder, fresh), theirs(model))
    assert not close(reads(folder, fresh), theirs(timm_model()))


@pytest.mark.parametrize("targets", [["qkv", "fc1", "fc2"], ["fc2"], ["fc1"], ["attn.proj"]])
def test_vera_becomes_lora(targets: list[str], tmp_path: Path) -> None:
    import peft

    fresh = timm_model()
    with quiet():
        config = peft.VeraConfig(r=8, target_modules=targets, modules_to_save=["head"])
    model = trained(timm_model(), config)
    folder = saved(model, tmp_path / "made")
    assert close(reads(folder, fresh), theirs(model))
    found = PEFT.read(folder, Hints())
    assert {b.method for b in found.adapter.branches} == {"lora"} and any("VeRA" in note for note in found.notes)


def test_torch_files_and_half_precision(tmp_path: Path) -> None:
    fresh = timm_model()
    model = trained(timm_model(), lora(modules_to_save=["head"]))
    folder = saved(model, tmp_path / "made")
    tensors = load_file(folder / "adapter_model.safetensors")
    half = tmp_path / "half"
    shutil.copytree(folder, half)
    save_file({name: value.to(torch.bfloat16) for name, value in tensors.items()}, half / "adapter_model.safetensors")
    down = PEFT.read(half, Hints()).adapter.branches[0].tensors["down"]
    assert isinstance(down, Dense) and down.dtype == "bfloat16"
    (folder / "adapter_model.safetensors").unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    assert close(reads(folder, fresh), theirs(model))


def back(adapter: Adapter, folder: Path) -> torch.Tensor:
    """What PEFT's own loading gives on timm's model for an exported folder."""
    import peft

    PEFT.write(adapter, folder, force=False)
    with quiet():
        model = peft.PeftModel.from_pretrained(timm_model(), str(folder)).eval()
    return theirs(model)


EXPORTED = {**{case: lambda case=case: lora(**{"modules_to_save": ["head"], **SETTINGS[case]}) for case in
               ("plain", "rslora", "patterns", "biases", "own-biases", "norms", "some-layers", "dora")}}  # fmt: skip


@pytest.mark.parametrize("case", EXPORTED)
def test_exported_folders_load_in_peft(case: str, tmp_path: Path) -> None:
    model = trained(timm_model(), EXPORTED[case]())
    folder = saved(model, tmp_path / "made")
    adapter = PEFT.read(folder, Hints()).adapter
    assert close(back(adapter, tmp_path / "back"), theirs(model))
    assert PEFT.read(tmp_path / "back", Hints()).adapter.same_as(adapter)


def test_hugging_face_adapters_leave_as_timm_ones(tmp_path: Path) -> None:
    """Branches on query and value become one LoRA on the fused layer, of twice the rank, and come back apart."""
    base = hf_model("vit")
    twin = timm_twin("vit", base, CLASSES)
    model = trained(base, lora(target_modules=["query", "value"], modules_to_save=["classifier"]))
    adapter = PEFT.read(saved(model, tmp_path / "made"), Hints(task="pets")).adapter
    assert len(adapter.branches) == 2 * DEPTH
    Peft(names="timm").write(adapter, tmp_path / "back", force=False)
    import peft

    with quiet():
        loaded = peft.PeftModel.from_pretrained(twin, str(tmp_path / "back")).eval()
    assert close(theirs(loaded), outputs("vit", model, images()))
    settings = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (6, 12)
    assert PEFT.read(tmp_path / "back", Hints()).adapter.same_as(adapter)


def test_ia3_leaves_and_comes_back(tmp_path: Path) -> None:
    import peft

    config = peft.IA3Config(target_modules=["qkv", "fc2"], feedforward_modules=["fc2"], modules_to_save=["head"])
    model = trained(timm_model(), config)
    adapter = PEFT.read(saved(model, tmp_path / "made"), Hints()).adapter
    assert close(back(adapter, tmp_path / "back"), theirs(model))
    assert PEFT.read(tmp_path / "back", Hints()).adapter.same_as(adapter)


def array(*shape: int, seed: int = 0) -> F32:
    return (np.random.default_rng((seed, *shape)).standard_normal(shape) * 0.3).astype(np.float32)


def mixed_scales() -> Adapter:
    """Query and value rows with a scale each, and a head without a bias."""
    branches = [
        Branch(Site("blocks.1.attn.qkv", part), "lora", {"scale": scale}, {
            "down": Dense(array(rank, WIDTH, seed=rank)), "up": Dense(array(WIDTH, rank, seed=rank))})
        for part, scale, rank in (("q", 0.3, 2), ("k", 0.7, 1), ("v", 0.3, 2))
    ]  # fmt: skip
    labels, data = tuple("abcde"), DataSettings(mean=(0.5,) * 3, std=(0.5,) * 3)
    where = Backbone("small_vit", "sha256:" + "0" * 64)
    return Adapter("toy", "lora", tuple(branches), Head(Dense(array(5, WIDTH))), labels, data, {"a": 1}, where)


def test_scales_that_differ_within_a_layer(tmp_path: Path) -> None:
    adapter = mixed_scales()
    fresh = timm_model()
    with load_adapter(adapter, fresh, check_fingerprint=False), torch.no_grad():
        expected = fresh(images())
    assert close(back(adapter, tmp_path / "back"), expected)
    found = PEFT.read(tmp_path / "back", Hints()).adapter
    assert (found.labels, found.data, found.backbone, found.name) == (
        adapter.labels, adapter.data, adapter.backbone, "toy",
    )  # fmt: skip
    assert found.head is not None and found.head.bias is None
    assert {b.params["scale"] for b in found.branches} == {1.0}
    text = (tmp_path / "back" / "README.md").read_text()
    assert "class names" in text and "preprocessing" in text


@pytest.mark.parametrize(
    ("site", "method", "params", "roles"),
    [
        ("blocks.0.mlp", "adaptformer", {"scale": 1.0}, {"down": (2, WIDTH), "up": (WIDTH, 2)}),
        ("blocks.0.attn.qkv[q]", "replace", {}, {"bias": (WIDTH,)}),
        ("cls_token", "replace", {}, {"value": (1, 1, WIDTH)}),
        ("norm", "replace", {}, {"weight": (WIDTH,)}),
        ("blocks.0.attn.qkv[v]", "dora", {"scale": 1.0}, {"down": (2, WIDTH), "up": (WIDTH, 2), "magnitude": (WIDTH,)}),
        ("blocks.0.norm1", "affine", {"tap": "output"}, {"factor": (WIDTH,), "shift": (WIDTH,)}),
    ],
)
def test_what_peft_cannot_hold(
    site: str, method: str, params: dict[str, Any], roles: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    odd = Branch(Site.parse(site), method, params, {role: Dense(array(*shape)) for role, shape in roles.items()})
    good = [b for b in mixed_scales().branches if method in ("replace", "adaptformer")]
    with pytest.raises(UnsupportedAdapterError) as caught:
        PEFT.write(Adapter("toy", "x", (*good, odd)), tmp_path / "out", force=False)
    assert caught.value.reason == "not-expressible" and not (tmp_path / "out").exists()


# what may be wrong with a folder


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = trained(timm_model(), lora(modules_to_save=["head"]))
    return saved(model, tmp_path_factory.mktemp("peft") / "good")


Tensors = dict[str, torch.Tensor]
A0 = "base_model.model.blocks.0.attn.qkv.lora_A.weight"
B0 = "base_model.model.blocks.0.attn.qkv.lora_B.weight"


def changed(good: Path, folder: Path, change: Callable[[Tensors], Any] | None, settings: Mapping[str, Any]) -> Path:
    """A copy of a folder with other tensors or settings."""
    shutil.copytree(good, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    if change is not None:
        change(tensors)
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "adapter_model.safetensors")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return folder


def drop(*names: str) -> Callable[[Tensors], Any]:
    return lambda tensors: [tensors.pop(name) for name in names]


def put(name: str, *shape: int) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.update({name: torch.ones(shape)})


BAD: dict[str, tuple[Callable[[Tensors], Any] | None, dict[str, Any], str, str]] = {
    "half a pair": (drop(B0), {}, "missing-tensor", "lora_B.weight of blocks.0.attn.qkv"),
    "no pair": (drop(A0, B0), {}, "missing-tensor", "blocks.0.attn.qkv"),
    "no head": (lambda t: [t.pop(k) for k in list(t) if "head" in k], {}, "missing-tensor", "head"),
    "no head weight": (drop("base_model.model.head.weight"), {}, "missing-tensor", "classifier"),
    "one more": (put("base_model.model.blocks.0.attn.odd", 3), {}, "unmapped-tensor", "odd"),
    "another module": (put("base_model.model.decoder.lora_A.weight", 3, 24), {}, "unmapped-tensor", "decoder"),
    "an alpha": (put("base_model.model.blocks.0.attn.qkv.alpha"), {}, "unmapped-tensor", "alpha"),
    "an untargeted": (put("base_model.model.blocks.0.mlp.fc2.lora_A.weight", 3, 48), {}, "unmapped-tensor", "fc2"),
    "a norm": (put("base_model.model.norm.weight", 24), {}, "unmapped-tensor", "norm.weight"),
    "a bias": (put("base_model.model.blocks.0.norm1.bias", 24), {}, "unmapped-tensor", "norm1.bias"),
    "a magnitude": (put("base_model.model.blocks.0.mlp.fc1.lora_magnitude_vector", 48), {}, "unmapped-tensor",
                    "use_dora"),
    "an adapter's name": (put("base_model.model.blocks.0.attn.qkv.lora_A.default.weight", 3, 24), {},
                          "unmapped-tensor", "default"),
    "other rank": (put(A0, 4, WIDTH), {}, "conflicting-settings", "lora_A"),
    "ranks differ": (put(B0, 72, 4), {}, "bad-shape", "down has 3 rows"),
    "not finite": (lambda t: t[A0].fill_(float("nan")), {}, "not-finite", "down"),
    "whole numbers": (lambda t: t.update({A0: torch.ones(3, 24, dtype=torch.int32)}), {}, "bad-source", "I32"),
    "rank 0": (None, {"r": 0}, "bad-field", "r is '0'"),
    "no alpha": (None, {"lora_alpha": None}, "missing-field", "lora_alpha"),
    "two alphas": (None, {"alpha_pattern": {"qkv": 2, "attn.qkv": 3}}, "conflicting-settings", "alpha_pattern"),
    "rank pattern": (None, {"rank_pattern": {"qkv": 2}}, "conflicting-settings", "rank_pattern"),
    "transposed": (None, {"fan_in_fan_out": True}, "not-expressible", "fan_in_fan_out"),
    "pissa": (None, {"init_lora_weights": "pissa_niter_4"}, "not-expressible", "pissa"),
    "olora": (None, {"init_lora_weights": "olora"}, "not-expressible", "olora"),
    "loftq": (None, {"init_lora_weights": "loftq"}, "not-expressible", "loftq"),
    "replicated": (None, {"layer_replication": [[0, 2]]}, "not-expressible", "layer_replication"),
    "megatron": (None, {"megatron_config": {"x": 1}}, "not-expressible", "megatron_config"),
    "tokens": (None, {"trainable_token_indices": [1]}, "not-expressible", "trainable_token_indices"),
    "parameters": (None, {"target_parameters": ["x"]}, "not-expressible", "target_parameters"),
    "a new setting": (None, {"use_magic": True}, "unknown-field", "use_magic"),
    "other layers": (None, {"layers_to_transform": [0], "layers_pattern": "blocks"}, "unmapped-tensor", "blocks.1"),
    "left out": (None, {"exclude_modules": ["fc1"]}, "unmapped-tensor", "fc1"),
    "more targets": (None, {"target_modules": ["qkv", "fc1", "fc2"]}, "missing-tensor", "fc2"),
    "biases": (None, {"lora_bias": True}, "missing-tensor", "lora_B.bias"),
    "magnitudes": (None, {"use_dora": True}, "missing-tensor", "lora_magnitude_vector"),
    "no head bias": (drop("base_model.model.head.bias"), {}, "missing-tensor", "head.bias"),
    "a huge alpha": (None, {"lora_alpha": 1e39}, "bad-field", "float32"),
    "a huger alpha": (None, {"lora_alpha": 1e308}, "bad-field", "lora_alpha"),
    "a huge pattern": (None, {"alpha_pattern": {"qkv": -1e39}}, "bad-field", "qkv"),
    "an odd revision": (None, {"revision": 3}, "bad-field", "revision"),
    "another kind": (None, {"peft_type": "LOHA"}, "unknown-method", "LOHA"),
    "a slow pattern": (None, {"target_modules": "(a+)+b"}, "bad-field", "(a+)+b"),
    "a long pattern": (None, {"target_modules": ".*.*.*.*.*x"}, "bad-field", "repeats"),
    "a bad pattern": (None, {"target_modules": "(a"}, "bad-field", "(a"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_folders_are_refused_by_name(case: str, good: Path, tmp_path: Path) -> None:
    change, settings, reason, named = BAD[case]
    folder = changed(good, tmp_path / "bad", change, settings)
    with pytest.raises(AdapterPackError) as caught:
        PEFT.read(folder, Hints())
    assert caught.value.reason == reason and named in str(caught.value)


# what was trained, what is taken out of the folder (a pattern), what the error names
LOST: dict[str, tuple[dict[str, Any], str, str]] = {
    "head's bias": ({}, r"head\.bias", "head.bias"),
    "norm1's biases": ({"bias": "all"}, r".*norm1\.bias", "blocks.0.norm1.bias"),
    "qkv's biases": ({"bias": "all"}, r".*qkv\..*bias", "blocks.0.attn.qkv.bias"),
    "a bias": ({"bias": "all"}, r"blocks\.1\.mlp\.fc2\.bias", "blocks.1.mlp.fc2.bias"),
    "patches' bias": ({"bias": "all"}, r"patch_embed\.proj\.bias", "patch_embed.proj.bias"),
    "last norm's bias": ({"bias": "all"}, r"norm\.bias", "norm.bias"),
    "both": ({"bias": "all"}, r"(norm|patch_embed\.proj)\.bias", ".bias"),
    "own biases": ({"bias": "lora_only"}, r"blocks.*bias", "lora_only"),
    "an own bias": ({"bias": "lora_only"}, r"blocks\.1\.mlp.*bias", "blocks.1.mlp.fc1.bias"),
    "a layer's own biases": ({"bias": "lora_only"}, r".*fc1.*bias", "fc1.bias"),
    "norm1 of a block": (
        {"modules_to_save": ["head", "norm", "norm1"]},
        r"blocks\.0\.norm1\..*",
        "blocks.0.norm1.weight",
    ),
    "norms' biases": ({"modules_to_save": ["head", "norm", "norm1"]}, r".*norm1\.bias", "norm1.bias"),
    "a norm's bias": ({"modules_to_save": ["head", "norm", "norm1"]}, r"blocks\.1\.norm1\.bias", "blocks.1.norm1.bias"),
    "a norm's weight": ({"modules_to_save": ["head", "norm"]}, r"norm\.weight", "norm.weight"),
}


def without(folder: Path, lost: str) -> Path:
    """The folder without the tensors whose names match, of which there must be some."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    kept = {n: v for n, v in tensors.items() if not re.fullmatch(lost, n.removeprefix("base_model.model."))}
    assert len(kept) < len(tensors)
    save_file(kept, path)
    return folder


@pytest.mark.parametrize("case", LOST)
def test_an_incomplete_folder_is_refused_by_name(case: str, tmp_path: Path) -> None:
    settings, lost, named = LOST[case]
    made = saved(trained(timm_model(), lora(**{"modules_to_save": ["head"], **settings})), tmp_path / "made")
    PEFT.read(made, Hints())
    backbone = {name: value.numpy() for name, value in timm_model().state_dict().items()}
    for hints in (Hints(), Hints(backbone=backbone)):
        with pytest.raises(CorruptFileError, match=re.escape(named)) as caught:
            PEFT.read(made if hints.backbone else without(made, lost), hints)
        assert caught.value.reason == "missing-tensor"
        hint = "head_bias" if case == "head's bias" else "--backbone"  # a head without a bias is said, not shown
        assert (hint in str(caught.value)) == (hints.backbone is None or hint == "head_bias")


def test_a_note_that_was_edited_to_say_more(tmp_path: Path) -> None:
    """A branch that the settings have no scale for, a part of a number: refused, as any folder that was changed."""
    import peft

    config = peft.IA3Config(target_modules=["fc1"], feedforward_modules=[], modules_to_save=["head"])
    adapter = PEFT.read(saved(trained(timm_model(), config), tmp_path / "made"), Hints()).adapter
    PEFT.write(adapter, tmp_path / "out", force=False)
    path = tmp_path / "out" / "adapter_model.safetensors"
    with safe_open(path, "pt") as file:
        text, tensors = file.metadata()["adapterpack"], {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
    for method, name in (("sparse", "lora_B.bias"), ("replace", "bias")):
        note = json.loads(text)
        row = note["task"]["branches"][0]
        row |= {"site": "blocks.0.attn.qkv[q]", "method": method, "params": {}}
        row["tensors"] = {"bias": next(iter(row["tensors"].values()))}
        more = {f"base_model.model.blocks.0.attn.qkv.{name}": torch.tensor(1.0)}
        save_file({**tensors, **more}, path, {"adapterpack": json.dumps(note)})
        with pytest.raises(AdapterPackError):
            PEFT.read(tmp_path / "out", Hints())


def test_a_head_that_never_had_a_bias(good: Path, tmp_path: Path) -> None:
    """It is said, or the backbone shows it; what leaves has a bias of zeros, and comes back without."""
    folder = changed(good, tmp_path / "made", drop("base_model.model.head.bias"), {})
    backbone = {name: value.numpy() for name, value in timm_model().state_dict().items() if name != "head.bias"}
    for hints in (Hints(settings={"head_bias": "none"}), Hints(backbone=backbone)):
        adapter = PEFT.read(folder, hints).adapter
        assert adapter.head is not None and adapter.head.bias is None
    PEFT.write(adapter, tmp_path / "back", force=False)
    zeros = load_file(tmp_path / "back" / "adapter_model.safetensors")["base_model.model.head.bias"]
    assert zeros.shape == (CLASSES,) and not zeros.any()
    assert PEFT.read(tmp_path / "back", Hints()).adapter.same_as(adapter)
    for wrong, reason in ((good, "conflicting-settings"), (tmp_path / "back", "bad-call")):
        with pytest.raises(AdapterPackError, match="head_bias") as caught:
            PEFT.read(wrong, Hints(settings={"head_bias": "none"}))
        assert caught.value.reason == reason


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_a_model_that_lacks_a_bias_is_shown(bias: str, tmp_path: Path) -> None:
    def bare() -> VisionTransformer:
        model = VisionTransformer(
            img_size=16, patch_size=8, embed_dim=WIDTH, depth=2, num_heads=3, num_classes=5, qkv_bias=False
        )
        fill(model, spread=0.15)
        return model.eval()

    model = trained(bare(), lora(bias=bias, modules_to_save=["head", "norm2"]))
    folder = saved(model, tmp_path / "made")
    with pytest.raises(CorruptFileError, match=r"attn\.qkv\.bias.*--backbone"):
        PEFT.read(folder, Hints())
    backbone = {name: value.numpy() for name, value in bare().state_dict().items()}
    assert close(reads(folder, bare(), backbone=backbone), theirs(model))


def test_models_with_other_norms_have_all_of_their_biases(tmp_path: Path) -> None:
    for number, more in enumerate(({"pre_norm": True}, {"global_pool": "avg"})):
        model = VisionTransformer(
            img_size=16, patch_size=8, embed_dim=WIDTH, depth=2, num_heads=3, num_classes=5, **more
        ).eval()
        folder = saved(trained(model, lora(bias="all", modules_to_save=["head"])), tmp_path / str(number))
        PEFT.read(folder, Hints())
        lost, named = (r"norm_pre\.bias", "patch_embed.proj") if number == 0 else (r"fc_norm\.bias", r" norm\.bias")
        with pytest.raises(CorruptFileError, match=named):
            PEFT.read(without(folder, lost), Hints())


@pytest.mark.parametrize("scale", [2.0, 0.3, 7.7])
def test_lora_bias_leaves_and_comes_back(scale: float, tmp_path: Path) -> None:
    model = trained(timm_model(), lora(lora_bias=True, lora_alpha=3 * scale, modules_to_save=["head"]))
    folder = saved(model, tmp_path / "made")
    adapter = PEFT.read(folder, Hints()).adapter
    assert close(back(adapter, tmp_path / "back"), theirs(model))
    assert PEFT.read(tmp_path / "back", Hints()).adapter.same_as(adapter)
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("made", "back"))
    assert first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first if "bias" not in n)
    # the additions are what PEFT computes, to the last bit
    factor = np.float32(json.loads((tmp_path / "back" / "adapter_config.json").read_text())["lora_alpha"] / 3)
    assert all(torch.equal(first[n] * factor, second[n] * factor) for n in first if n.endswith("lora_B.bias"))


def test_a_bias_on_some_layers_only_and_one_without_an_inverse(tmp_path: Path) -> None:
    """PEFT has a bias on every layer or on none; where no number times the scale is the bias, the scale goes into B."""
    adapter = mixed_scales()
    odd = np.float32(1) + np.arange(WIDTH, dtype=np.float32) * np.float32(2**-23)
    added = Branch(Site("blocks.1.attn.qkv", "v"), "sparse", {}, {"bias": Dense(odd)})
    other = Branch(Site("blocks.0.attn.proj"), "lora", {"scale": 1.5}, {
        "down": Dense(array(2, WIDTH)), "up": Dense(array(WIDTH, 2))})  # fmt: skip
    first = next(replace(b, params={"scale": 1.7}) for b in adapter.branches if b.site.part == "v")
    adapter = replace(adapter, branches=(first, added, other))
    fresh = timm_model()
    with load_adapter(adapter, fresh, check_fingerprint=False), torch.no_grad():
        expected = fresh(images())
    assert close(back(adapter, tmp_path / "back"), expected)
    found = PEFT.read(tmp_path / "back", Hints()).adapter
    assert {str(b.site): b.params["scale"] for b in found.branches if b.method == "lora"} == {
        "blocks.0.attn.proj": 1.5, "blocks.1.attn.qkv[v]": 1.0}  # fmt: skip
    assert next(np.array_equal(b.tensors["bias"].dense(), odd) for b in found.branches if b.method == "sparse")
    twice = replace(adapter, branches=(*adapter.branches, replace(added, site=Site("blocks.1.attn.qkv"))))
    with pytest.raises(UnsupportedAdapterError):
        PEFT.write(twice, tmp_path / "twice", force=False)


@pytest.mark.parametrize(
    ("text", "told"),
    [("", "no JSON"), ("[" * 5000 + "]" * 5000, "deep"), ("\ufeff{}", "byte-order mark"), ("[]", "no JSON object"),
     (" " * (1 << 20) + "{}", "bytes"), ("{}", "peft_type"), ("{", "no JSON")],
)  # fmt: skip
def test_settings_that_are_none(text: str, told: str, good: Path, tmp_path: Path) -> None:
    folder = changed(good, tmp_path / "bad", None, {})
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(AdapterPackError, match=told) as caught:
        pack(folder, tmp_path / "x.apk")
    assert told == "peft_type" or "adapter_config.json" in str(caught.value)
    assert "index" not in str(caught.value)


def test_the_backbones_revision_comes_back(good: Path, tmp_path: Path) -> None:
    said = {"base_model_name_or_path": "timm/vit_x.y", "revision": "v1.0"}
    pack(changed(good, tmp_path / "made", None, said), tmp_path / "x.apk")
    unpack(tmp_path / "x.apk", tmp_path / "back", to="peft")
    settings = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    assert said.items() <= settings.items()
    found = PEFT.read(tmp_path / "back", Hints()).adapter
    assert found.metadata["source"]["revision"] == "v1.0"
    assert "v1.0" not in (tmp_path / "back" / "README.md").read_text()
    assert "source" not in PEFT.read(good, Hints()).adapter.metadata


def test_a_repeated_setting(good: Path, tmp_path: Path) -> None:
    folder = changed(good, tmp_path / "bad", None, {})
    path = folder / "adapter_config.json"
    path.write_text(path.read_text().replace('"r": 3', '"r": 3, "lora_alpha": 7'))
    with pytest.raises(CorruptFileError, match="lora_alpha") as caught:
        PEFT.read(folder, Hints())
    assert caught.value.reason == "bad-source"


def test_files_that_are_not_there_or_twice(good: Path, tmp_path: Path) -> None:
    folder = changed(good, tmp_path / "bad", None, {})
    shutil.copy(folder / "adapter_model.safetensors", folder / "adapter_model.bin")
    with pytest.raises(UnsupportedAdapterError, match=r"adapter_model\.bin"):
        PEFT.read(folder, Hints())
    (folder / "adapter_model.bin").unlink()
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterPackError, match="no tensors"):
        PEFT.read(folder, Hints())


class Evil:
    def __reduce__(self) -> Any:
        return (Path("/nowhere/x").touch, ())


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_code_in_a_torch_file_is_not_run(how: str, good: Path, tmp_path: Path) -> None:
    folder = changed(good, tmp_path / "bad", None, {})
    (folder / "adapter_model.safetensors").unlink()
    target = folder / "adapter_model.bin"
    torch.save({"x": Evil()}, target) if how == "torch" else target.write_bytes(pickle.dumps({"x": Evil()}))
    with pytest.raises(CorruptFileError) as caught:
        PEFT.read(folder, Hints())
    assert caught.value.reason == "unsafe-source"


def test_the_text_tower_and_dinov2s_classifier(good: Path, tmp_path: Path) -> None:
    text = "base_model.model.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight"
    vision = text.replace("text_model", "vision_model")
    folder = changed(good, tmp_path / "text", lambda t: (t.clear(), put(text, 3, 24)(t), put(vision, 3, 24)(t)), {})
    with pytest.raises(CorruptFileError, match="text tower"):
        PEFT.read(folder, Hints())
    query = "base_model.model.dinov2.encoder.layer.0.attention.attention.query.lora_A.weight"
    head = "base_model.model.classifier.weight"
    folder = changed(good, tmp_path / "dino", lambda t: (t.clear(), put(query, 3, 24)(t), put(head, 5, 48)(t)), {})
    with pytest.raises(CorruptFileError, match="DINOv2"):
        PEFT.read(folder, Hints())


def test_a_lora_on_the_classifier(tmp_path: Path) -> None:
    folder = saved(trained(timm_model(), lora(target_modules=["qkv", "head"])), tmp_path / "made")
    with pytest.raises(UnsupportedAdapterError, match="modules_to_save") as caught:
        PEFT.read(folder, Hints())
    assert caught.value.reason == "not-expressible"


def test_vera_without_its_projections(tmp_path: Path) -> None:
    import peft

    with quiet():
        config = peft.VeraConfig(r=4, target_modules=["fc1"], save_projection=False)
    folder = saved(trained(timm_model(), config), tmp_path / "made")
    with pytest.raises(CorruptFileError, match="save_projection") as caught:
        PEFT.read(folder, Hints())
    assert caught.value.reason == "missing-tensor"


@pytest.mark.parametrize(
    ("said", "name"),
    [("google/vit-base-patch16-224", "google/vit-base-patch16-224"), ("timm/vit_x.y", "vit_x.y"),
     ("/home/me/run", ""), ("../run/best", ""), (None, "")],
)  # fmt: skip
def test_backbones_by_name_and_no_paths(said: str | None, name: str, good: Path, tmp_path: Path) -> None:
    found = PEFT.read(changed(good, tmp_path / "x", None, {"base_model_name_or_path": said}), Hints())
    assert found.adapter.backbone.name == name
    assert any("path" in note for note in found.notes) == bool(said and not name)


def test_a_folder_that_was_changed_after_export(tmp_path: Path) -> None:
    PEFT.write(mixed_scales(), tmp_path / "out", force=False)
    path = tmp_path / "out" / "adapter_config.json"
    text = path.read_text()
    path.write_text(text.replace('"lora_alpha": 5', '"lora_alpha": 10'))
    with pytest.raises(CorruptFileError, match="lora_alpha") as caught:
        PEFT.read(tmp_path / "out", Hints())
    assert caught.value.reason == "conflicting-settings"


@pytest.mark.parametrize("change", ["padding", "value", "one more"])
def test_tensors_that_were_changed_after_export(change: str, tmp_path: Path) -> None:
    PEFT.write(mixed_scales(), tmp_path / "out", force=False)
    path = tmp_path / "out" / "adapter_model.safetensors"
    with safe_open(path, "pt") as file:
        note, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    up = tensors["base_model.model.blocks.1.attn.qkv.lora_B.weight"]
    if change == "one more":
        tensors["base_model.model.norm.bias"] = torch.zeros(WIDTH)
    else:
        assert up[0, -1] == 0
        up[(0, -1) if change == "padding" else (0, 0)] += 1
    save_file(tensors, path, note)
    if change == "value":  # what the note does not say is the folder's to say
        assert PEFT.read(tmp_path / "out", Hints()).adapter.name == "toy"
        return
    with pytest.raises(CorruptFileError, match="lora_B" if change == "padding" else "norm") as caught:
        PEFT.read(tmp_path / "out", Hints())
    assert caught.value.reason == "conflicting-settings"


def test_pack_and_unpack(good: Path, tmp_path: Path) -> None:
    summary = pack(good, tmp_path / "x.apk", task="toy", bits=4)
    assert summary.costs and any("classifier" in c.tensor or "qkv" in c.tensor for c in summary.costs)
    written = unpack(tmp_path / "x.apk", tmp_path / "out", to="peft")
    assert [path.name for path in written][:2] == ["adapter_config.json", "adapter_model.safetensors"]
    with pytest.raises(AdapterPackError) as caught:
        unpack(tmp_path / "x.apk", tmp_path / "out", to="peft")
    assert caught.value.reason == "file-exists"
    unpack(tmp_path / "x.apk", tmp_path / "out", to="peft", force=True)
    assert PEFT.read(tmp_path / "out", Hints()).adapter.name == "toy"
    assert "plain float32" in (tmp_path / "out" / "README.md").read_text()


def test_the_helper_fills() -> None:
    model = timm_model()
    before = model.head.weight.clone()
    fill(model, ("head",), seed=3)
    assert not torch.equal(before, model.head.weight)


def test_a_stored_folder_stays_readable() -> None:
    """What the library saved once; its later versions may save otherwise."""
    found = PEFT.read(FIXTURES / "peft-lora", Hints()).adapter
    assert digest_of(found) == "36b7d19917ad31bb0b0b6eb86b9260a794ba655d8eecc0b9977a0788794db237"


ODD: tuple[Any, ...] = (None, True, -1, 1e308, "(", [], [None], {"a": "b"})


def test_any_setting_of_any_type_gives_an_adapter_or_our_error(tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(FIXTURES / "peft-lora", folder)
    path = folder / "adapter_config.json"
    content = json.loads(path.read_text())
    for key in (*content, "new"):
        for value in ODD:
            path.write_text(json.dumps({**content, key: value}))
            with contextlib.suppress(AdapterPackError):
                PEFT.read(folder, Hints())
