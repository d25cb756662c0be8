"""What the command line shows on narrow terminals, in other encodings, for odd names, and to outputs that fail."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from adapterpack_cli import _output, _streams
from adapterpack_cli.main import main
from tests import factories

ROOT = Path(__file__).resolve().parent.parent
NAMES = [f"vtab-{i:02}-a-rather-long-name-of-a-task" for i in range(20)]
PATHS = os.pathsep.join([str(ROOT), str(ROOT / "cli")])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task, a bundle of 20 with long names, and a damaged file."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "cifar.apk").write_bytes(factories.pack(factories.make("lora")))
    (folder / "many.apk").write_bytes(factories.pack(*(factories.make("lora", name) for name in NAMES)))
    (folder / "cut.apk").write_bytes((folder / "cifar.apk").read_bytes()[:-1])
    return folder


def process(command: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """`adapterpack` in a command line of a shell."""
    environment = {**os.environ, "PYTHONPATH": PATHS, "LC_ALL": "C.UTF-8", **variables}
    line = command.replace("adapterpack", f"{sys.executable} -m adapterpack_cli")
    return subprocess.run(["bash", "-c", line], env=environment, cwd=cwd, capture_output=True)


def status_of(words: list[str]) -> int:
    with warnings.catch_warnings(), pytest.raises(SystemExit) as done:  # main() sets showwarning
        main(words)
    assert isinstance(done.value.code, int)
    return done.value.code


def at_width(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """As on a terminal that is so wide."""
    monkeypatch.setattr(_output, "console", lambda: Console(width=width, highlight=False))


# --- narrow terminals


@pytest.mark.parametrize("width", [24, 40, 60, 80, 100, 120, 200])
def test_tables_fit_and_keep_names_and_numbers(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.chdir(files)
    tasks = json.loads(_json(capsys, "inspect", "--json", "--tensors", "many.apk"))["files"][0]["tasks"]
    at_width(monkeypatch, width)
    assert status_of(["inspect", "many.apk"]) == 0
    out = capsys.readouterr().out
    table = out[out.index("\n", out.index("digest")) :]
    assert max(len(line.rstrip()) for line in table.splitlines()[1:-3]) <= width
    words = set(re.split(r"[^\d,.]+", table))
    squeezed = re.sub(r"\s+", "", "".join(line[:24] for line in table.splitlines()))
    for task in tasks:
        assert f"{task['bytes']:,}" in words and f"{task['bits_per_weight']:.3f}" in words
        if width >= 40:
            assert task["name"][:20] in squeezed  # a long name goes on in the next line
    assert "bytes" in table


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_tensors_fit(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.chdir(files)
    rows = json.loads(_json(capsys, "inspect", "--json", "--tensors", "cifar.apk"))["files"][0]["tasks"][0]["tensors"]
    at_width(monkeypatch, width)
    assert status_of(["inspect", "--tensors", "cifar.apk"]) == 0
    out = capsys.readouterr().out.split("\n\n", 1)[1]
    assert max(len(line.rstrip()) for line in out.splitlines()) <= width
    for row in rows:
        assert f"{row['bits_per_weight']:.3f}" in out
    assert "bits" in out and "codec" in out and "blocks.*" in out


def _json(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert status_of(list(words)) == 0
    return capsys.readouterr().out


def test_rows_stay_whole_where_there_is_no_terminal(
    tmp_path: Path, files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, path = "t" * 150, "folder " * 20 + "x.apk"
    Path(path).write_bytes(factories.pack(factories.make("lora", name)))
    for words in (["inspect"], ["inspect", "--tensors"], ["verify"]):
        out = _json(capsys, *words, path)
        assert any(path in line for line in out.splitlines())
        if words[0] == "inspect":
            assert any(name in line and "lora" in line for line in out.splitlines())


def test_a_real_terminal(files: Path) -> None:
    """The width is the terminal's, through a pseudo-terminal of 80 columns."""
    pty = pytest.importorskip("pty")
    import fcntl
    import termios

    main_end, far_end = pty.openpty()
    fcntl.ioctl(far_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**os.environ, "PYTHONPATH": PATHS, "LC_ALL": "C.UTF-8", "TERM": "dumb"}
    environment.pop("COLUMNS", None)
    words = [sys.executable, "-m", "adapterpack_cli", "inspect", "many.apk"]
    with subprocess.Popen(words, cwd=files, env=environment, stdout=far_end, stdin=far_end, stderr=far_end) as child:
        os.close(far_end)
        told = b""
        while part := _read(main_end):
            told += part
        assert child.wait() == 0
    os.close(main_end)
    lines = told.decode().splitlines()
    assert max(len(re.sub(r"\x1b\[[\d;]*m", "", line)) for line in lines[3:-2]) <= 80
    assert any(line.startswith("vtab-07-a-rather-long-na") for line in lines)


def _read(end: int) -> bytes:
    try:
        return os.read(end, 65536)
    except OSError:  # Linux: the other end is closed
        return b""


# --- names


def test_names_are_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # spinners are drawn there only
    data = factories.pack(factories.make("lora"))
    for name in ("[/x].apk", "[bold]\\", "\\[bold]x", ":smile:", "[link=x]"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(data)
        assert name in _json(capsys, "inspect", name)
        assert status_of(["split", name, "-o", "parts", "--force"]) == 0
        assert status_of(["verify", name]) == 0
        assert name in capsys.readouterr().out


def test_json_of_names_that_are_no_utf8(files: Path, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/a\xff.apk"
    Path(os.fsdecode(path)).write_bytes((files / "cifar.apk").read_bytes())
    for encoding in ("utf-8", "utf-8:surrogateescape", "latin-1", "ascii"):
        for command in ("inspect", "verify"):
            done = process(f"adapterpack {command} --json *.apk", tmp_path, PYTHONIOENCODING=encoding)
            assert done.returncode == 0 and done.stderr == b""
            (file,) = json.loads(done.stdout.decode("utf-8"))["files"]
            assert file["path"] == r"a\udcff.apk"
    assert process("adapterpack inspect *.apk", tmp_path).returncode == 0


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_other_encodings(files: Path, tmp_path: Path, encoding: str) -> None:
    (tmp_path / "räder.apk").write_bytes(factories.pack(factories.make("lora", "räder…日")))
    for command in ("inspect", "inspect --tensors", "verify", "verify --json", "inspect --json", "split -o x --force"):
        done = process(f"adapterpack {command} *.apk", tmp_path, PYTHONIOENCODING=encoding)
        assert done.returncode == 0 and done.stderr == b""
        told = done.stdout.decode(encoding)
        assert "?" not in told
        if command.endswith("json"):
            assert json.loads(told)["files"][0]["path"] == "räder.apk"
    shown = process("adapterpack inspect *.apk", tmp_path, PYTHONIOENCODING=encoding).stdout.decode(encoding)
    assert ("█" in shown) == (encoding == "utf-8") and ("##" in shown) == (encoding != "utf-8")
    failed = process("adapterpack inspect nö.apk", tmp_path, PYTHONIOENCODING=encoding)
    assert failed.returncode == 2 and failed.stderr.startswith(b"error: n")
    assert process("adapterpack --help", tmp_path, PYTHONIOENCODING=encoding).returncode == 0


def test_a_curve() -> None:
    assert _output.curve([0.1, 0.5, 0.8, 0.7]) == "▁▅█▇" and _output.curve([0.5, 0.5]) == "██"
    _streams.prepare()
    assert "▁▂▃▄▅▆▇█".encode("ascii", errors="adapterpack") == b"_.,-~=+#"


# --- outputs that take nothing


@pytest.mark.parametrize("words", ["inspect", "inspect --json", "verify", "--help"])
def test_full_and_closed_outputs(files: Path, words: str) -> None:
    paths = [">&-"]
    if Path("/dev/full").exists():
        paths.append("> /dev/full")
    for where in paths:
        done = process(f"adapterpack {words} cifar.apk {where}", files)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith(b"error: standard output") and done.stderr.count(b"\n") == 1
    done = process(f"adapterpack {words} cifar.apk 2>&-", files)
    assert done.returncode == 0 and done.stdout


@pytest.mark.parametrize("words", ["inspect", "inspect --json", "verify"])
def test_a_reader_that_goes_away(files: Path, words: str) -> None:
    line = f"adapterpack {words} {' '.join(['cifar.apk'] * 600)} | true; echo ${{PIPESTATUS[0]}}"
    done = process(line, files)
    assert done.stdout.split()[-1] in (b"0", b"141") and done.stderr == b""


def test_an_interruption_while_importing(files: Path, tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt")
    done = process("adapterpack inspect cifar.apk", files, PYTHONPATH=f"{tmp_path}{os.pathsep}{PATHS}")
    assert done.returncode == 130 and done.stderr == b"error: interrupted\n"
