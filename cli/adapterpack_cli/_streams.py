"""Standard output and error as they are found: another encoding, closed, full, or a pipe that nobody reads."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Iterator

from adapterpack.errors import CallError, Reason

_HANDLER = "adapterpack"
# what stands for our own signs where the encoding has none; each as wide as what it replaces
_PLAIN = {"█": "#", "▓": "=", "▒": "-", "░": ".", "–": "-", "×": "x", "…": "~"}
_PLAIN |= dict(zip("▁▂▃▄▅▆▇", "_.,-~=+"))


def prepare() -> None:
    """Let every character be written whatever the encoding.

    Raises:
        CallError: `io-error`, standard output is closed.
    """
    codecs.register_error(_HANDLER, _replaced)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 (for as long as the process lives)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
        raise CallError("standard output is closed", Reason.IO, hint="redirect it to a file or to /dev/null")


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in found), error.end


@contextlib.contextmanager
def own_errors() -> Iterator[None]:
    """Standard error for Python alone: what a library's native code writes past it, for its developers, is dropped.

    What a library prints goes to standard error as well: standard output is for the result.
    """
    stream = sys.stderr
    if not isinstance(stream, io.TextIOWrapper) or stream is not sys.__stderr__:
        with contextlib.redirect_stdout(stream):
            yield
        return
    stream.flush()
    with open(os.dup(2), "w", encoding=stream.encoding, errors=_HANDLER, buffering=1) as kept:  # noqa: PTH123
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)
        sys.stderr = kept
        try:
            with contextlib.redirect_stdout(kept):
                yield
        finally:
            sys.stderr = stream
            kept.flush()
            os.dup2(kept.fileno(), 2)


def is_unicode(stream: object) -> bool:
    """Whether a stream takes every character; one in memory does."""
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")


def discard() -> None:
    """Throw away what standard output did not take, so that the interpreter does not try again at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
