"""What all stores share: what a store is, what its library's errors become, and how an address is shown.

An address may carry a password or a signature, and a foreign error may repeat it; nothing leaves here unredacted.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from adapterpack.errors import AdapterPackError, CallError, MissingFileError, Reason

SUFFIXES = (".apk", ".adapterpack")
_SECRETS = (
    (re.compile(r"(\w+://)[^/\s@'\"]+@"), r"\1"),  # user:password@
    (re.compile(r"(https?://[^\s?'\"]*)\?[^\s'\")>]*", re.IGNORECASE), r"\1"),  # signatures are in the query
    (re.compile(r"\bhf_\w{6,}"), "hf_…"),
    (re.compile(r"(Bearer|Basic|Credential)[ =]\S+", re.IGNORECASE), r"\1 …"),
)
_OURS = ("s3fs", "huggingface_hub", "aiohttp", "fsspec")  # what our own extra installs
_HINTS = {
    401: "log in with `hf auth login`, or the store's own command; a wrong address looks the same",
    403: "ask for access, or log in with an account that has it",
    409: "something else was written meanwhile: try again",
    412: "something else was written meanwhile: try again",
    416: "the file changed while it was read: try again",
    429: "too many requests: wait and try again",
}


class Store(Protocol):
    """A folder on a store.

    Attributes:
        name: for messages.
    """

    name: str

    def names(self) -> tuple[str, ...]:
        """The files directly in the folder, sorted; none where the folder is not there."""
        ...

    def read(self, name: str) -> bytes:
        """One whole file."""
        ...

    def url(self, name: str) -> str:
        """The address that opens a file."""
        ...

    def write(self, files: Mapping[str, bytes], message: str) -> str:
        """Write files, each whole or not at all, and all together where the store can; files of these names are
        replaced. Returns the address of the commit, "" where there are none."""
        ...


def shown(text: str) -> str:
    """An address, or a text with addresses in it, without passwords, signatures and tokens."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def only_file(names: Sequence[str], where: str) -> str:
    """The one `.apk` among file names.

    Raises:
        MissingFileError: `missing-file`, there is none.
        CallError: `bad-call`, there are several.
    """
    found = [name for name in names if name.lower().endswith(SUFFIXES)]
    if not found:
        raise MissingFileError(f"{where} holds no .apk file", Reason.MISSING_FILE, hint="give the address of a file")
    if len(found) > 1:
        some = ", ".join(found[:6]) + (", …" if len(found) > 6 else "")
        raise CallError(f"{where} holds {len(found)} files", Reason.BAD_CALL, hint=f"add one of {some}")
    return found[0]


@contextlib.contextmanager
def remote_errors(url: str) -> Iterator[None]:
    """What a store's library raises, as errors of ours that name the address."""
    try:
        yield
    except AdapterPackError:
        raise
    except ImportError as error:
        package = _missing(error)
        hint = "pip install 'adapterpack[hub]'" if package in _OURS else f"pip install {package}" if package else ""
        text = f"{shown(url)} needs {package or shown(str(error))}"
        raise CallError(text, Reason.MISSING_EXTRA, hint=hint) from error
    except Exception as error:  # each protocol's library raises what it likes, and all of it means this
        raise _ours(url, error) from error


def _missing(error: ImportError) -> str:
    """The package that is not installed, "" where that is not told: fsspec says in a sentence what a protocol needs."""
    told = re.search(r"\binstall (?:the )?['\"]?([A-Za-z][\w-]*)", str(error), re.IGNORECASE)
    cause = error.__cause__
    module = error.name or (cause.name if isinstance(cause, ImportError) else "") or ""
    return told[1] if told else module.partition(".")[0]


def _ours(url: str, error: BaseException) -> CallError:
    status, text = _status(error), f"{shown(url)}: "
    missing = isinstance(error, FileNotFoundError) and error.__cause__ is None
    if status in (404, 410) or (status is None and missing):
        return MissingFileError(f"{text}not found", Reason.MISSING_FILE, hint="check the address")
    if status in (401, 403) or isinstance(error, PermissionError):
        text += f"access is refused{f' ({status})' if status else ''}"
        return CallError(text, Reason.IO, hint=_HINTS[status or 403])
    if status is not None:
        told = shown(f"{error}".strip().rpartition("\n")[2][:200])
        text += f"the server answers {status}" + (f" ({told})" if told and status < 500 else "")
        return CallError(text, Reason.IO, hint=_HINTS.get(status, "try again later"))
    inner = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ is not None else error
    said = shown(f"{type(inner).__name__}: {inner}".splitlines()[0])
    return CallError(text + said, Reason.IO, hint="check the address and the connection")


def _status(error: BaseException | None) -> int | None:
    """The HTTP status that an error, or what caused it, speaks of: aiohttp's, requests' and httpx's, botocore's."""
    for _ in range(8):
        if error is None:
            return None
        answer = getattr(error, "response", None)
        if isinstance(answer, Mapping):
            found = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            found = getattr(answer, "status_code", None) or getattr(error, "status", None)
        if isinstance(found, int):
            return found
        error = error.__cause__ or error.__context__
    return None
