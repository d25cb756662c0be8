"""`pack --calibrate` and `--evaluate` as a caller sees them: numbers in the report, and what is refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import adapterpack
from adapterpack.adapter import Adapter, Branch, Head, Site
from adapterpack.errors import AdapterPackError, CallError
from adapterpack.runtime import backbone as backbone_module
from adapterpack.runtime.backbone import create_backbone
from adapterpack.runtime.images import read_image
from adapterpack.runtime.load import load_adapter
from adapterpack.tensors import Dense
from adapterpack.train.data import read_some
from adapterpack_cli.main import main
from tests import _images

WIDTH, CLASSES = 24, 3


def numbers(seed: int, *shape: int) -> Dense:
    return Dense((np.random.default_rng(seed).standard_normal(shape) * 0.3).astype(np.float32))


def trained() -> Adapter:
    """A float LoRA with a head, for the backbone of `_images`."""
    branches = [
        Branch(
            Site.parse(f"blocks.{i}.attn.qkv[{part}]"), "lora", {"scale": 1.0},
            {"down": numbers(10 * i + k, 4, WIDTH), "up": numbers(50 + 10 * i + k, WIDTH, 4)},
        )
        for i in range(2)
        for k, part in enumerate("qv")
    ]  # fmt: skip
    head = Head(numbers(99, CLASSES, WIDTH), numbers(98, CLASSES))
    return Adapter("toy", "lora", tuple(branches), head, tuple(f"class {i}" for i in range(CLASSES)))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone, a data set, a folder of loose images, and the adapter as a checkpoint."""
    root = tmp_path_factory.mktemp("quantization")
    _images.backbone(root)
    _images.folder(root / "data")
    (root / "loose" / "deep").mkdir(parents=True)
    for i, source in enumerate(sorted((root / "data" / "train").rglob("*.png"))[:6]):
        (root / "loose" / "deep" / f"{i}.png").write_bytes(source.read_bytes())
    (root / "empty").mkdir()
    (root / "bad").mkdir()
    (root / "bad" / "a.png").write_bytes(b"no picture")
    adapterpack.pack(trained(), root / "whole.apk", backbone=root / "tiny.safetensors")
    adapterpack.unpack(root / "whole.apk", root / "toy.ckpt", to="checkpoint")
    return root


def accuracy_of(adapter: Adapter, place: Path) -> float:
    """Top-1 on the test images, one image at a time."""
    made = create_backbone(place / "tiny.safetensors")
    right = count = 0
    with load_adapter(adapter, made.model, check_fingerprint=False), torch.no_grad():
        for label in range(CLASSES):
            for file in sorted((place / "data" / "test" / f"class {label}").iterdir()):
                logits = made.model(read_image(file, adapter.data or made.data)[None])
                right, count = right + int(logits.argmax() == label), count + 1
    return right / count


def pack(place: Path, out: Path, **call: Any) -> adapterpack.Summary:
    return adapterpack.pack(place / "toy.ckpt", out, backbone=place / "tiny.safetensors", **call)


def test_the_report_and_the_file(place: Path, tmp_path: Path) -> None:
    plain = pack(place, tmp_path / "plain.apk", bits=1, head_bits=4)
    found = pack(place, tmp_path / "fitted.apk", bits=1, head_bits=4, calibrate=place / "data", evaluate=place / "data")
    assert [cost.tensor for cost in found.costs] == [cost.tensor for cost in plain.costs]
    for cost, first in zip(found.costs, plain.costs):
        assert cost.unfitted_error == first.relative_error and first.output_after is None
        assert cost.output_before is not None and cost.output_after is not None
        assert cost.output_after <= cost.output_before
    assert "the scales of 9 matrices were fitted on 36 images of data" in found.notes  # all of train/, none of test/
    whole, fitted = (adapterpack.open(path).read() for path in (place / "whole.apk", tmp_path / "fitted.apk"))
    assert found.accuracy == {
        "examples": 15,
        "before": pytest.approx(accuracy_of(whole, place)),
        "after": pytest.approx(accuracy_of(fitted, place)),
        "baseline": "unquantized",
    }
    assert fitted.metadata["accuracy"] == found.accuracy["after"] and "accuracy" not in whole.metadata
    assert plain.accuracy is None
    said = {"accuracy": found.accuracy["after"]}
    again = pack(place, tmp_path / "again.apk", bits=1, head_bits=4, calibrate=place / "data", metadata=said)
    assert (tmp_path / "again.apk").read_bytes() == (tmp_path / "fitted.apk").read_bytes() and not again.accuracy


def test_a_folder_of_loose_images(place: Path, tmp_path: Path) -> None:
    found = pack(place, tmp_path / "x.apk", bits=2, group=32, calibrate=place / "loose")
    changed = sum(cost.output_after != cost.output_before for cost in found.costs)
    told = f"the scales of {changed} of 8 matrices were fitted on 6 images of loose, to no gain for the others"
    assert 0 < changed < 8 and told in found.notes
    assert all(cost.output_after is not None for cost in found.costs)


def test_images_are_taken_evenly(place: Path) -> None:
    made = create_backbone(place / "tiny.safetensors")
    some, every = (read_some(place / "data", made.data, count) for count in (4, 1000))
    assert every.shape == (36, 3, 16, 16) and torch.equal(some, every[[0, 9, 18, 27]])


@pytest.mark.parametrize("use", ["calibrate", "evaluate"])
def test_images_are_never_overwritten(place: Path, tmp_path: Path, use: str) -> None:
    data = tmp_path / "toy.npz"
    np.savez(data, **_images.arrays(), classes=np.array([f"class {i}" for i in range(CLASSES)]))
    before = data.read_bytes()
    with pytest.raises(CallError, match="is read, so it cannot be written"):
        pack(place, data, bits=8, force=True, **{use: data})
    assert data.read_bytes() == before


def test_evaluate_alone(place: Path, tmp_path: Path) -> None:
    found = pack(place, tmp_path / "x.apk", bits=8, evaluate=place / "data")
    assert found.accuracy is not None and found.accuracy["examples"] == 15
    assert all(cost.output_after is None for cost in found.costs)
    said = pack(place, tmp_path / "y.apk", bits=8, evaluate=place / "data", metadata={"accuracy": 0.5})
    assert said.accuracy == found.accuracy and adapterpack.open(tmp_path / "y.apk").read().metadata["accuracy"] == 0.5


def test_evaluate_what_is_stored_as_it_came(place: Path, tmp_path: Path) -> None:
    found = pack(place, tmp_path / "x.apk", evaluate=place / "data")
    whole = adapterpack.open(place / "whole.apk").read()
    right = pytest.approx(accuracy_of(whole, place))
    assert found.accuracy == {"examples": 15, "before": right, "after": right, "baseline": "same"}


@pytest.fixture(scope="module")
def tuned(place: Path) -> Path:
    """The backbone with noise in every parameter, and a head: a whole fine-tuned model."""
    rng = np.random.default_rng(5)
    state = load_file(place / "tiny.safetensors")
    state |= {"head.weight": torch.from_numpy(numbers(99, CLASSES, WIDTH).data), "head.bias": torch.zeros(CLASSES)}
    noisy = {
        name: value + torch.from_numpy((rng.standard_normal(value.shape) * 0.2).astype(np.float32))
        for name, value in state.items()
    }
    save_file(noisy, place / "tuned.safetensors")
    return place / "tuned.safetensors"


def test_a_fine_tuned_model_is_compared_with_what_is_kept_of_it(
    tuned: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, state = place / "tiny.safetensors", load_file(tuned)
    made = create_backbone(base)
    made.model.reset_classifier(CLASSES)  # type: ignore[operator]
    made.model.load_state_dict(state)
    right = count = 0
    for label in range(CLASSES):
        for file in sorted((place / "data" / "test" / f"class {label}").iterdir()):
            with torch.no_grad():
                right += int(made.model.eval()(read_image(file, made.data)[None]).argmax() == label)
            count += 1
    words = ["pack", str(tuned), "-o", str(tmp_path / "x.apk"), "--as", "lowrank:1", "--backbone", str(base)]
    with warnings.catch_warnings(), pytest.raises(SystemExit) as done:
        main([*words, "--evaluate", str(place / "data")])
    shown = capsys.readouterr().out
    kept = adapterpack.open(tmp_path / "x.apk").read()
    assert done.value.code == 0
    assert f"accuracy on 15 test images: {right / count:.2%} of the fine-tuned model, " in shown
    assert f"{accuracy_of(kept, place):.2%} of what was kept of it" in shown
    assert kept.metadata["accuracy"] == pytest.approx(accuracy_of(kept, place))


def notes_of(adapter: Adapter, place: Path, tmp_path: Path, **call: Any) -> tuple[str, ...]:
    given = {"backbone": place / "tiny.safetensors", "calibrate": place / "loose", "force": True, **call}
    return adapterpack.pack(adapter, tmp_path / "n.apk", **given).notes


def test_the_note_says_what_was_fitted_and_what_was_not(place: Path, tuned: Path, tmp_path: Path) -> None:
    factor = Branch(Site.parse("blocks.0.attn.proj"), "affine", {"tap": "output"}, {"factor": numbers(3, WIDTH)})
    (nothing, none) = notes_of(Adapter("toy", "affine", (factor,), None, None), place, tmp_path, bits=8)
    assert nothing == "nothing was quantized: there is no matrix to quantize"
    assert none == "no scales were fitted on images: no matrix was put into codes"
    tensors = {"down": numbers(1, 4, WIDTH), "up": numbers(2, WIDTH, 4), "magnitude": numbers(3, WIDTH)}
    dora = Branch(Site.parse("blocks.0.attn.proj"), "dora", {"scale": 1.0}, tensors)
    notes = notes_of(Adapter("toy", "dora", (dora,), None, None), place, tmp_path, bits=8)
    assert notes[-2] == "no scales were fitted on images: no branch gives the output of a matrix in codes"
    assert notes[-1] == "blocks.0.attn.proj.down and 1 more kept the fit to the weights: no branch gives their output"
    call = {"backbone": place / "tiny.safetensors", "bits": 1, "calibrate": place / "loose"}
    found = adapterpack.pack(tuned, tmp_path / "b.apk", settings={"as": "bitdelta"}, **call)
    assert "10 matrices were kept as they are: they have as few bits already" in found.notes
    assert "no scales were fitted on images: no branch gives the output of a matrix in codes" in found.notes


@pytest.mark.parametrize(
    ("call", "reason", "told"),
    [
        ({"calibrate": "data"}, "bad-call", "without bits"),
        ({"calibrate": "data", "bits": 16}, "bad-call", "without bits"),
        ({"evaluate": "data", "backbone": None}, "bad-call", "needs the backbone"),
        ({"calibrate": "data", "bits": 1, "backbone": None}, "bad-call", "needs the backbone"),
        ({"calibrate": "none", "bits": 1}, "missing-file", "none"),
        ({"calibrate": "empty", "bits": 1}, "bad-source", "no images"),
        ({"calibrate": "bad", "bits": 1}, "bad-source", "a.png"),
        ({"evaluate": "loose", "bits": 1}, "missing-file", "test"),
    ],
)
def test_what_is_refused(place: Path, tmp_path: Path, call: dict[str, Any], reason: str, told: str) -> None:
    paths = {name: place / value for name, value in call.items() if name in ("calibrate", "evaluate")}
    given = {"backbone": place / "tiny.safetensors", **call, **paths}
    with pytest.raises(AdapterPackError, match=told) as caught:
        adapterpack.pack(place / "toy.ckpt", tmp_path / "x.apk", **given)
    assert caught.value.reason == reason and not list(tmp_path.iterdir())


def test_random_weights_judge_nothing(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone_module, "_hub_answers", lambda: False)
    monkeypatch.setattr(backbone_module, "_in_cache", lambda name: False)
    with pytest.raises(AdapterPackError, match="random weights"):
        adapter = Adapter("toy", "linear", (), Head(numbers(1, CLASSES, 192), None), None)
        adapterpack.pack(
            adapter, tmp_path / "x.apk", backbone="vit_tiny_patch16_224", head_bits=1, calibrate=place / "loose"
        )
    assert not list(tmp_path.iterdir())


def test_the_command(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["pack", str(place / "toy.ckpt"), "-o", str(tmp_path / "x.apk"), "--bits", "1"]
    words += ["--backbone", str(place / "tiny.safetensors"), "--calibrate", str(place / "loose")]
    words += ["--evaluate", str(place / "data")]
    for more in ([], ["--json", "--force"]):
        with warnings.catch_warnings(), pytest.raises(SystemExit) as done:  # main() sets showwarning
            main([*words, *more])
        assert done.value.code == 0
        out, err = capsys.readouterr()
        if not more:
            assert "note: the scales of 8 matrices were fitted on 6 images of loose" in err
            assert "output error before" in out and "accuracy on 15 test images: " in out
    told = json.loads(out)
    assert "the scales of 8 matrices were fitted on 6 images of loose" in told["notes"]
    row = told["quantization"]["calibration"]["blocks.0.attn.qkv[q].down"]
    assert row.keys() == {"weight_error_before", "weight_error", "output_error_before", "output_error"}
    assert row["output_error"] <= row["output_error_before"]
    assert told["accuracy"].keys() == {"examples", "before", "after", "baseline"}
