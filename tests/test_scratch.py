"""Temporary folders go again whatever happens, and a copy is whole or an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapterpack import _scratch
from adapterpack._files import BytesSource
from adapterpack._scratch import copy, scratch_folder
from adapterpack.errors import CallError, CorruptFileError


def test_a_folder_of_that_name_is_gone_afterwards() -> None:
    with pytest.raises(KeyError), scratch_folder("pets") as folder:
        assert folder.name == "pets" and list(folder.iterdir()) == []
        (folder / "x").write_bytes(b"x")
        raise KeyError
    assert not folder.parent.exists()


def test_a_copy_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_scratch, "_PART", 7)
    for size in (0, 6, 7, 8, 40):
        data = bytes(range(size))
        copy(BytesSource(data), tmp_path / str(size))
        assert (tmp_path / str(size)).read_bytes() == data
    with pytest.raises(CallError) as caught:
        copy(BytesSource(b"x"), tmp_path / "7")
    assert caught.value.reason == "io-error"


def test_a_source_that_ends_early(tmp_path: Path) -> None:
    class Short(BytesSource):
        def size(self) -> int:
            return 9

    with pytest.raises(CorruptFileError) as caught:
        copy(Short(b"abc"), tmp_path / "x")
    assert caught.value.reason == "truncated"
