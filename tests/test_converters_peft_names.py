"""PEFT folders in Hugging Face's names: from PEFT on transformers to .apk and back, loaded by PEFT itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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
from tests._hf import CLASSES, WIDTH, close, hf_model, images, outputs, quiet, timm_twin
from tests.test_converters_peft import array, lora, reads, saved, theirs, trained

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
