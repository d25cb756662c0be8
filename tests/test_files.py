"""Sources and atomic writing on a real file system."""

from __future__ import annotations

import io
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from adapterpack import _files
from adapterpack.errors import AdapterPackError, CallError, CorruptFileError, MissingFileError

DATA = bytes(range(256)) * 4


def reason_of(call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(AdapterPackError) as error:
        call(*arguments, **options)
    return str(error.value.reason)


# --- sources


@contextmanager
def memory_url(data: bytes) -> Iterator[str]:
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    system.pipe("/apk-test/file.apk", data)
    yield "memory://apk-test/file.apk"
    system.rm("/apk-test", recursive=True)


def check_source(source: _files.Source) -> None:
    assert source.size() == len(DATA)
    for offset, length in ((0, 10), (100, 300), (1000, 500), (len(DATA), 5), (5000, 5), (7, 0), (0, 10**9)):
        assert source.read_at(offset, length) == DATA[offset : offset + length]
    assert isinstance(source.name, str) and source.name


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes(kind: Any) -> None:
    check_source(_files.source_of(kind(DATA)))


def test_a_buffer_that_changes_later() -> None:
    buffer = bytearray(DATA)
    source = _files.source_of(buffer)
    buffer[:] = bytes(len(DATA))
    assert source.read_at(0, 5) == DATA[:5]


def test_paths(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(DATA)
    check_source(_files.source_of(tmp_path / "f"))
    check_source(_files.source_of(str(tmp_path / "f")))


def test_file_objects_keep_their_position(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(DATA)
    with (tmp_path / "f").open("rb") as file:
        file.seek(17)
        check_source(_files.source_of(file))
        assert file.tell() == 17
    stream = io.BytesIO(DATA)
    stream.seek(3)
    check_source(_files.source_of(stream))
    assert stream.tell() == 3


def test_a_memory_map(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(DATA)
    with (tmp_path / "f").open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        source = _files.source_of(mapped)
        assert (source.size(), source.read_at(17, 5)) == (len(DATA), DATA[17:22])


def test_a_closed_file_object() -> None:
    stream = io.BytesIO(DATA)
    source = _files.source_of(stream)
    stream.close()
    assert reason_of(source.read_at, 0, 1) == "bad-call"
    assert reason_of(_files.source_of, stream) == "bad-call"


def test_urls() -> None:
    with memory_url(DATA) as url:
        check_source(_files.source_of(url))


def test_what_is_no_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert reason_of(_files.source_of, tmp_path / "none") == "missing-file"
    assert reason_of(_files.source_of, tmp_path) == "not-a-file"
    assert reason_of(_files.source_of, tmp_path / "pipe") == "not-a-file"
    assert reason_of(_files.source_of, "/dev/null") == "not-a-file"
    assert reason_of(_files.source_of, "a\x00b") == "bad-call"
    assert reason_of(_files.source_of, "x" * 5000) == "io-error"
    assert reason_of(_files.source_of, 17) == "bad-call"
    assert reason_of(_files.source_of, None) == "bad-call"
    assert reason_of(_files.source_of, io.StringIO("text")) == "bad-call"
    assert reason_of(_files.source_of, "memory://apk-test/none.apk") == "missing-file"
    assert reason_of(_files.source_of, "nonsense://x/y") == "io-error"


def test_a_stream_that_cannot_seek() -> None:
    read, write = os.pipe()
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        assert reason_of(_files.source_of, stream) == "bad-call"


def test_a_missing_file_is_a_file_not_found_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        _files.source_of(tmp_path / "none")


def test_an_empty_path_is_named() -> None:
    with pytest.raises(MissingFileError, match=r"^'': no such file"):
        _files.source_of("")


def test_read_exactly(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(DATA)
    source = _files.source_of(path)
    assert _files.read_exactly(source, 3, 4, "x") == DATA[3:7]
    path.write_bytes(DATA[:100])  # cut while open
    with pytest.raises(CorruptFileError) as error:
        _files.read_exactly(source, 50, 100, "task cifar")
    assert error.value.reason == "truncated" and "50 of 100" in str(error.value)
    path.unlink()
    assert reason_of(source.read_at, 0, 4) == "missing-file"


# --- writing


def left_behind(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_new_file(tmp_path: Path) -> None:
    _files.write_atomic(tmp_path / "f", DATA, force=False)
    assert (tmp_path / "f").read_bytes() == DATA
    assert left_behind(tmp_path) == ["f"]


def test_an_existing_file_needs_force(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    assert reason_of(_files.write_atomic, tmp_path / "f", DATA, force=False) == "file-exists"
    assert (tmp_path / "f").read_bytes() == b"old"
    _files.write_atomic(tmp_path / "f", DATA, force=True)
    assert (tmp_path / "f").read_bytes() == DATA
    assert left_behind(tmp_path) == ["f"]


@pytest.mark.parametrize("dangling", [True, False])
def test_a_link_is_replaced_not_followed(tmp_path: Path, dangling: bool) -> None:
    if not dangling:
        (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    assert reason_of(_files.write_atomic, tmp_path / "link", DATA, force=False) == "file-exists"
    _files.write_atomic(tmp_path / "link", DATA, force=True)
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_bytes() == DATA
    assert dangling or (tmp_path / "target").read_bytes() == b"precious"
    assert not dangling or not (tmp_path / "target").exists()


@pytest.mark.parametrize("force", [True, False])
def test_folders_and_pipes_are_never_replaced(tmp_path: Path, force: bool) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "out").symlink_to("/dev/null")  # as /dev/stdout is one
    for name in ("folder", "link", "pipe", "out"):
        assert reason_of(_files.write_atomic, tmp_path / name, DATA, force=force) == "not-a-file"
        assert reason_of(_files.refuse_existing, tmp_path / name, force=force) == "not-a-file"
    assert reason_of(_files.refuse_existing, Path("/dev/null"), force=force) == "not-a-file"
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.parametrize("step", ["fsync", "link"])
def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    if step == "link":  # a file system without hard links: renamed instead
        _files.write_atomic(tmp_path / "f", DATA, force=False)
        assert left_behind(tmp_path) == ["f"]
        return
    with pytest.raises(CallError, match="No space left") as error:
        _files.write_atomic(tmp_path / "f", DATA, force=False)
    assert error.value.reason == "io-error"
    assert left_behind(tmp_path) == []


def test_a_failure_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    (tmp_path / "f").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _files.write_atomic(tmp_path / "f", DATA, force=True)
    assert (tmp_path / "f").read_bytes() == b"old"
    assert left_behind(tmp_path) == ["f"]


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def slow(handle: int) -> None:
        real(handle)
        (tmp_path / "f").write_bytes(b"someone else's")

    monkeypatch.setattr(os, "fsync", slow)
    assert reason_of(_files.write_atomic, tmp_path / "f", DATA, force=False) == "file-exists"
    assert (tmp_path / "f").read_bytes() == b"someone else's"
    assert left_behind(tmp_path) == ["f"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_mode_follows_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        _files.write_atomic(tmp_path / "f", DATA, force=False)
        assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o666 & ~mask
    finally:
        os.umask(before)
    assert os.umask(before) == before


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        _files.write_atomic(tmp_path / "none" / "f", DATA, force=False)
    (tmp_path / "file").write_bytes(b"")
    assert reason_of(_files.write_atomic, tmp_path / "file" / "f", DATA, force=False) == "io-error"
    assert reason_of(_files.write_atomic, tmp_path / ("n" * 300), DATA, force=False) == "io-error"
    assert left_behind(tmp_path) == ["file"]


def test_names_as_long_as_the_system_takes(tmp_path: Path) -> None:
    for name in ("数" * 83 + ".apk", "x" * 251 + ".apk"):  # 253 and 255 bytes
        _files.write_atomic(tmp_path / name, DATA, force=False)
        assert (tmp_path / name).read_bytes() == DATA


def test_of_several_files_one_that_cannot_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "b").write_bytes(b"old")
    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(CallError, match="b: Permission denied; check its permissions"):
        _files.write_all({tmp_path / "a": DATA, tmp_path / "b": DATA}, force=True)
    assert left_behind(tmp_path) == ["b"]


def test_make_folder(tmp_path: Path) -> None:
    _files.make_folder(tmp_path / "a" / "b")
    _files.make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_bytes(b"")
    assert reason_of(_files.make_folder, tmp_path / "file") == "io-error"
