"""What gets imported by what: a child process does one thing, then lists its modules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import factories

ROOT = Path(__file__).resolve().parent.parent
NEVER = {"torch", "timm", "torchvision", "transformers", "peft", "PIL", "fsspec", "scipy", "safetensors", "pickle"}
HEAVY = ("adapterpack.runtime", "adapterpack.train", "adapterpack.converters")
# outside packages that opening and reading a file may need; zlib_ng only where it is installed
READING = {"numpy", "zstandard", "constriction", "_cffi_backend", "zlib_ng"}
TALKING = READING | {"click", "rich", "pygments", "markdown_it", "mdurl"}

CHILD = """
import sys
before = set(sys.modules)
{code}
import json
print()
print(json.dumps(sorted(set(sys.modules) - before)))
"""

COMMAND = """
from adapterpack_cli.main import main
try:
    main({words!r})
except SystemExit as error:
    assert error.code == {status}, error.code
"""


def imported_by(code: str) -> set[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'cli'}"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CHILD.format(code=code)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def outside(names: set[str]) -> set[str]:
    """Top-level packages that are neither ours nor the standard library's."""
    tops = {name.split(".")[0] for name in names}
    return {t for t in tops if t not in sys.stdlib_module_names and not t.startswith(("adapterpack", "__mp"))}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for method in ("lora", "spt"):
        (folder / f"{method}.apk").write_bytes(factories.pack(factories.make(method, method)))
    return folder


def test_import_is_light() -> None:
    found = imported_by("import adapterpack")
    assert outside(found) <= READING
    assert not {name.split(".")[0] for name in found} & (NEVER - {"pickle"})
    assert not [name for name in found if name.startswith(HEAVY)]


@pytest.mark.parametrize("method", ["lora", "spt"])
def test_opening_and_reading_are_light(files: Path, method: str) -> None:
    path = str(files / f"{method}.apk")
    found = imported_by(f"import adapterpack\napk = adapterpack.open({path!r})\napk.read()\nlist(apk.verify())")
    assert outside(found) <= READING


@pytest.mark.parametrize(
    "words", [["inspect"], ["inspect", "--json"], ["inspect", "--tensors"], ["verify"], ["verify", "--json"]]
)
def test_inspect_and_verify_are_light(files: Path, words: list[str]) -> None:
    arguments = [*words, str(files / "lora.apk"), str(files / "spt.apk")]
    found = imported_by(COMMAND.format(words=arguments, status=0))
    assert outside(found) <= TALKING
    assert not [name for name in found if name.startswith(HEAVY)]


def test_errors_are_light() -> None:
    assert outside(imported_by(COMMAND.format(words=["inspect", "/nowhere"], status=2))) <= TALKING


def test_the_probe_sees_what_it_should() -> None:
    assert "fsspec" in outside(imported_by("import fsspec"))
    assert "wave" in imported_by("import wave")
