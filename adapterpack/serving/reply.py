"""Values as JSON over HTTP, one line each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web


def reply(value: Mapping[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON object, in UTF-8, with a line end for people at a terminal."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"
    body = text.encode("utf-8", "backslashreplace")  # a file's name may hold what is no character
    return web.Response(body=body, status=status, headers=headers, content_type="application/json", charset="utf-8")
