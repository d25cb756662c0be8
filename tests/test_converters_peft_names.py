"""PEFT folders in Hugging Face's names: from PEFT on transformers to .apk and back, loaded by PEFT itself."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import adapterpack
from adapterpack import Branch, Dense, Head, Site
from adapterpack.adapter import Adapter
from adapterpack.converters import CONVERTERS
from adapterpack.converters._base import Hints
from adapterpack.converters.hf_names import NAMINGS
from adapterpack.converters.peft import Peft
from adapterpack.errors import AdapterPackError, CallError, CorruptFileError, UnsupportedAdapterError
from adapterpack.exchange import pack, unpack
from adapterpack.runtime.load import load_adapter
from tests._hf import CLASSES, WIDTH, close, hf_model, images, outputs, quiet, timm_twin
from tests.test_converters_peft import array, lora, reads, saved, theirs, trained, without
from tests.test_families import made, pictures

pytest.importorskip("transformers", reason="transformers is not installed")
PEFT = CONVERTERS["peft"]


def ia3(**settings: Any) -> Any:
    import peft

    return peft.IA3Config(**settings)


def onto(model: nn.Module, folder: Path) -> Any:
    """PEFT's own loading, every tensor of the folder used and none of the adapter's left as it was made."""
    import peft

    with quiet():
        loaded = peft.PeftModel.from_pretrained(model, str(folder))
        told = peft.set_peft_model_state_dict(loaded, load_file(folder / "adapter_model.safetensors"))
    assert not told.unexpected_keys, told.unexpected_keys
    assert not [key for key in told.missing_keys if "lora" in key or "ia3" in key or "modules_to_save" in key]
    return loaded.eval()


# kind of model, what is trained
TRIPS: dict[str, tuple[str, Any]] = {
    "vit": ("vit", lambda: lora(target_modules=["query", "value"], modules_to_save=["classifier"])),
    "vit, every layer": ("vit", lambda: lora(target_modules="all-linear", modules_to_save=["classifier"])),
    "vit, ranks": ("vit", lambda: lora(target_modules=["query", "key", "dense"], rank_pattern={"key": 5},
                                       alpha_pattern={"layer.1.output.dense": 1}, modules_to_save=["classifier"])),
    "vit, biases": ("vit", lambda: lora(target_modules=["query"], bias="all", modules_to_save=["classifier"])),
    "vit, norms": ("vit", lambda: lora(target_modules=["value"],
                                       modules_to_save=["classifier", "layernorm_before", "vit.layernorm"])),
    "vit, dora": ("vit", lambda: lora(target_modules=["query", "output.dense"], use_dora=True,
                                      modules_to_save=["classifier"])),
    "vit, ia3": ("vit", lambda: ia3(target_modules=["key", "value", "output.dense"],
                                    feedforward_modules=["output.dense"], modules_to_save=["classifier"])),
    "deit": ("deit", lambda: lora(target_modules=["key", "attention.output.dense"], modules_to_save=["classifier"])),
    "bare vit": ("vit-bare", lambda: lora(target_modules=["query", "intermediate.dense"])),
    "bare deit": ("deit-bare", lambda: lora(target_modules=["value"])),
    "dinov2": ("dinov2", lambda: lora(target_modules=["query", "fc1", "fc2"])),
    "clip": ("clip", lambda: lora(target_modules=["k_proj", "out_proj", "fc2"])),
    "clip's classifier": ("clip-classifier", lambda: lora(target_modules=["q_proj"], modules_to_save=["classifier"])),
    "clip's projection": ("clip-projection", lambda: lora(target_modules=["q_proj", "fc1"],
                                                          modules_to_save=["visual_projection"])),
}  # fmt: skip


@pytest.mark.parametrize("case", TRIPS)
def test_there_and_back(case: str, tmp_path: Path) -> None:
    kind, config = TRIPS[case]
    kind, head = kind.removesuffix("-bare"), not kind.endswith("-bare")
    model = trained(hf_model(kind, head), config())
    expected = outputs(kind, model, images())
    pack(saved(model, tmp_path / "made"), tmp_path / "x.apk")
    written = unpack(tmp_path / "x.apk", tmp_path / "back", to="peft")
    assert close(outputs(kind, onto(hf_model(kind, head), tmp_path / "back"), images()), expected)
    assert not close(outputs(kind, hf_model(kind, head), images()), expected)
    assert any("Hugging Face" in note for note in written.notes)
    adapter = adapterpack.open(tmp_path / "x.apk").read()
    found = PEFT.read(tmp_path / "back", Hints()).adapter
    kind_of_model = type(hf_model(kind, head)).__name__
    line = (tmp_path / "back" / "README.md").read_text().partition("transformers.")[2].partition(".")[0]
    assert line in (kind_of_model, "AutoModel", "AutoModelForImageClassification")
    assert (line == "AutoModelForImageClassification") == kind_of_model.endswith("ForImageClassification")
    assert found.same_as(adapter) or {b.params.get("scale") for b in found.branches} == {1.0}


def test_the_tensors_are_those_that_peft_saved(tmp_path: Path) -> None:
    model = trained(hf_model("vit"), lora(target_modules=["query", "value"], modules_to_save=["classifier"]))
    adapter = PEFT.read(saved(model, tmp_path / "made"), Hints()).adapter
    PEFT.write(adapter, tmp_path / "back", force=False)
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("made", "back"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


TIMM: dict[str, Any] = {
    "lora": lambda: lora(target_modules=["qkv", "fc1"], modules_to_save=["head"]),
    "dora": lambda: lora(target_modules=["qkv", "attn.proj"], use_dora=True, modules_to_save=["head"]),
    "biases": lambda: lora(target_modules=["qkv"], bias="all", modules_to_save=["head"]),
    "ia3": lambda: ia3(target_modules=["qkv", "fc2"], feedforward_modules=["fc2"], modules_to_save=["head"]),
    "ia3 before": lambda: ia3(target_modules=["qkv"], feedforward_modules=["qkv"], modules_to_save=["head"]),
}


@pytest.mark.parametrize("case", TIMM)
@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_adapters_of_timm_models_in_hugging_face_names(case: str, kind: str, tmp_path: Path) -> None:
    base = hf_model(kind)
    model = trained(timm_twin(kind, base, CLASSES), TIMM[case]())
    expected = theirs(model)
    pack(saved(model, tmp_path / "made"), tmp_path / "x.apk")
    notes = unpack(tmp_path / "x.apk", tmp_path / "back", to="peft", names=kind).notes
    assert any("three, one on each" in note for note in notes)
    assert close(outputs(kind, onto(base, tmp_path / "back"), images()), expected)
    found = PEFT.read(tmp_path / "back", Hints()).adapter
    assert {b.site.part for b in found.branches if "qkv" in b.site.path} == {"q", "k", "v"}
    assert close(reads(tmp_path / "back", timm_twin(kind, hf_model(kind), CLASSES)), expected)
    unpack(tmp_path / "x.apk", tmp_path / "plain", to="peft")
    assert "qkv" in (tmp_path / "plain" / "adapter_config.json").read_text()


ALL = {"target_modules": ["query"], "bias": "all", "modules_to_save": ["classifier"]}
LOST: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "last norm": ("vit", ALL, r"vit\.layernorm\.bias", "vit.layernorm.bias"),
    "classifier": ("vit", ALL, r"classifier\..*bias", "classifier.bias"),
    "norm1": ("vit", ALL, r".*layernorm_before\.bias", "layer.0.layernorm_before.bias"),
    "patches": ("deit", ALL, r".*projection\.bias", "patch_embeddings.projection.bias"),
    "key": ("dinov2-bare", {**ALL, "modules_to_save": None}, r".*key\.bias", "layer.0.attention.attention.key.bias"),
    "pre-norm": ("clip-bare", {"target_modules": ["q_proj"], "bias": "all"}, r".*pre_layrnorm\.bias",
                 "pre_layrnorm.bias"),
    "own": ("vit", {**ALL, "bias": "lora_only", "target_modules": ["query", "value"]}, r".*layer.1.*value.*bias",
            "layer.1.attention.attention.value.bias"),
    "a block's norm": ("vit", {**ALL, "bias": "none", "modules_to_save": ["classifier", "layernorm_after"]},
                       r".*0\.layernorm_after\..*", "layer.0.layernorm_after.weight"),
}  # fmt: skip


@pytest.mark.parametrize("case", LOST)
def test_an_incomplete_folder_is_refused_by_name(case: str, tmp_path: Path) -> None:
    kind, settings, lost, named = LOST[case]
    base = hf_model(kind.removesuffix("-bare"), not kind.endswith("-bare"))
    folder = saved(trained(base, lora(**settings)), tmp_path / "made")
    PEFT.read(folder, Hints())
    with pytest.raises(CorruptFileError, match=re.escape(named)) as caught:
        PEFT.read(without(folder, lost), Hints())
    assert caught.value.reason == "missing-tensor"


THREE: dict[str, dict[str, Any]] = {
    "all biases": {"target_modules": ["query"], "bias": "all"},
    "own biases": {"target_modules": ["query", "key", "value", "intermediate.dense"], "bias": "lora_only"},
    "biases of B": {"target_modules": ["query", "value", "output.dense"], "lora_bias": True},
}


@pytest.mark.parametrize("case", THREE)
def test_biases_of_query_key_and_value_are_one_in_timms_names(case: str, tmp_path: Path) -> None:
    import peft

    base = hf_model("vit")
    twin = timm_twin("vit", base, CLASSES)
    model = trained(base, lora(modules_to_save=["classifier"], **THREE[case]))
    pack(saved(model, tmp_path / "made"), tmp_path / "x.apk")
    unpack(tmp_path / "x.apk", tmp_path / "back", to="peft", names="timm")
    with quiet():
        loaded = peft.PeftModel.from_pretrained(twin, str(tmp_path / "back")).eval()
    assert close(theirs(loaded), outputs("vit", model, images()))
    assert PEFT.read(tmp_path / "back", Hints()).adapter.same_as(adapterpack.open(tmp_path / "x.apk").read())
    unpack(tmp_path / "x.apk", tmp_path / "again", to="peft")
    assert close(outputs("vit", onto(hf_model("vit"), tmp_path / "again"), images()), outputs("vit", model, images()))


# other families of timm's, whose paths are sites as they are
FURTHER: dict[str, Any] = {
    "lora": lambda **k: lora(**{"rank_pattern": {"fc2": 2}, **k}),
    "biases of B": lambda **k: lora(lora_bias=True, **k),
    "own biases": lambda **k: lora(bias="lora_only", **k),
    "dora": lambda **k: lora(use_dora=True, **k),
    "ia3": lambda **k: ia3(feedforward_modules=["fc2"], **k),
    "no head": lambda **k: lora(**{**k, "modules_to_save": None}),
    "said nowhere": lambda **k: lora(**k),
}


def without_mapping(folder: Path) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_mapping": None}))
    return folder


@pytest.mark.parametrize("case", FURTHER)
@pytest.mark.parametrize("kind", ["swin", "convnext", "cait"])
def test_other_families_of_timms(kind: str, case: str, tmp_path: Path) -> None:
    targets = ["fc1", "fc2"] if kind == "convnext" else ["qkv", "fc1", "fc2"]
    config = FURTHER[case](target_modules=targets, modules_to_save=["head"])
    model = trained(made(kind, num_classes=5), config)
    with torch.no_grad():
        expected = model(pictures(kind))
    folder = saved(model, tmp_path / "made")
    pack(without_mapping(folder) if case == "said nowhere" else folder, tmp_path / "x.apk")
    fresh = made(kind, num_classes=5)
    with adapterpack.load(tmp_path / "x.apk", fresh, check_fingerprint=False), torch.no_grad():
        assert close(fresh(pictures(kind)), expected)
        assert not close(made(kind, num_classes=5)(pictures(kind)), expected)
    unpack(tmp_path / "x.apk", tmp_path / "back", to="peft")
    with torch.no_grad():
        assert close(onto(made(kind, num_classes=5), tmp_path / "back")(pictures(kind)), expected)
    assert PEFT.read(tmp_path / "back", Hints()).adapter.same_as(adapterpack.open(tmp_path / "x.apk").read())


def test_a_head_that_is_not_where_other_families_with_stages_have_it(tmp_path: Path) -> None:
    """PVT's classifier is `head`; PEFT drops a head.fc that the model lacks without a word."""
    config = lora(target_modules=["q"], modules_to_save=["head"])
    folder = saved(trained(timm.create_model("pvt_v2_b0", num_classes=3), config), tmp_path / "made")
    unpack(pack(folder, tmp_path / "x.apk").path, tmp_path / "back", to="peft")
    before, after = (load_file(path / "adapter_model.safetensors") for path in (folder, tmp_path / "back"))
    assert before.keys() == after.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert json.loads((tmp_path / "back" / "adapter_config.json").read_text())["modules_to_save"] == ["head"]


@pytest.mark.parametrize(
    ("lost", "named"),
    [(r"layers\.0\..*fc2.*", "layers.0.blocks.0.mlp.fc2"),
     (r"layers\.1\.blocks\.0\.attn.*", "layers.1.blocks.0.attn.qkv"),
     (r"layers\.0\..*", "layers.0.blocks.0"), (r"head\.fc\.bias", "head.fc.bias"),
     (r"layers\.1\.blocks\.1\.norm1\.bias", "layers.1.blocks.1.norm1.bias")],
)  # fmt: skip
def test_incomplete_folders_of_other_families(lost: str, named: str, tmp_path: Path) -> None:
    config = lora(target_modules=["qkv", "fc2", "reduction"], modules_to_save=["head", "norm1"])
    folder = saved(trained(made("swin", num_classes=5), config), tmp_path / "made")
    PEFT.read(folder, Hints())
    with pytest.raises(CorruptFileError, match=re.escape(named)):
        PEFT.read(without(folder, lost), Hints())


def test_the_backbone_shows_what_another_family_has(tmp_path: Path) -> None:
    model = trained(made("convnext", num_classes=5), lora(target_modules=["fc1"], bias="all", modules_to_save=["head"]))
    folder = saved(model, tmp_path / "made")
    with pytest.raises(UnsupportedAdapterError, match="--backbone"):
        PEFT.read(folder, Hints())
    backbone = {name: value.numpy() for name, value in made("convnext", num_classes=5).state_dict().items()}
    adapter = PEFT.read(folder, Hints(backbone=backbone)).adapter
    fresh = made("convnext", num_classes=5)
    with load_adapter(adapter, fresh, check_fingerprint=False), torch.no_grad():
        assert close(fresh(pictures("convnext")), model(pictures("convnext")))
    for lost in (r"stages\.3\.blocks\.0\.conv_dw\.bias", r"stem\.1\.bias"):
        with pytest.raises(CorruptFileError, match=lost):
            PEFT.read(without(folder, lost), Hints(backbone=backbone))
    config = lora(target_modules=["fc1"], modules_to_save=["head"])
    folder = saved(trained(made("convnext", num_classes=5), config), tmp_path / "plain")
    without(folder, r"stages\.3\..*")  # nothing else shows that there is a fourth stage
    with pytest.raises(CorruptFileError, match=r"stages\.3\.blocks\.0\.mlp\.fc1"):
        PEFT.read(folder, Hints(backbone=backbone))


@pytest.mark.parametrize(
    "module",
    ["swin.encoder.layers.0.blocks.0.attention.self.query", "encoder.layer.0.attention.self.query",
     "encoder.stages.0.layers.0.pwconv1", "layers.0.attn.qkv", "model.layers.0.self_attn.q_proj", "decoder",
     "layers.0.blocks.0.attention.query", "blocks.0.attn.gate", "layers.00.blocks.0.attn.qkv"],
)  # fmt: skip
def test_names_that_are_not_timms(module: str, tmp_path: Path) -> None:
    """Whether the settings say nothing, or Hugging Face."""
    PEFT.write(small(), tmp_path / "out", force=False)
    root = "base_model.model."
    pair = {f"{root}{module}.lora_A.weight": torch.ones(2, 4), f"{root}{module}.lora_B.weight": torch.ones(4, 2)}
    save_file(pair, tmp_path / "out" / "adapter_model.safetensors")
    path = tmp_path / "out" / "adapter_config.json"
    settings = {**json.loads(path.read_text()), "target_modules": [module]}
    for library in ("", "transformers.models.swin.modeling_swin", "timm.models.vision_transformer"):
        path.write_text(json.dumps({**settings, "auto_mapping": {"parent_library": library}}))
        with pytest.raises(CorruptFileError) as caught:
            PEFT.read(tmp_path / "out", Hints())
        assert caught.value.reason == "unmapped-tensor" and module in str(caught.value)


def test_a_head_for_a_model_with_stages(tmp_path: Path) -> None:
    """Where the source says nothing of its classifier, as an adapter that was trained here."""
    PEFT.write(small("layers.0.blocks.1.attn.proj", head=True), tmp_path / "out", force=False)
    assert "base_model.model.head.fc.weight" in load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert PEFT.read(tmp_path / "out", Hints()).adapter.head is not None


def test_vera_on_stages_is_refused(tmp_path: Path) -> None:
    import peft

    with quiet():
        config = peft.VeraConfig(r=4, target_modules=["qkv"], modules_to_save=["head"])
    folder = saved(trained(made("swin", num_classes=5), config), tmp_path / "made")
    with pytest.raises(UnsupportedAdapterError, match="VeRA"):
        PEFT.read(folder, Hints())


def test_branches_that_share_rows(tmp_path: Path) -> None:
    """One on all rows and one on the query's: one LoRA on timm's layer, two on the query."""
    (fused,) = small().branches
    query = replace(small("blocks.0.attn.qkv[q]", rows=WIDTH).branches[0], params={"scale": 2.0})
    adapter = small(branches=(fused, query))
    with pytest.raises(UnsupportedAdapterError, match=r"qkv\[q\]") as caught:
        Peft(names="vit").write(adapter, tmp_path / "out", force=False)
    assert caught.value.reason == "not-expressible" and not (tmp_path / "out").exists()
    PEFT.write(adapter, tmp_path / "out", force=False)


def test_what_was_asked_for_wins_over_the_source(tmp_path: Path) -> None:
    model = trained(hf_model("vit"), lora(target_modules=["query"], modules_to_save=["classifier"]))
    pack(saved(model, tmp_path / "made"), tmp_path / "x.apk")
    for names, part in (("timm", "blocks.0.attn.qkv"), ("deit", "deit.encoder.layer.0"), ("vit5", "vit.layers.0")):
        unpack(tmp_path / "x.apk", tmp_path / names, to="peft", names=names)
        assert part in (tmp_path / names / "adapter_config.json").read_text()


def test_on_the_command_line(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from adapterpack_cli.main import cli

    pack(small(), tmp_path / "x.apk")
    words = ["unpack", str(tmp_path / "x.apk"), "-o", str(tmp_path / "out"), "--to", "peft", "--names"]
    assert CliRunner().invoke(cli, [*words, "vit", "--json"]).exit_code == 0
    assert "encoder.layer.0.attention.attention.key" in (tmp_path / "out" / "adapter_config.json").read_text()
    assert CliRunner().invoke(cli, [*words, "bert"]).exit_code == 2


def small(site: str = "blocks.0.attn.qkv", head: bool = False, rows: int = 3 * WIDTH, **more: Any) -> Adapter:
    tensors: Any = {"down": Dense(array(2, WIDTH)), "up": Dense(array(rows, 2))}
    branch = Branch(Site.parse(site), "lora", {"scale": 1.0}, tensors)
    made = Head(Dense(array(5, WIDTH)), Dense(array(5))) if head else None
    return replace(Adapter("toy", "lora", (branch,), made), **more)


REFUSED: dict[str, tuple[Adapter, str, str]] = {
    "no such module": (small("blocks.0.attn.gate"), "vit", "blocks.0.attn.gate"),
    "another family": (small("layers.0.blocks.1.attn.proj"), "vit", "layers.0.blocks.1"),
    "a head of DINOv2": (small(head=True), "dinov2", "mean patch"),
    "a head of CLIP": (small(head=True), "clip", "mean patch"),
    "no thirds": (small(rows=3 * WIDTH + 1), "vit", "73 rows"),
    "a projection with a bias": (
        small(head=True, metadata={"source": {"format": "peft", "names": "clip", "prefix": "vision_model.",
                                              "head": "visual_projection"}}), "", "visual_projection"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_names_cannot_hold(case: str, tmp_path: Path) -> None:
    adapter, names, told = REFUSED[case]
    with pytest.raises(UnsupportedAdapterError) as caught:
        Peft(names=names).write(adapter, tmp_path / "out", force=False)
    assert caught.value.reason == "not-expressible" and told in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", [{"names": "bert"}, {"prefix": "x."}, {"head": "pooler"}, {"names": ["vit"]}])
def test_metadata_that_were_edited(change: dict[str, Any], tmp_path: Path) -> None:
    source = {"format": "peft", "names": "vit", "prefix": "vit.", "head": "classifier", **change}
    with pytest.raises(CorruptFileError, match="names") as caught:
        PEFT.write(small(metadata={"source": source}), tmp_path / "out", force=False)
    assert caught.value.reason == "bad-field"
    Peft(names="timm").write(small(metadata={"source": source}), tmp_path / "out", force=False)


def test_calls_that_make_no_sense(tmp_path: Path) -> None:
    pack(small(), tmp_path / "x.apk")
    for to, names in (("safetensors", "vit"), ("peft", "bert")):
        with pytest.raises(CallError) as caught:
            unpack(tmp_path / "x.apk", tmp_path / "out", to=to, names=names)
        assert caught.value.reason == "bad-call" and not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", ["value", "names", "prefix", "setting"])
def test_folders_that_were_changed_after_export(change: str, tmp_path: Path) -> None:
    Peft(names="vit").write(small(), tmp_path / "out", force=False)
    path = tmp_path / "out" / "adapter_model.safetensors"
    with safe_open(path, "pt") as file:
        note, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    said = json.loads(note["adapterpack"])
    said["names"] |= {"names": {"names": "clip"}, "prefix": {"prefix": "vit."}}.get(change, {})
    if change == "value":
        tensors["base_model.model.odd.bias"] = torch.ones(1)
    if change == "setting":
        settings = tmp_path / "out" / "adapter_config.json"
        settings.write_text(settings.read_text().replace('"r": 2', '"r": 3'))
    save_file(tensors, path, {"adapterpack": json.dumps(said)})
    with pytest.raises(AdapterPackError) as caught:
        PEFT.read(tmp_path / "out", Hints())
    assert caught.value.reason in ("conflicting-settings", "bad-field", "missing-tensor")


@pytest.mark.parametrize("word", NAMINGS)
def test_every_name_is_written_and_read(word: str, tmp_path: Path) -> None:
    Peft(names=word).write(small(), tmp_path / "out", force=False)
    found = PEFT.read(tmp_path / "out", Hints()).adapter
    parts = [""] if word == "timm" else ["q", "k", "v"]
    assert [b.site.part for b in found.branches] == sorted(parts)
    up = np.concatenate(
        [b.tensors["up"].dense() for b in sorted(found.branches, key=lambda b: "qkv".find(b.site.part))]
    )
    assert np.array_equal(up, small().branches[0].tensors["up"].dense())


@pytest.mark.parametrize("kind", ["vit-bare", "dinov2", "clip"])
def test_a_head_that_came_after_the_folder(kind: str, tmp_path: Path) -> None:
    """The source's model had no place for it: the names of one that has, or none."""
    kind, bare = kind.removesuffix("-bare"), kind.endswith("-bare")
    target = "k_proj" if kind == "clip" else "query"
    model = trained(hf_model(kind, not bare), lora(target_modules=[target]))
    adapter = PEFT.read(saved(model, tmp_path / "made"), Hints()).adapter
    later = replace(adapter, head=Head(Dense(array(CLASSES, WIDTH)), Dense(array(CLASSES))))
    for names in ("", kind):
        out = tmp_path / f"out-{names}"
        if kind == "vit":
            Peft(names=names).write(later, out, force=False)
            loaded = onto(hf_model("vit"), out)
            weight = dict(loaded.named_parameters())["base_model.model.classifier.modules_to_save.default.weight"]
            assert np.array_equal(weight.detach().numpy(), array(CLASSES, WIDTH))
        else:
            with pytest.raises(UnsupportedAdapterError, match="mean patch"):
                Peft(names=names).write(later, out, force=False)
