"""`adapterpack load`: what it prints, and what it refuses before a backbone is made."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import adapterpack
from adapterpack.packing.encode import encode_task
from adapterpack.packing.join import join
from adapterpack.runtime import backbone as backbone_module
from adapterpack.runtime.trial import Trial, check
from adapterpack_cli.main import main
from tests import _vit

KWARGS = {"img_size": 32, "patch_size": 8, "num_classes": 0, "embed_dim": _vit.WIDTH, "depth": 3, "num_heads": 3}
SITES = 6


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small backbone, a task that folds, one that does not, and a picture."""
    model = _vit.vit(num_classes=0)
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    (tmp_path / "vit.json").write_text(json.dumps({"timm_kwargs": KWARGS}))
    for name, branches in (("lora", _vit.lora_qv()), ("former", _vit.adaptformer())):
        made = _vit.adapter(branches, model, name=name)
        (tmp_path / f"{name}.apk").write_bytes(join([encode_task(made, "small")], made.backbone))
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    for name in ("old.safetensors", "old.onnx", "described.json"):
        (tmp_path / name).write_bytes(b"old")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(*words: str) -> int:
    with warnings.catch_warnings(), pytest.raises(SystemExit) as done:  # main() sets showwarning
        main(["load", *words, "--backbone", "vit.safetensors"])
    assert isinstance(done.value.code, int)
    return done.value.code


def test_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["lora.apk", "--json", "--image", "a.png", "--top", "2", "--export", "new.safetensors", "--device", "cpu"]
    assert load(*words) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["task"] == "lora" and found["classes"] == 4 and found["unload_exact"] is True
    assert found["device"] == "cpu" and found["random_weights"] is False
    (lost,) = found["notes"]
    assert "codes, settings and metadata are gone" in lost
    assert len(found["folded"]) == SITES and found["attached"] == []
    (image,) = found["images"]
    assert image["path"] == "a.png" and [set(top) for top in image["top"]] == [{"class", "label", "probability"}] * 2
    assert load_file(folder / "new.safetensors")["head.weight"].shape == (4, _vit.WIDTH)


def test_people_see_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load("lora.apk", "--image", "a.png", "--device", "cpu") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("lora into vit.safetensors on cpu: 4 classes, 6 sites folded, 0 attached, ")
    assert lines[0].endswith(" ms") and lines[-1] == "unloaded: the backbone is bit for bit what it was"


@pytest.mark.parametrize("name", ["vit_small.augreg", ""])
def test_a_name_of_timm_is_no_file(folder: Path, name: str) -> None:
    bundle = adapterpack.open(folder / "lora.apk")
    assert check(Trial(bundle, name, device="cpu", export=folder / "vit_small.safetensors")) == "cpu"
    assert check(Trial(bundle, name, device="cpu", export=Path("vit_small.safetensors"))) == "cpu"


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["lora.apk", "--image", "a.png", "--image", "none.png"], 2, "none.png"),
        (["lora.apk", "--image", "bad.png"], 1, "bad.png"),
        (["lora.apk", "--export", "old.safetensors"], 2, "old.safetensors exists already; use --force to replace it"),
        (["lora.apk", "--export", "nowhere/new.safetensors"], 2, "nowhere"),
        (["lora.apk", "--export", "new.pt"], 2, "the suffix of the export chooses its form"),
        (["lora.apk", "--export", "vit.safetensors", "--force"], 2, "vit.safetensors is read, so it cannot"),
        (["lora.apk", "--export", "old.onnx"], 2, "old.onnx exists already; use --force to replace it"),
        (["lora.apk", "--export", "described.safetensors"], 2, "described.json exists already"),
        (["former.apk", "--export", "new.onnx", "--fold", "always"], 1, "use --fold auto"),
        (["lora.apk", "--export", "new.safetensors", "--fold", "never"], 2, "--fold"),
        (["former.apk", "--export", "new.safetensors"], 1, "cannot be folded"),
        (["former.apk", "--fold", "always"], 1, "use --fold auto"),
        (["lora.apk", "--device", "cuda"], 2, "no CUDA device"),
        (["lora.apk", "--task", "none"], 2, "none"),
    ],
)
def test_refused_before_the_backbone_is_made(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    words: list[str], status: int, told: str,
) -> None:  # fmt: skip
    def none(*_: object, **__: object) -> None:
        raise AssertionError("the backbone was made")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(backbone_module, "create_backbone", none)
    assert load(*words) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and told in line and '="' not in line
    assert not (folder / "new.safetensors").exists()


def test_the_folded_model_is_a_backbone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was exported is taken by --backbone, with the preprocessing and the class names in its .json."""
    assert load("lora.apk", "--export", "new.safetensors", "--device", "cpu") == 0
    about = json.loads((folder / "new.json").read_text())
    assert about["timm_kwargs"] == {key: value for key, value in KWARGS.items() if key != "num_classes"}
    assert about["num_classes"] == 4 and about["pretrained_cfg"]["input_size"] == [3, 32, 32]
    made = backbone_module.create_backbone("new.safetensors")
    assert made.model.num_classes == 4 and made.data.input_size == (3, 32, 32)


@pytest.mark.parametrize("name", ["new.safetensors", "new.onnx"])
def test_random_weights_are_not_exported(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone_module, "_hub_answers", lambda: False)
    monkeypatch.setattr(backbone_module, "_in_cache", lambda name: False)
    wide = _vit.lora("blocks.0.attn.proj", 192, 192)
    made = _vit.adapter([wide], classes=0)
    (folder / "wide.apk").write_bytes(join([encode_task(made, "small")], made.backbone))
    for words, status in (([], 0), (["--export", name], 2)):
        with warnings.catch_warnings(), pytest.raises(SystemExit) as done:
            warnings.simplefilter("ignore")
            main(["load", "wide.apk", "--backbone", "vit_tiny_patch16_224", "--device", "cpu", *words])
        assert done.value.code == status
    said = capsys.readouterr().err.splitlines()[-1]
    told = "would be a model of random numbers: the weights of vit_tiny_patch16_224 cannot be downloaded"
    assert said.startswith(f"error: {name} {told}")
    assert "--backbone NAME.safetensors" in said and not (folder / name).exists()


def test_onnx_of_what_cannot_be_folded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript", reason="needs adapterpack[export]")
    assert load("former.apk", "--export", "new.onnx", "--device", "cpu", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["export"] == "new.onnx" and found["attached"] and found["unload_exact"] is True
    assert "the graph" in found["notes"][0] and (folder / "new.onnx").stat().st_size > 100_000
