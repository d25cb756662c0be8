"""Sources that docstrings name are there: pages of spec/ and docs/, their sections, files of tests/."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("adapterpack", "cli", "study", "spec", "tests")
FILES = sorted(path for name in FOLDERS for path in (ROOT / name).rglob("*.py"))
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "spec").rglob("*.md"), *ROOT.glob("*.md")])
_NAMED = re.compile(r'\b((?:spec|docs)/[\w/-]+\.md)((?:,? (?:and )?"[^"]{1,80}")*)')
_TEST = re.compile(r"\btests/[\w/]+\.py\b")


def broken(text: str) -> Iterator[str]:
    """What is named and not there."""
    plain = re.sub(r"\s+", " ", text)
    for page, sections in _NAMED.findall(plain):
        path = ROOT / page
        heads = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE) if path.exists() else []
        known = {head.strip().casefold() for head in heads}
        wanted = re.findall(r'"([^"]+)"', sections)
        yield from ([page] if not path.exists() else [f"{page}: {s}" for s in wanted if s.casefold() not in known])
    yield from (name for name in _TEST.findall(plain) if not (ROOT / name).exists())


@pytest.mark.parametrize("path", [*FILES, *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_sources_are_there(path: Path) -> None:
    if path != Path(__file__):
        assert not list(broken(path.read_text("utf-8")))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ('spec/README.md, "Digest"', 0),
        ('spec/README.md,\n    "Digest" and "Limits"', 0),
        ('spec/README.md, "Digests"', 1),
        ('spec/README.md, "Digest" and "Nothing"', 1),
        ("docs/none.md", 1),
        ("see tests/test_sources.py and tests/test_none.py", 1),
    ],
)
def test_the_rule_itself(text: str, count: int) -> None:
    assert len(list(broken(text))) == count
