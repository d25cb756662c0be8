"""Class names from a `config.json`: beside a folder's settings, and nowhere else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from adapterpack.converters import CONVERTERS, read
from adapterpack.converters._base import Hints
from adapterpack.converters._labels import with_labels
from tests._web import hub
from tests.test_converters_fetch import FIXTURES, LORA, SETTINGS, files_of, put

__all__ = ["hub"]  # a fixture


def classes() -> int:
    head = read(LORA, Hints()).adapter.head
    assert head is not None
    return head.classes


def names(count: int) -> dict[str, str]:
    return {str(i): f"kind {i}" for i in reversed(range(count))}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(LORA, tmp_path / "run")
    return tmp_path / "run"


def say(folder: Path, **settings: Any) -> None:
    path = folder / SETTINGS
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def test_names_beside_the_settings(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"id2label": names(classes())}))
    found = read(folder, Hints())
    assert found.adapter.labels == tuple(f"kind {i}" for i in range(classes()))
    assert any("class names" in note and "config.json" in note for note in found.notes)
    given = tuple("abcdefghijkl"[: classes()])
    assert read(folder, Hints(labels=given)).adapter.labels == given


def test_another_number_of_names_is_told(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"id2label": names(1000)}))
    found = read(folder, Hints())
    assert found.adapter.labels is None
    assert any("1,000" in note and "no class names" in note for note in found.notes)


def test_names_that_are_too_long_are_told(folder: Path) -> None:
    long = {number: "x" * (1 << 20) for number in names(classes())}
    (folder / "config.json").write_text(json.dumps({"id2label": long}))
    found = read(folder, Hints())
    assert found.adapter.labels is None
    assert any("bytes" in note and "no class names" in note for note in found.notes)


ODD: dict[str, Any] = {
    "made up": {"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}},
    "no names": {"id2label": {}},
    "gaps": {"id2label": {"0": "a", "2": "b"}},
    "words": {"id2label": {"a": "0"}},
    "numbers": {"id2label": {"0": 1}},
    "a control": {"id2label": {"0": "a\x1b[2J"}},
    "a list": {"id2label": ["a"]},
    "no object": ["a"],
    "nothing": None,
}


@pytest.mark.parametrize("case", ODD)
def test_what_names_nothing(case: str, folder: Path) -> None:
    plain = read(folder, Hints())
    (folder / "config.json").write_text("{" if ODD[case] is None else json.dumps(ODD[case]))
    found = read(folder, Hints())
    assert found.adapter.labels is None and found.notes == plain.notes


def test_a_path_as_the_base_model_is_never_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps({"id2label": names(classes())}))
    say(folder, base_model_name_or_path=str(tmp_path / "base"))
    assert read(folder, Hints()).adapter.labels is None


def test_a_folder_on_the_hub(hub: Any) -> None:
    put(hub, {**files_of(LORA), "config.json": json.dumps({"id2label": names(classes())}).encode()})
    found = read("hf://me/pets-lora", Hints())
    assert found.adapter.labels is not None and len(found.notes) >= 2


def test_a_file_and_an_adapter_with_names_are_left_alone(tmp_path: Path) -> None:
    source = FIXTURES / "digits.safetensors"
    found = CONVERTERS["safetensors"].read(source, Hints())
    assert with_labels(found, source) is found and with_labels(found, tmp_path) is found
