"""`push` and `pull`, in Python and on the command line: verified first, whole or not at all, nothing overwritten."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import adapterpack
from adapterpack import transfer
from adapterpack.errors import AdapterPackError, CallError, MissingFileError
from adapterpack.packing.cross import cross_coded
from tests._web import hub, web
from tests.factories import lora_branches, make, pack
from tests.test_cli import ROOT, Run, run

__all__ = ["hub", "run", "web"]  # fixtures

pytest.importorskip("aiohttp", reason="the remote extra is not installed")
TASKS = ("cifar", "dtd", "pets")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    found = {name: tmp_path / f"{name}.apk" for name in ("cifar", "all")}
    found["cifar"].write_bytes(pack(make("lora")))
    found["all"].write_bytes(pack(*(make("lora", name, branches=lora_branches(rank=64)) for name in TASKS)))
    return found


@pytest.fixture
def memory(tmp_path: Path) -> str:
    return f"memory://{tmp_path.name}"


# --- push ---


def test_to_the_hub_and_back(hub: Any, files: dict[str, Path], tmp_path: Path) -> None:
    done = adapterpack.push([files["cifar"], files["all"]], "hf://me/adapters")
    assert done.card == "hf://me/adapters/README.md" and "/commit/" in done.commit
    commits = hub.repos["me/adapters"]
    assert len(commits) == 2 and hub.messages == ["Add cifar.apk, all.apk"]
    assert set(commits[-1][0]) == {".gitattributes", "README.md", "all.apk", "cifar.apk"}
    assert commits[-1][0]["all.apk"] == files["all"].read_bytes()
    adapterpack.pull("hf://me/adapters/all.apk", tmp_path / "back.apk")
    assert (tmp_path / "back.apk").read_bytes() == files["all"].read_bytes()


def test_a_card_describes_the_whole_folder(memory: str, files: dict[str, Path]) -> None:
    adapterpack.push([files["cifar"]], memory)
    store = transfer.open_folder(memory)
    store.write({"README.md": b"# Mine\n\n" + store.read("README.md")}, "")  # an author writes above it
    store.write({"notes.apk": b"PK\x03\x04"}, "")
    done = adapterpack.push([files["all"]], memory)
    card = store.read("README.md").decode()
    assert all(word in card for word in ("# Mine", "| cifar.apk | cifar |", "| all.apk | pets |"))
    assert len(done.notes) == 1 and "notes.apk" in done.notes[0]
    assert done.files[0]["path"] == f"{memory}/all.apk"


def test_nothing_is_replaced_without_force(memory: str, files: dict[str, Path]) -> None:
    adapterpack.push([files["cifar"]], memory, card=False)
    files["cifar"].write_bytes(files["all"].read_bytes())
    with pytest.raises(CallError) as caught:
        adapterpack.push([files["all"], files["cifar"]], memory)
    assert caught.value.reason == "file-exists" and transfer.open_folder(memory).names() == ("cifar.apk",)
    adapterpack.push([files["cifar"]], memory, card=False, force=True)
    assert transfer.open_folder(memory).read("cifar.apk") == files["all"].read_bytes()


@pytest.mark.parametrize("where", [-1, 600])
def test_a_damaged_file_is_not_pushed(memory: str, files: dict[str, Path], where: int) -> None:
    data = bytearray(files["all"].read_bytes())
    data[where] ^= 1
    files["all"].write_bytes(data)
    with pytest.raises(adapterpack.CorruptFileError, match=r"all\.apk"):
        adapterpack.push([files["cifar"], files["all"]], memory)
    assert transfer.open_folder(memory).names() == ()


def test_calls_that_are_refused(memory: str, files: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "other" / "CIFAR.apk"
    other.parent.mkdir()
    other.write_bytes(files["cifar"].read_bytes())
    plain = tmp_path / "cifar.bin"
    plain.write_bytes(files["cifar"].read_bytes())
    for given, reason in (([], "bad-call"), ([plain], "bad-call"), ([files["cifar"], other], "duplicate-name")):
        with pytest.raises(CallError) as caught:
            adapterpack.push(given, memory)
        assert caught.value.reason == reason
    with pytest.raises(CallError, match="only repositories"):
        adapterpack.push([files["cifar"]], memory, create="private")
    for given in ([files["cifar"]], [plain]):  # before a file is looked at
        with pytest.raises(CallError, match="a web server cannot be written to; push to hf://") as caught:
            adapterpack.push(given, "HTTPS://user:word@example.org/adapters")
        assert caught.value.reason == "bad-call" and "word" not in str(caught.value)
    with pytest.raises(CallError, match="is a file"):
        adapterpack.push([files["cifar"]], files["all"])
    with pytest.raises(MissingFileError):
        adapterpack.push([tmp_path / "none.apk"], memory)


def test_a_card_that_cannot_be_kept_is_not_touched(memory: str, files: dict[str, Path]) -> None:
    store = transfer.open_folder(memory)
    store.write({"README.md": "Größe".encode("latin-1")}, "")
    with pytest.raises(CallError, match="UTF-8"):
        adapterpack.push([files["cifar"]], memory)
    assert store.names() == ("README.md",)


def test_a_local_folder(files: dict[str, Path], tmp_path: Path) -> None:
    for folder in (tmp_path / "one", f"file://{tmp_path}/two"):
        done = adapterpack.push([files["cifar"]], folder)
        assert Path(done.card).is_file() and adapterpack.open(done.files[0]["path"]).tasks == ("cifar",)
        assert str(tmp_path) not in Path(done.card).read_text()


# --- pull ---


def test_a_task_is_fetched_alone(web: Any, files: dict[str, Path], tmp_path: Path) -> None:
    web.files["all.apk"] = files["all"].read_bytes()
    out = tmp_path / "dtd.apk"
    done = adapterpack.pull(f"{web.url}/all.apk", out, task="dtd")
    whole = adapterpack.open(files["all"])
    entry = whole.index.tasks[1]
    assert web.sent == 4096 + entry.payload_bytes() < whole.file_bytes
    assert adapterpack.open(out).task_digest() == whole.task_digest("dtd") == done.sizes["digest"]


def test_a_task_that_was_coded_with_others(web: Any, tmp_path: Path) -> None:
    one = make("lora", branches=lora_branches(rank=64), labels=False)
    data = cross_coded(pack(one, make("lora", "again", branches=list(one.branches), labels=False)))
    web.files["all.apk"] = data
    adapterpack.pull(f"{web.url}/all.apk", tmp_path / "again.apk", task="again")
    found = adapterpack.open(tmp_path / "again.apk")
    assert found.tasks == ("again",) and found.digest == adapterpack.open(data).task_digest("again")


@pytest.mark.parametrize("fault", ["cut", "shrinks", "grows", "garbage", 500])
def test_nothing_appears_when_a_transfer_goes_wrong(
    web: Any, files: dict[str, Path], tmp_path: Path, fault: Any
) -> None:
    web.files["all.apk"], web.fault = files["all"].read_bytes(), fault
    before = set(tmp_path.iterdir())
    for task in (None, "dtd"):
        with pytest.raises(AdapterPackError):
            adapterpack.pull(f"{web.url}/all.apk", tmp_path / "out.apk", task=task)
    assert set(tmp_path.iterdir()) == before


def test_damage_on_the_store_is_found(web: Any, files: dict[str, Path], tmp_path: Path) -> None:
    data = bytearray(files["all"].read_bytes())
    data[-1] ^= 1
    web.files["all.apk"] = bytes(data)
    with pytest.raises(adapterpack.CorruptFileError, match=rf"{web.url}/all\.apk"):
        adapterpack.pull(f"{web.url}/all.apk", tmp_path / "out.apk")
    assert not (tmp_path / "out.apk").exists()
    adapterpack.pull(f"{web.url}/all.apk", tmp_path / "whole.apk", task="cifar")  # which is whole


def test_pull_refuses(web: Any, files: dict[str, Path], tmp_path: Path) -> None:
    web.files["all.apk"] = files["all"].read_bytes()
    with pytest.raises(CallError) as caught:
        adapterpack.pull(f"{web.url}/all.apk", files["cifar"])
    assert caught.value.reason == "file-exists" and web.asked == []
    with pytest.raises(CallError) as caught:
        adapterpack.pull(f"{web.url}/all.apk", tmp_path / "x.apk", task="none")
    assert caught.value.reason == "unknown-task"
    adapterpack.pull(f"{web.url}/all.apk", files["cifar"], force=True)
    assert files["cifar"].read_bytes() == files["all"].read_bytes()


def test_long_transfers_come_in_parts(
    web: Any, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.files["all.apk"] = data = files["all"].read_bytes()
    monkeypatch.setattr(transfer, "_PART", 1000)
    told: list[tuple[int, int]] = []
    adapterpack.pull(f"{web.url}/all.apk", tmp_path / "x.apk", told=lambda *numbers: told.append(numbers))
    assert sum(count for count, _ in told) == len(data) and {total for _, total in told} == {len(data)}
    assert len(told) == -(-len(data) // 1000) and (tmp_path / "x.apk").read_bytes() == data


# --- load, and the command line ---


def test_load_from_the_hub(hub: Any) -> None:
    torch = pytest.importorskip("torch")
    from tests._vit import adapter, images, lora_qv, vit

    model = vit()
    data = pack(adapter(lora_qv(), model), backbone=adapter([], model).backbone)
    hub.repos["me/adapters"].append(({"toy.apk": data}, "1" * 40))
    with adapterpack.load("hf://me/adapters/toy.apk", model), torch.no_grad():
        found = model(images())
    with adapterpack.load(data, model), torch.no_grad():
        assert torch.equal(model(images()), found)


def test_commands(run: Run, memory: str, files: dict[str, Path], tmp_path: Path) -> None:
    done = run("push", files["cifar"], files["all"], memory, "--json")
    assert done.status == 0
    found = json.loads(done.out)
    assert found["card"] == f"{memory}/README.md" and found["commit"] is None
    assert [file["path"] for file in found["files"]] == [f"{memory}/cifar.apk", f"{memory}/all.apk"]
    assert run("push", files["all"], memory).status == 2
    done = run("push", files["all"], memory, "--force", "--no-card")
    assert done.status == 0 and "all.apk" in done.out
    done = run("pull", f"{memory}/all.apk", "-o", tmp_path / "dtd.apk", "--task", "dtd", "--json")
    assert done.status == 0 and [task["name"] for task in json.loads(done.out)["tasks"]] == ["dtd"]
    assert run("pull", f"{memory}/all.apk", "-o", tmp_path / "all2.apk").status == 0
    assert run("pull", f"{memory}/none.apk", "-o", tmp_path / "none.apk").status == 2
    assert run("push", memory, files["all"]).status == 2  # the wrong way round
    assert run("inspect", f"{memory}/all.apk", "--json").status == 0


def test_from_another_process(hub: Any, files: dict[str, Path], tmp_path: Path) -> None:
    """HF_ENDPOINT and HF_TOKEN reach the client, and the token reaches nobody else."""
    home = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HUB_OFFLINE": "0"}
    paths = f"{ROOT}{os.pathsep}{ROOT / 'cli'}"

    def command(*words: object, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **home, "PYTHONPATH": paths, **more}
        line = [sys.executable, "-m", "adapterpack_cli", *map(str, words)]
        return subprocess.run(line, env=environment, capture_output=True, text=True, check=False)

    done = command("push", files["all"], "hf://me/fresh", "--create", "private", "--json")
    assert done.returncode == 0, done.stderr
    assert "me/fresh" in hub.private and "all.apk" in hub.repos["me/fresh"][-1][0]
    refused = command("push", files["all"], "hf://me/fresh", "--force", HF_TOKEN="hf_wrongtoken")
    assert refused.returncode == 2 and refused.stderr.splitlines()[-1].startswith("error: ")
    assert "hf_" not in done.stdout + done.stderr + refused.stdout + refused.stderr
