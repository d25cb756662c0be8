"""The HTTP interface: routes, their JSON, and one line of JSON for everything that is refused.

It holds no model. docs/http.md has the table of what it answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web
from ray.exceptions import RayError

from adapterpack.errors import AdapterPackError, CallError, Reason, printable
from adapterpack.serving.answers import status_of
from adapterpack.serving.board import Overview
from adapterpack.serving.catalog import failure
from adapterpack.serving.changes import Changes
from adapterpack.serving.door import Door
from adapterpack.serving.entries import Entry
from adapterpack.serving.metrics import Metrics
from adapterpack.serving.question import read_question
from adapterpack.serving.refusals import Forbidden, Unavailable
from adapterpack.serving.reply import reply
from adapterpack.serving.settings import Settings
from adapterpack.serving.state import State

_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_SHOWN = ("method", "bits", "classes", "bytes", "digest")


class Front:
    """The routes of one service.

    Args:
        settings: of the service.
        door: to the replicas.
        state: what the board says.
        metrics: what Prometheus reads.
        log: is told in one line of what this package did not foresee.

    Attributes:
        closing: the service ends: connections are not kept open.
    """

    def __init__(
        self, settings: Settings, door: Door, state: State, metrics: Metrics, log: Callable[[str], None]
    ) -> None:
        self._settings, self._door, self._state, self._metrics, self._log = settings, door, state, metrics, log
        self._changes = Changes(settings, door, state)
        self.closing = False

    def application(self) -> web.Application:
        """The routes, as aiohttp runs them."""
        app = web.Application(middlewares=[self._guard()], client_max_size=self._settings.most_bytes)
        app.add_routes(
            [
                web.get("/healthz", self._health),
                web.get("/readyz", self._ready),
                web.get("/metrics", self._figures),
                web.get("/v1/tasks", self._list),
                web.post("/v1/tasks", self._changes.add),
                web.get("/v1/tasks/{task}", self._describe),
                web.delete("/v1/tasks/{task}", self._changes.remove),
                web.post("/v1/tasks/{task}/predict", self._predict),
                web.post("/v1/predict", self._predict),
            ]
        )
        return app

    def _guard(self) -> Any:
        """Count and time each request, and turn every error into one line of JSON."""

        @web.middleware
        async def guard(request: web.Request, handler: _Handler) -> web.StreamResponse:
            start = time.perf_counter()
            (found,) = await asyncio.gather(handler(request), return_exceptions=True)
            response = self._answer_to(request, found) if isinstance(found, BaseException) else found
            self._count(request, response, time.perf_counter() - start)
            if self.closing:
                response.force_close()
            return response

        return guard

    def _answer_to(self, request: web.Request, error: BaseException) -> web.Response:
        """A fault of ours is named to who runs the service, and not to who asks."""
        response = _answer_to(error)
        if response.status == 500:
            self._log(f"{request.method} {request.path}: {failure(getattr(error, 'cause', None) or error)}")
        return response

    def _count(self, request: web.Request, response: web.StreamResponse, seconds: float) -> None:
        resource = request.match_info.route.resource
        kind = f"{request.method} {resource.canonical}" if resource is not None else "other"
        self._metrics.answered(kind, response.status, seconds)

    def _overview(self) -> Overview:
        overview = self._state.overview
        if overview is None:
            raise Unavailable("the service is starting")
        return overview

    async def _predict(self, request: web.Request) -> web.Response:
        async with self._door.place():
            question = await read_question(request)
            self._entry(question.task)
            answer = await self._door.classify(question)
        self._metrics.predicted(question.task)
        return reply(answer.body)

    def _entry(self, task: str) -> Entry:
        entry = self._overview().listing.tasks.get(task)
        if entry is None:
            hint = "GET /v1/tasks lists them"
            raise CallError(f"there is no task {task[:200]!r}", Reason.UNKNOWN_TASK, hint=hint)
        return entry

    async def _list(self, request: web.Request) -> web.Response:
        found = self._overview()
        tasks = found.listing.tasks
        refused = [{"file": r.file, "reason": r.reason, "message": r.message} for r in found.listing.refused]
        body = {
            "tasks": [_row(name, tasks[name], _SHOWN) for name in sorted(tasks)],
            "refused": refused,
            "backbone": self._settings.backbone,
            "replicas": len(found.ready),
            "notes": sorted({note for report in found.ready for note in report.notes}),
        }
        return reply(body)

    async def _describe(self, request: web.Request) -> web.Response:
        task = request.match_info["task"]
        entry = self._entry(task)
        return reply(_row(task, entry, tuple(entry.tasks[task])))

    async def _health(self, request: web.Request) -> web.Response:
        return reply({"status": "ok"})

    async def _ready(self, request: web.Request) -> web.Response:
        found = self._overview()
        if not found.ready:
            raise Unavailable("no replica can answer yet")
        problem = {"problem": found.listing.problem} if found.listing.problem else {}
        tasks = len(found.listing.tasks)
        return reply({"status": "ready", "replicas": len(found.ready), "tasks": tasks, **problem})

    async def _figures(self, request: web.Request) -> web.Response:
        text = self._metrics.text(self._overview())
        return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


def _row(task: str, entry: Entry, fields: tuple[str, ...]) -> dict[str, Any]:
    facts: Mapping[str, Any] = entry.tasks[task]
    return {"name": task, "file": entry.file, **{name: facts[name] for name in fields if name != "name"}}


def _answer_to(error: BaseException) -> web.Response:
    if isinstance(error, web.HTTPException):
        return _http_refused(error)
    if isinstance(error, AdapterPackError):
        return _refused(status_of(error.reason), str(error), error.reason)
    if isinstance(error, Forbidden):
        return _refused(error.status, error.message, "forbidden")
    if isinstance(error, Unavailable):
        return _refused(error.status, error.message, "unavailable")
    what = f"the cluster failed: {type(error).__name__}" if isinstance(error, RayError) else "the service failed"
    return _refused(500, what, "internal")


def _refused(status: int, message: str, reason: str, headers: Mapping[str, str] | None = None) -> web.Response:
    body = {"error": printable(message), "reason": reason}
    response = reply(body, status=status, headers={**_HEADERS.get(status, {}), **(headers or {})})
    if status == 413:
        response.force_close()  # what is left of the body is not read
    return response


def _http_refused(error: web.HTTPException) -> web.Response:
    allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    text = {404: "there is no such address", 405: f"use {allow.get('Allow', 'another method')}"}
    return _refused(error.status, text.get(error.status, error.reason.lower()), f"http-{error.status}", allow)
