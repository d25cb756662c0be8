"""Whole runs: what is written, what is said, and that a run which was killed ends as one that was not."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import adapterpack
from adapterpack.converters.checkpoint import load_run, read_spt_mask
from adapterpack.errors import AdapterPackError, CallError, CorruptFileError, MissingFileError, UnsupportedAdapterError
from adapterpack.train import loop, select
from adapterpack.train import run as train_run
from adapterpack.train.devices import Hardware
from adapterpack.train.evaluate import Question, evaluate
from adapterpack.train.loop import Progress
from adapterpack.train.measure import Score
from adapterpack.train.measure_mask import MaskRequest, write_mask
from adapterpack.train.recipe import Recipe, recipe_for
from adapterpack.train.resume import part_of, read_journal
from adapterpack.train.run import Request, Result, train
from adapterpack_cli.main import main
from tests._images import SIDE, arrays, backbone, folder
from tests._threads import one_thread  # noqa: F401

FAST: dict[str, Any] = {"epochs": 3, "batch_size": 12, "dim": 4, "lr": 1e-2, "precision": "float32", "drop_path": 0.0}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`toy/`, an image folder of three classes, and `tiny.safetensors`."""
    root = tmp_path_factory.mktemp("work")
    folder(root / "toy")
    backbone(root)
    return root


def request(work: Path, out: Path, **changes: Any) -> Request:
    return replace(Request(work / "toy", str(work / "tiny.safetensors"), out, device="cpu"), **changes)


def quick(method: str = "lora", **changes: Any) -> Recipe:
    return recipe_for(method, {**FAST, **changes})


def run(work: Path, out: Path, recipe: Recipe | None = None, **changes: Any) -> tuple[Result, list[Progress]]:
    told: list[Progress] = []
    return train(request(work, out, **changes), recipe or quick(), told.append), told


def cli(*words: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return int(end.value.code or 0)


def test_a_run_learns_and_is_measured_the_same_after_packing(work: Path, tmp_path: Path) -> None:
    result, told = run(work, tmp_path / "run.ckpt", quick(epochs=25, scale=10.0))
    assert result.test is not None and result.test.accuracy > 0.6 > 1 / 3
    assert result.state.best_epoch <= 25 and len(result.state.history) == 25
    assert result.state.history[-1]["loss"] < result.state.history[0]["loss"]
    assert not part_of(tmp_path / "run.ckpt").exists()
    adapter, training = load_run(tmp_path / "run.ckpt")
    assert training is None and result.adapter is not None and adapter.same_as(result.adapter)
    assert adapter.labels == ("class 0", "class 1", "class 2") and adapter.name == "toy"
    assert adapter.backbone.name == "tiny" and adapter.backbone.fingerprint is not None
    assert adapter.data is not None and adapter.data.input_size == (3, SIDE, SIDE) and adapter.data.mean == (0.5,) * 3
    assert adapter.metadata["training"]["recipe"]["scale"] == 10.0
    adapterpack.pack(tmp_path / "run.ckpt", tmp_path / "toy.apk")
    for file in ("toy.apk", "run.ckpt"):
        found = evaluate(Question(tmp_path / file, work / "toy", str(work / "tiny.safetensors"), device="cpu"))
        assert found["accuracy"] == result.test.accuracy and found["examples"] == 15
        assert found["file_bytes"] == (tmp_path / file).stat().st_size
    assert told[0].step == 1 and told[0].steps == 3 and told[-1].validation is not None


@pytest.mark.parametrize("method", ["adaptformer", "consolidator", "spt-lora", "spt-adapter", "linear", "bias"])
def test_every_method_runs(method: str, work: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"budget": 0.002} if method.startswith("spt") else {}
    result, _ = run(work, tmp_path / "run.ckpt", quick(method, bits=1, **changes))
    adapterpack.pack(tmp_path / "run.ckpt", tmp_path / "toy.apk")
    found = evaluate(Question(tmp_path / "toy.apk", work / "toy", str(work / "tiny.safetensors"), device="cpu"))
    assert result.test is not None and found["accuracy"] == result.test.accuracy
    assert result.parameters == 0 if method == "linear" else result.parameters > 0


def test_full_fine_tuning_writes_a_state_dict(work: Path, tmp_path: Path) -> None:
    result, _ = run(work, tmp_path / "full.pth", quick("full", epochs=1))
    state = torch.load(tmp_path / "full.pth", weights_only=True)
    assert result.adapter is None and state["head.weight"].shape == (3, 24) and "blocks.1.mlp.fc2.bias" in state
    assert "no input values (mean 0.5,0.5,0.5, std 0.5,0.5,0.5), see docs/finetunes.md" in result.notes[-1]
    with pytest.raises(CorruptFileError, match="pack it first, or give an adapter's run"):
        evaluate(Question(tmp_path / "full.pth", work / "toy", str(work / "tiny.safetensors"), device="cpu"))


def test_the_same_seed_gives_the_same_bits(work: Path, tmp_path: Path) -> None:
    results = [run(work, tmp_path / f"{i}.ckpt", quick(seed=seed))[0].adapter for i, seed in enumerate((1, 1, 2))]
    assert results[0] is not None and results[1] is not None and results[2] is not None
    assert results[0].same_as(results[1]) and not results[0].same_as(results[2])


def test_a_batch_in_parts_is_the_same_batch(work: Path, tmp_path: Path) -> None:
    still = quick(dropout=0.0, epochs=1, bits=32)
    whole, _ = run(work, tmp_path / "a.ckpt", still)
    parts, _ = run(work, tmp_path / "b.ckpt", replace(still, accumulate=5))
    assert whole.adapter is not None and parts.adapter is not None
    for one, other in zip(whole.adapter.branches, parts.adapter.branches):
        for role, tensor in one.tensors.items():
            assert np.allclose(tensor.dense(), other.tensors[role].dense(), atol=2e-4)


class Stop(Exception):
    """Somebody pressed Ctrl-C."""


def stopped(work: Path, out: Path, recipe: Recipe, epoch: int, **changes: Any) -> None:
    def report(progress: Progress) -> None:
        if progress.epoch == epoch and progress.step == 2:
            raise Stop

    with pytest.raises(Stop):
        train(request(work, out, **changes), recipe, report)


@pytest.mark.parametrize("method", ["lora", "spt-lora", "linear"])
def test_a_stopped_run_goes_on_to_the_same_bits(method: str, work: Path, tmp_path: Path) -> None:
    recipe = quick(method, epochs=5, bits=1, **({"budget": 0.002} if method == "spt-lora" else {}))
    expected, _ = run(work, tmp_path / "whole.ckpt", recipe)
    stopped(work, tmp_path / "cut.ckpt", recipe, 4)
    assert part_of(tmp_path / "cut.ckpt").exists() and not (tmp_path / "cut.ckpt").exists()
    found, told = run(work, tmp_path / "cut.ckpt", recipe, resume=True)
    assert min(progress.epoch for progress in told) == 4
    assert found.adapter is not None and expected.adapter is not None and found.adapter.same_as(expected.adapter)
    assert (tmp_path / "cut.ckpt").read_bytes() == (tmp_path / "whole.ckpt").read_bytes()
    assert found.state.history == expected.state.history


def test_going_on_with_other_settings_is_refused(work: Path, tmp_path: Path) -> None:
    stopped(work, tmp_path / "run.ckpt", quick(), 2)
    with pytest.raises(CallError, match=r"begun with lr 0\.01, now it is 0\.02"):
        run(work, tmp_path / "run.ckpt", quick(lr=0.02), resume=True)
    fresh, told = run(work, tmp_path / "run.ckpt", quick(lr=0.02))
    assert told[0].epoch == 1 and fresh.state.epoch == 3


def test_going_on_with_other_images_is_refused(work: Path, tmp_path: Path) -> None:
    data = folder(tmp_path / "toy")
    stopped(work, tmp_path / "run.ckpt", quick(), 2, data=data)
    image = data / "train" / "class 0" / "3.png"
    before = image.read_bytes()
    image.write_bytes((data / "train" / "class 0" / "4.png").read_bytes())
    with pytest.raises(CallError, match="begun with data"):
        run(work, tmp_path / "run.ckpt", data=data, resume=True)
    image.write_bytes(before)
    _, told = run(work, tmp_path / "run.ckpt", data=data.rename(tmp_path / "moved"), resume=True)
    assert told[0].epoch == 2


def test_going_on_with_another_mask_is_refused(work: Path, tmp_path: Path) -> None:
    recipe = quick("spt-lora", budget=0.002)
    for seed in (0, 1):
        common = (work / "toy", str(work / "tiny.safetensors"), 0.002, tmp_path / f"{seed}.pth")
        write_mask(MaskRequest(*common, dim=4, seed=seed, device="cpu"), lambda: None)
    stopped(work, tmp_path / "run.ckpt", recipe, 2, mask=tmp_path / "0.pth")
    with pytest.raises(CallError, match="begun with mask"):
        run(work, tmp_path / "run.ckpt", recipe, mask=tmp_path / "1.pth", resume=True)
    _, told = run(work, tmp_path / "run.ckpt", recipe, mask=tmp_path / "0.pth", resume=True)
    assert told[0].epoch == 2


@pytest.mark.parametrize("without", [("key", "stage"), ("tried",), ("best_score",)])
def test_a_damaged_unfinished_run_is_refused(without: tuple[str, ...], work: Path, tmp_path: Path) -> None:
    stopped(work, tmp_path / "run.ckpt", quick(), 2)
    content = torch.load(part_of(tmp_path / "run.ckpt"), weights_only=True)
    torch.save({name: value for name, value in content.items() if name not in without}, part_of(tmp_path / "run.ckpt"))
    with pytest.raises(CorruptFileError, match="is no unfinished run; remove it"):
        run(work, tmp_path / "run.ckpt", resume=True)
    part_of(tmp_path / "run.ckpt").write_bytes(b"half of a file")
    with pytest.raises(CorruptFileError):
        run(work, tmp_path / "run.ckpt", resume=True)
    assert read_journal(tmp_path / "other.ckpt", {}).state is None


def test_killed_and_resumed_from_the_command_line(work: Path, tmp_path: Path) -> None:
    words = ["train", work / "toy", "--backbone", work / "tiny.safetensors", "--method", "adaptformer",
             "--epochs", "150", "--batch-size", "12", "--lr", "1e-2", "--dim", "4", "--precision", "float32",
             "--device", "cpu"]  # fmt: skip
    command = [sys.executable, "-W", "ignore", "-m", "adapterpack_cli", *map(str, words), "-o"]
    where = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(Path.cwd()), "cli"])}
    cut = subprocess.Popen([*command, str(tmp_path / "cut.ckpt")], env=where, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while not part_of(tmp_path / "cut.ckpt").exists() and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.3)
    finally:
        cut.send_signal(signal.SIGKILL)
        cut.wait()
    assert cut.returncode == -signal.SIGKILL and not (tmp_path / "cut.ckpt").exists()
    assert cli(*words, "-o", tmp_path / "cut.ckpt", "--resume") == 0
    assert cli(*words, "-o", tmp_path / "whole.ckpt") == 0
    assert (tmp_path / "cut.ckpt").read_bytes() == (tmp_path / "whole.ckpt").read_bytes()


def test_scale_is_searched_for_on_validation_images(work: Path, tmp_path: Path) -> None:
    result, told = run(work, tmp_path / "run.ckpt", quick(scale=None))
    stages = list(dict.fromkeys(progress.stage for progress in told))
    assert stages == [*(f"scale {s:g}" for s in (0.01, 0.1, 1, 10, 100)), "train"]
    best = {}
    for progress in told:
        if progress.validation is not None and progress.stage != "train":
            score = (progress.validation.accuracy, -progress.validation.loss)
            best[progress.stage] = max(best.get(progress.stage, (-1.0, 0.0)), score)
    assert f"scale {result.recipe.scale:g}" == max(best, key=lambda stage: best[stage])
    plain, _ = run(work, tmp_path / "plain.ckpt", quick(scale=result.recipe.scale))
    assert result.adapter is not None and plain.adapter is not None and result.adapter.same_as(plain.adapter)


def test_a_resumed_run_does_not_search_again(work: Path, tmp_path: Path) -> None:
    stopped_at: list[str] = []

    def report(progress: Progress) -> None:
        stopped_at.append(progress.stage)
        if progress.stage == "train" and progress.epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        train(request(work, tmp_path / "run.ckpt"), quick(scale=None), report)
    _, told = run(work, tmp_path / "run.ckpt", quick(scale=None), resume=True)
    assert {progress.stage for progress in told} == {"train"} and min(p.epoch for p in told) == 2


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_a_stopped_search_goes_on_where_it_was(scale: float, work: Path, tmp_path: Path) -> None:
    def report(progress: Progress) -> None:
        if progress.stage == f"scale {scale:g}" and progress.epoch == 2:
            raise Stop

    recipe = quick(scale=None)
    with pytest.raises(Stop):
        train(request(work, tmp_path / "cut.ckpt"), recipe, report)
    with pytest.raises(CallError, match=r"begun with scale None, now it is 1\.0"):
        run(work, tmp_path / "cut.ckpt", quick(scale=1.0), resume=True)
    _, told = run(work, tmp_path / "cut.ckpt", recipe, resume=True)
    assert (told[0].stage, told[0].epoch) == (f"scale {scale:g}", 2)
    run(work, tmp_path / "whole.ckpt", recipe)
    assert (tmp_path / "cut.ckpt").read_bytes() == (tmp_path / "whole.ckpt").read_bytes()


def test_a_loss_that_is_no_number_stops_the_run(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CallError, match=r"the loss is (nan|inf) in epoch \d, step \d; lower --lr"):
        run(work, tmp_path / "run.ckpt", quick(scale=3e38, bits=32, lr=1.0, batch_size=4))
    monkeypatch.setattr(loop, "score", lambda *_: Score(0.5, math.nan, 12))  # a last step of an epoch can do that
    with pytest.raises(CallError, match="the loss on the validation images is nan after epoch 1; lower --lr"):
        run(work, tmp_path / "run.ckpt")


def test_a_scale_whose_loss_is_no_number_is_not_chosen(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = quick(scale=None, bits=32, lr=1.0)
    monkeypatch.setattr(select, "SCALES", (3e38, 1.0))
    assert run(work, tmp_path / "run.ckpt", recipe)[0].recipe.scale == 1.0
    monkeypatch.setattr(select, "SCALES", (3e38,))
    with pytest.raises(CallError, match="with any scale; lower --lr"):
        run(work, tmp_path / "other.ckpt", recipe)


def test_processes_share_every_batch(work: Path, tmp_path: Path) -> None:
    """Of 36 images in batches of 7, in 4 parts each: the last batch is one image, so one process has none."""
    pytest.importorskip("accelerate")
    recipe = replace(quick("spt-lora", budget=0.002, batch_size=7, accumulate=4), dropout=0.0, branch_drop=0.0)
    expected, _ = run(work, tmp_path / "alone.ckpt", recipe)
    asked = request(work, tmp_path / "shared.ckpt")
    code = (f"import adapterpack\nfrom pathlib import {type(work).__name__}\n"
            "from adapterpack.train.run import Request, train\nfrom adapterpack.train.recipe import Recipe\n"
            f"train({asked}, {recipe}, lambda told: None)")  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    both = [subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], env={**where, **rank}) for rank in ranks]
    try:
        assert [process.wait(timeout=120) for process in both] == [0, 0]
    finally:
        for process in both:
            process.kill()
    found = load_run(tmp_path / "shared.ckpt")[0]
    assert expected.adapter is not None and len(found.branches) == len(expected.adapter.branches)
    for one, other in zip(found.branches, expected.adapter.branches):
        for role, tensor in one.tensors.items():
            np.testing.assert_allclose(tensor.dense(), other.tensors[role].dense(), atol=2e-4)


def test_a_full_disk_is_one_error(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CallError, match="No space left"):
        run(work, tmp_path / "run.ckpt")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(os, "fsync", real)


def test_test_images_choose_nothing(work: Path, tmp_path: Path) -> None:
    one, _ = run(work, tmp_path / "a.ckpt")
    other = folder(tmp_path / "toy", test=0)
    two, _ = run(work, tmp_path / "b.ckpt", data=other)
    assert one.adapter is not None and two.adapter is not None and two.test is None
    assert all(a.tensors["up"].dense().tobytes() == b.tensors["up"].dense().tobytes()
               for a, b in zip(one.adapter.branches, two.adapter.branches))  # fmt: skip


def test_bf16_products_train_too(work: Path, tmp_path: Path) -> None:
    result, _ = run(work, tmp_path / "run.ckpt", quick(precision="bf16"))
    assert np.isfinite(result.state.history[-1]["loss"])


def test_command_line_from_arrays_to_accuracy(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "digits.npz", **arrays())
    common = ("--backbone", work / "tiny.safetensors", "--device", "cpu", "--json")
    settings = ("--method", "spt-lora", "--bits", 1, "--dim", 3, "--epochs", 2, "--batch-size", 6)
    status = cli(
        "sensitivity", tmp_path / "digits.npz", "--budget", 0.002, "-o", tmp_path / "m.pth", "--dim", 3, *common
    )
    about = json.loads(capsys.readouterr().out)
    assert status == 0 and about["parameters"] == round(read_spt_mask(tmp_path / "m.pth").params * 1e6)
    status = cli(
        "train", tmp_path / "digits.npz", *settings, "--mask", tmp_path / "m.pth", "-o", tmp_path / "r.ckpt", *common
    )
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert status == 0 and result["method"] == "spt-lora" and len(result["history"]) == 2
    assert "train: epoch 2/2" in captured.err and "validation" in captured.err
    assert cli("pack", tmp_path / "r.ckpt", "-o", tmp_path / "r.apk", "--json") == 0
    capsys.readouterr()
    assert cli("evaluate", tmp_path / "r.apk", tmp_path / "digits.npz", *common) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"] == result["test_accuracy"] and found["examples"] == 9
    assert found["file_bytes"] == (tmp_path / "r.apk").stat().st_size


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["--bits", "3"], 2, "is not one of"),
        (["--groups", "a,b"], 2, "expected e.g. 384"),
        (["--scale", "big"], 2, "expected a number or auto"),
        (["--epochs", "0"], 2, "expected a whole number from 1"),
        (["--method", "full", "--mask", "nothing.pth"], 0, "--mask has no effect on full"),
    ],
)
def test_command_line_errors(
    words: list[str], status: int, text: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--backbone", work / "tiny.safetensors", "--device", "cpu", "-o", tmp_path / "r.ckpt"]
    method = [] if "--method" in words else ["--method", "lora"]
    epochs = [] if "--epochs" in words else ["--epochs", "1"]
    assert cli("train", work / "toy", *common, *method, *epochs, *words) == status
    assert text in capsys.readouterr().err


def test_the_command_line_says_what_becomes_of_an_unfinished_run(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", work / "toy", "--backbone", work / "tiny.safetensors", "--method", "lora", "--epochs", "3",
             "--device", "cpu", "-o", tmp_path / "r.ckpt"]  # fmt: skip
    assert cli(*words, "--resume") == 0
    assert "note: there is no r.ckpt.part to go on from: the run begins anew" in capsys.readouterr().err
    stopped(work, tmp_path / "r.ckpt", quick(), 2, force=True)
    assert cli(*words, "--force") == 0
    assert "note: r.ckpt.part, an unfinished run, will be replaced; --resume would go on" in capsys.readouterr().err


def test_an_existing_file_is_refused_before_any_work(work: Path, tmp_path: Path) -> None:
    (tmp_path / "run.ckpt").write_bytes(b"precious")
    with pytest.raises(CallError, match="exists already"):
        run(work, tmp_path / "run.ckpt")
    assert (tmp_path / "run.ckpt").read_bytes() == b"precious"


def test_what_is_read_is_never_written(work: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "toy.npz", **arrays())
    model = backbone(tmp_path)
    asked = request(work, model, data=tmp_path / "toy.npz", backbone=str(model), force=True)
    for out in (asked.data, model, model.with_suffix(".json")):
        before = out.read_bytes()
        with pytest.raises(CallError, match="is read, so it cannot be written; give the output another name"):
            train(replace(asked, out=out), quick(), lambda _: None)
        with pytest.raises(CallError, match="is read, so it cannot be written"):
            write_mask(MaskRequest(asked.data, asked.backbone, 0.002, out, force=True, device="cpu"), lambda: None)
        assert out.read_bytes() == before
    with pytest.raises(CallError, match="standard output is no place"):
        train(replace(asked, out=Path("-")), quick(), lambda _: None)
    with pytest.raises(AdapterPackError):  # an empty name of a backbone is no path that a suffix can be given to
        train(replace(asked, backbone="", out=tmp_path / "x.ckpt"), quick(), lambda _: None)


def test_the_part_of_another_run_beside_another_process_is_not_looked_at(work: Path, tmp_path: Path) -> None:
    asked = request(work, tmp_path / "run.ckpt", resume=True)
    part_of(asked.out).write_bytes(b"of another run")
    other = Hardware(torch.device("cpu"), bf16=False, rank=1, world=2)
    assert train_run._journal(asked, {}, other).state is None
    with pytest.raises(AdapterPackError):
        train_run._journal(asked, {}, replace(other, rank=0))


@pytest.mark.parametrize("name", ["a/b", ".hidden", "x\ny"])
def test_a_name_that_no_task_may_have_is_refused_before_any_work(work: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(CallError, match="cannot be called") as caught:
        train(request(work, tmp_path / "run.ckpt", task=name), quick(), lambda _: pytest.fail("it trains"))
    assert "--task" in caught.value.hint and not list(tmp_path.iterdir())


def test_a_class_name_that_no_file_can_hold_is_refused_before_training(work: Path, tmp_path: Path) -> None:
    data = folder(tmp_path / "toy")
    for split in ("train", "val", "test"):
        (data / split / "class 1").rename(data / split / "two\nlines")
    told: list[Progress] = []
    with pytest.raises(CallError, match=r"'two\\nlines'; a class name is one line of text"):
        train(request(work, tmp_path / "run.ckpt", data=data), quick(), told.append)
    assert not told


def test_a_data_set_whose_name_no_task_may_have_needs_another(work: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / ".toy.npz", **arrays())
    asked = request(work, tmp_path / "run.ckpt", data=tmp_path / ".toy.npz")
    with pytest.raises(CallError, match=r"cannot be called '\.toy'"):
        train(asked, quick(), lambda _: pytest.fail("it trains"))
    assert train(replace(asked, task="toy"), quick(), lambda _: None).adapter is not None


def test_a_folder_that_is_not_there_is_refused_before_any_work(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingFileError, match=f"{tmp_path}/none/run.ckpt: no such folder"):
        train(request(work, tmp_path / "none" / "run.ckpt"), quick(), lambda _: pytest.fail("it trains"))
    out = tmp_path / "none" / "mask.pth"
    with pytest.raises(MissingFileError, match="make it first"):
        write_mask(
            MaskRequest(work / "toy", str(work / "tiny.safetensors"), 0.01, out), lambda: pytest.fail("it works")
        )
    monkeypatch.setattr(os, "access", lambda place, mode: not (Path(place) == tmp_path and mode == os.W_OK))
    with pytest.raises(CallError, match=f"{tmp_path} may not be written to"):
        train(request(work, tmp_path / "run.ckpt"), quick(), lambda _: pytest.fail("it trains"))


def test_classes_are_matched_by_name(work: Path, tmp_path: Path) -> None:
    run(work, tmp_path / "run.ckpt", quick(epochs=1))
    question = Question(tmp_path / "run.ckpt", tmp_path / "part", str(work / "tiny.safetensors"), device="cpu")
    part = folder(tmp_path / "part", train=0, val=0)
    for file in (part / "test/class 0").iterdir():
        file.unlink()
    (part / "test/class 0").rmdir()
    whole = evaluate(replace(question, data=work / "toy"))
    fewer = evaluate(question)
    assert fewer["examples"] == 10 and whole["examples"] == 15
    (part / "test/class 1").rename(part / "test/elsewhere")
    with pytest.raises(UnsupportedAdapterError, match="no class 'elsewhere'"):
        evaluate(question)
    with pytest.raises(AdapterPackError, match="no val images"):
        evaluate(replace(question, split="val"))


def test_state_is_plain_tensors_and_numbers(work: Path, tmp_path: Path) -> None:
    stopped(work, tmp_path / "run.ckpt", quick(), 2)
    content = torch.load(part_of(tmp_path / "run.ckpt"), weights_only=True)
    assert content["epoch"] == 1 and set(content["tensors"]) == set(content["best"])
    assert isinstance(loop.State(), loop.State)
