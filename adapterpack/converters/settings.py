"""Settings that travel beside or inside outside files: which there are, their types, and how conflicts are found.

Reads flat YAML (`key: value` lines, nothing else), JSON objects, and mappings found inside a checkpoint. Settings that
this version has no use for are left alone, because trainers save all of their arguments.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adapterpack.container import strict_json
from adapterpack.converters import _data
from adapterpack.converters._base import read_bytes
from adapterpack.errors import CallError, CorruptFileError, Reason, UnsupportedAdapterError

BYTES = 1 << 20
_LARGEST = 1e300  # of a whole number that a float is to hold
COUNT = 1 << 20
# name: (type, what it is)
KNOWN: dict[str, tuple[type, str]] = {
    "scale": (float, "the factor of the branches"),
    "bit": (int, "bits of the branches' weights, 32 for float"),
    "bihead": (bool, "whether the head has 1 bit"),
    "head_bias": (str, "none, of a head that was made without a bias"),
    "dim": (int, "hidden dimension"),
    "reorder": (bool, "whether Consolidator's branches read reordered channels"),
    "method": (str, "the method's name"),
    "num_class": (int, "classes"),
    "dataset": (str, "the task's name"),
    "backbone": (str, "the backbone's name"),
    "depth": (int, "blocks of the backbone"),
    "width": (int, "features of the backbone"),
    "mask": (str, "path of SPT's mask file"),
    "as": (str, "how a fine-tuned model's matrices are kept: sparse, lowrank:R, bitdelta, bitdelta:GROUP or auto"),
    "ema": (bool, "whether the averaged weights are taken, of a file that has others as well"),
    "trained": (list, "names of the tensors that were trained in place"),
    "input_size": (tuple, "channels, height and width of an image, such as 3x224x224"),
    "mean": (tuple, "a number a channel, such as 0.5,0.5,0.5"),
    "std": (tuple, "a number above 0 a channel, such as 0.5,0.5,0.5"),
}
_WORDS_OF = {"head_bias": ("none",)}
_ALIASES = {"bits": "bit", "with_channel_shuffle": "reorder"}
_LINE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*):[ ]+(\S(?:.*\S)?)")
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,15})")
_FLOAT = re.compile(r"-?[0-9]{1,20}\.[0-9]{0,20}(?:[eE][+-]?[0-9]{1,3})?|-?[0-9]{1,20}[eE][+-]?[0-9]{1,3}")
_PLAIN = re.compile(r"(?:\.{1,2}/)?[A-Za-z_/][A-Za-z0-9_./-]*(?::[A-Za-z0-9_./-]+)*")
_WORDS = {"true": True, "false": False, "null": None}
_RESERVED = frozenset(["y", "n", "yes", "no", "on", "off", "true", "false", "null"])


def parse_yaml(data: bytes, where: str) -> dict[str, Any]:
    """Flat YAML: one `key: value` a line, or a `# comment`; numbers, true, false, null and plain words.

    Raises:
        CorruptFileError: `bad-source` naming the line, `duplicate-key`.
    """
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        raise CorruptFileError("the settings are not plain ASCII", Reason.BAD_SOURCE, where) from error
    if not all(c.isprintable() or c in "\t\r\n" for c in text):
        raise CorruptFileError("the settings hold control characters", Reason.BAD_SOURCE, where)
    found: dict[str, Any] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip(" \t").startswith("#"):
            continue
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


def select_beside(source: Path) -> list[tuple[str, dict[str, Any]]]:
    """The settings beside a source, by file; see `select`."""
    return [(path.name, select(read_file(path), path.name)) for path in beside(source)]


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
    if kind is float and type(raw) is int and abs(raw) < _LARGEST:
        raw = float(raw)
    if kind is list and isinstance(raw, str):
        raw = [item.strip() for item in raw.split(",")]
    value = _data.parse(name, raw) if kind is tuple else raw
    if type(value) is not kind or not _sensible(value) or value not in _WORDS_OF.get(name, (value,)):
        hint = f"expected {meaning}" if kind is tuple else f"expected {kind.__name__}: {meaning}"
        raise CorruptFileError(f"{name} is {str(raw)[:80]!r}", Reason.BAD_SOURCE, where, hint)
    return value


def _sensible(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, str) for item in value)
    if isinstance(value, bool):
        return True
    return 0 < value <= COUNT if isinstance(value, int) else not isinstance(value, float) or math.isfinite(value)


def combine(sources: Sequence[tuple[str, Mapping[str, Any]]], said: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of several places into one; what the caller said decides.

    Args:
        sources: (place, settings as `select` gives them).
        said: the caller's, unchecked.

    Raises:
        CorruptFileError: `conflicting-settings` when two places differ and the caller did not decide.
        CallError: as `checked`.
    """
    decided = checked(said)
    found: dict[str, tuple[Any, str]] = {}
    for place, values in sources:
        for name, value in values.items():
            before, first = found.setdefault(name, (value, place))
            if before != value and name not in decided:
                raise _conflict(name, before, first, value, place)
    return {name: value for name, (value, _) in found.items()} | decided


def checked(said: Mapping[str, Any]) -> dict[str, Any]:
    """The caller's settings, under their own names and of their own types.

    Raises:
        CallError: `bad-call` for an unknown setting, a value of another type, or two spellings of one.
    """
    unknown = sorted(str(key) for key in said if _ALIASES.get(key, key) not in KNOWN)
    if unknown:
        raise CallError(f"unknown setting {unknown[0][:80]!r}", Reason.BAD_CALL, hint=f"known: {', '.join(KNOWN)}")
    try:
        return select(said, "the call")
    except CorruptFileError as error:
        raise CallError(error.message, Reason.BAD_CALL, hint=error.hint) from error


def only(said: Mapping[str, Any], names: Iterable[str], what: str) -> dict[str, Any]:
    """The caller's settings, when all of them mean something to a source.

    Args:
        said: the caller's, unchecked.
        names: those that do, besides the ones of preprocessing.
        what: the source, in words.

    Raises:
        CallError: `bad-call` naming one that would be ignored; those of `checked`.
    """
    found = checked(said)
    useful = (*names, *_data.NAMES)
    for name in found:
        if name not in useful:
            message = f"the setting {name} cannot change {what}"
            raise CallError(message, Reason.BAD_CALL, hint=f"settings that can: {', '.join(useful)}")
    return found


def how(name: str) -> str:
    """How a caller gives a setting, on the command line and in Python."""
    return f"--set {name}=… (settings={{'{name}': …}})"


def _conflict(name: str, one: Any, first: str, other: Any, second: str) -> CorruptFileError:
    message = f"{name} is {one!r} in {first} and {other!r} in {second}"
    return CorruptFileError(message, Reason.CONFLICTING_SETTINGS, hint=f"say which: {how(name)}")


def require(settings: Mapping[str, Any], name: str, why: str = "no default is safe") -> Any:
    """A setting that must be known.

    Raises:
        UnsupportedAdapterError: `missing-field`.
    """
    if name not in settings:
        hint = f"give it with {how(name)}, or in a .yaml or .json beside the checkpoint; {why}"
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
