"""What an HTTP request asks for: image and task out of a body, a form, a path or a query, each within its limit."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from aiohttp import web
from aiohttp.http import HttpProcessingError

from adapterpack.errors import CallError, CorruptFileError, Reason

FOLDED_HEADER = "serve_multiplexed_model_id"  # as Ray Serve itself has it
_IMAGE_FIELDS = ("image", "file")
_MOST_TOP = 1000
_MOST_DIGITS = 9
_BODY_SECONDS = 30
_NO_FORM = (ValueError, LookupError, RuntimeError, ConnectionError, web.RequestPayloadError, HttpProcessingError)
_FLAGS = {"": False, "0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}


@dataclass(frozen=True, slots=True)
class Question:
    """One image to classify.

    Attributes:
        data: the image file.
        task: its task.
        top: how many classes.
        folded: through a replica that has the task folded.
    """

    data: bytes
    task: str
    top: int
    folded: bool


async def read_question(request: web.Request) -> Question:
    """The image is the body, or a form's field `image` or `file`; the task is in the path, the query or a form's field.

    Raises:
        CallError: `bad-call`, a field is missing or makes no sense.
        CorruptFileError: `limit-exceeded`, more bytes than accepted.
    """
    header = request.headers.get(FOLDED_HEADER, "")
    texts: list[tuple[str, str]] = []
    if request.content_type == "multipart/form-data":
        data, texts = await _read_form(request)
    else:
        data = await read_body(request)
    if not data:
        raise CallError("there is no image", Reason.BAD_CALL, hint="send it as the body, or as the form's field image")
    given = [*request.match_info.items(), *request.query.items(), *texts]  # a name may come more than once
    task = _task(header, *(value for name, value in given if name == "task"))
    fields = {**dict(texts), **request.query}
    return Question(data, task, _top(fields.get("top", "5")), bool(header) or flag("folded", fields.get("folded", "")))


def _task(*given: str) -> str:
    """The one task of header, path, query and form."""
    found = sorted({task for task in given if task})
    if not found:
        raise CallError("there is no task", Reason.BAD_CALL, hint="POST to /v1/tasks/TASK/predict, or add ?task=TASK")
    if len(found) > 1:
        text = f"there are two tasks, {found[0][:80]!r} and {found[1][:80]!r}"
        raise CallError(text, Reason.BAD_CALL, hint="give one, in the path, the query, a form's field or the header")
    return found[0]


def flag(name: str, text: str) -> bool:
    """Whether a query's value says yes.

    Raises:
        CallError: `bad-call`, it says neither yes nor no.
    """
    if text.lower() not in _FLAGS:
        raise CallError(f"{name} is {text[:20]!r}", Reason.BAD_CALL, hint="expected true or false")
    return _FLAGS[text.lower()]


async def read_body(request: web.Request) -> bytes:
    """The body, whole.

    Raises:
        CorruptFileError: `limit-exceeded`.
        CallError: `bad-call`, it does not come.
    """
    _require_length(request)
    try:
        return await asyncio.wait_for(request.read(), _BODY_SECONDS)
    except web.HTTPRequestEntityTooLarge as error:
        raise _too_large(request) from error
    except asyncio.TimeoutError as error:
        raise CallError("the body does not come", Reason.BAD_CALL, hint="send it faster") from error
    except (web.RequestPayloadError, ConnectionError) as error:  # the latter to nobody: the sender has gone
        raise CallError(f"no readable body: {_line(error)}", Reason.BAD_CALL, hint="send it whole") from error


async def _read_form(request: web.Request) -> tuple[bytes, list[tuple[str, str]]]:
    _require_length(request)
    try:
        form = await asyncio.wait_for(request.post(), _BODY_SECONDS)
    except web.HTTPRequestEntityTooLarge as error:
        raise _too_large(request) from error
    except asyncio.TimeoutError as error:
        raise CallError("the form does not come", Reason.BAD_CALL, hint="send it faster") from error
    except _NO_FORM as error:
        text = f"no readable form: {_line(error)}"
        raise CallError(text, Reason.BAD_CALL, hint="send multipart/form-data") from error
    texts = [(name, value) for name, value in form.items() if isinstance(value, str)]
    images = [value for name, value in form.items() if name in _IMAGE_FIELDS and not isinstance(value, str)]
    if len(images) > 1:
        raise CallError(f"there are {len(images)} images", Reason.BAD_CALL, hint="send one a request")
    (image,) = images or [b""]
    return image.file.read() if isinstance(image, web.FileField) else bytes(image), texts


def _line(error: Exception) -> str:
    """What aiohttp says, without its status and what it cites of the request at length."""
    return " ".join(str(error).removeprefix("400, message:").split())[:200]


def _require_length(request: web.Request) -> None:
    if request.content_length is not None and request.content_length > request.client_max_size:
        raise _too_large(request)


def _too_large(request: web.Request) -> CorruptFileError:
    text = f"the body is larger than {request.client_max_size:,} bytes"
    return CorruptFileError(text, Reason.LIMIT, hint="send a smaller file")


def _top(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS and 1 <= int(text) <= _MOST_TOP):
        raise CallError(f"top is {text[:20]!r}", Reason.BAD_CALL, hint=f"expected 1 to {_MOST_TOP}")
    return int(text)
