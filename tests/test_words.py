"""One word for each thing: the words that the vocabulary forbids, wherever users and developers read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {
    r"merg(e|es|ed|ing|er|eable)": "fold / unfold into weights, consolidate branches, bundle files",
    r"unmerg(e|ed|ing)": "unfold",
    r"adaptors?": "adapter",
    r"deserializ\w+|deserialis\w+": "decode, read",
    r"magic numbers?": "magic",
    r"TODO|FIXME|XXX": "do it, or open an issue",
}
# other people's names, which are quoted as they are
QUOTED = ("Mergeable Adapter with Grouped Connections", "merge_weights", "merge_and_unload", "`merge`",
          "safetensors.deserialize")  # fmt: skip
SUFFIXES = {".py", ".md", ".json", ".toml", ".txt", ".cfg"}


def texts() -> list[Path]:
    found = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "pyproject.toml")]
    for folder in ("adapterpack", "cli", "spec"):
        found += [p for p in (ROOT / folder).rglob("*") if p.suffix in SUFFIXES and "vectors" not in p.parts]
    return sorted(path for path in found if path.is_file())


def forbidden_in(text: str) -> list[str]:
    for quoted in QUOTED:
        text = text.replace(quoted, "")
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, instead in FORBIDDEN.items():
            match = re.search(rf"(?<![A-Za-z])(?:{pattern})(?![a-z])", line, 0 if pattern.isupper() else re.IGNORECASE)
            if match:
                found.append(f"line {number}: {match[0]!r}; say: {instead}")
    return found


@pytest.mark.parametrize("path", texts(), ids=lambda path: str(path.relative_to(ROOT)))
def test_words(path: Path) -> None:
    assert forbidden_in(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("we merge it", 1),
        ("def merge_branches():", 1),
        ("MERGED", 1),
        ("emerge", 0),
        ("`merge_weights`", 0),
        ("fold it", 0),
    ],
)
def test_the_rule_itself(text: str, count: int) -> None:
    assert len(forbidden_in(text)) == count


def test_the_texts_are_found() -> None:
    names = {path.name for path in texts()}
    assert {"README.md", "adapter.py", "main.py"} <= names
