"""Adding and removing tasks over HTTP: who may, from where, and how.

Nothing is fetched from an address that a request names: a file is either in the request or already in the served
folder. The folder itself is never written to.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from adapterpack.errors import CallError, Reason
from adapterpack.serving.door import Door
from adapterpack.serving.entries import Entry
from adapterpack.serving.journal import Change
from adapterpack.serving.question import flag, read_body
from adapterpack.serving.refusals import Forbidden
from adapterpack.serving.reply import reply
from adapterpack.serving.settings import Settings
from adapterpack.serving.state import State

_LOCAL = ("127.0.0.1", "::1", "localhost")
# what a proxy adds: then the sender is somebody else, though the connection comes from this machine
_PROXIED = (
    "Forwarded",
    "Via",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
    "X-Real-IP",
    "X-Client-IP",
    "True-Client-IP",
    "CF-Connecting-IP",
)


class Changes:
    """The two handlers.

    Args:
        settings: have the token that changes need.
        door: to a replica that tries a file out.
        state: that is changed.
    """

    def __init__(self, settings: Settings, door: Door, state: State) -> None:
        self._settings, self._door, self._state = settings, door, state

    async def add(self, request: web.Request) -> web.Response:
        """POST /v1/tasks: an `.apk` as the body, or `{"file": NAME}` for one of the served folder.

        Raises:
            Forbidden: see there.
            AdapterPackError: the file is refused, and why.
        """
        self._require_right(request)
        if request.content_type == "multipart/form-data":
            hint = "send the file itself as the body: curl --data-binary @FILE"
            raise CallError("an upload is no form", Reason.BAD_CALL, hint=hint)
        async with self._door.place():
            data = await read_body(request)
            if request.content_type == "application/json":
                change = Change("reread", _file_of(data))
            else:
                replace = flag("replace", request.query.get("replace", ""))
                change = Change("add", request.query.get("name", ""), data, replace)
                await self._door.examine(data)
            entries = await self._state.change(change)
        return reply(_added(entries), status=201)

    async def remove(self, request: web.Request) -> web.Response:
        """DELETE /v1/tasks/{task}: stop serving it; its file stays.

        Raises:
            Forbidden: see there.
            CallError: `unknown-task`.
        """
        self._require_right(request)
        task = request.match_info["task"]
        await self._state.change(Change("remove", task))
        return reply({"removed": task})

    def _require_right(self, request: web.Request) -> None:
        origin = request.headers.get("Origin")
        if origin is not None and origin.split("://")[-1] != request.host:
            raise Forbidden("pages of other sites may not change what is served")
        token = self._settings.token
        if not token and not _from_here(request):
            raise Forbidden("changes from other machines need a token; start the service with ADAPTERPACK_TOKEN set")
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        known = scheme.lower() == "bearer" and hmac.compare_digest(_bytes(given.strip()), _bytes(token))
        if token and not known:
            raise Forbidden("a change needs the header Authorization: Bearer TOKEN", 401)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")  # a header may hold any byte


def _from_here(request: web.Request) -> bool:
    """Whether it came from this machine, and was sent to its own name: not through a proxy that says so, nor by a page
    that calls itself by another."""
    if any(name in request.headers for name in _PROXIED):
        return False
    name = request.host.rsplit(":", 1)[0] if not request.host.endswith("]") else request.host
    return name.strip("[]") in _LOCAL and request.remote in _LOCAL


def _file_of(data: bytes) -> str:
    try:
        found: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CallError("the body is no JSON", Reason.BAD_CALL, hint='send {"file": NAME}') from error
    if not (isinstance(found, dict) and isinstance(found.get("file"), str)):
        raise CallError("the body names no file", Reason.BAD_CALL, hint='send {"file": NAME}')
    name: str = found["file"]
    return name


def _added(entries: Sequence[Entry]) -> dict[str, Any]:
    """The tasks, and the file where all are in one."""
    tasks = sorted(task for entry in entries for task in entry.tasks)
    return {"added": tasks, "file": entries[0].file} if len(entries) == 1 else {"added": tasks}
