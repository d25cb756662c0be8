"""Where a trainer's checkpoint keeps its state dict and its settings. Knows keys and mappings, no tensor, no file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapterpack.converters import _data
from adapterpack.converters import settings as sidecar
from adapterpack.errors import CorruptFileError, Reason, UnsupportedAdapterError

STATE_KEYS = ("model", "state_dict")
SETTINGS_KEYS = ("settings", "args", "config")
# a path inside a file is nobody's order to open it; a trainer's own arguments of the other names mean anything
_NOT_INSIDE = ("mask", "as", *_data.NAMES)


def state_of(content: Mapping[Any, Any]) -> tuple[Mapping[Any, Any], list[tuple[str, dict[str, Any]]]]:
    """The state dict, and the settings inside the file by place."""
    found = [key for key in STATE_KEYS if isinstance(content.get(key), Mapping)]
    if not found:
        return content, []
    if len(found) > 1:
        message = "the file has a state dict under model and one under state_dict"
        raise UnsupportedAdapterError(message, Reason.AMBIGUOUS_SOURCE, hint="save the one that is meant")
    inside = []
    for key in SETTINGS_KEYS:
        values = content.get(key)
        values = vars(values) if type(values).__name__ == "Namespace" else values
        if isinstance(values, Mapping):
            inside.append((key, sidecar.select({k: v for k, v in values.items() if k not in _NOT_INSIDE}, key)))
    return content[found[0]], inside


def without_prefix(state: Mapping[Any, Any]) -> dict[str, Any]:
    """The state dict without the `module.` that DataParallel puts before every name."""
    odd = [name for name in state if not isinstance(name, str)]
    if odd or not state:
        what = f"the name {odd[0]!r}" if odd else "nothing"
        raise CorruptFileError(f"the state dict has {what}", Reason.BAD_SOURCE, hint="expected tensors by name")
    wrapped = all(name.startswith("module.") for name in state)
    return {name.removeprefix("module.") if wrapped else name: value for name, value in state.items()}
