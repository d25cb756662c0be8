"""JSON without its traps: one spelling out, and on the way in no duplicate key, NaN, huge number or odd string.

Python's `json` accepts duplicate keys, NaN, 1e999, UTF-16 and lone surrogates; a format must not.
Source: RFC 8259 and spec/README.md, "Index text".
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from adapterpack.container import limits
from adapterpack.errors import CorruptFileError, Reason, steering


def dumps(value: Any) -> bytes:
    """The one spelling: keys sorted, no spaces, UTF-8 unescaped, floats in Python's shortest form."""
    return _ENCODER.encode(value).encode()


def loads(data: bytes) -> Any:
    """Parse strictly.

    Raises:
        CorruptFileError: `index-encoding`, `index-syntax`, `duplicate-key`, `bad-number`, `too-deep`, `bad-name`.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptFileError("the index is not UTF-8", Reason.INDEX_ENCODING, f"index byte {error.start}") from error
    if text.startswith("\ufeff"):
        raise CorruptFileError("the index begins with a byte-order mark", Reason.INDEX_ENCODING, "index byte 0")
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        # Python 3.13 points at a trailing comma, earlier ones behind it
        at = error.pos + error.msg.startswith("Illegal trailing comma")
        raise CorruptFileError(
            f"the index is no JSON: {error.msg}", Reason.INDEX_SYNTAX, f"index character {at}"
        ) from error
    except RecursionError as error:
        raise CorruptFileError("the index is nested too deeply", Reason.TOO_DEEP) from error
    _check_depth(value)
    if not (text.isascii() and text.isprintable() and "\\" not in text and len(text) <= limits.STRING_BYTES):
        _check_texts(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:  # one pass: the file chose how many keys there are
            if name in seen:
                raise CorruptFileError(f"the key {name[:80]!r} is given twice", Reason.DUPLICATE_KEY)
            seen.add(name)
    return found


def _integer(text: str) -> int:
    if len(text) > 17 or text == "-0" or abs(int(text)) > limits.INTEGER:
        raise CorruptFileError(f"the number {text[:40]} is out of range", Reason.BAD_NUMBER)
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise CorruptFileError(f"the number {text[:40]} is out of range", Reason.BAD_NUMBER)
    return value


def _constant(text: str) -> NoReturn:
    raise CorruptFileError(f"{text} is no JSON number", Reason.BAD_NUMBER)


_CONTAINERS = (dict, list)
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)


def _check_depth(value: Any) -> None:
    """Level by level, because most of an index is numbers and text, which need no look."""
    level, depth = [value] if type(value) in _CONTAINERS else [], 0
    while level:
        depth += 1
        if depth > limits.JSON_DEPTH:
            raise CorruptFileError(f"the index is nested more than {limits.JSON_DEPTH} deep", Reason.TOO_DEEP)
        inner: list[Any] = []
        for outer in level:
            inner += [part for part in (outer.values() if type(outer) is dict else outer) if type(part) in _CONTAINERS]
        level = inner


def _check_texts(value: Any) -> None:
    if isinstance(value, str):
        check_text(value)
    elif isinstance(value, dict):
        for name, item in value.items():
            check_text(name)
            _check_texts(item)
    elif isinstance(value, list):
        for item in value:
            _check_texts(item)


def check_text(text: str) -> None:
    """Refuse strings that cannot be encoded or that would steer a terminal.

    Raises:
        CorruptFileError: `bad-name`.
    """
    if len(text) > limits.STRING_BYTES:
        raise CorruptFileError(f"a string of {len(text):,} characters", Reason.LIMIT)
    found = steering(text)
    if found:
        raise CorruptFileError(f"the character U+{ord(found):04X} in {text[:40]!r}", Reason.BAD_NAME)
