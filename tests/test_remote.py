"""Files behind a web server on this machine: ranges, servers that ignore them, and errors in our own words."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import adapterpack
from adapterpack.errors import CallError, MissingFileError
from tests.factories import make, pack

pytest.importorskip("aiohttp", reason="the remote extra is not installed")


class Handler(BaseHTTPRequestHandler):
    """Serves `server.data` at /a.apk; heeds ranges unless `server.plain`; notes every GET's range."""

    server: Any

    def do_HEAD(self) -> None:
        self._answer(b"", len(self.server.data))

    def do_GET(self) -> None:
        wanted, data = self.headers.get("Range"), self.server.data
        self.server.seen.append(wanted)
        if wanted is None or self.server.plain:
            self._answer(data, len(data))
            return
        start, _, end = wanted.removeprefix("bytes=").partition("-")
        part = data[int(start) : int(end) + 1]
        self._answer(part, len(part), 206, f"bytes {start}-{int(start) + len(part) - 1}/{len(data)}")

    def _answer(self, body: bytes, length: int, status: int = 200, ranged: str | None = None) -> None:
        self.send_response(status if self.path == "/a.apk" else 404)
        self.send_header("Content-Length", str(length if self.path == "/a.apk" else 0))
        if not self.server.plain:
            self.send_header("Accept-Ranges", "bytes")
        if ranged:
            self.send_header("Content-Range", ranged)
        self.end_headers()
        self.wfile.write(body if self.path == "/a.apk" else b"")

    def log_message(self, *words: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Any]:
    made: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.data, made.plain, made.seen = b"", False, []
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def url(server: Any, name: str = "a.apk") -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/{name}"


def test_opening_is_one_range_request_and_a_task_one_more(server: Any) -> None:
    server.data = pack(make("lora"))
    bundle = adapterpack.open(url(server))
    assert server.seen == [f"bytes=0-{min(4096, len(server.data)) - 1}"]
    assert bundle.read().same_as(adapterpack.open(server.data).read())
    assert len(server.seen) == 2


def test_a_server_that_ignores_ranges(server: Any) -> None:
    server.data, server.plain = pack(make("lora")) + b"", True
    assert adapterpack.open(url(server)).read().same_as(adapterpack.open(server.data).read())


def test_missing_and_unreachable(server: Any) -> None:
    with pytest.raises(MissingFileError):
        adapterpack.open(url(server, "b.apk"))
    server.server_close()
    with pytest.raises(CallError) as caught:
        adapterpack.open("http://127.0.0.1:9/a.apk")
    assert caught.value.exit_status == 2


def test_an_unknown_protocol_is_our_error() -> None:
    with pytest.raises(CallError):
        adapterpack.open("nonsense://a/b.apk")
