"""What is asked of Ray before it is asked: whether the copies fit; names; and what goes on when something fails."""

from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adapterpack.errors import CallError
from adapterpack.serving import catalog
from adapterpack.serving.catalog import Listing
from adapterpack.serving.entries import Entry
from tests import _serving

pytestmark = [pytest.mark.filterwarnings(text) for text in _serving.RAY_WARNINGS]
CPU4 = {"Alive": True, "Resources": {"CPU": 4.0}}
GPU2 = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}}
DEAD = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}


@pytest.mark.parametrize(
    ("nodes", "device", "copies", "cpus", "gpus", "found"),
    [
        ([CPU4], "auto", 4, 1, 1, 0),
        ([CPU4], "cpu", 40, 0.1, 1, 0),
        ([CPU4, GPU2], "cpu", 12, 1, 1, 0),
        ([CPU4, GPU2], "auto", 2, 1, 1, 1),
        ([GPU2], "cuda", 4, 1, 0.5, 0.5),
        ([GPU2], "cuda", 20, 0.1, 0.1, 0.1),
        ([CPU4], "cuda", 1, 1, 1, "Ray sees no GPU"),
        ([CPU4, DEAD], "cuda", 1, 1, 1, "Ray sees no GPU"),
        ([CPU4, GPU2], "auto", 3, 1, 1, "there is room for 2"),
        ([CPU4, GPU2], "cuda", 1, 1, 3, "there is room for 0"),
        ([CPU4], "auto", 5, 1, 1, "there is room for 4"),
        ([CPU4, CPU4], "cpu", 3, 3, 1, "there is room for 2"),
    ],
)
def test_copies_that_do_not_fit_are_an_error_and_are_not_waited_for(
    nodes: list[Any], device: str, copies: int, cpus: float, gpus: float, found: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adapterpack.serving import start

    monkeypatch.setattr(start.ray, "nodes", lambda: nodes)
    if isinstance(found, str):
        with pytest.raises(CallError, match=found) as caught:
            start.gpus_of_each(device, copies, cpus, gpus)
        assert caught.value.hint
    else:
        assert start.gpus_of_each(device, copies, cpus, gpus) == found


@pytest.mark.parametrize("form", ["{host}:{port}", "ray://{host}:{port}"])
@pytest.mark.parametrize(
    ("host", "listens"), [("127.0.0.1", True), ("127.0.0.1", False), ("no-such-host.invalid", False)]
)
def test_an_address_where_nothing_listens_is_an_error_and_is_not_waited_for(
    form: str, host: str, listens: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would try for many minutes; it is asked where something listens alone, whatever that is."""
    from adapterpack.serving import start

    asked: list[str] = []
    monkeypatch.setattr(start.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(start.ray, "init", lambda address, **rest: asked.append(address))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = form.format(host=host, port=server.getsockname()[1])
        if not listens:
            server.close()
            with pytest.raises(CallError, match="Ray at") as caught:
                start.start_ray(address, 1)
            assert (caught.value.reason, asked) == ("io-error", []) and "ray start --head" in caught.value.hint
        else:
            assert start.start_ray(address, 1) and asked == [address]


def test_a_cluster_without_a_number_is_rays_to_find(monkeypatch: pytest.MonkeyPatch) -> None:
    from adapterpack.serving import start

    asked: list[str] = []
    monkeypatch.setattr(start.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(start.ray, "init", lambda address, **rest: asked.append(address))
    assert start.start_ray("auto", 1) and asked == ["auto"]


class _Remote:
    """A method of an actor; each call gives, or raises, the next of what it is to give."""

    def __init__(self, *given: object) -> None:
        self.given, self.calls = list(given), 0

    async def remote(self, *_: object) -> object:
        self.calls += 1
        found = self.given.pop(0) if len(self.given) > 1 else self.given[0]
        if isinstance(found, BaseException):
            raise found
        return found


def test_the_front_door_goes_on_to_follow_and_says_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.exceptions import RayActorError, RayTaskError

    from adapterpack.serving import state as module
    from adapterpack.serving.board import Overview

    monkeypatch.setattr(module, "_SECONDS", 0.001)
    failed = RayTaskError("overview", "Traceback …", ValueError("no\nsuch"))
    good = Overview("1", Listing(7, ()), ())
    overview = _Remote(RayActorError(), failed, failed, KeyError("x"), good)
    lines: list[str] = []
    state = module.State(SimpleNamespace(overview=overview), lines.append)

    async def run() -> None:
        following = asyncio.create_task(state.follow())
        while overview.calls < 8:
            await asyncio.sleep(0.001)
        assert not following.done()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        assert following.cancelled()

    asyncio.run(asyncio.wait_for(run(), 20))
    assert state.overview == good and len(lines) == 2 and all("\n" not in line for line in lines)
    assert "ValueError" in lines[0] and "KeyError" in lines[1]


def test_the_board_goes_on_to_watch_and_says_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adapterpack.serving import board as module

    context = SimpleNamespace(get_actor_id=lambda: "1", was_current_actor_reconstructed=False)
    monkeypatch.setattr(module.ray, "get_runtime_context", lambda: context)
    data = _serving.digits(tmp_path)
    looked: list[str] = []
    checked = catalog.checked_entry

    def fails(file: str, data: bytes, name: str = "") -> Entry:
        looked.append(file)
        if file == "b.apk":
            raise ZeroDivisionError("by\nzero")
        return checked(file, data, name)

    monkeypatch.setattr(catalog, "checked_entry", fails)

    async def run() -> Listing:
        board = module.Board(str(tmp_path), 0.01)
        await board.begin()
        for name in "abc":
            (tmp_path / f"{name}.new").write_bytes(_serving.variant(data, name))
            (tmp_path / f"{name}.new").rename(tmp_path / f"{name}.apk")  # whole, so that it is looked at once
        while set((await board.overview()).listing.tasks) != {"a", "c"}:
            await asyncio.sleep(0.01)
        found = (await board.overview()).listing
        assert board._watching is not None
        board._watching.cancel()
        return found

    found = asyncio.run(asyncio.wait_for(run(), 20))
    assert [(row.file, row.reason, row.message) for row in found.refused] == [
        ("b.apk", "internal", "ZeroDivisionError: by zero")
    ]
    assert looked == ["a.apk", "b.apk", "c.apk"]


def test_a_task_whose_file_is_renamed_is_listed_all_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks while the folder is being looked at gets what was served before."""
    from adapterpack.serving import board as module

    context = SimpleNamespace(get_actor_id=lambda: "1", was_current_actor_reconstructed=False)
    monkeypatch.setattr(module.ray, "get_runtime_context", lambda: context)
    (tmp_path / "a.apk").write_bytes(_serving.variant(_serving.digits(tmp_path), "a"))
    checked = catalog.checked_entry
    looking, go = threading.Event(), threading.Event()

    def waits(file: str, data: bytes, name: str = "") -> Entry:
        looking.set()
        assert file == "a.apk" or go.wait(20)
        return checked(file, data, name)

    monkeypatch.setattr(catalog, "checked_entry", waits)

    async def run() -> list[Listing | None]:
        board = module.Board(str(tmp_path), 0.01)
        await board.begin()
        known = (await board.overview()).listing.version
        asked = asyncio.create_task(board.listing(known, 0.5))  # its time is over while the folder is looked at
        await asyncio.sleep(0)
        looking.clear()
        (tmp_path / "a.apk").rename(tmp_path / "b.apk")
        await asyncio.to_thread(looking.wait, 20)
        found = [await asked]
        go.set()
        while "a" not in (after := (await board.overview()).listing.tasks) or after["a"].file != "b.apk":
            await asyncio.sleep(0.01)
        assert board._watching is not None
        board._watching.cancel()
        return [*found, await board.listing()]

    listings = asyncio.run(asyncio.wait_for(run(), 20))
    assert [{task: entry.file for task, entry in one.tasks.items()} for one in listings if one is not None] == [
        {"a": "a.apk"},
        {"a": "b.apk"},
    ]
