"""Trainers' folders on stores: packed as from disk, no file more than is needed, refusals before tensors come."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import adapterpack
from adapterpack.converters import _fetch
from adapterpack.errors import AdapterPackError, CallError, CorruptFileError, MissingFileError
from adapterpack.exchange import pack
from tests._web import bucket, hub, s3_server, web

pytest.importorskip("aiohttp", reason="the remote extra is not installed")
__all__ = ["bucket", "hub", "s3_server", "web"]  # fixtures
FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
LORA, BOTTLENECK = FIXTURES / "peft-lora", FIXTURES / "adapterhub-bottleneck"
SETTINGS, TENSORS = "adapter_config.json", "adapter_model.safetensors"
Files = dict[str, bytes]


def files_of(folder: Path, within: str = "") -> Files:
    return {f"{within}{path.name}": path.read_bytes() for path in sorted(folder.iterdir())}


def put(hub: Any, files: Files, repo: str = "me/pets-lora") -> None:
    hub.repos[repo] = [(files, "1" * 40)]


def packed(url: str, out: Path) -> adapterpack.Bundle:
    pack(url, out)
    return adapterpack.open(out)


def refused(url: str, out: Path) -> AdapterPackError:
    with pytest.raises(AdapterPackError) as caught:
        pack(url, out)
    assert not out.exists() and "\n" not in str(caught.value)
    return caught.value


def resolved(hub: Any) -> set[str]:
    """The files whose bytes were asked for."""
    return {path.rpartition("/")[2] for method, path, _ in hub.asked if "/resolve/" in path and method == "GET"}


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Where folders go while they are read; nothing is left there."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    yield
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("folder", [LORA, BOTTLENECK])
def test_a_folder_on_the_hub_is_packed_as_from_disk(folder: Path, hub: Any, tmp_path: Path) -> None:
    put(hub, {**files_of(folder), "README.md": b"words", "optimizer.pt": bytes(50_000)})
    local = tmp_path / "pets-lora"
    shutil.copytree(folder, local)
    found, here = packed("hf://me/pets-lora", tmp_path / "x.apk"), packed(str(local), tmp_path / "y.apk")
    assert found.read().same_as(here.read()) and (tmp_path / "x.apk").read_bytes() == (tmp_path / "y.apk").read_bytes()
    assert resolved(hub) == {path.name for path in folder.iterdir()} - {"README.md"}


def test_a_folder_of_a_repository_at_a_revision(hub: Any, tmp_path: Path) -> None:
    old, new = files_of(LORA, "runs/best/"), {f"runs/best/{SETTINGS}": b"{}"}
    hub.repos["me/many"] = [(old, "1" * 40), (new, "2" * 40)]
    summary = pack(f"hf://me/many@{'1' * 40}/runs/best", tmp_path / "x.apk")
    assert adapterpack.open(tmp_path / "x.apk").tasks == ("best",)
    assert any("fetched 2 files of hf://me/many@" in note for note in summary.notes)
    assert refused("hf://me/many/runs/best", tmp_path / "z.apk").reason == "unknown-source"


def test_a_torch_file_on_the_hub(hub: Any, tmp_path: Path) -> None:
    torch.save(load_file(LORA / TENSORS), tmp_path / "adapter_model.bin")
    put(
        hub,
        {SETTINGS: (LORA / SETTINGS).read_bytes(), "adapter_model.bin": (tmp_path / "adapter_model.bin").read_bytes()},
    )
    found = packed("hf://me/pets-lora", tmp_path / "x.apk").read()
    assert [str(b.site) for b in found.branches] == [
        str(b.site) for b in packed(str(LORA), tmp_path / "y.apk").read().branches
    ]


def test_a_folder_on_s3(bucket: str, tmp_path: Path) -> None:
    import s3fs

    for name, data in {**files_of(LORA), "other.bin": bytes(9)}.items():
        s3fs.S3FileSystem().pipe_file(f"{bucket}/run 7/{name}", data)
    found = packed(f"{bucket}/run 7", tmp_path / "x.apk")
    assert found.tasks == ("run 7",)
    assert len(found.read().branches) == len(packed(str(LORA), tmp_path / "y.apk").read().branches)
    assert type(refused(f"{bucket}/none", tmp_path / "z.apk")) is MissingFileError


def test_a_folder_that_a_web_server_lists(web: Any, tmp_path: Path) -> None:
    web.files = {f"run/{name}": data for name, data in files_of(LORA).items()}
    web.files["run"] = "".join(f'<a href="/{name}">' for name in web.files).encode()
    assert packed(f"{web.url}/run/", tmp_path / "x.apk").tasks == ("run",)


def test_one_that_is_named_on_the_command_line(hub: Any, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from adapterpack_cli.main import cli

    put(hub, files_of(LORA))
    found = CliRunner().invoke(cli, ["pack", "hf://me/pets-lora", "-o", str(tmp_path / "x.apk"), "--json"])
    assert found.exit_code == 0 and json.loads(found.stdout)["tasks"][0]["name"] == "pets-lora"


def test_a_hub_name_without_hf_is_a_path(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(hub, files_of(LORA))
    monkeypatch.chdir(tmp_path)
    error = refused("me/pets-lora", tmp_path / "x.apk")
    assert type(error) is MissingFileError and "hf://me/pets-lora" in error.hint and hub.asked == []
    assert "hf://" not in str(refused("./me/pets/lora", tmp_path / "x.apk"))
    with pytest.raises(MissingFileError, match="as text"):
        pack(Path("hf://me/pets-lora"), tmp_path / "x.apk")
    shutil.copytree(LORA, tmp_path / "me" / "pets-lora")
    assert packed("me/pets-lora", tmp_path / "x.apk").tasks == ("pets-lora",)


BAD: dict[str, tuple[str, Callable[[Files], Any], str, str]] = {
    "no repository": ("hf://me/nothing", lambda f: None, "missing-file", "log in"),
    "no folder": ("hf://me/pets-lora/best", lambda f: None, "missing-file", "hf://me/pets-lora/best"),
    "no settings": ("hf://me/pets-lora", lambda f: f.pop(SETTINGS), "missing-file", SETTINGS),
    "an apk": ("hf://me/pets-lora", lambda f: (f.pop(SETTINGS), f.update({"x.apk": b""})), "missing-file", "pull"),
    "no tensors": ("hf://me/pets-lora", lambda f: f.pop(TENSORS), "missing-file", "adapter_model.bin"),
    "both": ("hf://me/pets-lora", lambda f: f.update({"adapter_model.bin": b""}), "ambiguous-source",
             "adapter_model.bin"),
    "neither's": ("hf://me/pets-lora", lambda f: f.update({SETTINGS: b"{}"}), "unknown-source", "hf://me/pets-lora"),
    "large settings": ("hf://me/pets-lora", lambda f: f.update({SETTINGS: bytes(1 << 21)}), "limit-exceeded", SETTINGS),
    "large names": ("hf://me/pets-lora", lambda f: f.update({"config.json": bytes(1 << 25)}), "limit-exceeded",
                    "config.json"),
    "damaged": ("hf://me/pets-lora", lambda f: f.update({TENSORS: f[TENSORS][:-9]}), "bad-source", TENSORS),
    "one file": (f"hf://me/pets-lora/{TENSORS}", lambda f: None, "bad-call", "folder"),
    "a page": ("https://huggingface.co/me/pets-lora/tree/main", lambda f: None, "bad-call", "hf://me/pets-lora"),
    "a page of a data set": ("https://huggingface.co/datasets/me/pets", lambda f: None, "bad-call",
                             "hf://datasets/me/pets"),
    "no address": ("hf://pets-lora", lambda f: None, "bad-call", "hf://pets-lora"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(case: str, hub: Any, tmp_path: Path) -> None:
    url, change, reason, named = BAD[case]
    files = files_of(LORA)
    change(files)
    put(hub, files)
    error = refused(url, tmp_path / "x.apk")
    assert error.reason == reason and named in str(error), str(error)
    if case != "damaged":
        assert TENSORS not in resolved(hub)


def test_the_limit_holds_before_a_file_comes(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fetch, "SOURCE_BYTES", 1000)
    put(hub, files_of(LORA))
    error = refused("hf://me/pets-lora", tmp_path / "x.apk")
    assert type(error) is CorruptFileError and TENSORS in str(error) and resolved(hub) == {SETTINGS}


def test_a_connection_that_breaks(web: Any, tmp_path: Path) -> None:
    web.files = {f"run/{name}": data for name, data in files_of(LORA).items()}
    web.files["run"] = "".join(f'<a href="/{name}">' for name in web.files).encode()
    web.fault = "shrinks"
    assert refused(f"{web.url}/run", tmp_path / "x.apk").reason in ("truncated", "io-error", "missing-file")


def test_another_protocol_names_what_is_missing(tmp_path: Path) -> None:
    error = refused("nosuch://bucket/run", tmp_path / "x.apk")
    assert type(error) is CallError and "nosuch" in str(error)


@pytest.mark.parametrize(
    ("name", "task"),
    [("run 7", "run 7"), ("..", "adapter"), (".hidden", "hidden"), ("𠀀" * 70, "adapter"), ("x" * 300, "x" * 200)],
    ids=["a space", "dots", "hidden", "four bytes a letter", "long"],
)
def test_what_a_folder_is_called_here(name: str, task: str, tmp_path: Path) -> None:
    import fsspec

    url = f"memory://runs/{name}"
    for file, data in files_of(LORA).items():
        fsspec.filesystem("memory").pipe_file(f"/runs/{name}/{file}", data)
    assert packed(url, tmp_path / "x.apk").tasks == (task,)


@pytest.mark.parametrize("within", ["", "pets"])
def test_a_folder_in_an_archive(within: str, tmp_path: Path) -> None:
    archive = tmp_path / "all.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in LORA.iterdir():
            file.write(path, f"{within}/{path.name}" if within else path.name)
    bundle = packed(f"zip://{within}::{archive}", tmp_path / "x.apk")
    assert bundle.read().head is not None and (not within or bundle.tasks == (within,))
