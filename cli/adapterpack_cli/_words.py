"""Words of the command line as values: KEY=VALUE pairs, and numbers and yes/no as people write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adapterpack.errors import CallError, Reason


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
