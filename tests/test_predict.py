"""`adapterpack predict` on a real Ray: what it writes, what it goes on with, what it refuses."""

from __future__ import annotations

import json
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapterpack.adapter import DataSettings
from adapterpack.errors import CallError, Reason
from adapterpack.packing.bundle import open_bundle
from adapterpack.packing.encode import encode_task
from adapterpack.packing.join import join
from adapterpack_cli.main import main
from tests import _serving

pytestmark = [pytest.mark.filterwarnings(text) for text in _serving.RAY_WARNINGS]
COUNT = 12


@pytest.fixture
def place(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve images in two folders, a text, and two adapters."""
    data = _serving.digits(tmp_path_factory.getbasetemp())
    (tmp_path / "digits.apk").write_bytes(data)
    (tmp_path / "four.apk").write_bytes(_serving.variant(data, "four", classes=4))
    for seed in range(COUNT):
        path = tmp_path / "images" / f"part {seed % 2}" / f"{seed:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_serving.png(seed))
    (tmp_path / "images" / "readme.txt").write_text("none")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same worker without Ray around it, for what does not depend on Ray."""
    import pyarrow as pa

    from adapterpack.serving import predict
    from adapterpack.serving.worker import Worker

    def blocks(question: Any, orders: Any, images: Any) -> Iterator[Any]:
        worker = Worker(orders)
        rows = [{"path": path, "size": size, "mtime": mtime} for path, (size, mtime) in images.items()]
        for start in range(0, len(rows), question.batch_size):
            yield worker(pa.Table.from_pylist(rows[start : start + question.batch_size]))

    monkeypatch.setattr(predict, "_blocks", blocks)
    monkeypatch.setattr(predict, "ray_running", lambda *_: nullcontext())


@pytest.fixture
def run(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def command(*words: str, adapter: str = "digits.apk") -> tuple[int, str, str]:
        arguments = ["predict", "images", "--adapter", adapter, "--backbone", _serving.BACKBONE, "-o", "out.parquet"]
        with warnings.catch_warnings(), pytest.raises(SystemExit) as done:
            main([*arguments, "--cpus", "0.5", "--batch-size", "4", *words])
        out, error = capsys.readouterr()
        assert isinstance(done.value.code, int)
        return done.value.code, out, error

    return command


def rows(path: str = "out.parquet") -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    found: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return found


def expected(adapters: list[str], seeds: list[int]) -> list[Any]:
    from adapterpack.runtime.backbone import create_backbone
    from adapterpack.runtime.pool.pool import AdapterPool

    pool = AdapterPool(create_backbone(_serving.BACKBONE).model)
    tasks = [task for adapter in adapters for task in pool.add(adapter)]
    return pool.predict(
        [_serving.picture(seed) for seed in seeds for _ in tasks], [task for _ in seeds for task in tasks]
    )


def check(found: list[dict[str, Any]], wanted: list[Any]) -> None:
    assert len(found) == len(wanted)
    for row, one in zip(found, wanted):
        assert list(row) == ["path", "task", "label", "probability", "labels", "probabilities"]
        assert (row["task"], row["labels"]) == (one.task, list(one.labels))
        assert row["probabilities"] == pytest.approx(one.probabilities, abs=1e-4)
        assert (row["label"], row["probability"]) == (row["labels"][0], row["probabilities"][0])


EVEN_ODD = [*range(0, COUNT, 2), *range(1, COUNT, 2)]  # the images in the order of their paths


def test_corrupt_images_are_named_and_a_repeated_run_goes_on(ray_here: None, place: Path, run: Any) -> None:
    (place / "images" / "bad.png").write_bytes(b"no image")
    (place / "images" / "cut.jpg").write_bytes(_serving.png()[:60])
    code, out, error = run("--json")
    assert code == 1 and out == "" and not (place / "out.parquet").exists()
    assert error.startswith("error: 2 of 14 images cannot be read: bad.png (no image of a known format), cut.jpg (")
    assert "--skip-corrupt" in error and (place / "out.parquet.parts").is_dir()
    (place / "images" / "cut.jpg").unlink()
    (place / "images" / "part 0" / "00.png").write_bytes(_serving.png(99))  # changed: its row counts no more
    code, out, error = run("--json", "--skip-corrupt")
    found = json.loads(out)
    assert (code, found["images"], found["resumed"], found["corrupt"]) == (0, 13, 12, ["bad.png"])
    assert error == "warning: left out bad.png, which cannot be read\n"
    check(rows(), expected(["digits.apk"], [99, *EVEN_ODD[1:]]))
    assert [row["path"] for row in rows()][:2] == ["part 0/00.png", "part 0/02.png"]
    assert not (place / "out.parquet.parts").exists()
    code, _, error = run()
    assert code == 2 and error == "error: out.parquet exists already; use --force to replace it\n"


def test_an_interrupted_run_goes_on(in_process: None, place: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after the first rows; then the folder of parts stands in the way of another question, not of this one."""
    from adapterpack_cli import _output

    @contextmanager
    def stops(label: str, total: int) -> Iterator[Callable[[int], None]]:
        def step(count: int) -> None:
            raise KeyboardInterrupt

        yield step

    with monkeypatch.context() as patch:
        patch.setattr(_output, "progress", stops)
        assert run("--batch-size", "1")[0] == 130
    assert not (place / "out.parquet").exists() and len(rows("out.parquet.parts/000000.parquet")) >= 1
    code, _, error = run("--top", "3")
    assert code == 2 and "unfinished parts of another run" in error
    code, out, _ = run("--json")
    assert code == 0 and json.loads(out)["resumed"] >= 1
    check(rows(), expected(["digits.apk"], EVEN_ODD))


def test_several_tasks(in_process: None, place: Path, run: Any) -> None:
    with warnings.catch_warnings(), pytest.raises(SystemExit):
        main(["bundle", "digits.apk", "four.apk", "-o", "all.apk", "--json"])
    shutil.rmtree(place / "images" / "part 1")
    code, _, _ = run(adapter="all.apk")
    assert code == 0
    check(rows(), expected(["digits.apk", "four.apk"], EVEN_ODD[: COUNT // 2]))
    assert [row["task"] for row in rows()][:3] == ["digits", "four", "digits"]
    code, out, error = run("--task", "four", "--top", "1", "--force", adapter="all.apk")
    assert code == 0 and "6 images, 1 task in " in out and error == ""
    assert {row["task"] for row in rows()} == {"four"} and {len(row["labels"]) for row in rows()} == {1}


def test_what_is_refused(in_process: None, place: Path, run: Any) -> None:
    data = (place / "digits.apk").read_bytes()
    (place / "strange.apk").write_bytes(_serving.other_backbone(data, "strange"))
    code, _, error = run(adapter="strange.apk")
    assert code == 1 and error.startswith("error: strange was trained on") and error.count("\n") == 1
    assert not list(place.glob("out.parquet*"))
    for words, adapter, told in (
        (["--task", "none"], "digits.apk", "none"),
        ([], "nowhere.apk", "nowhere.apk: no such file"),
        (["--backbone", "none.safetensors"], "digits.apk", "none.safetensors"),
    ):
        code, _, error = run(*words, adapter=adapter)
        assert code == 2 and told in error and error.count("\n") == 1
    code, _, error = run("-o", "digits.apk", "--force")
    assert code == 2 and "digits.apk is read, so it cannot be written" in error
    assert (place / "digits.apk").read_bytes() == data
    shutil.rmtree(place / "images")
    assert "no folder images" in run()[2]
    (place / "images").mkdir()
    assert "no image in images" in run()[2]


def test_what_fails_in_a_worker_is_one_line(in_process: None, place: Path, run: Any, monkeypatch: Any) -> None:
    """A task whose pictures the backbone does not take, on a real worker; and whatever Ray itself raises."""
    from ray.exceptions import RayTaskError

    from adapterpack.serving import predict

    bundle = open_bundle((place / "digits.apk").read_bytes())
    large = replace(bundle.read(), name="large", data=DataSettings((3, 64, 64)))
    (place / "large.apk").write_bytes(join([encode_task(large, "fast")], bundle.backbone))
    code, _, error = run(adapter="large.apk")
    assert code == 1 and error.startswith("error: the image is 64×64, the model takes 32×32") and error.count("\n") == 1
    assert not list(place.glob("out.parquet*"))

    def dies(*_: Any) -> Iterator[Any]:
        raise RayTaskError(
            "submit", "Traceback (most recent call last):\n  File\nOSError: no space", OSError("no space")
        )
        yield

    monkeypatch.setattr(predict, "_blocks", dies)
    code, _, error = run()
    assert code == 2 and error.startswith("error: Ray failed: OSError: no space; repeat") and error.count("\n") == 1


def test_corrupt_images_are_tried_again(in_process: None, place: Path, run: Any, monkeypatch: Any) -> None:
    """A disk that fails once, say: same size and time, and the next run reads it."""
    from adapterpack.serving import worker

    def fails(*_: Any) -> None:
        raise CallError("the disk is away", Reason.IO)

    with monkeypatch.context() as patch:
        patch.setattr(worker, "decoded", fails)
        assert "12 of 12 images cannot be read" in run()[2]
    assert run("--json")[0] == 0
    check(rows(), expected(["digits.apk"], EVEN_ODD))


def test_a_task_that_is_named_twice_is_one(in_process: None, place: Path, run: Any) -> None:
    code, out, _ = run("--json", "--task", "digits", "--task", "digits")
    assert code == 0 and json.loads(out)["tasks"] == ["digits"]
    check(rows(), expected(["digits.apk"], EVEN_ODD))


def test_an_image_that_gets_no_row_is_missed(in_process: None, place: Path, run: Any, monkeypatch: Any) -> None:
    from adapterpack.serving import predict

    blocks = predict._blocks
    with monkeypatch.context() as patch:
        patch.setattr(predict, "_blocks", lambda *words: list(blocks(*words))[:-1])
        code, _, error = run()
    assert code == 2 and error.startswith("error: 4 of 12 images were not done; repeat")
    assert not (place / "out.parquet").exists()
    assert json.loads(run("--json")[1])["resumed"] == 8
    check(rows(), expected(["digits.apk"], EVEN_ODD))


def test_a_link_to_nothing_is_an_image_that_cannot_be_read(in_process: None, place: Path, run: Any) -> None:
    (place / "images" / "gone.png").symlink_to("nowhere")
    assert "1 of 13 images cannot be read: gone.png (No such file or directory)" in run()[2]


def test_what_ray_prints_is_no_part_of_the_result(in_process: None, place: Path, run: Any, monkeypatch: Any) -> None:
    from adapterpack.serving import predict

    blocks = predict._blocks

    def talks(*words: Any) -> Any:
        print("(raylet) a worker died")
        return blocks(*words)

    monkeypatch.setattr(predict, "_blocks", talks)
    code, out, error = run("--json")
    assert code == 0 and json.loads(out)["images"] == COUNT and error == "(raylet) a worker died\n"


def test_sigterm_interrupts_and_keeps_what_was_done(
    in_process: None, place: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adapterpack.serving import predict

    blocks = predict._blocks

    def ends(*words: Any) -> Iterator[Any]:
        for number, block in enumerate(blocks(*words)):
            if number == 2:
                signal.raise_signal(signal.SIGTERM)
            yield block

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(predict, "_blocks", ends)
            assert run()[0] == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert json.loads(run("--json")[1])["resumed"] == 8


def test_a_folder_that_is_not_of_a_run_is_left_alone(in_process: None, place: Path, run: Any) -> None:
    kept = place / "out.parquet.parts" / "000000.parquet"
    kept.parent.mkdir()
    kept.write_bytes(b"mine")
    code, _, error = run("--force")
    assert code == 2 and "holds something else" in error and kept.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("images", "workers", "found"),
    [(1, 50, (1, 1)), (4, 2, (1, 1)), (5, 2, (2, 2)), (9, 8, (3, 3)), (64, 2, (2, 4)), (65, 1, (1, 5))],
)
def test_no_more_workers_are_started_than_there_are_batches(images: int, workers: int, found: tuple[int, int]) -> None:
    """And each has a block of its own: one alone would go to one worker."""
    from adapterpack.serving import predict

    assert predict._shares(images, 4, workers) == found


def test_what_counts_as_done(tmp_path: Path) -> None:
    import pyarrow as pa

    from adapterpack.serving.parts import ROW, Work

    def part(*found: tuple[str, str | None, str | None]) -> Any:
        rows = [{"path": p, "size": 1, "mtime": 2, "task": task, "error": error} for p, task, error in found]
        return pa.Table.from_pylist(rows, schema=ROW)

    work = Work(tmp_path / "out", {"adapter": []}, force=False)
    work.add([part(("half", "a", None), ("whole", None, "once"), ("bad", None, "first"))])
    work.add([part(("whole", "a", None), ("whole", "b", None), ("bad", None, "second"), ("half", "a", None))])
    found = work.finished(dict.fromkeys(["half", "whole", "bad", "new"], (1, 2)), 2)
    assert found.images == {"whole", "bad"} and found.corrupt == {"bad": "second"}
    assert found.table["path"].to_pylist().count("half") == 1


def test_two_runs_at_once(tmp_path: Path) -> None:
    """The one that comes second to write is told so."""
    from adapterpack.serving.parts import ROW, Work

    row = ROW.empty_table().from_pylist([{"path": "a", "task": "t"}], schema=ROW)
    first, second = (Work(tmp_path / "out", {"adapter": []}, force=False) for _ in range(2))
    first.add([row])
    for _ in range(2):
        with pytest.raises(CallError, match="another run uses") as error:
            second.add([row])
        assert error.value.reason == "file-exists"
        first.remove()
