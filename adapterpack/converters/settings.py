"""Settings that travel beside or inside outside files: which there are, their types, and how conflicts are found.

Reads flat YAML (`key: value` lines, nothing else), JSON objects, and mappings found inside a checkpoint. Settings that
this version has no use for are left alone, because trainers save all of their arguments.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adapterpack.container import strict_json
from adapterpack.converters._base import read_bytes
from adapterpack.errors import CallError, CorruptFileError, Reason, UnsupportedAdapterError

BYTES = 1 << 20
COUNT = 1 << 20
# name: (type, what it is)
KNOWN: dict[str, tuple[type, str]] = {
    "scale": (float, "the factor of the branches"),
    "bit": (int, "bits of the branches' weights, 32 for float"),
    "bihead": (bool, "whether the head has 1 bit"),
    "dim": (int, "hidden dimension"),
    "reorder": (bool, "whether Consolidator's branches read reordered channels"),
    "method": (str, "the method's name"),
    "num_class": (int, "classes"),
    "dataset": (str, "the task's name"),
    "backbone": (str, "the backbone's name"),
    "depth": (int, "blocks of the backbone"),
    "width": (int, "features of the backbone"),
    "mask": (str, "path of SPT's mask file"),
    "trained": (list, "names of the tensors that were trained in place"),
}
_ALIASES = {"bits": "bit", "with_channel_shuffle": "reorder"}
_LINE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*):[ ]+(\S(?:.*\S)?)")
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,15})")
_FLOAT = re.compile(r"-?[0-9]{1,20}\.[0-9]{0,20}(?:[eE][+-]?[0-9]{1,3})?|-?[0-9]{1,20}[eE][+-]?[0-9]{1,3}")
_PLAIN = re.compile(r"(?:\.{1,2}/)?[A-Za-z_/][A-Za-z0-9_./-]*(?::[A-Za-z0-9_./-]+)*")
_WORDS = {"true": True, "false": False, "null": None}
_RESERVED = frozenset(["y", "n", "yes", "no", "on", "off", "true", "false", "null"])


def parse_yaml(data: bytes, where: str) -> dict[str, Any]:
    """Flat YAML: one `key: value` a line; numbers, true, false, null and plain words.

    Raises:
        CorruptFileError: `bad-source` naming the line, `duplicate-key`.
    """
    try:
        lines = data.decode("ascii").splitlines()
    except UnicodeDecodeError as error:
        raise CorruptFileError("the settings are not plain ASCII", Reason.BAD_SOURCE, where) from error
    found: dict[str, Any] = {}
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if match is None:
            hint = "expected one `key: value` a line"
            raise CorruptFileError(f"cannot read {line[:80]!r}", Reason.BAD_SOURCE, f"{where} line {number}", hint)
        if match[1] in found:
            raise CorruptFileError(f"the key {match[1]} is given twice", Reason.DUPLICATE_KEY, f"{where} line {number}")
        found[match[1]] = _scalar(match[2], f"{where} line {number}")
    return found


def _scalar(text: str, where: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    if is_plain_word(text):
        return text
    raise CorruptFileError(
        f"cannot read the value {text[:80]!r}", Reason.BAD_SOURCE, where, "expected a number or a plain word"
    )


def is_plain_word(text: str) -> bool:
    """Whether every YAML reader takes the text for a string as it stands."""
    return len(text) <= 255 and _PLAIN.fullmatch(text) is not None and text.lower() not in _RESERVED


def beside(source: Path) -> list[Path]:
    """The settings files that belong to a source: `<stem>.yaml`, `<stem>.json`; those that exist."""
    return [path for path in (source.with_suffix(".yaml"), source.with_suffix(".json")) if path.is_file()]


def read_file(path: Path) -> dict[str, Any]:
    """A settings file, YAML or JSON by its suffix.

    Raises:
        CorruptFileError: it cannot be read strictly, or is no JSON object.
    """
    data = read_bytes(path, BYTES)
    if path.suffix == ".yaml":
        return parse_yaml(data, path.name)
    try:
        value = strict_json.loads(data)
    except CorruptFileError as error:
        raise CorruptFileError(error.message, Reason.BAD_SOURCE, path.name) from error
    if not isinstance(value, dict):
        raise CorruptFileError("the settings are no JSON object", Reason.BAD_SOURCE, path.name)
    return value


def select(values: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """The settings that this version knows, under their own names and of their own types; None counts as absent.

    Raises:
        CorruptFileError: `bad-source` for a value of another type, `conflicting-settings` for two spellings.
    """
    found: dict[str, Any] = {}
    for key, raw in values.items():
        name = _ALIASES.get(key, key) if isinstance(key, str) else ""
        if name not in KNOWN or raw is None:
            continue
        value = _typed(name, raw, where)
        if found.setdefault(name, value) != value:
            raise _conflict(name, found[name], where, value, where)
    return found


def _typed(name: str, raw: Any, where: str) -> Any:
    kind, meaning = KNOWN[name]
    if kind is float and type(raw) is int:
        raw = float(raw)
    if kind is list and isinstance(raw, str):
        raw = [item.strip() for item in raw.split(",")]
    if type(raw) is not kind or not _sensible(raw):
        raise CorruptFileError(
            f"{name} is {str(raw)[:80]!r}", Reason.BAD_SOURCE, where, f"expected {kind.__name__}: {meaning}"
        )
    return raw


def _sensible(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, str) for item in value)
    if isinstance(value, bool):
        return True
    return not isinstance(value, (int, float)) or (
        math.isfinite(value) and (isinstance(value, float) or 0 < value <= COUNT)
    )


def combine(sources: Sequence[tuple[str, Mapping[str, Any]]], said: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of several places into one; what the caller said decides.

    Args:
        sources: (place, settings as `select` gives them).
        said: the caller's, unchecked.

    Raises:
        CorruptFileError: `conflicting-settings` when two places differ and the caller did not decide.
        CallError: `bad-call` for an unknown setting of the caller.
    """
    unknown = sorted(str(key) for key in said if _ALIASES.get(key, key) not in KNOWN)
    if unknown:
        raise CallError(f"unknown setting {unknown[0][:80]!r}", Reason.BAD_CALL, hint=f"known: {', '.join(KNOWN)}")
    decided = select(said, "the call")
    found: dict[str, tuple[Any, str]] = {}
    for place, values in sources:
        for name, value in values.items():
            before, first = found.setdefault(name, (value, place))
            if before != value and name not in decided:
                raise _conflict(name, before, first, value, place)
    return {name: value for name, (value, _) in found.items()} | decided


def _conflict(name: str, one: Any, first: str, other: Any, second: str) -> CorruptFileError:
    message = f"{name} is {one!r} in {first} and {other!r} in {second}"
    return CorruptFileError(message, Reason.CONFLICTING_SETTINGS, hint=f"say which with the setting {name}")


def require(settings: Mapping[str, Any], name: str, why: str = "no default is safe") -> Any:
    """A setting that must be known.

    Raises:
        UnsupportedAdapterError: `missing-field`.
    """
    if name not in settings:
        hint = f"give it in a .yaml or .json beside the checkpoint, or to the call; {why}"
        raise UnsupportedAdapterError(
            f"the setting {name} is not given ({KNOWN[name][1]})", Reason.MISSING_FIELD, hint=hint
        )
    return settings[name]


def agree(settings: Mapping[str, Any], name: str, found: Any) -> None:
    """Refuse a setting that contradicts the tensors; an absent one agrees.

    Raises:
        CorruptFileError: `conflicting-settings`.
    """
    if settings.get(name, found) != found:
        message = f"{name} is {settings[name]!r} in the settings, but {found!r} in the tensors"
        raise CorruptFileError(message, Reason.CONFLICTING_SETTINGS)
