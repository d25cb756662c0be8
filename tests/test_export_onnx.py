"""ONNX of a model with an adapter in it: run by onnxruntime, logits equal to torch's."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from adapterpack.adapter import Branch, DataSettings
from adapterpack.errors import CallError, UnsupportedAdapterError
from adapterpack.runtime import export_onnx as module
from adapterpack.runtime.about import About
from adapterpack.runtime.export_onnx import export_onnx
from adapterpack.runtime.families import blocks_of
from adapterpack.runtime.load import load_adapter
from tests._vit import EXAMPLES, adapter, adaptformer, close, images, lora_qv, same, snapshot, vit
from tests.test_families import adapter as in_model
from tests.test_families import beside, lora, made, pictures

ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
pytest.importorskip("onnxscript", reason="needs adapterpack[export]")


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])


def run(path: Path, x: torch.Tensor) -> torch.Tensor:
    (logits,) = session(path).run(["logits"], {"images": x.numpy()})
    return torch.from_numpy(logits)


CASES: dict[str, Sequence[Branch]] = {
    "folded": [*lora_qv(), *EXAMPLES["sparse"], *EXAMPLES["consolidator"]],
    "attached": [*adaptformer(), *EXAMPLES["adapter"]],
}


@pytest.mark.parametrize("case", CASES)
def test_logits_are_equal_for_any_batch(case: str, tmp_path: Path) -> None:
    model, path = vit(), tmp_path / "x.onnx"
    plain = model(images(2))
    with load_adapter(adapter(CASES[case], model), model) as loaded, torch.no_grad():
        before = snapshot(model)
        (lost,) = export_onnx(model, path)
        assert same(snapshot(model), before) and not model.training
        assert bool(loaded.attached) == ("the graph" in lost)
        found = session(path)
        for count in (1, 2, 5):
            x = images(count)
            (logits,) = found.run(None, {"images": x.numpy()})
            assert close(torch.from_numpy(logits), model(x))
            assert not close(torch.from_numpy(logits[:2, :4]), plain[:count, :4])  # the adapter is in it
    assert [p.name for p in tmp_path.iterdir()] == ["x.onnx"]


FAMILIES = {
    "swin": "layers.0.blocks.0.attn.qkv[q]",
    "convnext": "stages.0.blocks.0.mlp.fc1",
    "eva": "blocks.0.attn.qkv[q]",
    "beit": "blocks.0.attn.qkv[v]",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families(family: str, tmp_path: Path) -> None:
    """A branch in the weights and one beside them, at every batch size."""
    model, x = made(family), pictures(family)
    block = next(name for name, _ in blocks_of(model))
    task = in_model(model, [lora(model, FAMILIES[family]), beside(model, f"{block}.mlp")])
    about = About(data=DataSettings((3, *x.shape[2:])))
    with torch.no_grad():
        plain = model(x)
        with load_adapter(task, model) as loaded:
            assert loaded.folded and loaded.attached
            export_onnx(model, tmp_path / "x.onnx", about=about)
            expected = model(x)
    assert close(run(tmp_path / "x.onnx", x), expected) and close(run(tmp_path / "x.onnx", x[:1]), expected[:1])
    assert plain.shape != expected.shape or not close(plain, expected)


def test_what_torch_has_no_form_for_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*words: object, **named: object) -> None:
        raise torch.onnx.OnnxExporterError("\x1b[96mFailed\x1b[0m to convert\nNext steps") from ValueError("no odd_op")

    model = made("beit")
    monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(UnsupportedAdapterError, match="Beit: no odd_op") as caught:
        export_onnx(model, tmp_path / "x.onnx")
    assert caught.value.reason == "not-expressible" and list(tmp_path.iterdir()) == []


def test_metadata_and_nothing_of_this_machine(tmp_path: Path) -> None:
    model, path = vit(), tmp_path / "x.onnx"
    data = DataSettings((3, 32, 32), (0.4, 0.4, 0.4), (0.2, 0.2, 0.2))
    about = About("toy", ("a", "b", "c", "ç"), data, "small")
    with load_adapter(adapter(lora_qv(1), model), model):
        export_onnx(model, path, about=about)
        export_onnx(model, tmp_path / "again.onnx", about=about)
    assert path.read_bytes() == (tmp_path / "again.onnx").read_bytes()
    found = session(path)
    said = found.get_modelmeta().custom_metadata_map
    assert said["adapterpack.task"] == "toy" and said["adapterpack.backbone"] == "small"
    assert json.loads(said["adapterpack.labels"]) == ["a", "b", "c", "ç"]
    assert json.loads(said["adapterpack.data"])["mean"] == [0.4, 0.4, 0.4]
    assert [(i.name, i.shape) for i in found.get_inputs()] == [("images", ["batch", 3, 32, 32])]
    assert [(o.name, o.shape) for o in found.get_outputs()] == [("logits", ["batch", 4])]
    content = path.read_bytes()
    assert str(Path(torch.__file__).parent).encode() not in content and b"site-packages" not in content
    assert str(Path(module.__file__).parent).encode() not in content


def test_a_model_in_training_stays_so(tmp_path: Path) -> None:
    model = vit(drop_path_rate=0.5).train()
    export_onnx(model, tmp_path / "x.onnx")
    assert model.training
    with torch.no_grad():
        assert close(run(tmp_path / "x.onnx", images(2)), model.eval()(images(2)))


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.onnx"
    with pytest.raises(UnsupportedAdapterError):
        export_onnx(nn.Linear(2, 2), path)
    path.write_bytes(b"mine")
    with pytest.raises(CallError) as caught:
        export_onnx(vit(), path)
    assert caught.value.reason == "file-exists" and path.read_bytes() == b"mine"
    monkeypatch.setattr(module, "LARGEST", 1000)
    with pytest.raises(UnsupportedAdapterError, match="an ONNX file holds") as large:
        export_onnx(vit(), path, force=True)
    assert large.value.reason == "not-expressible" and path.read_bytes() == b"mine"
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(CallError, match="onnxscript") as missing:
        export_onnx(vit(), path, force=True)
    assert missing.value.reason == "missing-extra" and path.read_bytes() == b"mine"
