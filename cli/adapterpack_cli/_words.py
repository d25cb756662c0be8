"""Words of the command line as values: KEY=VALUE pairs, and numbers and yes/no as people write them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from adapterpack.errors import CallError, Reason, steering

# numbers as JSON writes them; whole ones only as long as every reader holds them exactly
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,17})?(?:[eE][+-]?[0-9]{1,3})?")


def pairs(words: Sequence[str], option: str) -> dict[str, str]:
    """Values by key.

    Raises:
        CallError: `bad-call`, naming the option: a word without =, or a key given twice.
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name or name in found:
            problem = "given twice" if name in found else "not KEY=VALUE"
            raise CallError(
                f"{option} {word}: {problem}", Reason.BAD_CALL, hint=f"for example {option} dataset=cifar100"
            )
        found[name] = value
    return found


def value_of(text: str) -> Any:
    """yes/no, whole and decimal numbers, else text."""
    if text.lower() in ("yes", "true", "no", "false"):
        return text.lower() in ("yes", "true")
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def metadata_of(words: Sequence[str]) -> dict[str, Any]:
    """The values of --meta: a number, true or false as JSON writes them are such; all else is text, and so is what
    stands in double quotes.

    Raises:
        CallError: as `pairs`; also a control character, or bytes that are no UTF-8.
    """
    found = pairs(words, "--meta")
    for name, text in found.items():
        if odd := steering(name + text):
            problem = f"--meta {name}: the character U+{ord(odd):04X}"
            raise CallError(problem, Reason.BAD_CALL, hint="give one line of text, in UTF-8")
    return {name: _plain(text) for name, text in found.items()}


def _plain(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    if _NUMBER.fullmatch(text) and text != "-0" and math.isfinite(float(text)):
        return json.loads(text)
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text


def settings_of(words: Sequence[str], how: str | None) -> dict[str, Any]:
    """The values of --set, and of --as.

    Raises:
        CallError: as `pairs`; `bad-call` where both say how a fine-tuned model is kept.
    """
    found = {name: value_of(value) for name, value in pairs(words, "--set").items()}
    if how is None:
        return found
    if "as" in found:
        raise CallError("--as and --set as=… say the same thing twice", Reason.BAD_CALL, hint="give one of them")
    return {**found, "as": how}
