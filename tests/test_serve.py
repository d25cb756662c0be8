"""The service over real HTTP, on a real Ray: answers, limits, hostile requests, a folder that changes, deaths."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
import time
import urllib.error
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest

from adapterpack.errors import CallError, MissingFileError, Reason
from adapterpack.serving.settings import Settings
from adapterpack_cli.main import main
from tests import _serving
from tests._serving import Reply, http

pytestmark = [pytest.mark.filterwarnings(text) for text in _serving.RAY_WARNINGS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks in two files, of different class counts."""
    place = tmp_path_factory.mktemp("tasks")
    data = _serving.digits(tmp_path_factory.getbasetemp())
    (place / "digits.apk").write_bytes(data)
    (place / "four.apk").write_bytes(_serving.variant(data, "four", classes=4))
    (place / "rolled.apk").write_bytes(_serving.variant(data, "rolled", shift=3))
    return place


@pytest.fixture(scope="module")
def service(ray_here: None, folder: Path) -> Iterator[Any]:
    from adapterpack.serving.service import Service

    settings = Settings(
        str(folder),
        _serving.BACKBONE,
        replicas=2,
        cpus=0.5,
        batch_size=8,
        batch_wait=0.05,
        watch_seconds=0.2,
        most_bytes=300_000,
        most_pixels=1_000_000,
    )
    with Service(settings, "127.0.0.1", 0) as running:
        yield running


@pytest.fixture(scope="module")
def url(service: Any) -> str:
    return str(service.url)


@pytest.fixture(scope="module")
def expected(folder: Path) -> Any:
    """The pool's own answers, in this process."""
    from adapterpack.runtime.backbone import create_backbone
    from adapterpack.runtime.pool.pool import AdapterPool

    pool = AdapterPool(create_backbone(_serving.BACKBONE).model)
    for path in sorted(folder.glob("*.apk")):
        pool.add(path)
    return pool


def ask(url: str, task: str, seed: int = 0, query: str = "") -> Reply:
    return http("POST", f"{url}/v1/tasks/{task}/predict{query}", _serving.png(seed))


def names(url: str) -> set[str]:
    return {task["name"] for task in http("GET", f"{url}/v1/tasks").json["tasks"]}


def refused(url: str) -> dict[str, str]:
    return {row["file"]: row["reason"] for row in http("GET", f"{url}/v1/tasks").json["refused"]}


def figure(url: str, name: str) -> float:
    lines = http("GET", f"{url}/metrics").body.decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def same(reply: Reply, expected: Any, task: str, seed: int) -> bool:
    (row,) = expected.predict([_serving.picture(seed)], [task])
    top = reply.json["top"]
    close = all(abs(a["probability"] - b) < 1e-4 for a, b in zip(top, row.probabilities))
    return reply.status == 200 and reply.json["task"] == task and len(top) == len(row.labels) and close


def test_an_image_comes_in_and_classes_go_out(url: str, expected: Any) -> None:
    by_path = ask(url, "digits")
    assert same(by_path, expected, "digits", 0) and set(by_path.json["top"][0]) == {"class", "label", "probability"}
    by_query = http("POST", f"{url}/v1/predict?task=digits", _serving.png())
    body, header = _serving.form({"task": "digits"}, _serving.png())
    by_field = http("POST", f"{url}/v1/predict", body, header)
    body, header = _serving.form({"top": "2"}, _serving.png(), "file")
    two = http("POST", f"{url}/v1/tasks/digits/predict", body, header)
    assert by_path.json == by_query.json == by_field.json
    assert two.json["top"] == by_path.json["top"][:2]
    assert len(ask(url, "four", query="?top=10").json["top"]) == 4


def test_mixed_tasks_are_computed_together(url: str, expected: Any) -> None:
    """Once more where each of them happened to come when no other waited."""
    asked = [(("digits", "four", "rolled")[i % 3], i) for i in range(24)]
    for _ in range(8):
        before = figure(url, "adapterpack_batch_size_count"), figure(url, "adapterpack_batch_size_sum")
        with ThreadPoolExecutor(24) as threads:
            replies = list(threads.map(lambda pair: ask(url, *pair), asked))
        assert all(same(reply, expected, *pair) for reply, pair in zip(replies, asked))
        batches = figure(url, "adapterpack_batch_size_count") - before[0]
        assert figure(url, "adapterpack_batch_size_sum") - before[1] == 24
        if batches < 24:
            break
    assert batches < 24


def test_folded_traffic(url: str, expected: Any) -> None:
    header = {"serve_multiplexed_model_id": "rolled"}
    folded = http("POST", f"{url}/v1/predict", _serving.png(5), header)
    assert same(folded, expected, "rolled", 5)
    asked = [("four", 1, "?folded=1"), ("digits", 2, ""), ("rolled", 3, "?folded=true"), ("digits", 4, "?folded=1")] * 3
    with ThreadPoolExecutor(6) as threads:
        replies = list(threads.map(lambda three: ask(url, *three), asked))
    assert all(same(reply, expected, task, seed) for reply, (task, seed, _) in zip(replies, asked))
    both = http("POST", f"{url}/v1/tasks/digits/predict", _serving.png(), header)
    assert both.status == 400 and "give one" in both.json["error"]


def test_folded_traffic_of_a_name_that_is_not_ascii(url: str, folder: Path, expected: Any) -> None:
    tasks, name = f"{url}/v1/tasks", quote("ö x")
    assert http("POST", f"{tasks}?name={name}", (folder / "rolled.apk").read_bytes()).status == 201
    for _ in range(3):  # both replicas take it, and give it up for another
        first = ask(url, name, 1, "?folded=1")
        assert first.json["task"] == "ö x" and same(ask(url, "digits", 2, "?folded=1"), expected, "digits", 2)
    (row,) = expected.predict([_serving.picture(1)], ["rolled"])
    assert first.json["top"][0]["probability"] == pytest.approx(row.probabilities[0], abs=1e-4)
    assert http("DELETE", f"{tasks}/{name}").json == {"removed": "ö x"}


P = "/v1/tasks/digits/predict"


@pytest.mark.parametrize(
    ("method", "path", "data", "status", "told"),
    [
        ("POST", P, b"this is no image", 400, "no image of a known format"),
        ("POST", P, b"", 400, "there is no image"),
        ("POST", P, _serving.png()[:-400], 400, "no readable image"),
        ("POST", P, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 400, "no image of a known format"),
        ("POST", P, _serving.large_png(10_000, 10_000), 413, "10000×10000 pixels"),
        ("POST", P, _serving.large_png(2_000_000_000, 2_000_000_000), 413, "pixels"),
        ("POST", P, bytes(300_001), 413, "larger than 300,000 bytes"),
        ("POST", "/v1/tasks/none/predict", _serving.png(), 404, "there is no task 'none'"),
        ("POST", "/v1/tasks/%1b%5b2J%0a/predict", _serving.png(), 404, "there is no task"),
        ("POST", "/v1/predict", _serving.png(), 400, "there is no task"),
        ("POST", f"{P}?top=0", _serving.png(), 400, "top is '0'"),
        ("POST", f"{P}?top=1e9", _serving.png(), 400, "top is '1e9'"),
        ("POST", f"{P}?folded=maybe", _serving.png(), 400, "folded is 'maybe'"),
        ("POST", f"{P}?task=four", _serving.png(), 400, "two tasks, 'digits' and 'four'"),
        ("POST", "/v1/predict?task=four&task=digits", _serving.png(), 400, "two tasks, 'digits' and 'four'"),
        ("POST", "/v1/tasks?replace=maybe", b"none", 400, "replace is 'maybe'"),
        ("GET", P, None, 405, "use POST"),
        ("PUT", P, _serving.png(), 405, "use POST"),
        ("GET", "/nowhere", None, 404, "no such address"),
        ("GET", "/v1/tasks/none", None, 404, "there is no task 'none'"),
        ("POST", "/v1/tasks", b"this is no adapter", 422, "not an adapterpack file"),
        ("DELETE", "/v1/tasks/none", None, 404, "there is no task 'none'"),
    ],
)  # fmt: skip
def test_hostile_requests(url: str, method: str, path: str, data: bytes | None, status: int, told: str) -> None:
    reply = http(method, url + path, data)
    assert reply.status == status and told in reply.json["error"], reply
    assert set(reply.json) == {"error", "reason"} and reply.body.count(b"\n") == 1
    assert b"Traceback" not in reply.body and b".py" not in reply.body and b"0x" not in reply.body
    assert ("Allow" in reply.headers) == (status == 405)


def test_what_is_no_http_and_who_goes_away_leave_no_traceback(
    url: str, service: Any, caplog: pytest.LogCaptureFixture
) -> None:
    head = f"POST {P} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n\r\nfew".encode()
    for sent in (
        b"\x16\x03\x01 hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHo st: x\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 30) as client:
            client.sendall(sent)
            assert b" 400 " in client.recv(9000).splitlines()[0]
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 30) as client:
        client.sendall(head)
        _serving.until(lambda: figure(url, "adapterpack_requests_in_hand") == 1)
    _serving.until(lambda: figure(url, "adapterpack_requests_in_hand") == 0)
    assert not caplog.records


def test_a_fault_of_ours_is_one_line_for_who_runs_it(service: Any, caplog: pytest.LogCaptureFixture) -> None:
    lines: list[str] = []
    door = service.listener(service.settings, lines.append)
    door._front._door = None
    reply = ask(door.open("127.0.0.1", 0), "digits")
    door.close()
    assert (reply.status, reply.json) == (500, {"error": "the service failed", "reason": "internal"})
    assert len(lines) == 1 and lines[0].startswith(f"POST {P}: AttributeError: ") and not caplog.records


def test_a_form_that_is_none(url: str) -> None:
    bad = b"--edge\r\nno head\r\n\r\nx", b"--edge\r\nX: " + 9000 * b"x", b"--edge\r\nContent-Length: x\r\n\r\nx"
    kind = "multipart/form-data"
    for header, body in [(kind, b"x"), *((f"{kind}; boundary=edge", one) for one in (b"--edg\r\n\r\nx", *bad))]:
        reply = http("POST", url + P, body, {"Content-Type": header})
        assert reply.status == 400 and set(reply.json) == {"error", "reason"}, body
        assert "no readable form" in reply.json["error"] and len(reply.json["error"]) < 300


def test_a_form_with_two_images_is_refused(url: str) -> None:
    """Else one of them would get no answer, and nobody would know which."""
    for fields in (("image", "image"), ("image", "file")):
        body, header = _serving.form({}, _serving.png(1), fields[0])
        end = body.rindex(b"----------edge") - 2
        more, _ = _serving.form({}, _serving.png(2), fields[1])
        reply = http("POST", url + P, body[:end] + more, header)
        assert reply.status == 400 and "2 images" in reply.json["error"], reply


def test_a_body_that_cannot_be_decompressed_is_one_line(url: str) -> None:
    reply = http("POST", url + P, _serving.png(), {"Content-Encoding": "gzip"})
    assert reply.status == 400 and "content-encoding" in reply.json["error"] and "\\n" not in reply.json["error"]


def test_an_upload_in_a_form_is_told_to_be_the_body(url: str, folder: Path) -> None:
    body, header = _serving.form({}, (folder / "four.apk").read_bytes(), "file")
    reply = http("POST", f"{url}/v1/tasks?name=other", body, header)
    assert (reply.status, reply.json["reason"]) == (400, "bad-call") and "--data-binary" in reply.json["error"]


def test_health_and_lists(url: str, folder: Path) -> None:
    assert http("GET", f"{url}/healthz").json == {"status": "ok"}
    ready = _serving.until(lambda: (r := http("GET", f"{url}/readyz").json)["replicas"] == 2 and r)
    assert ready == {"status": "ready", "replicas": 2, "tasks": 3}
    rows = {row["name"]: row for row in http("GET", f"{url}/v1/tasks").json["tasks"]}
    assert {name: row["classes"] for name, row in rows.items()} == {"digits": 10, "four": 4, "rolled": 10}
    one = http("GET", f"{url}/v1/tasks/digits").json
    assert one["file"] == "digits.apk" and one["bytes"] == rows["digits"]["bytes"] and one["method"] == "lora"
    assert ask(url, "digits").status == 200
    text = http("GET", f"{url}/metrics").body.decode()
    for name in (
        "adapterpack_requests_total",
        "adapterpack_predictions_total",
        "adapterpack_request_seconds_bucket",
        "adapterpack_refused_files",
    ):
        assert f"\n{name}" in text
    assert figure(url, "adapterpack_tasks") == 3
    _serving.until(lambda: figure(url, "adapterpack_replicas") == 2)
    assert 'task="none"' not in text


def test_the_folder_is_watched(url: str, folder: Path, expected: Any) -> None:
    data = (folder / "digits.apk").read_bytes()
    (folder / "cut.apk").write_bytes(data[:-9])
    (folder / "stranger.apk").write_bytes(_serving.other_backbone(data, "stranger"))
    (folder / "new.apk").write_bytes(_serving.variant(data, "new", classes=7))
    _serving.until(lambda: "new" in names(url))
    assert ask(url, "new", query="?top=9").json["top"].__len__() == 7
    _serving.until(lambda: refused(url) == {"cut.apk": "truncated", "stranger.apk": "fingerprint-mismatch"})
    assert figure(url, "adapterpack_refused_files") == 2
    assert ask(url, "stranger").status == 404 and same(ask(url, "digits"), expected, "digits", 0)
    (folder / "new.apk").write_bytes(_serving.variant(data, "new", classes=5))
    _serving.until(lambda: len(ask(url, "new", query="?top=9").json["top"]) == 5)
    for name in ("cut", "stranger", "new"):
        (folder / f"{name}.apk").unlink()
    _serving.until(lambda: names(url) == {"digits", "four", "rolled"} and not refused(url))
    assert ask(url, "new").status == 404


def test_tasks_are_added_and_removed(url: str, folder: Path, service: Any) -> None:
    import ray

    data = (folder / "digits.apk").read_bytes()
    tasks = f"{url}/v1/tasks"
    assert http("POST", tasks, data).status == 409
    assert http("POST", tasks, _serving.other_backbone(data, "x")).json["reason"] == "fingerprint-mismatch"
    added = http("POST", f"{tasks}?name=mine", data)
    assert (added.status, added.json) == (201, {"added": ["mine"], "file": "upload:mine"})
    assert ask(url, "mine").json["top"] == ask(url, "digits").json["top"]
    assert http("POST", f"{tasks}?name=mine", data).status == 409
    assert http("DELETE", f"{tasks}/digits").json == {"removed": "digits"}
    assert ask(url, "digits").status == 404 and (folder / "digits.apk").is_file()
    ray.kill(service._board, no_restart=False)  # what was asked for outlives the board
    _serving.until(lambda: http("DELETE", f"{tasks}/mine").status == 200)
    assert ask(url, "mine").status == 404 and names(url) == {"four", "rolled"}
    json = {"Content-Type": "application/json"}
    assert http("POST", tasks, b'{"file": "digits.apk"}', json).json == {"added": ["digits"], "file": "digits.apk"}
    assert ask(url, "digits").status == 200
    for body in (b'{"file": "../digits.apk"}', b'{"file": "/etc/passwd"}', b'{"url": "http://a"}', b"[", b"[1]"):
        assert http("POST", tasks, body, json).status in (400, 404)


def test_a_bundle_is_uploaded_and_a_task_of_it_replaced(url: str, folder: Path) -> None:
    data, tasks = (folder / "digits.apk").read_bytes(), f"{url}/v1/tasks"
    added = http("POST", tasks, _serving.both(_serving.variant(data, "one"), _serving.variant(data, "two")))
    assert (added.status, added.json) == (201, {"added": ["one", "two"]})
    five = _serving.variant(data, "two", classes=5)
    assert http("POST", tasks, five).status == 409
    assert http("POST", f"{tasks}?replace=true", five).json == {"added": ["two"], "file": "upload:two"}
    _serving.until(lambda: len(ask(url, "two", query="?top=9").json["top"]) == 5)
    assert len(ask(url, "one", query="?top=9").json["top"]) == 9
    for name in ("one", "two"):
        assert http("DELETE", f"{tasks}/{name}").status == 200
    bad = http("POST", f"{tasks}?name=x/../y", data)
    assert bad.status == 400 and "cannot be called 'x/../y'" in bad.json["error"] and "x/../y" not in refused(url)


def test_who_may_change(url: str, service: Any) -> None:
    headers = [{"Origin": "http://evil.example"}, {"Host": "evil.example"}]
    names = ("Forwarded", "X-Forwarded-For", "X-Real-IP", "X-Forwarded-Host", "Via")  # sent by a proxy on this machine
    for header in [*headers, *({name: "127.0.0.1"} for name in names)]:
        reply = http("DELETE", f"{url}/v1/tasks/digits", None, header)
        assert reply.status == 403 and reply.json["reason"] == "forbidden"
    door = service.listener(replace(service.settings, token="secret"))
    guarded = door.open("127.0.0.1", 0)
    try:
        for header in ({}, *({"Authorization": text} for text in ("Bearer wrong", "secret", "Basic secret"))):
            reply = http("DELETE", f"{guarded}/v1/tasks/none", None, header)
            assert (reply.status, reply.headers["WWW-Authenticate"]) == (401, "Bearer")
        for text in ("Bearer secret", "bearer  secret"):
            right = {"Authorization": text, "X-Forwarded-For": "10.0.0.1"}
            assert http("DELETE", f"{guarded}/v1/tasks/none", None, right).status == 404
    finally:
        door.close()


def test_too_many_requests_are_told_so(service: Any) -> None:
    """Two places (one replica, one image a batch, no queue), both taken, and eighteen more requests at once."""
    door = service.listener(replace(service.settings, replicas=1, batch_size=1, max_queue=0))
    go = held(door)
    url = door.open("127.0.0.1", 0)
    try:
        with ThreadPoolExecutor(20) as threads:
            first = [threads.submit(ask, url, "digits", seed) for seed in range(2)]
            _serving.until(lambda: door.in_hand == 2)
            more = list(threads.map(lambda seed: ask(url, "digits", seed), range(18)))
            go.set()
            assert [future.result().status for future in first] == [200, 200]
        for reply in more:
            assert (reply.status, reply.headers["Retry-After"], reply.json["reason"]) == (503, "1", "unavailable")
            assert reply.json["error"] == "2 requests are waiting already; try again in a moment"
        assert ask(url, "digits").status == 200
        assert figure(url, "adapterpack_requests_in_hand") == 0
    finally:
        door.close()


def test_what_is_in_hand_is_answered_before_the_end(service: Any) -> None:
    door = service.listener(service.settings)
    go = held(door)
    url = door.open("127.0.0.1", 0)
    with ThreadPoolExecutor(9) as threads:
        asked = [threads.submit(ask, url, "digits", seed) for seed in range(8)]
        _serving.until(lambda: door.in_hand == 8)
        closing = threads.submit(door.close)
        _serving.until(lambda: door._front.closing)
        with pytest.raises(urllib.error.URLError):  # who comes too late finds nobody
            ask(url, "digits")
        go.set()
        assert Counter(future.result().status for future in asked) == {200: 8}
        closing.result()


def held(door: Any) -> threading.Event:
    """Have a front door's requests wait, each in its place, until the event is set."""
    go, classify = threading.Event(), door._door.classify

    async def waits(question: Any) -> Any:
        while not go.is_set():
            await asyncio.sleep(0.01)
        return await classify(question)

    door._door.classify = waits
    return go


def test_a_replica_that_is_not_known_to_be_dead_yet_is_not_asked_five_times_at_once(tmp_path: Path) -> None:
    """Ray says of one that has just died that it cannot be reached, for a moment, whenever it is asked."""
    from ray.exceptions import ActorUnavailableError

    from adapterpack.serving.answers import Answer
    from adapterpack.serving.door import Door
    from adapterpack.serving.metrics import Metrics
    from adapterpack.serving.question import Question

    known = time.monotonic() + 0.2

    async def remote(*_: Any, folded: bool) -> Answer:
        if time.monotonic() < known:
            raise ActorUnavailableError("for a moment", None)
        return Answer({})

    handle = SimpleNamespace(classify=SimpleNamespace(remote=remote))
    door = Door(handle, Settings(str(tmp_path), "b"), Metrics())
    assert asyncio.run(door.classify(Question(b"", "digits", 1, False))) == Answer({})


def test_no_request_is_lost_when_a_replica_dies(url: str, service: Any, expected: Any) -> None:
    """Once more where the replica that was killed happened to have nothing in hand."""
    seen = _serving.until(lambda: len(found := running_pids(service)) == 2 and found)
    target = min(seen)
    for _ in range(8):
        assert kill_under_load(url, target) == {200: 240}
        new = _serving.until(partial(lambda known: running_pids(service) - known, seen), 120)
        seen, target = seen | new, min(new)
        if figure(url, "adapterpack_retries_total") > 0:
            break
    assert figure(url, "adapterpack_retries_total") > 0
    assert same(ask(url, "rolled", 3), expected, "rolled", 3)


def running_pids(service: Any) -> set[int]:
    return {int(report.figures["pid"]) for report in service.refreshed().ready}


def kill_under_load(url: str, pid: int) -> Counter[int]:
    """The statuses of 240 requests of 12 clients that never ask twice; a replica is killed in the midst of them."""
    begun, count = threading.Event(), iter(range(240))
    image = _serving.plain_png(999)  # decoding takes a replica long: the one that is killed has some in hand
    statuses: list[int] = []

    def client(_: int) -> None:
        for seed in count:
            task = ("digits", "four")[seed % 2]
            statuses.append(http("POST", f"{url}/v1/tasks/{task}/predict", image).status)
            if len(statuses) > 30:
                begun.set()

    with ThreadPoolExecutor(12) as threads:
        running = [threads.submit(client, number) for number in range(12)]
        assert begun.wait(60)
        os.kill(pid, signal.SIGKILL)
        for future in running:
            future.result()
    return Counter(statuses)


def test_what_cannot_start(folder: Path, service: Any) -> None:
    from adapterpack.serving.service import Service

    with pytest.raises(MissingFileError, match="no folder"):
        Service(Settings(str(folder / "none"), _serving.BACKBONE), "127.0.0.1", 0)
    with pytest.raises(MissingFileError, match=r"none\.safetensors"):
        Service(Settings(str(folder), "none.safetensors"), "127.0.0.1", 0)
    with pytest.raises(CallError, match="a service called adapterpack runs already"):
        Service(Settings(str(folder), _serving.BACKBONE, cpus=0.1), "127.0.0.1", 0)
    assert ask(service.url, "digits").status == 200  # and is not touched by that
    port = int(service.url.rpartition(":")[2])
    with pytest.raises(CallError, match="cannot listen"):
        service.listener(service.settings).open("127.0.0.1", port)


def test_a_replica_that_cannot_work_says_why(tmp_path: Path) -> None:
    """And keeps saying it for a while, because the service that starts it wants to know."""
    from adapterpack.serving.replica import Replica

    reports: list[Any] = []

    class FakeBoard:
        def __init__(self) -> None:
            self.report = self

        async def remote(self, report: Any) -> None:
            reports.append(report)

    async def run() -> Any:
        replica = Replica.__new__(Replica)
        await replica.__init__(Settings(str(tmp_path), "no_such_model"), FakeBoard())  # type: ignore[func-returns-value]
        replica.check_health()
        answer = await replica.classify(b"", "digits", 1)
        replica._failed -= 1000
        with pytest.raises(RuntimeError, match="no_such_model"):
            replica.check_health()
        return answer

    answer = asyncio.run(run())
    assert answer.status == 502 and "no_such_model" in answer.message
    assert reports[0].failure.reason == "unknown-source" and reports[0].failure.error().exit_status == 2


def test_a_task_that_comes_again_while_a_request_waits_is_answered(tmp_path: Path) -> None:
    """Removed between the look for it and the batch: it is looked for once more."""
    from adapterpack.serving.answers import Answer, Told
    from adapterpack.serving.replica import Replica

    gone, asked, looked = Told("CallError", "no task", Reason.UNKNOWN_TASK.value), [], []
    given: list[Any] = [gone, Answer({}), gone, gone]

    async def require(task: str) -> None:
        looked.append(task)

    async def batched(item: Any) -> Any:
        asked.append(item.task)
        return given.pop(0)

    replica = Replica.__new__(Replica)
    replica._failure, replica._settings = None, Settings(str(tmp_path), "b")
    replica._holder, replica._batched = SimpleNamespace(require=require), batched  # type: ignore[assignment]
    assert asyncio.run(replica.classify(_serving.png(), "digits", 1)) == Answer({})
    assert looked == asked == ["digits"] * 2
    assert asyncio.run(replica.classify(_serving.png(), "digits", 1)) == gone and not given


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Options become settings; SIGTERM ends it well."""
    from adapterpack.serving import service as module

    made: list[Any] = []

    class FakeService:
        def __init__(self, *arguments: Any) -> None:
            made.extend(arguments)
            self.url, self.stopped = "http://127.0.0.1:1", False
            report = SimpleNamespace(notes=("a note",))
            self.overview = SimpleNamespace(ready=(report, report), listing=SimpleNamespace(tasks={"a": 1}))

        def __enter__(self) -> None:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()

        def __exit__(self, *_: object) -> None:
            made.append("stopped")

    monkeypatch.setattr(module, "Service", FakeService)
    monkeypatch.setenv("ADAPTERPACK_TOKEN", "secret")
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    words = (
        "--replicas 3 --host 0.0.0.0 --port 9000 --batch-size 4 --batch-wait-ms 7 --max-queue 9 --memory-budget 1000"
    )
    words += (
        " --device cpu --address auto --any-backbone --backbone b --max-bytes 5 --max-pixels 6 --timeout 8 --watch 3"
    )
    try:
        with warnings.catch_warnings(), pytest.raises(SystemExit) as done:
            main(["serve", str(tmp_path), *words.split()])
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before):
            signal.signal(number, handler)
    settings, host, port, address, log, stopped = made
    assert (done.value.code, host, port, address, stopped) == (0, "0.0.0.0", 9000, "auto", "stopped")
    wanted = Settings(
        str(tmp_path), "b", device="cpu", memory_budget=1000, check_fingerprint=False, replicas=3, batch_size=4,
        batch_wait=0.007, max_queue=9, most_bytes=5, most_pixels=6, most_seconds=8, watch_seconds=3, token="secret",
    )  # fmt: skip
    assert settings == wanted
    log("refused \x1b[2J")
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["note: a note", "serving 1 task at http://127.0.0.1:1; stop with Ctrl-C"]
    assert lines[-1] == "warning: refused \\x1b[2J"


@pytest.mark.parametrize("command", ["serve", "predict"])
@pytest.mark.parametrize("handler", ["ours", "ray's"])
def test_sigterm_while_it_starts_is_said(
    command: str, handler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray's own handler, which it puts in as it starts, leaves without a word."""
    from adapterpack.serving import predict, service

    def starts(*_: object) -> None:
        if handler == "ray's":
            signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("it was not interrupted")

    monkeypatch.setattr(service, "Service", starts)
    monkeypatch.setattr(predict, "predict", starts)
    words = {"serve": [], "predict": ["--adapter", "a.apk", "-o", str(tmp_path / "b")]}[command]
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit) as done:
            main([command, str(tmp_path), *words, "--backbone", "b"])
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (done.value.code, capsys.readouterr().err.strip()) == (130, "error: interrupted")


@pytest.mark.parametrize("command", ["serve", "predict"])
def test_without_ray(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in [name for name in sys.modules if name.startswith("adapterpack.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    words = {"serve": ["serve", "."], "predict": ["predict", ".", "--adapter", "a.apk", "-o", "b"]}[command]
    with pytest.raises(SystemExit) as done:
        main([*words, "--backbone", "x.safetensors"])
    assert done.value.code == 2
    assert capsys.readouterr().err == "error: this command needs ray; pip install 'adapterpack[serve]'\n"
