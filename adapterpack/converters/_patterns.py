"""Regular expressions that come in files: tried only where they compile and cannot run for ages."""

from __future__ import annotations

import re

from adapterpack.errors import CorruptFileError, Reason

_PATTERN = 4096  # characters
_UNBOUNDED = 4  # repetitions, tried on names of at most 255 characters


def check_pattern(text: str, where: str) -> None:
    """A regular expression from a file must compile, and must not be one that can run for ages."""
    repeats = len(re.findall(r"(?<!\\)[*+}]|(?<![\\(])\?", text))
    choices = len(re.findall(r"\([^()]*\|", text)) + (len(text) if "((" in text and "|" in text else 0)
    if len(text) > _PATTERN or max(repeats, choices) > _UNBOUNDED or re.search(r"\)\s*[*+{]", text):
        message = f"the pattern {text[:80]!r} repeats too much to be tried safely"
        raise CorruptFileError(message, Reason.BAD_FIELD, where, "name the modules in a list")
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        message = f"the pattern {text[:80]!r} is no regular expression: {error}"
        raise CorruptFileError(message, Reason.BAD_FIELD, where) from error
