"""A folded model as a file that timm loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from adapterpack.adapter import DataSettings, Head
from adapterpack.errors import CallError, UnsupportedAdapterError
from adapterpack.runtime.about import About
from adapterpack.runtime.backbone import create_backbone
from adapterpack.runtime.export import export_folded
from adapterpack.runtime.load import load_adapter
from tests._vit import EXAMPLES, WIDTH, adapter, adaptformer, branch, images, lora_qv, one_bit, same, snapshot, vit


def test_strict_state_dict(tmp_path: Path) -> None:
    model, x, path = vit(), images(), tmp_path / "folded.safetensors"
    branches = [*lora_qv(), *EXAMPLES["sparse"], *EXAMPLES["replace"], *EXAMPLES["consolidator"]]
    with load_adapter(adapter(branches, model), model), torch.no_grad():
        before = snapshot(model)
        export_folded(model, path)
        assert same(snapshot(model), before)
        expected = model(x)
    fresh = vit(num_classes=4)
    fresh.load_state_dict(load_file(path), strict=True)
    with torch.no_grad():
        assert torch.equal(fresh(x), expected)
    assert [p.name for p in tmp_path.iterdir()] == ["folded.safetensors"]  # nobody knows how that model was made


def test_timm_creates_from_it_and_so_do_we(tmp_path: Path) -> None:
    name, path = "vit_tiny_patch16_224", tmp_path / "folded.safetensors"
    model = create_backbone(name, pretrained=False).model
    tensors = {"down": one_bit(2, 192), "up": one_bit(192, 2, seed=1)}
    made = adapter([branch("blocks.3.attn.qkv[q]", "lora", tensors, scale=1.0)], model, head=Head(one_bit(5, 192)))
    x = images(1, 224)
    with load_adapter(made, model), torch.no_grad():
        lost = export_folded(model, path)
        expected = model(x)
    assert len(lost) == 2 and "zeros" in lost[1]
    assert json.loads(path.with_suffix(".json").read_text())["architecture"] == name
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "architecture": name, "num_classes": "5"}
    with torch.no_grad():
        theirs = timm.create_model(name, num_classes=5, checkpoint_path=str(path)).eval()
        assert torch.equal(theirs(x), expected)
        assert not theirs.head.bias.any()  # the task's head has none: zeros stand in
        assert torch.equal(create_backbone(path).model(x), expected)


def test_what_cannot_be_folded_is_named(tmp_path: Path) -> None:
    model = vit()
    with (
        load_adapter(adapter(lora_qv() + adaptformer(), model), model),
        pytest.raises(UnsupportedAdapterError, match=r"blocks\.0\.mlp.*2 others") as error,
    ):
        export_folded(model, tmp_path / "out.safetensors")
    assert error.value.reason == "not-foldable" and not list(tmp_path.iterdir())
    with load_adapter(adapter(lora_qv(), model), model, fold="never"), pytest.raises(UnsupportedAdapterError):
        export_folded(model, tmp_path / "out.safetensors")


def test_existing_files_and_other_models(tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    path.write_bytes(b"mine")
    with pytest.raises(CallError) as error:
        export_folded(vit(), path)
    assert error.value.reason == "file-exists" and path.read_bytes() == b"mine"
    export_folded(vit(), path, force=True)
    assert load_file(path)["head.weight"].shape == (7, WIDTH)
    with pytest.raises(UnsupportedAdapterError):
        export_folded(nn.Linear(2, 2), path, force=True)


KWARGS = {"img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "depth": 3, "num_heads": 3}


def test_the_description_makes_the_model_again(tmp_path: Path) -> None:
    """Logits, class names and preprocessing come back through --backbone, for a model without a timm name."""
    model, x, path = vit(), images(), tmp_path / "folded.safetensors"
    data = DataSettings((3, 32, 32), (0.4, 0.4, 0.4), (0.2, 0.2, 0.2), "bilinear", 0.9, "center")
    about = About("toy", ("a", "b", "c", "d"), data, "small", "", {**KWARGS, "num_classes": 7})
    with load_adapter(adapter(lora_qv(), model), model), torch.no_grad():
        assert len(export_folded(model, path, about=about)) == 1
        expected = model(x)
    made = create_backbone(path)
    assert made.data == data and json.loads(path.with_suffix(".json").read_text())["label_names"] == list("abcd")
    with torch.no_grad():
        assert torch.equal(made.model(x), expected)


def test_a_description_of_another_model_is_refused(tmp_path: Path) -> None:
    about = About(kwargs={**KWARGS, "depth": 2})
    with pytest.raises(UnsupportedAdapterError, match=r"blocks\.2") as caught:
        export_folded(vit(), tmp_path / "x.safetensors", about=about)
    assert caught.value.reason == "unsupported-model" and not list(tmp_path.iterdir())
    with pytest.raises(CallError, match="safetensors file"):
        export_folded(vit(), tmp_path / "x.json")
    (tmp_path / "y.json").write_text("mine")
    with pytest.raises(CallError, match=r"y\.json exists"):
        export_folded(vit(), tmp_path / "y.safetensors", about=About(kwargs=KWARGS))
    assert [p.name for p in tmp_path.iterdir()] == ["y.json"]


def test_a_model_that_was_changed_gets_no_wrong_description(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1)
    _, note = export_folded(model, tmp_path / "x.safetensors")
    assert "no vit_tiny_patch16_224 any more" in note
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
