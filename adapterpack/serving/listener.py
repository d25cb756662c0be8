"""The thread that answers HTTP: one event loop with the front door, its copy of the board's state, and a socket."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from aiohttp import web

from adapterpack.errors import CallError, Reason
from adapterpack.serving.door import Door
from adapterpack.serving.front import Front
from adapterpack.serving.metrics import Metrics
from adapterpack.serving.settings import Settings
from adapterpack.serving.state import State

_DRAIN_SECONDS = 30  # at most, for what is in hand when the service ends
_QUIET_SECONDS = 0.5
T = TypeVar("T")


class Listener:
    """One socket.

    Args:
        settings: of the service.
        handle: of the replicas.
        board: the catalog's actor.
        log: is told of refused files, and of what fails unforeseen.
    """

    def __init__(self, settings: Settings, handle: Any, board: Any, log: Callable[[str], None]) -> None:
        metrics = Metrics()
        self._door = Door(handle, settings, metrics)
        self._state = State(board, log)
        self._front = Front(settings, self._door, self._state, metrics, log)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="http", daemon=True)
        self._runner: web.AppRunner | None = None
        self._site: web.SockSite | None = None
        self._bound: socket.socket | None = None
        self._following: asyncio.Task[None] | None = None

    def open(self, host: str, port: int) -> str:
        """Begin to answer.

        Returns:
            The address.

        Raises:
            CallError: `io-error`, the port is taken or the host is not this machine's.
        """
        try:
            bound = _bind(host, port)
        except OSError as error:
            self._loop.close()
            text = f"cannot listen at {host} port {port}: {error.strerror or error}"
            raise CallError(text, Reason.IO, hint="give another --host or --port") from error
        self._thread.start()
        self._run(self._open(bound))
        where, number = bound.getsockname()[:2]
        return f"http://{f'[{where}]' if ':' in where else where}:{number}"

    @property
    def in_hand(self) -> int:
        """Requests that have a place now."""
        return self._door.in_hand

    def close(self) -> None:
        """Take no more requests, and answer those in hand."""
        if self._thread.is_alive():
            self._run(self._close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    async def _open(self, bound: socket.socket) -> None:
        await self._state.refresh()
        self._following = asyncio.create_task(self._state.follow())
        self._runner = web.AppRunner(
            self._front.application(),
            access_log=None,
            logger=logging.Logger("http", logging.CRITICAL),  # else each request that is none prints a traceback
            handler_cancellation=True,
            shutdown_timeout=_QUIET_SECONDS,
        )
        await self._runner.setup()
        self._bound, self._site = bound, web.SockSite(self._runner, bound)
        await self._site.start()

    async def _close(self) -> None:
        if self._runner is not None and self._site is not None and self._bound is not None:
            self._loop.remove_reader(self._bound)  # accept no more; what is being accepted would be lost by `stop`
            await asyncio.sleep(_QUIET_SECONDS / 10)
            await self._site.stop()
            await self._drain()
            await self._runner.cleanup()
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)

    async def _drain(self) -> None:
        """Wait until nothing has been in hand for a moment: who was let in has the time to say what he wants."""
        self._front.closing = True
        begun = quiet = self._loop.time()
        while self._loop.time() - quiet < _QUIET_SECONDS and self._loop.time() - begun < _DRAIN_SECONDS:
            await asyncio.sleep(_QUIET_SECONDS / 10)
            if self._door.in_hand:
                quiet = self._loop.time()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _bind(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.setblocking(False)
    except BaseException:
        bound.close()
        raise
    return bound
