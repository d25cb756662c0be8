"""Files on stores: a web server with faults, S3 as moto serves it, the Hub as its client sees it."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

import adapterpack
from adapterpack.errors import AdapterPackError, CallError, MissingFileError
from adapterpack.packing.bundle import read_adapter
from adapterpack.packing.cross import cross_coded
from adapterpack.stores import called, open_folder, open_url, shown
from adapterpack.stores._base import only_file, remote_errors
from adapterpack.stores.hub import HubAddress
from tests._web import bucket, hub, s3_server, web
from tests.factories import lora_branches, make, pack

pytest.importorskip("aiohttp", reason="the remote extra is not installed")
__all__ = ["bucket", "hub", "s3_server", "web"]  # fixtures
TASKS = ("caltech101", "cifar", "dtd", "pets", "svhn")


@pytest.fixture(scope="module")
def bundle() -> bytes:
    return pack(*(make("lora", name, branches=lora_branches(rank=64)) for name in TASKS))


def refused(url: str) -> AdapterPackError:
    """The error that opening and reading give."""
    with pytest.raises(AdapterPackError) as caught:
        opened = adapterpack.open(url)
        for task in opened.tasks:
            opened.read(task)
    return caught.value


# --- what it costs to look at a remote bundle, and at one task of it ---


def test_inspecting_over_http_is_two_requests_and_4_kib(web: Any, bundle: bytes) -> None:
    web.files["all.apk"] = bundle
    assert adapterpack.open(f"{web.url}/all.apk").tasks == TASKS
    assert [(method, ranged) for method, _, ranged in web.asked] == [("HEAD", None), ("GET", "bytes=0-4095")]
    assert web.sent == 4096 < len(bundle)


def test_a_task_over_http_is_one_more_request_of_its_bytes(web: Any, bundle: bytes) -> None:
    web.files["all.apk"] = bundle
    opened = adapterpack.open(f"{web.url}/all.apk")
    web.sent, payload = 0, opened.index.tasks[2].payload_bytes()
    assert opened.read("dtd").same_as(adapterpack.open(bundle).read("dtd"))
    assert len(web.asked) == 3 and web.sent == payload


def test_a_small_file_that_is_read_over_http_is_two_requests(web: Any, bundle: bytes) -> None:
    web.files["one.apk"] = pack(make("lora"))
    found = read_adapter(f"{web.url}/one.apk")
    assert found.same_as(adapterpack.open(web.files["one.apk"]).read())
    assert [(method, ranged) for method, _, ranged in web.asked] == [
        ("HEAD", None),
        ("GET", f"bytes=0-{len(web.files['one.apk']) - 1}"),
    ]
    web.files["all.apk"] = bundle
    web.asked.clear()
    assert read_adapter(f"{web.url}/all.apk", "dtd").same_as(adapterpack.open(bundle).read("dtd"))
    assert len(web.asked) == 2


@pytest.mark.parametrize("big", [10**9, 1])
def test_inspecting_on_the_hub_is_two_requests_and_4_kib(hub: Any, bundle: bytes, big: int) -> None:
    """The size comes with the commit; a large file takes one redirection more."""
    hub.big = big
    hub.repos["me/adapters"].append(({"all.apk": bundle}, "1" * 40))
    opened = adapterpack.open("hf://me/adapters/all.apk")
    assert opened.tasks == TASKS and hub.sent == 4096
    assert [method for method, _, _ in hub.asked] == ["HEAD", "GET"] + ["GET"] * (big == 1)
    assert f"/resolve/{'1' * 40}/" in hub.asked[1][1]
    assert opened.read("svhn").same_as(adapterpack.open(bundle).read("svhn"))


def test_a_file_that_is_replaced_on_the_hub_while_it_is_read(hub: Any, bundle: bytes) -> None:
    hub.repos["me/adapters"].append(({"all.apk": bundle}, "1" * 40))
    opened = adapterpack.open("hf://me/adapters/all.apk")
    hub.repos["me/adapters"].append(({"all.apk": bytes(len(bundle))}, "2" * 40))
    assert opened.read("cifar").same_as(adapterpack.open(bundle).read("cifar"))


def test_reading_from_s3(bucket: str, bundle: bytes) -> None:
    folder = open_folder(bucket)
    folder.write({"all.apk": bundle}, "")
    source = open_url(f"{bucket}/all.apk")
    asked: list[tuple[int, int]] = []
    read = source.read_at
    source.read_at = lambda offset, length: asked.append((offset, length)) or read(offset, length)  # type: ignore[method-assign]
    opened = adapterpack.Bundle(source)
    assert opened.read("pets").same_as(adapterpack.open(bundle).read("pets"))
    assert asked[0] == (0, 4096) and len(asked) == 2
    assert source.read_at(len(bundle) - 3, 10) == bundle[-3:] and source.read_at(len(bundle), 10) == b""


def test_the_largest_usual_bundle_is_inspected_in_8_kib(web: Any) -> None:
    """The 19 tasks of VTAB-1k in one file, signs coded across tasks."""
    many = [make("lora", f"task{i:02d}", metadata={}) for i in range(19)]
    web.files["all.apk"] = cross_coded(pack(*many))
    assert len(adapterpack.open(f"{web.url}/all.apk").tasks) == 19
    assert web.sent <= 8192 and len(web.asked) <= 3


# --- servers that misbehave ---


def test_a_server_without_ranges_sends_the_file_once(web: Any, bundle: bytes) -> None:
    web.files["all.apk"], web.fault = bundle, "no-ranges"
    opened = adapterpack.open(f"{web.url}/all.apk")
    assert all(opened.read(task).same_as(adapterpack.open(bundle).read(task)) for task in TASKS)
    assert web.sent == len(bundle)


@pytest.mark.parametrize("fault", ["cut", "shrinks", "grows", "garbage"])
def test_transfers_that_go_wrong(web: Any, bundle: bytes, fault: str) -> None:
    web.files["all.apk"], web.fault = bundle, fault
    error = refused(f"{web.url}/all.apk")
    assert error.reason in {"truncated", "io-error", "trailing-bytes", "bad-magic", "checksum-mismatch"}


def test_a_file_that_changes_between_the_head_and_a_task(web: Any, bundle: bytes) -> None:
    web.files["all.apk"] = bundle
    opened = adapterpack.open(f"{web.url}/all.apk")
    web.files["all.apk"] = bundle[:4096] + bytes(len(bundle) - 4096)
    with pytest.raises(AdapterPackError) as caught:
        for task in TASKS:
            opened.read(task)
    assert caught.value.reason == "checksum-mismatch"
    web.files["all.apk"] = bundle[:5000]
    with pytest.raises(AdapterPackError) as caught:
        opened.read("svhn")
    assert caught.value.reason in ("io-error", "truncated")


@pytest.mark.parametrize(
    ("status", "kind", "told"),
    [
        (404, MissingFileError, "not found"),
        (401, CallError, "log in"),
        (403, CallError, "access"),
        (500, CallError, "500"),
    ],
)
def test_statuses(web: Any, status: int, kind: type[AdapterPackError], told: str) -> None:
    web.fault = status
    error = refused(f"{web.url}/all.apk?signature=verysecret")
    assert type(error) is kind and told in str(error)
    assert "verysecret" not in str(error)


def test_statuses_while_reading(web: Any, bundle: bytes) -> None:
    web.files["all.apk"] = bundle
    opened = adapterpack.open(f"{web.url}/all.apk")
    web.fault = 503
    with pytest.raises(CallError, match="503"):
        opened.read("svhn")


def test_statuses_of_the_hub(hub: Any, bundle: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(refused("hf://me/adapters/none.apk")) is MissingFileError
    assert "log in" in str(refused("hf://me/nothing/all.apk"))
    assert type(refused("hf://me/adapters@v9/all.apk")) is MissingFileError
    hub.repos["me/adapters"].append(({"all.apk": bundle}, "1" * 40))
    hub.private.add("me/adapters")
    assert adapterpack.open("hf://me/adapters/all.apk").tasks == TASKS
    monkeypatch.setenv("HF_TOKEN", "hf_wrongtoken")
    error = refused("hf://me/adapters/all.apk")
    assert "401" in str(error) and "hf_wrongtoken" not in str(error)


def test_s3_without_the_file_or_the_bucket(bucket: str) -> None:
    assert type(refused(f"{bucket}/none.apk")) is MissingFileError
    assert type(refused("s3://nowhere/none.apk")) is MissingFileError


def test_unreachable(web: Any) -> None:
    web.server_close()
    error = refused(f"{web.url}/all.apk")
    assert type(error) is CallError and "connection" in str(error)


@pytest.mark.parametrize(("url", "package"), [("gs://x/y.apk", "gcsfs"), ("az://x/y.apk", "adlfs")])
def test_a_protocol_whose_package_is_missing(url: str, package: str) -> None:
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    error = refused(url)
    assert error.reason == "missing-extra" and str(error) == f"{url} needs {package}; pip install {package}"


@pytest.mark.parametrize("text", ["Please install gcsfs to access", "Install the gcsfs package", "x requires 'gcsfs'"])
def test_what_fsspec_says_of_a_missing_package(text: str) -> None:
    with pytest.raises(CallError, match="gs://x needs gcsfs"), remote_errors("gs://x"):
        raise ImportError(text) from ModuleNotFoundError(name="gcsfs")


# --- folders ---


@pytest.fixture(params=["memory", "local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Any) -> str:
    if request.param == "s3":
        return str(request.getfixturevalue("bucket"))
    return f"memory://{tmp_path.name}/vtab" if request.param == "memory" else f"local://{tmp_path}/vtab"


def test_a_folder_takes_files_and_gives_them_back(folder: str, bundle: bytes) -> None:
    store = open_folder(folder)
    assert store.names() == ()
    assert store.write({"all.apk": bundle, "README.md": b"one"}, "") == ""
    assert open_folder(folder).names() == ("README.md", "all.apk")
    store.write({"README.md": b"two"}, "")
    assert store.read("README.md") == b"two"
    assert adapterpack.open(store.url("all.apk")).tasks == TASKS
    assert adapterpack.open(folder).tasks == TASKS  # the only file in it


def test_the_hub_takes_all_files_in_one_commit(hub: Any, bundle: bytes) -> None:
    store = open_folder("hf://me/adapters/vtab")
    assert store.names() == ()
    hub.big = 100
    assert "/commit/" in store.write({"all.apk": bundle, "README.md": b"# a"}, "Add all.apk")
    assert len(hub.repos["me/adapters"]) == 2 and hub.messages == ["Add all.apk"]
    assert store.names() == ("README.md", "all.apk") and store.read("README.md") == b"# a"
    assert adapterpack.open("hf://me/adapters/vtab").read("dtd").same_as(adapterpack.open(bundle).read("dtd"))


def test_the_hub_library_draws_no_bars(hub: Any, bundle: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    hub.big = 100
    open_folder("hf://me/adapters").write({"all.apk": bundle, "one.apk": bundle[:500]}, "Add two")
    assert capfd.readouterr().err == ""
    utils = pytest.importorskip("huggingface_hub.utils")
    assert not utils.are_progress_bars_disabled()  # what the program around it shows is its own affair


def test_the_hub_refuses_a_commit_on_top_of_another(hub: Any) -> None:
    store = open_folder("hf://me/adapters")
    hub.before_commit = lambda: hub.repos["me/adapters"].append(({"README.md": b"theirs"}, "9" * 40))
    with pytest.raises(CallError, match="try again"):
        store.write({"README.md": b"ours"}, "m")
    assert hub.repos["me/adapters"][-1][0] == {"README.md": b"theirs"}


def test_a_repository_is_made_only_when_asked_for(hub: Any) -> None:
    with pytest.raises(MissingFileError, match="--create private"):
        open_folder("hf://me/new")
    assert open_folder("hf://me/new", "private").names() == (".gitattributes",)
    assert "me/new" in hub.private
    open_folder("hf://me/adapters", "public")  # there already
    hub.token = "another"
    with pytest.raises(CallError, match="401"):
        open_folder("hf://me/other", "public")


# --- words ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://me/a/b.apk", HubAddress("me/a", path="b.apk")),
        ("hf://me/a", HubAddress("me/a")),
        ("hf://me/a@v1/x/b.apk", HubAddress("me/a", revision="v1", path="x/b.apk")),
        ("hf://me/a@refs/pr/3/b.apk", HubAddress("me/a", revision="refs/pr/3", path="b.apk")),
        ("hf://me/a@feat%2Fx/b.apk", HubAddress("me/a", revision="feat/x", path="b.apk")),
        ("hf://datasets/me/a/b.apk", HubAddress("me/a", "dataset", path="b.apk")),
    ],
)
def test_addresses_on_the_hub(text: str, expected: HubAddress) -> None:
    assert HubAddress.parse(text) == expected
    assert HubAddress.parse(expected.at(expected.revision, expected.path)) == expected


@pytest.mark.parametrize("text", ["hf://", "hf://a", "hf://me/../b.apk", "hf://me/a/../../b.apk", "hf://me /a"])
def test_no_addresses_on_the_hub(text: str) -> None:
    with pytest.raises(CallError) as caught:
        HubAddress.parse(text)
    assert caught.value.reason == "bad-call"


def test_one_file_of_a_folder() -> None:
    assert only_file(["README.md", "a.apk"], "x") == "a.apk"
    with pytest.raises(MissingFileError):
        only_file(["README.md"], "x")
    with pytest.raises(CallError, match=r"a\.apk, b\.adapterpack"):
        only_file(["a.apk", "b.adapterpack"], "x")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://me:secret@host/a.apk?X-Amz-Signature=secret", "https://host/a.apk"),
        ("GET 'http://h/a?token=secret' with Bearer secret", "GET 'http://h/a' with Bearer …"),
        ("the token hf_secretsecret", "the token hf_…"),
        ("s3://bucket/a?b", "s3://bucket/a?b"),
        ("hf://me/a@main/b.apk", "hf://me/a@main/b.apk"),
    ],
)
def test_secrets_are_not_shown(text: str, expected: str) -> None:
    assert shown(text) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket/runs/pets/", "pets"),
        ("https://host/pets?signature=abc/def", "pets"),
        ("hf://me/pets@v2", "pets"),
        ("hf://me/pets/best", "best"),
        ("sftp://me:secret@host/", "host"),
        ("sftp://me:secret@host/pets", "pets"),
        ("zip://pets::s3://bucket/all.zip", "pets"),
        ("simplecache::s3://bucket/pets", "pets"),
    ],
)
def test_what_a_folder_is_called(url: str, expected: str) -> None:
    assert called(url) == expected
