"""What is served and what is refused, without Ray: folders, files that change, uploads, removals."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from adapterpack import _files
from adapterpack.adapter import DataSettings
from adapterpack.container.names import TASK_NAMES
from adapterpack.errors import AdapterPackError, CallError, MissingFileError, Reason
from adapterpack.packing.bundle import open_bundle
from adapterpack.packing.encode import encode_task
from adapterpack.packing.join import join
from adapterpack.serving.answers import status_of
from adapterpack.serving.catalog import Catalog, Listing
from adapterpack.serving.folder import Folder
from adapterpack.serving.pictures import images_in
from tests import _serving


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return _serving.digits(tmp_path_factory.getbasetemp())


def served(listing: Listing) -> dict[str, str]:
    return {task: entry.file for task, entry in listing.tasks.items()}


def reasons(listing: Listing) -> dict[str, str]:
    return {refusal.file: refusal.reason for refusal in listing.refused}


def test_files_come_change_and_go(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.apk").write_bytes(data)
    (tmp_path / ".hidden.apk").write_bytes(data)
    (tmp_path / "notes.txt").write_bytes(b"none")
    catalog = Catalog(Folder(str(tmp_path)))
    assert catalog.scan() and served(catalog.listing()) == {"digits": "sub/a.apk"}
    assert not catalog.scan()
    version, first = catalog.version, catalog.listing().files[0].stamp
    (tmp_path / "sub" / "a.apk").write_bytes(_serving.variant(data, "new"))
    assert catalog.scan() and served(catalog.listing()) == {"new": "sub/a.apk"}
    assert catalog.version > version and catalog.data("sub/a.apk", first) is None
    (tmp_path / "sub" / "a.apk").unlink()
    assert catalog.scan() and served(catalog.listing()) == {}


def test_a_bad_file_is_refused_and_the_rest_is_served(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.apk").write_bytes(data)
    (tmp_path / "cut.apk").write_bytes(data[:-20])
    flipped = bytearray(data)
    flipped[-1] ^= 1
    (tmp_path / "flipped.apk").write_bytes(flipped)
    (tmp_path / "gone.apk").symlink_to(tmp_path / "nowhere")
    catalog = Catalog(Folder(str(tmp_path)))
    catalog.scan()
    assert served(catalog.listing()) == {"digits": "a.apk"}
    found = reasons(catalog.listing())
    assert found == {"cut.apk": "truncated", "flipped.apk": "checksum-mismatch", "gone.apk": "missing-file"}
    (tmp_path / "cut.apk").write_bytes(_serving.variant(data, "whole"))
    catalog.scan()
    assert served(catalog.listing()) == {"digits": "a.apk", "whole": "cut.apk"}
    assert "cut.apk" not in reasons(catalog.listing())


def test_a_large_file_that_is_none_of_ours_is_refused_by_its_head(
    tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, first in {"junk": b"junk", "zip": b"PK\x03\x04", "longer": data}.items():
        with (tmp_path / f"{name}.apk").open("wb") as file:
            file.write(first)
            file.truncate(1 << 32)
    (tmp_path / "a.apk").write_bytes(data)
    read: dict[str, int] = {}
    read_at = _files.PathSource.read_at

    def counted(self: _files.PathSource, offset: int, length: int) -> bytes:
        read[self.name] = read.get(self.name, 0) + length
        assert length < 1 << 20, "the whole file was asked for"
        return read_at(self, offset, length)

    monkeypatch.setattr(_files.PathSource, "read_at", counted)
    catalog = Catalog(Folder(str(tmp_path)))
    catalog.scan()
    assert served(catalog.listing()) == {"digits": "a.apk"}
    found = {refusal.file: (refusal.reason, refusal.message.split(":")[0]) for refusal in catalog.listing().refused}
    assert found == {
        "junk.apk": ("bad-magic", "junk.apk"),
        "zip.apk": ("other-format", "zip.apk"),
        "longer.apk": ("trailing-bytes", "longer.apk"),
    }
    assert max(size for name, size in read.items() if name != "a.apk") < 10_000


def test_a_file_that_turns_bad_is_served_as_it_was(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.apk").write_bytes(data)
    catalog = Catalog(Folder(str(tmp_path)))
    catalog.scan()
    before = catalog.listing().files
    (tmp_path / "a.apk").write_bytes(data[:100])
    catalog.scan()
    assert catalog.listing().files == before and reasons(catalog.listing()) == {"a.apk": "truncated"}
    assert catalog.data("a.apk", before[0].stamp) == data


def test_what_a_replica_refuses_goes_back_to_what_it_was(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.apk").write_bytes(data)
    catalog = Catalog(Folder(str(tmp_path)))
    catalog.scan()
    (before,) = catalog.listing().files
    (tmp_path / "a.apk").write_bytes(_serving.variant(data, "unfit"))
    catalog.scan()
    (unfit,) = catalog.listing().files
    catalog.refuse("a.apk", "another stamp", "site-shape", "no")
    assert catalog.listing().files == (unfit,)
    catalog.refuse("a.apk", unfit.stamp, "site-shape", "no")
    assert catalog.listing().files == (before,) and reasons(catalog.listing()) == {"a.apk": "site-shape"}
    catalog.refuse("a.apk", before.stamp, "site-shape", "no")
    assert catalog.listing().files == ()
    assert not catalog.scan()  # it is not tried again until it changes


def test_two_files_with_one_task(tmp_path: Path, data: bytes) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.apk").write_bytes(data)
    catalog = Catalog(Folder(str(tmp_path)))
    catalog.scan()
    assert served(catalog.listing()) == {"digits": "a.apk"}
    assert reasons(catalog.listing()) == {"b.apk": "duplicate-name"}
    (tmp_path / "a.apk").unlink()
    catalog.scan()
    assert served(catalog.listing()) == {"digits": "b.apk"} and reasons(catalog.listing()) == {}


def test_uploads(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.apk").write_bytes(data)
    catalog = Catalog(Folder(str(tmp_path)))
    catalog.scan()
    with pytest.raises(AdapterPackError, match=r"digits is in a\.apk already"):
        catalog.add(data)
    (entry,) = catalog.add(data, "mine")
    assert entry.alias == "mine" and entry.uploaded and set(entry.tasks) == {"mine"}
    with pytest.raises(CallError, match="served already"):
        catalog.add(data, "mine")
    catalog.add(_serving.variant(data, "other"), "mine", replace=True)
    assert set(served(catalog.listing())) == {"digits", "mine"}
    catalog.remove("mine")
    assert set(served(catalog.listing())) == {"digits"}
    with pytest.raises(CallError, match="no task 'mine'"):
        catalog.remove("mine")
    with pytest.raises(AdapterPackError):
        catalog.add(data[:50])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.apk"]


def test_a_removed_task_comes_back_when_it_is_read_again(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.apk"
    path.write_bytes(data)
    catalog = Catalog(Folder(str(tmp_path)))
    catalog.scan()
    catalog.remove("digits")
    assert served(catalog.listing()) == {} and path.is_file() and not catalog.scan()
    assert set(catalog.reread("a.apk").tasks) == {"digits"}
    assert served(catalog.listing()) == {"digits": "a.apk"}
    for name in ("../a.apk", "/etc/passwd", "b.apk", "a.apk/../a.apk"):
        with pytest.raises(CallError, match="not in the served folder"):
            catalog.reread(name)


def test_a_file_that_could_not_be_read_once_is_read_again(
    tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk or a net that fails changes no file, whose mark is what it was."""
    (tmp_path / "a.apk").write_bytes(data)
    catalog = Catalog(Folder(str(tmp_path)))

    def fails(*_: object) -> bytes:
        raise CallError("the net is away", Reason.IO)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "read", fails)
        assert catalog.scan() and reasons(catalog.listing()) == {"a.apk": "io-error"}
        assert not catalog.scan()  # nothing new to tell
    assert catalog.scan() and served(catalog.listing()) == {"digits": "a.apk"} and not catalog.listing().refused


def test_a_refused_file_that_goes_is_forgotten(tmp_path: Path, data: bytes) -> None:
    """Also one whose name was perhaps free again."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.apk").write_bytes(data)
    catalog = Catalog(Folder(str(tmp_path)))
    catalog.scan()
    catalog.add(data, "mine")
    (tmp_path / "b.apk").unlink()
    catalog.scan()
    assert not catalog.listing().refused


def test_hidden_folders_are_not_served(tmp_path: Path, data: bytes) -> None:
    """As a Kubernetes volume is mounted: links to files in a folder that a link names."""
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..2026" / "a.apk").write_bytes(data)
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "a.apk").symlink_to("..data/a.apk")
    catalog = Catalog(Folder(str(tmp_path)))
    catalog.scan()
    assert served(catalog.listing()) == {"digits": "a.apk"} and not catalog.listing().refused
    memory = fsspec.filesystem("memory")
    memory.pipe("/hidden/.old/a.apk", data)
    memory.pipe("/hidden/a.apk", data)
    assert list(Folder("memory://hidden").marks()) == ["a.apk"]
    memory.rm("/hidden", recursive=True)


def test_links_are_followed_but_not_in_circles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("images/one", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.png").write_bytes(b"1")
    for link, to in {
        "images/two": "../elsewhere", "images/one/up": "..", "elsewhere/one": "../images/one", "images/no.png": "none",
    }.items():  # fmt: skip
        (tmp_path / link).symlink_to(to)
    found = images_in(tmp_path / "images")
    assert list(found) == ["no.png", "one/a.png", "two/a.png", "two/one/a.png"]
    assert found["one/a.png"][0] == 1
    (tmp_path / "images" / "out").symlink_to("../..")  # a folder above the one that is asked for
    monkeypatch.chdir(tmp_path / "images")
    assert images_in(Path()) == images_in(tmp_path / "images") == found


def test_a_folder_that_cannot_be_listed_keeps_what_is_served(tmp_path: Path, data: bytes) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "a.apk").write_bytes(data)
    catalog = Catalog(Folder(str(folder)))
    catalog.scan()
    folder.rename(tmp_path / "away")
    assert catalog.scan() and "no folder" in catalog.listing().problem
    assert served(catalog.listing()) == {"digits": "a.apk"} and not catalog.scan()
    (tmp_path / "away").rename(folder)
    assert catalog.scan() and catalog.listing().problem == ""


def test_what_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no folder"):
        Folder(str(tmp_path / "none"))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CallError, match="no folder"):
        Folder(str(tmp_path / "file"))


def test_a_url(data: bytes) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/tasks/a.apk", data)
    memory.pipe("/tasks/deep/b.apk", _serving.variant(data, "second"))
    memory.pipe("/tasks/deep/readme.md", b"none")
    catalog = Catalog(Folder("memory://tasks"))
    catalog.scan()
    assert served(catalog.listing()) == {"digits": "a.apk", "second": "deep/b.apk"}
    assert not catalog.scan()
    memory.pipe("/tasks/a.apk", _serving.variant(data, "first"))
    memory.rm("/tasks/deep/b.apk")
    assert catalog.scan() and served(catalog.listing()) == {"first": "a.apk"}
    memory.rm("/tasks", recursive=True)


class _Hosted(MemoryFileSystem):
    """Like ftp and sftp: the host is in the URL and not in the path."""

    protocol, cachable = "hosted", False
    store: ClassVar[dict[str, Any]] = {}
    hosts: ClassVar[list[str]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.partition("://")[2].partition("/")[2].strip("/") if "://" in path else path

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        return {"host": path.partition("://")[2].partition("/")[0]}

    def __init__(self, host: str = "", **_: Any) -> None:
        super().__init__()
        self.hosts.append(host)


@pytest.mark.parametrize("url", ["hosted://me:word@host:21/tasks", "hosted://me:word@host:21/tasks/"])
def test_a_url_whose_host_is_not_in_the_path(data: bytes, url: str) -> None:
    fsspec.register_implementation("hosted", _Hosted, clobber=True)
    fsspec.filesystem("hosted", host="").pipe("/tasks/deep/a.apk", data)
    _Hosted.hosts.clear()
    catalog = Catalog(Folder(url))
    catalog.scan()
    assert served(catalog.listing()) == {"digits": "deep/a.apk"}
    assert set(_Hosted.hosts) == {"me:word@host:21"}


def test_a_url_of_a_folder_in_an_archive(tmp_path: Path, data: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "tasks.zip", "w") as archive:
        archive.writestr("inner/a.apk", data)
    for url in (f"zip://inner::{tmp_path}/tasks.zip", f"zip://inner::file://{tmp_path}/tasks.zip"):
        catalog = Catalog(Folder(url))
        catalog.scan()
        assert served(catalog.listing()) == {"digits": "a.apk"} and not catalog.listing().refused


def test_a_folder_inside_that_cannot_be_read_keeps_what_is_served(
    tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "a.apk").write_bytes(data)
    catalog = Catalog(Folder(str(tmp_path)))
    catalog.scan()
    scandir = os.scandir

    def refuses(place: str) -> object:
        if Path(place) == inner:
            raise PermissionError(13, "Permission denied", place)
        return scandir(place)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuses)
        assert catalog.scan() and str(inner) in catalog.listing().problem
    assert served(catalog.listing()) == {"digits": "inner/a.apk"}


def test_an_upload_replaces_the_tasks_it_names_and_no_other(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.apk").write_bytes(_serving.variant(data, "filed"))
    catalog = Catalog(Folder(str(tmp_path)))
    catalog.scan()
    catalog.add(_serving.both(data, _serving.variant(data, "other"), _serving.variant(data, "third")))
    stamps = {task: entry.stamp for task, entry in catalog.listing().tasks.items()}
    with pytest.raises(CallError, match="the task other is served already") as caught:
        catalog.add(_serving.both(_serving.variant(data, "new"), _serving.variant(data, "other", classes=4)))
    assert caught.value.reason == "duplicate-name" and set(served(catalog.listing())) == set(stamps)
    with pytest.raises(AdapterPackError, match=r"filed is in a\.apk already"):
        catalog.add(_serving.both(_serving.variant(data, "third", 3), _serving.variant(data, "filed")), replace=True)
    assert {task: entry.stamp for task, entry in catalog.listing().tasks.items()} == stamps  # all of it or nothing
    added = catalog.add(_serving.both(_serving.variant(data, "new"), _serving.variant(data, "other", 4)), replace=True)
    assert [set(entry.tasks) for entry in added] == [{"new"}, {"other"}]
    tasks = catalog.listing().tasks
    assert {task for task in tasks if stamps.get(task) != tasks[task].stamp} == {"new", "other"}
    assert tasks["other"].tasks["other"]["classes"] == 4 and set(tasks) == {*stamps, "new"}


def test_a_task_of_an_uploaded_bundle_can_be_removed_and_uploaded_again(tmp_path: Path, data: bytes) -> None:
    catalog = Catalog(Folder(str(tmp_path)))
    catalog.add(_serving.both(data, _serving.variant(data, "other")))
    catalog.remove("digits")
    (entry,) = catalog.add(_serving.variant(data, "digits", 3))
    assert entry.tasks["digits"]["classes"] == 3 and set(served(catalog.listing())) == {"digits", "other"}
    catalog.refuse(entry.file, entry.stamp, "out-of-memory", "no")
    assert set(served(catalog.listing())) == {"other"}


@pytest.mark.parametrize("name", ["x/../y", "..\\x", ".x", "x\ny", "x\u202ey", "\udc80", "é" * 128])
def test_a_name_that_no_task_may_have(tmp_path: Path, data: bytes, name: str) -> None:
    catalog = Catalog(Folder(str(tmp_path)))
    with pytest.raises(CallError, match="cannot be called") as caught:
        catalog.add(data, name)
    assert status_of(caught.value.reason) == 400 and caught.value.hint == TASK_NAMES
    assert catalog.listing().files == () and catalog.version == 0
    catalog.add(data, "é" * 127)


class _Call:
    """An actor's method without an actor: a dead one raises what Ray would."""

    def __init__(self, found: Callable[..., object]) -> None:
        self._found = found

    async def remote(self, *words: Any) -> object:
        return self._found(*words)


class _Board:
    def __init__(self, catalog: Catalog) -> None:
        self.dead = False
        self.listing = _Call(lambda *_: catalog.listing())
        self.data = _Call(lambda file, stamp: None if self.dead else catalog.data(file, stamp))
        self.refuse = _Call(lambda entry, told: catalog.refuse(entry.file, entry.stamp, told.reason, told.message))


def test_a_replica_has_each_task_from_the_file_that_the_listing_names(tmp_path: Path, data: bytes) -> None:
    from adapterpack.runtime.backbone import create_backbone
    from adapterpack.runtime.pool.pool import AdapterPool
    from adapterpack.serving.holder import Holder

    catalog = Catalog(Folder(str(tmp_path)))
    board, pool = _Board(catalog), AdapterPool(create_backbone(_serving.BACKBONE).model)
    holder = Holder(pool, board)

    def classes() -> dict[str, int]:
        asyncio.run(holder.follow(0))
        return {task: pool.info(task).classes or 0 for task in pool.tasks}

    catalog.add(_serving.both(data, _serving.variant(data, "b")))
    assert classes() == {"digits": 10, "b": 10}
    catalog.remove("b")
    catalog.add(_serving.variant(data, "b", classes=4))
    assert classes() == {"digits": 10, "b": 4}  # the task is another file's now
    fresh = Holder(pool, board)
    asyncio.run(fresh.follow(0))  # from nothing: the first file's own "b" is left out
    assert classes() == {"digits": 10, "b": 4}
    board.dead = True
    catalog.add(_serving.variant(data, "b", classes=3), replace=True)
    assert classes() == {"digits": 10, "b": 4} and holder.version < catalog.version
    board.dead = False
    assert classes() == {"digits": 10, "b": 3} and holder.version == catalog.version


def test_a_task_whose_pictures_the_backbone_does_not_take_is_refused(tmp_path: Path, data: bytes) -> None:
    from adapterpack.runtime.backbone import create_backbone
    from adapterpack.runtime.pool.pool import AdapterPool
    from adapterpack.serving.holder import Holder

    bundle = open_bundle(data)
    large = dataclasses.replace(bundle.read(), name="large", data=DataSettings((3, 64, 64)))
    file = _serving.both(join([encode_task(large, "fast")], bundle.backbone), data)
    (tmp_path / "a.apk").write_bytes(file)
    catalog = Catalog(Folder(str(tmp_path)))
    catalog.scan()
    pool = AdapterPool(create_backbone(_serving.BACKBONE).model)
    holder = Holder(pool, _Board(catalog))
    told = asyncio.run(holder.examine(file))
    assert told is not None and told.reason == "site-shape" and asyncio.run(holder.examine(data)) is None
    asyncio.run(holder.follow(0))
    assert reasons(catalog.listing()) == {"a.apk": "site-shape"} and pool.tasks == ()


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"")
    with pytest.raises(CallError, match="not UTF-8"):
        images_in(tmp_path)
