"""AdapterHub folders, made by the `adapters` library itself: the same outputs after loading, and refusals by name."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from adapterpack import Adapter, AdapterPool, Backbone, Branch, Dense, Head, Site, load
from adapterpack.converters import CONVERTERS, recognise
from adapterpack.converters._base import Hints
from adapterpack.errors import AdapterPackError, CorruptFileError, UnsupportedAdapterError
from adapterpack.exchange import pack, unpack
from adapterpack.runtime.load import load_adapter
from tests._hf import CLASSES, WIDTH, close, digest_of, hf_model, images, outputs, quiet, timm_twin

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
HUB = CONVERTERS["adapterhub"]


def configs() -> dict[str, Any]:
    with quiet():
        import adapters
    houlsby = {"reduction_factor": 4, "non_linearity": "gelu"}
    return {
        "lora": adapters.LoRAConfig(r=3, alpha=6),
        "lora-all": adapters.LoRAConfig(
            r=2, alpha=5, attn_matrices=["q", "k", "v"], intermediate_lora=True, output_lora=True
        ),
        "lora-mlp": adapters.LoRAConfig(r=2, alpha=1, selfattn_lora=False, output_lora=True, leave_out=[0]),
        "ia3": adapters.IA3Config(alpha=2),
        "houlsby": adapters.DoubleSeqBnConfig(**houlsby),
        "output-only": adapters.BnConfig(mh_adapter=False, output_adapter=True, scaling=0.5, **houlsby),
        "per-layer": adapters.BnConfig(
            mh_adapter=True, output_adapter=False, reduction_factor={"1": 8, "default": 3}, non_linearity="gelu"
        ),
        "learned": adapters.BnConfig(mh_adapter=True, output_adapter=True, scaling="learned", **houlsby),
        "channel": adapters.BnConfig(mh_adapter=False, output_adapter=True, scaling="channel", **houlsby),
        "parallel": adapters.ParBnConfig(reduction_factor=4),
        "seq_bn": "seq_bn",
        "double_seq_bn": "double_seq_bn",
        "par_bn": "par_bn",
        "adapter_plus": adapters.AdapterPlusConfig(),  # of rank 1: its factor is 96
        "attention plus": adapters.AdapterPlusConfig(mh_adapter=True, reduction_factor=6, non_linearity="tanh"),
        "both behind": adapters.SeqBnConfig(mh_adapter=True, reduction_factor=4, leave_out=[0], scaling="learned"),
        "attention behind": adapters.SeqBnConfig(mh_adapter=True, output_adapter=False, reduction_factor=4),
        "both beside": adapters.ParBnConfig(mh_adapter=True, reduction_factor=4, scaling="learned"),
        "gelu beside": adapters.ParBnConfig(mh_adapter=True, reduction_factor=8, non_linearity="gelu"),
        "attention beside": adapters.ParBnConfig(
            mh_adapter=True, output_adapter=False, reduction_factor=5, non_linearity="swish", scaling="channel"
        ),
        **{name: adapters.SeqBnConfig(reduction_factor=3, non_linearity=name) for name in BENT},
    }


BENT = (
    "gelu", "gelu_python", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python_tanh", "gelu_pytorch_tanh",
    "leakyrelu", "leaky_relu", "quick_gelu", "ReLU", "silu", "swish", "tanh",
)  # fmt: skip
LORAS = ("lora", "lora-all", "lora-mlp", "ia3")
BOTTLENECKS = (
    "houlsby", "output-only", "per-layer", "learned", "channel", "parallel", "seq_bn", "double_seq_bn", "par_bn",
    "adapter_plus", "attention plus", "both behind", "attention behind", "both beside", "gelu beside",
    "attention beside",
)  # fmt: skip
NAMES = (*LORAS, *BOTTLENECKS, *BENT)


def with_adapter(model: nn.Module, config: Any, name: str = "pets") -> Any:
    """A model of the library's with random numbers in the adapter."""
    with quiet():
        import adapters

        adapters.init(model)
        model.add_adapter(name, config=config)
        model.set_active_adapters(name)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if f".{name}." in key:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    return model.eval()


def saved(model: Any, folder: Path, **options: Any) -> Path:
    with quiet():
        model.save_adapter(str(folder), "pets", **options)
    return folder


def reads(folder: Path, model: nn.Module) -> torch.Tensor:
    """What a timm model gives with the folder's adapter in it."""
    with load_adapter(HUB.read(folder, Hints()).adapter, model, check_fingerprint=False), torch.no_grad():
        return model(images())


@pytest.mark.parametrize("case", NAMES)
@pytest.mark.parametrize("kind", ["vit", "clip"])
def test_the_librarys_outputs(case: str, kind: str, tmp_path: Path) -> None:
    base = hf_model(kind, kind == "vit")
    twin = timm_twin(kind, base, CLASSES if kind == "vit" else 0)
    before = outputs(kind, base, images())
    model = with_adapter(base, configs()[case])
    folder = saved(model, tmp_path / "made", use_safetensors=case == "lora")
    assert recognise(folder) is HUB
    expected = outputs(kind, model, images())
    assert not close(before, expected)
    assert close(reads(folder, twin), expected)


def test_a_head_of_the_librarys_own(tmp_path: Path) -> None:
    with quiet():
        import adapters
        import transformers

        base = hf_model("vit", head=False)
        config = transformers.ViTConfig(**{**base.config.to_dict(), "num_labels": 2})
        model = adapters.ViTAdapterModel(config)
        model.vit.load_state_dict(base.state_dict(), strict=False)
        model.add_adapter("pets", config=configs()["lora"])
        model.add_image_classification_head("pets", num_labels=3, layers=1, id2label={0: "cat", 1: "dog", 2: "owl"})
        model.set_active_adapters("pets")
    with torch.no_grad():
        for key, value in model.named_parameters():
            if ".pets." in key:
                value.normal_(generator=torch.Generator().manual_seed(value.numel()))
    model.eval()
    folder = saved(model, tmp_path / "made")
    found = HUB.read(folder, Hints()).adapter
    assert found.labels == ("cat", "dog", "owl") and found.name == "pets"
    assert close(reads(folder, timm_twin("vit", base, 3)), outputs("vit", model, images()))


@pytest.mark.parametrize("case", NAMES)
def test_exported_folders_load_in_the_library(case: str, tmp_path: Path) -> None:
    import adapters

    model = with_adapter(hf_model("vit"), configs()[case])
    adapter = HUB.read(saved(model, tmp_path / "made"), Hints()).adapter
    HUB.write(adapter, tmp_path / "back", force=False)
    fresh = hf_model("vit")
    with torch.no_grad(), quiet():
        fresh.classifier.weight.zero_()
        adapters.init(fresh)
        name = fresh.load_adapter(str(tmp_path / "back"), use_safetensors=True)
        fresh.set_active_adapters(name)
    assert close(outputs("vit", fresh.eval(), images()), outputs("vit", model, images()))
    assert HUB.read(tmp_path / "back", Hints()).adapter.same_as(adapter)


@pytest.mark.parametrize("case", NAMES)
def test_a_clip_adapter_goes_back_to_clip(case: str, tmp_path: Path) -> None:
    """Through a file, in the library's own model class, with and without our note."""
    import adapters

    model = with_adapter(hf_model("clip"), configs()[case])
    pack(saved(model, tmp_path / "made"), tmp_path / "x.apk")
    written = unpack(tmp_path / "x.apk", tmp_path / "back", to="adapterhub")
    assert any("CLIPVisionModel" in note for note in written.notes)
    content = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    assert (content["model_class"], content["model_type"]) == ("CLIPVisionModel", "clip_vision_model")
    fresh = hf_model("clip")
    with torch.no_grad(), quiet():
        adapters.init(fresh)
        fresh.set_active_adapters(fresh.load_adapter(str(tmp_path / "back"), use_safetensors=True))
    expected = outputs("clip", model, images())
    assert close(outputs("clip", fresh.eval(), images()), expected)
    assert not close(outputs("clip", hf_model("clip"), images()), expected)
    adapter = HUB.read(tmp_path / "back", Hints()).adapter
    with load_adapter(adapter, timm_twin("clip", hf_model("clip")), check_fingerprint=False) as loaded, torch.no_grad():
        assert loaded is not None
    stored = load_file(path := tmp_path / "back" / "adapter.safetensors")
    path.unlink()
    save_file(stored, path)
    HUB.write(HUB.read(tmp_path / "back", Hints()).adapter, tmp_path / "again", force=False)
    again = load_file(tmp_path / "again" / "adapter.safetensors")
    assert again.keys() == stored.keys() and all(torch.equal(again[name], stored[name]) for name in stored)


@pytest.mark.parametrize(
    ("source", "backbone", "model"),
    [
        ({}, "", "ViTModel"),
        ({}, "vit_base_patch16_224.augreg_in21k", "ViTModel"),
        ({}, "vit_base_patch16_clip_224.openai", "CLIPVisionModel"),
        ({}, "openai/clip-vit-base-patch16", "CLIPVisionModel"),
        ({"format": "peft", "names": "clip", "prefix": "vision_model.", "head": ""}, "", "CLIPVisionModel"),
        ({"format": "peft", "names": "vit5", "prefix": "", "head": ""}, "", "ViTModel"),
        ({"format": "adapterhub", "names": "clip"}, "vit_base_patch16_224", "CLIPVisionModel"),
        ({"format": "petl-vit"}, "", "ViTModel"),
    ],
)
def test_the_model_is_the_sources(source: dict[str, str], backbone: str, model: str, tmp_path: Path) -> None:
    adapter = Adapter("toy", "lora", (lora("blocks.0.attn.qkv[q]"),), backbone=Backbone(backbone))
    adapter = replace(adapter, metadata={"source": source} if source else {})
    HUB.write(adapter, tmp_path / "out", force=False)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["model_class"] == model
    assert any(model in note for note in HUB.lost(adapter))  # type: ignore[attr-defined]
    assert HUB.read(tmp_path / "out", Hints()).adapter.sites.keys() == adapter.sites.keys()
    HUB.write(HUB.read(tmp_path / "out", Hints()).adapter, tmp_path / "again", force=False)
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text())["model_class"] == model


@pytest.mark.parametrize(
    ("source", "backbone", "head", "reason", "named"),
    [
        ({"format": "peft", "names": "dinov2", "prefix": "", "head": ""}, "", False, "not-expressible", "dinov2"),
        ({"format": "peft", "names": "deit", "prefix": "", "head": ""}, "", False, "not-expressible", "deit"),
        ({}, "vit_small_patch14_dinov2.lvd142m", False, "not-expressible", "dinov2"),
        ({}, "vit_base_patch16_siglip_224.webli", False, "not-expressible", "siglip"),
        ({"format": "adapterhub", "names": "bert"}, "", False, "bad-field", "bert"),
        ({"format": "adapterhub", "names": ["vit"]}, "", False, "bad-field", "vit"),
        ({"format": "adapterhub", "names": "clip"}, "", True, "not-expressible", "CLIPVisionModel"),
    ],
)
def test_no_model_of_the_librarys(
    source: dict[str, Any], backbone: str, head: bool, reason: str, named: str, tmp_path: Path
) -> None:
    adapter = Adapter("toy", "lora", (lora("blocks.0.attn.qkv[q]"),), backbone=Backbone(backbone))
    adapter = replace(
        adapter, metadata={"source": source}, head=Head(Dense(np.ones((2, WIDTH), np.float32))) if head else None
    )
    with pytest.raises(AdapterPackError, match=named) as caught:
        HUB.write(adapter, tmp_path / "out", force=False)
    assert caught.value.reason == reason and not (tmp_path / "out").exists()


@pytest.mark.parametrize("own", [True, False])
def test_a_heads_bias_is_there_or_said_not_to_be(own: bool, good: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(good["lora"], tmp_path / "bad", None, {})
    path = folder / "model_head.safetensors"
    tensors = load_file(path)
    with pytest.raises(AdapterPackError, match=r"classifier\.bias is in the file") as caught:
        HUB.read(folder, Hints(settings={"head_bias": "none"}))
    assert caught.value.reason == "conflicting-settings"
    del tensors["classifier.bias"]
    if own:  # a head of the library's own, whose settings can say that it has none
        tensors = {"heads.pets.1.weight": tensors.pop("classifier.weight")}
        about = folder / "head_config.json"
        head = {"head_type": "image_classification", "layers": 1, "use_pooler": False, "bias": True}
        about.write_text(json.dumps({**json.loads(about.read_text()), "config": head, "name": "pets"}))
    save_file(tensors, path)
    with pytest.raises(AdapterPackError, match=r"\.bias is missing .*--set head_bias=none") as caught:
        HUB.read(folder, Hints())
    assert caught.value.reason == "missing-tensor"
    found = HUB.read(folder, Hints(settings={"head_bias": "none"})).adapter.head
    assert found is not None and found.bias is None
    if own:
        about.write_text(about.read_text().replace('"bias": true', '"bias": false'))
        found = HUB.read(folder, Hints()).adapter.head
        assert found is not None and found.bias is None


@pytest.mark.parametrize("case", ["lora", "seq_bn"])
def test_a_last_layer_that_nobody_can_miss_is_counted(case: str, good: dict[str, Path], tmp_path: Path) -> None:
    def without_last(tensors: Tensors) -> None:
        for name in [name for name in tensors if ".layer.1." in name]:
            del tensors[name]

    folder = changed(good[case], tmp_path / "bad", without_last, {})
    assert any(note.startswith("1 block,") for note in HUB.read(folder, Hints()).notes)
    base = {n: v.detach().numpy() for n, v in timm_twin("vit", hf_model("vit"), CLASSES).named_parameters()}
    assert not any("block" in note for note in HUB.read(good[case], Hints(backbone=base)).notes)
    with pytest.raises(AdapterPackError, match=r"blocks\.1") as caught:
        HUB.read(folder, Hints(backbone=base))
    assert caught.value.reason == "missing-tensor"


def test_settings_mean_nothing_to_a_folder_of_our_own(good: dict[str, Path], tmp_path: Path) -> None:
    HUB.write(HUB.read(good["lora"], Hints()).adapter, tmp_path / "out", force=False)
    with pytest.raises(AdapterPackError, match="head_bias cannot change") as caught:
        HUB.read(tmp_path / "out", Hints(settings={"head_bias": "none"}))
    assert caught.value.reason == "bad-call"


@pytest.mark.parametrize("case", BOTTLENECKS)
def test_an_exported_folder_says_it_all_without_our_note(case: str, tmp_path: Path) -> None:
    adapter = HUB.read(saved(with_adapter(hf_model("vit"), configs()[case]), tmp_path / "made"), Hints()).adapter
    HUB.write(adapter, tmp_path / "back", force=False)
    stored = load_file(path := tmp_path / "back" / "adapter.safetensors")
    path.unlink()
    save_file(stored, path)
    found = HUB.read(tmp_path / "back", Hints()).adapter
    assert {str(b.site): b.params for b in found.branches} == {str(b.site): b.params for b in adapter.branches}
    assert digest_of(found) == digest_of(adapter)


def test_what_each_configuration_becomes(tmp_path: Path) -> None:
    """Site, method, tap and nonlinearity, as the library's formulas say."""
    expected = {
        "seq_bn": {("mlp", "adapter", "sum", "relu")},
        "double_seq_bn": {("attn.proj", "adapter", "output", "silu"), ("mlp.fc2", "adapter", "output", "silu")},
        "par_bn": {("mlp", "adaptformer", None, None)},
        "adapter_plus": {("mlp", "adapter", "sum", "gelu")},
        "both beside": {("attn", "adaptformer", None, None), ("mlp", "adaptformer", None, None)},
        "gelu beside": {("attn", "adapter", "residual", "gelu"), ("mlp", "adapter", "residual", "gelu")},
        "attention behind": {("attn", "adapter", "sum", "relu")},
    }
    for case, rows in expected.items():
        folder = saved(with_adapter(hf_model("vit"), configs()[case]), tmp_path / case)
        found = HUB.read(folder, Hints())
        said = {
            (str(b.site).split(".", 2)[2], b.method, b.params.get("tap"), b.params.get("nonlinearity"))
            for b in found.adapter.branches
        }
        assert said == rows, case
        assert any("each channel" in note for note in found.notes) == (case == "adapter_plus")


def test_attached_saved_as_a_file_and_taken_out_to_the_bit(tmp_path: Path) -> None:
    for case in ("seq_bn", "double_seq_bn", "par_bn", "adapter_plus"):
        base = hf_model("vit")
        twin = timm_twin("vit", base, CLASSES)
        with torch.no_grad():
            plain = twin(images())
        before = {name: value.clone() for name, value in twin.state_dict().items()}
        model = with_adapter(base, configs()[case])
        pack(saved(model, tmp_path / case), tmp_path / f"{case}.apk", task="toy")
        with load(tmp_path / f"{case}.apk", twin, check_fingerprint=False), torch.no_grad():
            assert close(twin(images()), outputs("vit", model, images()))
        with torch.no_grad():
            assert torch.equal(twin(images()), plain)
        assert all(torch.equal(value, before[name]) for name, value in twin.state_dict().items())


def test_a_mixed_batch_of_bottlenecks(tmp_path: Path) -> None:
    """Four configurations in one batch of the pool, each row as the library's own model with that adapter."""
    cases = ("seq_bn", "double_seq_bn", "both beside", "attention plus")
    pool, expected = AdapterPool(timm_twin("vit", hf_model("vit"), CLASSES), check_fingerprint=False), {}
    for case in cases:
        model = with_adapter(hf_model("vit"), configs()[case])
        file = tmp_path / f"{case.replace(' ', '-')}.apk"
        pack(saved(model, tmp_path / case), file, task=case)
        pool.add(file)
        expected[case] = outputs("vit", model, images(8))
    tasks = [cases[i] for i in (2, 0, 1, 3, 3, 0, 2, 1)]
    found = pool(images(8), tasks=tasks)
    assert close(torch.stack(found), torch.stack([expected[task][i] for i, task in enumerate(tasks)]))


def test_a_layer_without_tensors_adds_nothing(tmp_path: Path) -> None:
    """A bottleneck in the first block alone: the library makes one in every layer, and ours must not differ."""
    import adapters

    model = with_adapter(hf_model("vit"), configs()["seq_bn"])
    adapter = HUB.read(saved(model, tmp_path / "made"), Hints()).adapter
    first = replace(adapter, branches=tuple(b for b in adapter.branches if b.site.block == 0))
    HUB.write(first, tmp_path / "back", force=False)
    fresh, twin = hf_model("vit"), timm_twin("vit", hf_model("vit"), CLASSES)
    with quiet():
        adapters.init(fresh)
        fresh.set_active_adapters(fresh.load_adapter(str(tmp_path / "back"), use_safetensors=True))
    other = dict(fresh.named_parameters())["vit.encoder.layer.1.output.output_adapters.adapters.pets.adapter_up.weight"]
    assert not other.any()
    with load_adapter(first, twin, check_fingerprint=False), torch.no_grad():
        assert close(outputs("vit", fresh.eval(), images()), twin(images()))


def test_a_fused_lora_leaves_as_three(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    down, up = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, WIDTH), (3 * WIDTH, 2)))
    tensors = {"down": Dense(down), "up": Dense(up)}
    branches = tuple(Branch(Site(f"blocks.{i}.attn.qkv"), "lora", {"scale": 0.5}, dict(tensors)) for i in range(2))
    adapter = Adapter("a.b", "lora", branches)
    HUB.write(adapter, tmp_path / "out", force=False)
    stored = load_file(tmp_path / "out" / "adapter.safetensors")
    assert len(stored) == 12 and all(".loras.a_b." in name for name in stored)
    assert HUB.read(tmp_path / "out", Hints()).adapter.same_as(adapter)
    (tmp_path / "out" / "adapter.safetensors").unlink()
    save_file(stored, tmp_path / "out" / "adapter.safetensors")  # without the note
    assert {b.site.part for b in HUB.read(tmp_path / "out", Hints()).adapter.branches} == set("qkv")


# what may be wrong with a folder

Tensors = dict[str, torch.Tensor]


GOOD = ("lora", "houlsby", "parallel", "seq_bn", "double_seq_bn", "adapter_plus")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("hub")
    made = {case: with_adapter(hf_model("vit"), configs()[case]) for case in GOOD}
    return {case: saved(model, folder / case, use_safetensors=True) for case, model in made.items()}


def changed(source: Path, folder: Path, change: Callable[[Tensors], Any] | None, settings: Mapping[str, Any]) -> Path:
    """A copy of a folder with other tensors or settings."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "adapter.safetensors")
    if change is not None:
        change(tensors)
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "adapter.safetensors")
    path = folder / "adapter_config.json"
    content = json.loads(path.read_text())
    content["config"] |= settings
    path.write_text(json.dumps(content))
    return folder


QUERY = "vit.encoder.layer.0.attention.attention.query.loras.pets"
OUTPUT = "vit.encoder.layer.0.output.output_adapters.adapters.pets"
DOWN = "vit.encoder.layer.0.attention_adapters.adapters.pets.adapter_down.0"


def drop(*names: str) -> Callable[[Tensors], Any]:
    return lambda tensors: [tensors.pop(name) for name in names]


def put(name: str, *shape: int) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.update({name: torch.ones(shape)})


BAD: dict[str, tuple[str, Callable[[Tensors], Any] | None, dict[str, Any], str, str]] = {
    "half a pair": ("lora", drop(f"{QUERY}.lora_B"), {}, "missing-tensor", "lora_B"),
    "no pair": ("lora", drop(f"{QUERY}.lora_A", f"{QUERY}.lora_B"), {}, "missing-tensor", "blocks.0.attn.qkv[q]"),
    "one more": ("lora", put(f"{QUERY}.odd", 3), {}, "unmapped-tensor", "odd"),
    "another's": ("lora", put(f"{QUERY.replace('pets', 'cars')}.lora_A", 3, WIDTH), {}, "conflicting-settings", "cars"),
    "not named": ("lora", None, {"attn_matrices": ["q"]}, "unmapped-tensor", "qkv[v]"),
    "more named": ("lora", None, {"output_lora": True}, "missing-tensor", "mlp.fc2"),
    "left out": ("lora", None, {"leave_out": [1]}, "unmapped-tensor", "blocks.1"),
    "other rank": ("lora", None, {"r": 4}, "conflicting-settings", "lora_A"),
    "ranks differ": ("lora", put(f"{QUERY}.lora_B", WIDTH, 4), {}, "bad-shape", "down has 3 rows"),
    "gated": ("lora", None, {"use_gating": True}, "not-expressible", "use_gating"),
    "dora": ("lora", None, {"use_dora": True}, "not-expressible", "use_dora"),
    "vera": ("lora", None, {"vera_d": 0.1}, "not-expressible", "vera_d"),
    "composed": ("lora", None, {"composition_mode": "scale"}, "not-expressible", "composition_mode"),
    "a new setting": ("lora", None, {"warp": 2}, "unknown-field", "warp"),
    "another kind": ("lora", None, {"architecture": "reft"}, "unknown-method", "reft"),
    "no bias": ("houlsby", drop(f"{DOWN}.bias"), {}, "missing-tensor", "down_bias"),
    "a norm": ("houlsby", put(DOWN.replace("adapter_down.0", "adapter_norm_before.weight"), WIDTH), {},
               "unmapped-tensor", "adapter_norm_before"),
    "other hidden": ("houlsby", None, {"reduction_factor": 2}, "conflicting-settings", "reduction_factor"),
    "mish": ("houlsby", None, {"non_linearity": "mish"}, "not-expressible", "non_linearity"),
    "bent by a number": ("houlsby", None, {"non_linearity": 3}, "not-expressible", "non_linearity"),
    "after the sum": ("seq_bn", None, {"residual_before_ln": "post_add"}, "not-expressible", "residual_before_ln"),
    "the stream twice": ("seq_bn", None, {"residual_before_ln": False}, "not-expressible", "added twice"),
    "the stream lost": ("seq_bn", None, {"original_ln_after": False}, "not-expressible", "original_ln_after"),
    "plus, lost": ("adapter_plus", None, {"residual_before_ln": True}, "not-expressible", "original_ln_after"),
    "plus, twice": ("adapter_plus", None, {"original_ln_after": True}, "not-expressible", "residual_before_ln"),
    "beside, lost": ("parallel", None, {"original_ln_after": False}, "not-expressible", "original_ln_after"),
    "beside what": ("parallel", None, {"is_parallel": "yes"}, "not-expressible", "is_parallel"),
    "before what": ("seq_bn", None, {"original_ln_before": None}, "not-expressible", "original_ln_before"),
    "more places": ("seq_bn", None, {"mh_adapter": True}, "missing-tensor", "blocks.0.attn"),
    "fewer places": ("double_seq_bn", None, {"mh_adapter": False}, "unmapped-tensor", "blocks.0.attn.proj"),
    "no channels": ("adapter_plus", drop(f"{OUTPUT}.scaling"), {}, "missing-tensor", "scaling"),
    "few channels": ("adapter_plus", put(f"{OUTPUT}.scaling", 7), {}, "bad-shape", "scaling"),
    "channels too many": ("adapter_plus", None, {"scaling": 2.0}, "conflicting-settings", "scaling"),
    "scaled by a word": ("seq_bn", None, {"scaling": "warm"}, "bad-field", "scaling"),
    "gated bottleneck": ("seq_bn", None, {"use_gating": True}, "not-expressible", "use_gating"),
    "a gate": ("seq_bn", put(f"{OUTPUT}.gate.weight", 1, WIDTH), {}, "unmapped-tensor", "gate"),
    "another width": ("seq_bn", put(f"{OUTPUT}.adapter_up.weight", 7, 1), {}, "bad-shape", "blocks.0.mlp"),
    "no residual": ("houlsby", None, {"original_ln_after": False}, "not-expressible", "original_ln_after"),
    "hypercomplex": ("houlsby", None, {"phm_layer": True}, "not-expressible", "phm_layer"),
    "norms": ("houlsby", None, {"ln_after": True}, "not-expressible", "ln_after"),
    "invertible": ("houlsby", None, {"inv_adapter": "nice"}, "not-expressible", "inv_adapter"),
    "a scaling": ("houlsby", None, {"scaling": "learned"}, "missing-tensor", "scaling"),
    "attention beside": ("parallel", None, {"mh_adapter": True}, "missing-tensor", "blocks.0.attn"),
}  # fmt: skip


@pytest.mark.parametrize("case", GOOD)
def test_nothing_goes_missing_in_silence(case: str, good: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(good[case], tmp_path / "bad", None, {})
    for file in ("adapter.safetensors", "model_head.safetensors"):
        stored = load_file(folder / file)
        for name in stored:
            save_file({n: value for n, value in stored.items() if n != name}, folder / file)
            with pytest.raises(CorruptFileError) as caught:
                HUB.read(folder, Hints())
            assert caught.value.reason == "missing-tensor", name
        save_file(stored, folder / file)


@pytest.mark.parametrize("case", BAD)
def test_bad_folders_are_refused_by_name(case: str, good: dict[str, Path], tmp_path: Path) -> None:
    source, change, settings, reason, named = BAD[case]
    folder = changed(good[source], tmp_path / "bad", change, settings)
    with pytest.raises(AdapterPackError) as caught:
        HUB.read(folder, Hints())
    assert caught.value.reason == reason and named in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [("model_type", "bert", "unsupported-model"), ("config", "pfeiffer", "bad-field"),
     ("name", "cars", "conflicting-settings")],
)  # fmt: skip
def test_other_descriptions(key: str, value: str, reason: str, good: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(good["lora"], tmp_path / "bad", None, {})
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(AdapterPackError) as caught:
        HUB.read(folder, Hints())
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("config", "reason"),
    [({"head_type": "image_classification", "layers": 2, "use_pooler": False}, "not-expressible"),
     ({"head_type": "image_classification", "layers": 1, "use_pooler": True}, "not-expressible"),
     ({"head_type": "tagging", "layers": 1, "use_pooler": False}, "not-expressible"),
     ({"head_type": "image_classification", "layers": 1, "use_pooler": False}, "unmapped-tensor")],
)  # fmt: skip
def test_other_heads(config: dict[str, Any], reason: str, good: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(good["lora"], tmp_path / "bad", None, {})
    path = folder / "head_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "config": config}))
    with pytest.raises(AdapterPackError) as caught:
        HUB.read(folder, Hints())
    assert caught.value.reason == reason


def test_a_head_without_its_tensors(good: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(good["lora"], tmp_path / "bad", None, {})
    (folder / "model_head.safetensors").unlink()
    with pytest.raises(AdapterPackError, match="no tensors"):
        HUB.read(folder, Hints())


class Evil:
    def __reduce__(self) -> Any:
        return (Path("/nowhere/x").touch, ())


@pytest.mark.parametrize("name", ["pytorch_adapter.bin", "pytorch_model_head.bin"])
@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_code_in_a_torch_file_is_not_run(how: str, name: str, good: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(good["lora"], tmp_path / "bad", None, {})
    safe = "adapter.safetensors" if "adapter" in name else "model_head.safetensors"
    (folder / safe).unlink()
    content = {"x": Evil()}
    torch.save(content, folder / name) if how == "torch" else (folder / name).write_bytes(pickle.dumps(content))
    with pytest.raises(CorruptFileError) as caught:
        HUB.read(folder, Hints())
    assert caught.value.reason == "unsafe-source"


def lora(site: str, rank: int = 2, scale: float = 1.0) -> Branch:
    rng = np.random.default_rng(rank)
    tensors = {
        "down": Dense(rng.standard_normal((rank, WIDTH)).astype(np.float32)),
        "up": Dense(rng.standard_normal((WIDTH, rank)).astype(np.float32)),
    }
    return Branch(Site.parse(site), "lora", {"scale": scale}, tensors)


def bottleneck(site: str, rank: int = 2, nonlinearity: str = "relu", tap: str = "sum", scale: float = 1.0) -> Branch:
    params = {"nonlinearity": nonlinearity, "scale": scale, "tap": tap}
    return Branch(Site.parse(site), "adapter", params, lora(site, rank).tensors)


@pytest.mark.parametrize(
    "branches",
    [
        [lora("blocks.0.attn.proj")],
        [lora("blocks.0.attn.qkv[q]"), lora("blocks.1.attn.qkv[v]")],
        [lora("blocks.0.attn.qkv[q]"), lora("blocks.0.attn.qkv[v]", rank=3)],
        [lora("blocks.0.attn.qkv[q]"), lora("blocks.0.attn.qkv[q]", scale=2.0)],
        [Branch(Site("norm"), "replace", {}, {"bias": Dense(np.zeros(WIDTH, np.float32))})],
        [bottleneck("blocks.0.attn.proj", tap="input")],
        [bottleneck("blocks.0.attn", tap="output")],
        [bottleneck("blocks.0.mlp.fc2", tap="sum")],
        [bottleneck("blocks.0.mlp"), bottleneck("blocks.1.mlp", tap="residual")],
        [bottleneck("blocks.0.mlp"), bottleneck("blocks.1.mlp", nonlinearity="silu")],
        [bottleneck("blocks.0.mlp"), bottleneck("blocks.0.attn", rank=3)],
        [bottleneck("blocks.0.mlp"), bottleneck("blocks.1.attn")],
        [bottleneck("blocks.0.mlp"), bottleneck("blocks.0.mlp", scale=2.0)],
        [bottleneck("blocks.0.mlp"), lora("blocks.0.mlp.fc1")],
        [bottleneck("head")],
    ],
)
def test_what_the_library_cannot_hold(branches: list[Branch], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedAdapterError) as caught:
        HUB.write(Adapter("toy", "x", tuple(branches)), tmp_path / "out", force=False)
    assert caught.value.reason == "not-expressible" and not (tmp_path / "out").exists()


def test_a_folder_that_was_changed_after_export(good: dict[str, Path], tmp_path: Path) -> None:
    adapter = HUB.read(good["lora"], Hints()).adapter
    HUB.write(adapter, tmp_path / "out", force=False)
    path = tmp_path / "out" / "adapter_config.json"
    path.write_text(path.read_text().replace('"alpha": 6', '"alpha": 12'))
    with pytest.raises(CorruptFileError) as caught:
        HUB.read(tmp_path / "out", Hints())
    assert caught.value.reason == "conflicting-settings"


def test_pack_and_unpack(good: dict[str, Path], tmp_path: Path) -> None:
    for case, folder in good.items():
        pack(folder, tmp_path / f"{case}.apk", task="toy")
        written = unpack(tmp_path / f"{case}.apk", tmp_path / case, to="adapterhub")
        assert {path.name for path in written} >= {"adapter_config.json", "adapter.safetensors"}
        one, other = HUB.read(folder, Hints(task="toy")).adapter, HUB.read(tmp_path / case, Hints()).adapter
        assert one.sites.keys() == other.sites.keys() and other.name == "toy"


def test_a_stored_folder_stays_readable() -> None:
    """What the library saved once; its later versions may save otherwise."""
    found = HUB.read(FIXTURES / "adapterhub-bottleneck", Hints()).adapter
    assert digest_of(found) == "ff239722171146ed757b825ce2b25825935f9e0ac3170b69a0de41b37be3588f"


ODD: tuple[Any, ...] = (None, True, -1, 1e308, "(", [], [None], {"a": "b"})


def test_any_setting_of_any_type_gives_an_adapter_or_our_error(tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(FIXTURES / "adapterhub-bottleneck", folder)
    path = folder / "adapter_config.json"
    content = json.loads(path.read_text())
    for key in (*content, *content["config"]):
        for value in ODD:
            inner = {**content["config"], key: value}
            changed = {**content, key: value} if key in content else {**content, "config": inner}
            path.write_text(json.dumps(changed))
            with contextlib.suppress(AdapterPackError):
                HUB.read(folder, Hints())
