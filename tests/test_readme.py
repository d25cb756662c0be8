"""Runs what README.md and some pages of docs/ show and compares what comes out with what the page says.

How to write the page:

- A ```` ```console ```` block holds commands and their output. A command begins with `$ ` and must be `adapterpack …`;
  a line that ends in `\\` goes on in the next, which begins with `> `. The lines up to the next command are its output
  (standard output, then standard error). No lines: nothing is compared. A command must succeed, unless a line of its
  output begins with `error: `; then it must fail.
- A ```` ```python ```` block is executed; all of them share one namespace. Where the line of an expression ends in
  `  # → VALUE`, the expression's repr (for a string also the text itself) must be VALUE. What a block prints is
  compared with a ```` ```text ```` block that comes next.
- `…` stands for any characters within a line, and a line `…` for any number of lines. Spaces at line ends do not count.
- Everything runs in the page's order in one new folder. `<!-- files: NAME=SOURCE … -->` puts files there first: SOURCE
  is a path in this repository, or `petl-vit/PATH` for a published file (absent, the page's test is skipped). A SOURCE
  that is a folder is copied whole. The comment may stand anywhere before the block that needs it, and more than once.
- `<!-- not run: REASON -->` on the line before a block leaves it out. Blocks in other languages are never run; a
  `console` or `python` block that is neither run nor marked is a failure.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", "docs/training.md"]
_PUBLISHED = Path(os.environ.get("ADAPTERPACK_PETL_VIT", ROOT.parent / "shared" / "data" / "petl-vit"))
_FENCE = re.compile(r"^```(\w*)\s*$")
_NOT_RUN = re.compile(r"^<!-- not run: \S.* -->$")
_FILES = re.compile(r"<!-- files: (.*?) -->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, the line it begins on, its lines, and whether it is marked as not run."""

    language: str
    line: int
    lines: tuple[str, ...]
    marked: bool = False
    files: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Command:
    words: list[str]
    expected: list[str]
    line: int


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a page; each carries the files that comments before it ask for."""
    lines = text.splitlines()
    i, files_from = 0, 0
    while i < len(lines):
        match = _FENCE.match(lines[i])
        if not match:
            i += 1
            continue
        end = next(k for k in range(i + 1, len(lines)) if lines[k].rstrip() == "```")
        before = [line for line in lines[files_from:i] if line.strip()]
        wanted = " ".join(_FILES.findall("\n".join(lines[files_from:i]))).split()
        files = tuple((name, source) for name, _, source in (word.partition("=") for word in wanted))
        marked = bool(before and _NOT_RUN.match(before[-1].strip()))
        yield Block(match[1], i + 1, tuple(lines[i + 1 : end]), marked, files)
        i = files_from = end + 1


def commands(block: Block) -> list[Command]:
    """The commands of a console block."""
    found: list[Command] = []
    lines = list(block.lines)
    while lines:
        line = lines.pop(0)
        number = block.line + len(block.lines) - len(lines)
        if not line.startswith("$ "):
            assert found, f"line {number}: a console block begins with `$ `"
            found[-1].expected.append(line)
            continue
        text = line[2:]
        while text.endswith("\\") and lines:
            text = text[:-1] + " " + lines.pop(0).removeprefix("> ")
        found.append(Command(shlex.split(text), [], number))
    return found


def matches(expected: list[str], found: list[str]) -> bool:
    """Whether lines are as expected, `…` being any characters and a line `…` any lines."""
    if not expected:
        return not found
    first, rest = expected[0].rstrip(), expected[1:]
    if first == "…":
        return any(matches(rest, found[i:]) for i in range(len(found) + 1))
    pattern = ".*".join(map(re.escape, first.split("…")))
    return bool(found) and re.fullmatch(pattern, found[0].rstrip()) is not None and matches(rest, found[1:])


def stripped(lines: list[str]) -> list[str]:
    """Without blank lines at the end."""
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    return lines


def run_command(command: Command, folder: Path) -> None:
    assert command.words[:1] == ["adapterpack"], f"line {command.line}: only `adapterpack` runs; mark the block"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'cli'}", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        [sys.executable, "-m", "adapterpack_cli", *command.words[1:]],
        cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8", stdin=subprocess.DEVNULL,
    )  # fmt: skip
    told = f"line {command.line}: {shlex.join(command.words)}\nstatus {done.returncode}\n{done.stdout}{done.stderr}"
    fails = any(line.startswith("error: ") for line in command.expected)
    assert (done.returncode != 0) == fails, told
    expected = stripped(command.expected)
    if expected:
        found = stripped([*done.stdout.splitlines(), *done.stderr.splitlines()])
        assert matches(expected, found), f"{told}\nthe page says:\n" + "\n".join(expected)


def run_python(block: Block, names: dict[str, Any]) -> str:
    """Execute a block, compare the values it shows, and give back what it printed."""
    source = "\n".join(block.lines)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for node in ast.parse(source).body:
            line = block.lines[(node.end_lineno or node.lineno) - 1]
            _, arrow, shown = line.partition("  # → ")
            if not (arrow and isinstance(node, ast.Expr)):
                assert not arrow, f"line {block.line + node.lineno}: `# →` needs an expression"
                exec(compile(ast.Module([node], []), "README", "exec"), names)
                continue
            value = eval(compile(ast.Expression(node.value), "README", "eval"), names)
            alternatives = [repr(value), value] if isinstance(value, str) else [repr(value)]
            right = any(matches([shown], [text]) for text in alternatives)
            assert right, f"line {block.line + node.lineno}: {value!r}, the page says {shown}"
    return printed.getvalue()


def put_files(block: Block, folder: Path) -> None:
    for name, source in block.files:
        path = _PUBLISHED / source.removeprefix("petl-vit/") if source.startswith("petl-vit/") else ROOT / source
        if source.startswith("petl-vit/") and not path.exists():
            pytest.skip(f"no published file {source}; set ADAPTERPACK_PETL_VIT")
        assert path.exists(), f"line {block.line}: there is no {source}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, folder / name)
        else:
            shutil.copyfile(path, folder / name)


def run_page(text: str, folder: Path) -> int:
    """Run a page in a folder, which is the working directory; the number of blocks that ran."""
    names: dict[str, Any] = {"__name__": "readme"}
    printed: str | None = None
    count = 0
    for block in blocks(text):
        put_files(block, folder)
        if block.language == "text" and printed:
            assert matches(stripped(list(block.lines)), stripped(printed.splitlines())), (
                f"line {block.line}:\n{printed}"
            )
        printed = None
        if block.marked or block.language not in ("console", "python"):
            continue
        count += 1
        if block.language == "console":
            for command in commands(block):
                run_command(command, folder)
        else:
            printed = run_python(block, names)
    return count


# what a reader of the page would see too: published files say nothing of their backbone's fingerprint
@pytest.mark.filterwarnings("ignore:cifar(-v2)? does not say which backbone:UserWarning")
@pytest.mark.parametrize("page", PAGES)
def test_page(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page((ROOT / page).read_text("utf-8"), tmp_path)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Links inside the repository; those to the web are not looked up."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        assert "://" in target or (ROOT / page).parent.joinpath(target).exists(), target


# --- the runner itself

GOOD = """
<!-- files: licence.txt=LICENSE -->
```console
$ adapterpack --version
adapterpack, version …
$ adapterpack inspect \\
>     none.apk
error: none.apk: no such file…
$ adapterpack completion bash
```
```python
import adapterpack
from pathlib import Path
Path("licence.txt").exists()  # → True
adapterpack.__version__  # → …
print("one"); print("two")
```

```text
…
two
```
<!-- not run: it would delete everything -->
```console
$ rm -rf /
```
```sh
also not run
```
"""


def test_the_runner_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_page(GOOD, tmp_path) == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("adapterpack, version …", "adapterpack, version 99"),
        ("error: none.apk: no such file…", "fine"),
        ("none.apk: no such", "none.apk: such"),
        ("# → True", "# → False"),
        ("\ntwo\n", "\nthree\n"),
        ("<!-- not run: it would delete everything -->\n", ""),
        ("licence.txt=LICENSE", "licence.txt=NOTHING"),
        ("import adapterpack\n", "x = 1  # → 1\n"),
    ],
)
def test_the_runner_sees_differences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert old in GOOD
    with pytest.raises(AssertionError):
        run_page(GOOD.replace(old, new), tmp_path)


@pytest.mark.parametrize(
    ("expected", "found", "same"),
    [
        ("", "", True),
        ("a", "a  ", True),
        ("a", "b", False),
        ("a", "a\nb", False),
        ("a\n…", "a\nb\nc", True),
        ("…\nc", "a\nb\nc", True),
        ("…\nc", "a\nb", False),
        ("a…c", "abbbc", True),
        ("a…c", "ac", True),
        ("a.c", "abc", False),
        ("…", "", True),
    ],
)
def test_wildcards(expected: str, found: str, same: bool) -> None:
    assert matches(expected.splitlines(), found.splitlines()) == same
