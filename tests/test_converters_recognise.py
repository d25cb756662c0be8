"""Which converter reads a source: exactly one, or an error that says what was seen."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from adapterpack.converters import CONVERTERS, recognise
from adapterpack.converters.petl_vit import PetlVit
from adapterpack.errors import AdapterPackError, MissingFileError
from tests._converter_samples import petl_adapter


@dataclass(frozen=True)
class Greedy(PetlVit):
    name: str = "greedy"


def archive(path: Path, entry: str) -> Path:
    with ZipFile(path, "w") as file:
        file.writestr(entry, b"x" * 10)
    return path


def error_of(path: Path) -> AdapterPackError:
    with pytest.raises(AdapterPackError) as caught:
        recognise(path)
    return caught.value


@pytest.mark.parametrize(
    "data", [b"GGUF....", b"\x89HDF\r\n", b"\x7fELF", b"\x80\x04K\x01.", b"\x93NUMPY", b"\x1f\x8b", b"hello", b""]
)
def test_unknown_files_are_described(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.dat").write_bytes(data)
    error = error_of(tmp_path / "x.dat")
    assert error.reason == "unknown-source" and all(name in str(error) for name in CONVERTERS)


def test_what_was_seen(tmp_path: Path) -> None:
    assert "Android package" in str(error_of(archive(tmp_path / "game.apk", "AndroidManifest.xml")))
    assert "NumPy archive" in str(error_of(archive(tmp_path / "x.npz", "a.npy")))
    assert "zip archive" in str(error_of(archive(tmp_path / "x.bin", "word.xml")))
    assert "folder" in str(error_of(tmp_path))
    with pytest.raises(MissingFileError):
        recognise(tmp_path / "nothing")


def test_two_that_claim_a_source(tmp_path: Path) -> None:
    PetlVit().write(petl_adapter(), tmp_path / "x.bin", force=False)
    assert recognise(tmp_path / "x.bin").name == "petl-vit"
    with pytest.raises(AdapterPackError, match="petl-vit and greedy") as caught:
        recognise(tmp_path / "x.bin", {"petl-vit": PetlVit(), "greedy": Greedy()})
    assert caught.value.reason == "ambiguous-source"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_may_not_be_read_is_said_to_be_so(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = tmp_path / "run"
    refused.mkdir() if kind == "folder" else refused.write_bytes(b"x" * 10)
    real = os.open

    def denied(path: Any, *rest: Any, **more: Any) -> Any:
        if Path(path) == refused:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "open", denied)
    monkeypatch.setattr(Path, "iterdir", lambda path: denied(path))
    error = error_of(refused)
    assert error.reason == "io-error" and "Permission denied" in str(error)
