"""The command line from outside: exit statuses, one-line errors, one JSON object, and what it leaves behind."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest

import adapterpack
from adapterpack_cli import _output
from adapterpack_cli.main import _COMMANDS, cli, main
from tests import factories

verify_module: Any = importlib.import_module("adapterpack_cli.verify")
ROOT = Path(__file__).resolve().parent.parent
PEFT = ROOT / "fixtures" / "peft-lora"


class Done(NamedTuple):
    status: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command in this process."""
    monkeypatch.setattr("warnings.showwarning", None)  # restored afterwards: main() sets its own

    def call(*words: object) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as done:
            main([str(word) for word in words])
        found = capsys.readouterr()
        status = done.value.code
        assert isinstance(status, int)
        check_manners(Done(status, found.out, found.err))
        return Done(status, found.out, found.err)

    return call


def check_manners(done: Done) -> None:
    """Every failure is one line that begins `error: `, without a traceback; every success is silent about errors."""
    if done.status == 0:
        assert "error:" not in done.err
        return
    lines = done.err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], done.err
    assert "Traceback" not in done.err and lines[-1].isprintable()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of files, which is the working directory: two tasks, their bundle, one damaged, one Android package."""
    for name, method in (("cifar", "lora"), ("dtd", "spt")):
        (tmp_path / f"{name}.apk").write_bytes(factories.pack(factories.make(method, name)))
    (tmp_path / "all.apk").write_bytes(factories.pack(factories.make("lora"), factories.make("spt", "dtd")))
    data = (tmp_path / "cifar.apk").read_bytes()
    (tmp_path / "bad.apk").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (tmp_path / "cut.apk").write_bytes(data[:-1])
    (tmp_path / "newer.apk").write_bytes(factories.with_head_checksum(data[:8] + b"\x02" + data[9:]))
    with zipfile.ZipFile(tmp_path / "android.apk", "w") as archive:
        archive.writestr("AndroidManifest.xml", b"\x03\x00\x08\x00")
        archive.writestr("classes.dex", b"dex\n035\x00")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def one_object(text: str) -> dict[str, Any]:
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


# --- as a command


def command(*words: str, cwd: Path, **more: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'cli'}", "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        [sys.executable, "-m", "adapterpack_cli", *words],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        **more,
    )


def test_a_real_process(folder: Path) -> None:
    done = command("inspect", "cifar.apk", "--json", cwd=folder)
    assert done.returncode == 0 and done.stderr == ""
    assert one_object(done.stdout)["files"][0]["tasks"][0]["name"] == "cifar"
    done = command("inspect", "none.apk", cwd=folder)
    assert done.returncode == 2 and done.stdout == ""
    check_manners(Done(2, done.stdout, done.stderr))


def test_a_closed_pipe_is_no_traceback(folder: Path) -> None:
    words = f"{sys.executable} -m adapterpack_cli inspect {' '.join(['all.apk'] * 300)} | head -1"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'cli'}"}
    done = subprocess.run(words, shell=True, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr


# --- every command


def test_help_for_everything(run: Run) -> None:
    assert all(name in run("--help").out for name in _COMMANDS)
    for name in _COMMANDS:
        done = run(name, "--help")
        assert done.status == 0 and "Usage: adapterpack " + name in done.out
        assert run(name, "-h").out == done.out


def test_version(run: Run) -> None:
    assert adapterpack.__version__ in run("--version").out


def test_no_command_is_a_call_at_fault(run: Run) -> None:
    done = run()
    assert done.status == 2
    assert len(done.err) < 100 and "--help" in done.err


@pytest.mark.parametrize(
    "words",
    [
        ["frobnicate"],
        ["inspect"],
        ["inspect", "--frobnicate", "cifar.apk"],
        ["inspect", "none.apk"],
        ["inspect", "."],
        ["verify"],
        ["verify", "none.apk"],
        ["pack"],
        ["pack", "none.bin", "-o", "new.apk"],
        ["pack", "cifar.apk", "-o", "new.apk", "--bits", "3"],
        ["pack", "cifar.apk", "-o", "new.apk", "--profile", "tiny"],
        ["pack", "cifar.apk"],
        ["unpack", "cifar.apk", "-o", "new", "--to", "frobnicate"],
        ["unpack", "cifar.apk", "-o", "new"],
        ["unpack", "cifar.apk", "-o", "none/new", "--to", "safetensors"],
        ["unpack", "cifar.apk", "-o", "none/new", "--to", "peft"],
        ["pack", "cifar.apk", "-o", "new.apk", "--as", "bitdelta:7"],
        ["diff", "cifar.apk", "cifar.apk", "--as", "bitdelta:7"],
        ["push", "cifar.apk", "https://example.org/adapters"],
        ["unpack", "none.apk", "-o", "new", "--to", "safetensors"],
        ["unpack", "all.apk", "-o", "new", "--to", "safetensors"],
        ["unpack", "all.apk", "-o", "new", "--to", "safetensors", "--task", "none"],
        ["bundle", "cifar.apk"],
        ["bundle", "-o", "new.apk"],
        ["bundle", "cifar.apk", "cifar.apk", "-o", "new.apk"],
        ["split", "cifar.apk"],
        ["completion", "tcsh"],
    ],
)
def test_a_call_at_fault_is_status_2(folder: Path, run: Run, words: list[str]) -> None:
    before = sorted(folder.iterdir())
    done = run(*words)
    assert done.status == 2 and (done.out == "" or words[0] == "verify")
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("file", ["bad.apk", "cut.apk", "newer.apk", "android.apk"])
@pytest.mark.parametrize(
    "words",
    [
        ["inspect", "{}"],
        ["inspect", "--json", "{}"],
        ["verify", "{}"],
        ["unpack", "{}", "-o", "new", "--to", "safetensors"],
        ["bundle", "{}", "dtd.apk", "-o", "new.apk"],
        ["split", "{}", "-o", "new"],
        ["load", "{}", "--backbone", "none.safetensors"],
    ],
)
def test_data_at_fault_is_status_1(folder: Path, run: Run, words: list[str], file: str) -> None:
    if words[0] == "inspect" and file == "bad.apk":
        assert run(*(word.format(file) for word in words)).status == 0  # the head is fine
        return
    if words[0] == "load" and file == "bad.apk":
        return  # the backbone may be looked for first
    before = sorted(folder.iterdir())
    done = run(*(word.format(file) for word in words))
    assert done.status == 1
    assert sorted(folder.iterdir()) == before
    if file == "android.apk":
        assert "Android package" in done.err
    if file == "newer.apk":
        assert "2.0" in done.err


def test_packing_an_android_package_says_so(folder: Path, run: Run) -> None:
    done = run("pack", "android.apk", "-o", "new.apk")
    assert done.status in (1, 2) and "Android package" in done.err
    assert not (folder / "new.apk").exists()


def test_debug_shows_the_traceback(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--debug", "inspect", "cut.apk"], ["inspect", "cut.apk", "--debug"]):
        with pytest.raises(SystemExit) as done:
            main(words)
        err = capsys.readouterr().err
        assert done.value.code == 1
        assert "Traceback" in err and err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("words", [["inspect"], ["verify"], ["bundle", "-o", "x.apk"], ["split", "-o", "x"]])
def test_json_is_one_object_and_nothing_else(folder: Path, run: Run, words: list[str]) -> None:
    done = run(*words, "--json", "cifar.apk")
    assert done.status == 0 and done.err == ""
    one_object(done.out)


def test_json_of_an_error_leaves_standard_output_empty(folder: Path, run: Run) -> None:
    for words in (["split", "cut.apk", "-o", "x"], ["bundle", "cifar.apk", "cut.apk", "-o", "x.apk"]):
        done = run(*words, "--json")
        assert done.status == 1 and done.out == ""


def test_inspect_goes_on_after_a_bad_file(folder: Path, run: Run) -> None:
    done = run("inspect", "cut.apk", "cifar.apk", "none.apk", "dtd.apk")
    assert done.status == 1  # the first bad file's
    assert "cifar.apk" in done.out and "dtd.apk" in done.out and "cut.apk" not in done.out
    assert done.err.splitlines()[-1].startswith("error: 2 of 4 files: cut.apk: ")
    assert done.err.count("cut.apk") == 1 and "note: none.apk: no such file" in done.err
    done = run("inspect", "--json", "none.apk", "cifar.apk", "cut.apk")
    found = one_object(done.out)
    assert done.status == 2 and [file["path"] for file in found["files"]] == ["cifar.apk"]
    assert [(bad["path"], bad["reason"]) for bad in found["errors"]] == [
        ("none.apk", "missing-file"), ("cut.apk", "truncated")
    ]  # fmt: skip
    assert all(bad["error"].startswith(f"{bad['path']}: ") for bad in found["errors"])
    assert "errors" not in one_object(run("inspect", "--json", "cifar.apk").out)
    found = one_object(run("inspect", "cut.apk", "--json").out)
    assert found["files"] == [] and len(found["errors"]) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", "cifar.apk", "{}"],
        ["verify", "{}"],
        ["verify", "cifar.apk", "{}"],
        ["bundle", "dtd.apk", "{}", "-o", "new.apk"],
        ["split", "{}", "-o", "new"],
        ["unpack", "{}", "-o", "new", "--to", "safetensors"],
        ["load", "{}", "--backbone", "none.safetensors"],
    ],
)
@pytest.mark.parametrize("file", ["cut.apk", "bad.apk", "newer.apk", "android.apk", "none.apk", "a\tb.apk"])
def test_errors_name_the_file_once(folder: Path, run: Run, words: list[str], file: str) -> None:
    (folder / "a\tb.apk").write_bytes((folder / "cut.apk").read_bytes())
    if file == "bad.apk" and words[0] in ("inspect", "load"):
        return  # its head is fine
    done = run(*(word.format(file) for word in words))
    assert done.status and done.err.count(file.replace("\t", r"\t")) == 1


def test_plurals_and_options(folder: Path, run: Run) -> None:
    assert "1 task " in run("verify", "cifar.apk").out and "2 tasks " in run("verify", "all.apk").out
    assert "1 of 1" not in run("verify", "bad.apk").err
    err = run("bundle", "cifar.apk", "-o", "dtd.apk").err
    assert err == "error: dtd.apk exists already; use --force to replace it\n"
    done = run("split", "all.apk", "-o", "dtd.apk")
    assert done.status == 2 and "dtd.apk is a file" in done.err and "folder" in done.err
    done = run("pack", "cifar.apk", "-o", "dtd.apk")
    assert "=True" not in done.err


@pytest.mark.parametrize(("count", "text"), [(0, "0 matrices"), (1, "1 matrix"), (1234, "1,234 matrices")])
def test_counted(count: int, text: str) -> None:
    assert _output.counted(count, "matrix", "matrices") == text
    assert _output.counted(1, "task") == "1 task" and _output.counted(2, "task") == "2 tasks"


def test_a_bundle_is_verified_task_by_task(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every task is a step of the progress, and many tasks of one file are shared out among processes."""
    data = bytearray(factories.pack(*(factories.make("lora", f"t{i:02}") for i in range(40))))
    (folder / "forty.apk").write_bytes(data)
    opened = adapterpack.open(folder / "forty.apk")
    steps: list[int] = []
    pools: list[int] = []

    class Pool(verify_module.ProcessPoolExecutor):
        def __init__(self, workers: int, **more: Any) -> None:
            pools.append(workers)
            super().__init__(workers, **more)

    @contextlib.contextmanager
    def progress(label: str, total: int) -> Iterator[Callable[..., None]]:
        assert total == 40
        yield lambda count=1: steps.append(count)

    monkeypatch.setattr(_output, "progress", progress)
    monkeypatch.setattr(verify_module, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(verify_module.os, "cpu_count", lambda: 2)
    (found,) = one_object(run("verify", "--json", "forty.apk").out)["files"]
    assert found["tasks"] == list(opened.tasks) and found["digest"] == opened.digest
    assert pools == [2] and sum(steps) == 40 and len(steps) > 2
    data[-1] ^= 1
    data[-3 * len(data) // 4] ^= 1
    (folder / "forty.apk").write_bytes(data)
    with pytest.raises(adapterpack.CorruptFileError) as first:
        list(adapterpack.open(folder / "forty.apk").verify())
    done = run("verify", "--json", "forty.apk")
    assert done.status == 1 and one_object(done.out)["files"][0]["where"] == first.value.where
    monkeypatch.setattr(verify_module.os, "cpu_count", lambda: 1)
    assert one_object(run("verify", "--json", "forty.apk").out) == one_object(done.out)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # beside threads, from Python 3.12 on
def test_verify_goes_on_without_a_worker_that_was_killed(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "forty.apk").write_bytes(factories.pack(*(factories.make("lora", f"task {i}") for i in range(40))))
    here, real = os.getpid(), verify_module.check

    def check(job: Any, step: Any = None) -> Any:
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(job, step)

    forking = functools.partial(ProcessPoolExecutor, mp_context=multiprocessing.get_context("fork"))
    monkeypatch.setattr(verify_module, "ProcessPoolExecutor", forking)
    monkeypatch.setattr(verify_module, "check", functools.update_wrapper(check, real))  # a worker finds it by name
    monkeypatch.setattr(verify_module.os, "cpu_count", lambda: 2)
    (found,) = one_object(run("verify", "--json", "forty.apk").out)["files"]
    assert found["ok"] and len(found["tasks"]) == 40


def test_tensors_tell_bits_and_codec(folder: Path, run: Run) -> None:
    out = run("inspect", "--tensors", "cifar.apk").out
    header = next(line for line in out.splitlines() if line.startswith("site")).split()
    assert header == ["site", "role", "method", "tensors", "shape", "codec", "bits", "bits/weight"]


# --- inspect


def test_inspect_json_has_what_the_contract_says(folder: Path, run: Run) -> None:
    found = one_object(run("inspect", "--json", "cifar.apk", "all.apk").out)["files"]
    assert [file["path"] for file in found] == ["cifar.apk", "all.apk"]
    for file in found:
        size = (folder / file["path"]).stat().st_size
        assert file["file_bytes"] == size
        assert file["container_bytes"] + sum(task["bytes"] for task in file["tasks"]) == size
        assert file["format_version"] == "1.0" and file["digest"].startswith("sha256:")
        assert file["backbone"] == {"name": "vit_small_test", "fingerprint": factories.BACKBONE.fingerprint}
        for task in file["tasks"]:
            assert sum(task["bytes_by_part"].values()) == task["bytes"]
            assert set(task["bytes_by_part"]) == {"adapter", "head", "metadata"}
            assert {"name", "method", "bits", "parameters", "bits_per_weight", "dense_bytes", "classes"} <= set(task)
    assert found[0]["tasks"][0]["bits"] == 1 and found[0]["tasks"][0]["parameters"] == 768


def test_inspect_for_people(folder: Path, run: Run) -> None:
    done = run("inspect", "all.apk")
    assert "cifar" in done.out and "dtd" in done.out and "vit_small_test" in done.out
    assert "blocks.*.attn.qkv[q]" in run("inspect", "--tensors", "all.apk").out
    assert len(one_object(run("inspect", "--tensors", "--json", "all.apk").out)["files"][0]["tasks"][0]["tensors"]) == 4


def test_inspect_reads_heads_only(folder: Path, run: Run) -> None:
    data = bytearray((folder / "cifar.apk").read_bytes())
    head = int.from_bytes(data[12:16], "little")
    data[head:] = bytes(len(data) - head)
    (folder / "hollow.apk").write_bytes(data)
    assert run("inspect", "hollow.apk").status == 0
    assert run("verify", "hollow.apk").status == 1


def test_inspect_shows_an_unknown_codec_and_odd_settings(folder: Path, run: Run) -> None:
    index = factories.index_of((folder / "cifar.apk").read_bytes())
    task = index["tasks"][0]
    task["segments"][0].update(codec="from-the-future", params={"group": {"a": 1}})
    task["groups"][0]["params"] = {"scale": "[bold]very[/bold]", "dim": []}
    task["groups"][0]["tensors"]["down"]["shape"] = []
    (folder / "odd.apk").write_bytes(factories.with_index((folder / "cifar.apk").read_bytes(), index))
    for words in ([], ["--json"], ["--tensors"], ["--tensors", "--json"]):
        done = run("inspect", "odd.apk", *words)
        assert done.status == 0
    assert "from-the-future" in run("inspect", "odd.apk", "--tensors").out
    assert run("verify", "odd.apk").status == 1


def test_names_are_shown_as_they_are(folder: Path, run: Run) -> None:
    """Markup is text, and what steers a terminal is escaped."""
    (folder / "[red]x.apk").write_bytes(factories.pack(factories.make("lora", "[bold]räder[bold]")))
    done = run("inspect", "[red]x.apk")
    assert "[red]x.apk" in done.out and "[bold]räder[bold]" in done.out
    strange = "a\x1b[2J\nb.apk"
    (folder / strange).write_bytes((folder / "cifar.apk").read_bytes())
    for words in (["inspect"], ["inspect", "--tensors"], ["verify"]):
        done = run(*words, strange)
        assert done.status == 0 and "\x1b" not in done.out + done.err
    (folder / strange).write_bytes((folder / "cut.apk").read_bytes())
    for words in (["inspect"], ["verify"], ["split", "-o", "x"]):
        assert "\x1b" not in run(*words, strange).err
    for words in (["inspect", "\x1b[2J"], ["\x1b[2J"], ["inspect", "--\x1b[2J"], ["pack", "\x1b[2J", "-o", "x.apk"]):
        done = run(*words)
        assert done.status == 2 and "\x1b" not in done.err


# --- verify


def test_verify_goes_on_after_a_bad_file(folder: Path, run: Run) -> None:
    done = run("verify", "bad.apk", "cifar.apk", "none.apk", "all.apk")
    assert done.status == 1  # the first bad file's
    assert [line.split()[0] for line in done.out.splitlines() if line.split()[:1] in (["ok"], ["BAD"])] == [
        "BAD",
        "ok",
        "BAD",
        "ok",
    ]
    assert "2 of 4" in done.err and "bad.apk" in done.err
    done = run("verify", "--json", "none.apk", "bad.apk", "cifar.apk")
    found = one_object(done.out)
    assert done.status == 2 and found["ok"] is False
    assert [file["ok"] for file in found["files"]] == [False, False, True]
    assert [file.get("reason") for file in found["files"]] == ["missing-file", "checksum-mismatch", None]


def test_verify_many_files(folder: Path, run: Run) -> None:
    """Enough for several processes; the order stays."""
    names = ["cifar.apk", "bad.apk", "all.apk", "dtd.apk"] * 8
    found = one_object(run("verify", "--json", *names).out)["files"]
    assert [file["path"] for file in found] == names
    assert [file["ok"] for file in found] == [True, False, True, True] * 8


def test_verify_json(folder: Path, run: Run) -> None:
    found = one_object(run("verify", "--json", "all.apk").out)
    assert found["ok"] is True
    assert found["files"][0]["tasks"] == ["cifar", "dtd"]
    assert found["files"][0]["digest"] == adapterpack.open(folder / "all.apk").digest


# --- writing


def test_an_existing_output_is_refused(folder: Path, run: Run) -> None:
    (folder / "old.apk").write_bytes(b"old")
    for words in (
        ["bundle", "cifar.apk", "-o", "old.apk"],
        ["unpack", "cifar.apk", "-o", "old.apk", "--to", "safetensors"],
    ):
        done = run(*words)
        assert done.status == 2 and "--force" in done.err
        assert (folder / "old.apk").read_bytes() == b"old"
    (folder / "parts").mkdir()
    (folder / "parts" / "dtd.apk").write_bytes(b"old")
    assert run("split", "all.apk", "-o", "parts").status == 2
    assert sorted(p.name for p in (folder / "parts").iterdir()) == ["dtd.apk"]
    assert run("split", "all.apk", "-o", "parts", "--force").status == 0
    assert run("bundle", "cifar.apk", "dtd.apk", "-o", "old.apk", "--force").status == 0
    assert (folder / "old.apk").read_bytes() == (folder / "all.apk").read_bytes()


def test_bundle_and_split(folder: Path, run: Run) -> None:
    found = one_object(run("bundle", "cifar.apk", "dtd.apk", "-o", "both.apk", "--json").out)
    assert found["path"] == "both.apk" and [task["name"] for task in found["tasks"]] == ["cifar", "dtd"]
    found = one_object(run("split", "both.apk", "-o", "parts", "--json").out)
    assert [file["path"] for file in found["files"]] == ["parts/cifar.apk", "parts/dtd.apk"]
    for name in ("cifar.apk", "dtd.apk"):
        assert (folder / "parts" / name).read_bytes() == (folder / name).read_bytes()
    assert "parts/cifar.apk" in run("split", "both.apk", "-o", "parts", "--force").out


def test_bundle_names_the_files_of_one_name(folder: Path, run: Run) -> None:
    (folder / "again.apk").write_bytes((folder / "cifar.apk").read_bytes())
    done = run("bundle", "cifar.apk", "again.apk", "-o", "twice.apk")
    assert done.status == 2 and "two tasks are called 'cifar' (cifar.apk and again.apk)" in done.err
    assert not (folder / "twice.apk").exists()


def test_bundles_of_different_backbones(folder: Path, run: Run) -> None:
    other = adapterpack.Backbone("swin")
    (folder / "other.apk").write_bytes(factories.pack(factories.make("lora", "other"), backbone=other))
    done = run("bundle", "cifar.apk", "other.apk", "-o", "new.apk")
    assert done.status == 1 and "swin" in done.err and "other.apk" in done.err


def test_pack_published_file(petl_vit: Path, folder: Path, run: Run) -> None:
    source = petl_vit / "lora" / "cifar-bit1-dim1.bin"
    done = run("pack", source, "-o", "new.apk", "--json")
    found = one_object(done.out)
    assert done.status == 0 and found["file_bytes"] == (folder / "new.apk").stat().st_size
    assert found["container_bytes"] <= 320
    assert run("pack", source, "-o", "new.apk").status == 2
    again = run("pack", source, "-o", "new.apk", "--force", "--task", "ünï", "--meta", "a=b", "--profile", "fast")
    assert again.status == 0 and "ünï" in again.out
    opened = adapterpack.open(folder / "new.apk")
    assert opened.digest == found["digest"]
    assert opened.read().metadata["a"] == "b"


@pytest.mark.parametrize("meta", ["nonsense", "=x"])
def test_bad_metadata(petl_vit: Path, folder: Path, run: Run, meta: str) -> None:
    source = petl_vit / "lora" / "cifar-bit1-dim1.bin"
    assert run("pack", source, "-o", "new.apk", "--meta", meta).status == 2
    assert run("pack", source, "-o", "new.apk", "--meta", "a=1", "--meta", "a=2").status == 2
    assert run("pack", source, "-o", "new.apk", "--labels", "none.txt").status == 2
    for odd in ("a=\udcff", "a=x\ny", "a\x1b=x", "\u202e=1"):
        done = run("pack", source, "-o", "new.apk", "--meta", odd)
        assert done.status == 2 and done.err.startswith("error: --meta ")
    assert not (folder / "new.apk").exists()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.81", 0.81),
        ("-3", -3),
        ("1e-3", 0.001),
        ("true", True),
        ("false", False),
        ('"0.81"', "0.81"),
        ('"', '"'),
        ("yes", "yes"),
        ("1.2.3", "1.2.3"),
        ("007", "007"),
        ("-0", "-0"),
        ("1e999", "1e999"),
        ("nan", "nan"),
        ("12345678901234567", "12345678901234567"),
        ("", ""),
    ],
)
def test_metadata_are_numbers_where_they_look_so(folder: Path, run: Run, text: str, value: Any) -> None:
    done = run("pack", PEFT, "-o", "new.apk", "--meta", f"a={text}")
    found = adapterpack.open(folder / "new.apk").read().metadata["a"]
    assert done.status == 0 and found == value and type(found) is type(value)


def test_an_accuracy_that_is_said_is_on_the_card(folder: Path, run: Run) -> None:
    assert run("pack", PEFT, "-o", "new.apk", "--meta", "accuracy=0.81").status == 0
    assert run("push", "new.apk", "pushed").status == 0
    card = (folder / "pushed" / "README.md").read_text("utf-8")
    assert "model-index:" in card and "value: 0.81" in card and "0.81 (accuracy)" in card


def test_a_graph_is_of_a_whole_model(folder: Path, run: Run) -> None:
    done = run("unpack", "cifar.apk", "-o", "new.onnx", "--to", "onnx")
    assert done.status == 2 and "adapterpack load FILE --backbone B --export OUT.onnx" in done.err


def test_labels(petl_vit: Path, folder: Path, run: Run) -> None:
    source = petl_vit / "lora" / "cifar-bit1-dim1.bin"
    (folder / "labels.txt").write_text("\n".join(f"class {i}" for i in range(100)), "utf-8")
    assert run("pack", source, "-o", "new.apk", "--labels", "labels.txt").status == 0
    assert adapterpack.open(folder / "new.apk").read().labels == tuple(f"class {i}" for i in range(100))
    text = "\r\n".join(f"class {i}" for i in range(100))  # as some editors save it
    (folder / "labels.txt").write_bytes(text.encode("utf-8-sig"))
    assert run("pack", source, "-o", "windows.apk", "--labels", "labels.txt").status == 0
    assert (folder / "windows.apk").read_bytes() == (folder / "new.apk").read_bytes()
    (folder / "labels.txt").write_text("one\n", "utf-8")
    done = run("pack", source, "-o", "other.apk", "--labels", "labels.txt")
    assert done.status == 2 and "100" in done.err


def test_unpack_prints_every_file_it_wrote(petl_vit: Path, folder: Path, run: Run) -> None:
    source = petl_vit / "lora" / "cifar-bit1-dim1.bin"
    assert run("pack", source, "-o", "new.apk", "--set", "input_size=3x64x64", "--set", "mean=0.5,0.5,0.5").status == 0
    data = adapterpack.open(folder / "new.apk").read().data
    assert data is not None and (data.input_size, data.mean) == ((3, 64, 64), (0.5, 0.5, 0.5))
    assert run("unpack", "new.apk", "-o", "back", "--to", "petl-vit").out == "wrote back.bin and back.yaml\n"
    found = one_object(run("unpack", "new.apk", "-o", "back", "--to", "petl-vit", "--json", "--force").out)
    size = sum((folder / name).stat().st_size for name in ("back.bin", "back.yaml"))
    (lost,) = found.pop("notes")
    assert "the preprocessing" in lost
    assert found == {"path": "back.bin", "paths": ["back.bin", "back.yaml"], "form": "petl-vit", "bytes": size}
    assert run("pack", source, "-o", "-").status == 2 and "name a file" in run("pack", source, "-o", "-").err
    assert run("pack", source, "-o", "y.apk", "--task", "").status == 2


# --- the rest


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(run: Run, shell: str) -> None:
    done = run("completion", shell)
    assert done.status == 0 and "_ADAPTERPACK_COMPLETE" in done.out


def completed(line: str, folder: Path) -> str:
    """What bash is told of the last word of a line: completions, or that it names a file."""
    number = str(len(line.split(" ")) - 1)
    environment = {"_ADAPTERPACK_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": number}
    done = subprocess.run(
        [sys.executable, "-m", "adapterpack_cli"],
        env={**os.environ, **environment, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'cli'}"},
        capture_output=True, text=True, cwd=folder,
    )  # fmt: skip
    return done.stdout.strip()


def test_completion_completes(folder: Path) -> None:
    assert completed("adapterpack ins", folder) == "plain,inspect"
    assert completed("adapterpack load x.apk --backbone ba", folder) == "file,ba"


def test_whatever_names_a_place_is_completed_as_a_file() -> None:
    """Without a word on an argument, a shell would complete nothing where it completed files before."""
    plain = {"shell"}
    for name in _COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        for one in command.params:
            place = isinstance(one, click.Argument) or one.name in ("backbone", "images", "adapter", "out")
            if place and one.name not in plain:
                found = one.shell_complete(click.Context(command), "x")
                assert [item.type for item in found] == ["file"], (name, one.name)


def test_types_of_click_are_not_subscripted() -> None:
    """Those of click 8.1 cannot be."""
    code = "import importlib, click\nclick.Choice.__class_getitem__ = click.ParamType.__class_getitem__ = None\n"
    code += "from adapterpack_cli.main import _COMMANDS as names\n"
    code += "for name in names.values(): importlib.import_module('adapterpack_cli.' + name)"
    paths = f"{ROOT}{os.pathsep}{ROOT / 'cli'}"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_commands_are_named_after_their_functions() -> None:
    import click

    context = click.Context(cli)
    for name in cli.list_commands(context):
        found = cli.get_command(context, name)
        assert found is not None and found.name == name and found.get_short_help_str()
    assert cli.get_command(context, "frobnicate") is None


def test_memory_and_interruptions_are_one_line(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(kind: type[BaseException]) -> Callable[..., None]:
        def raiser(*_: object, **__: object) -> None:
            raise kind

        return raiser

    monkeypatch.setattr("adapterpack_cli.inspect.open_apk", fail(MemoryError))
    assert "memory" in run("inspect", "cifar.apk").err
    monkeypatch.setattr("adapterpack_cli.inspect.open_apk", fail(KeyboardInterrupt))
    assert run("inspect", "cifar.apk").status == 130
    monkeypatch.setattr("adapterpack_cli.inspect.open_apk", fail(ZeroDivisionError))
    done = run("inspect", "cifar.apk")
    assert done.status == 1 and done.err.startswith("error: ZeroDivisionError: ") and "--debug" in done.err


@pytest.mark.parametrize(
    "words",
    [
        ["pack", "{}", "-o", "new.apk"],
        ["unpack", "cifar.apk", "-o", "{}", "--to", "peft"],
        ["split", "cifar.apk", "-o", "{}"],
        ["push", "cifar.apk", "{}"],
        ["diff", "{}", "cifar.apk"],
        ["evaluate", "cifar.apk", "{}", "--backbone", "none.safetensors"],
    ],
)
def test_a_path_that_the_system_does_not_take(folder: Path, run: Run, words: list[str]) -> None:
    done = run(*(word.format("x" * 300) for word in words))
    assert done.status == 2 and ("name too long" in done.err or "none.safetensors" in done.err)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (74_321, "74.3 KB"), (4_718_592, "4.7 MB")]
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert _output.size(count) == text


@pytest.mark.parametrize(
    "parts", [{}, {"adapter": 0}, {"adapter": 1}, {"adapter": 10**9, "head": 1, "metadata": 1, "container": 1}]
)
def test_a_bar_shows_every_part(parts: dict[str, int]) -> None:
    shown = _output.bar(parts).plain
    present = [name for name, count in parts.items() if count]
    assert len(shown) == (_output.BAR_CELLS if present else 0)
    assert {_output.PART_FILLS[name] for name in present} == set(shown)
