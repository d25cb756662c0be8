"""Which of a trainer's checkpoint is the state dict, and where its settings are. Knows keys and mappings, no tensor and
no file.

Of averaged weights (EMA) beside the others, the averaged ones are taken, as timm does; any other model is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapterpack.converters import _data
from adapterpack.converters import settings as sidecar
from adapterpack.errors import CallError, CorruptFileError, Reason, UnsupportedAdapterError

STATE_KEYS = ("model", "state_dict")
AVERAGED_KEYS = ("state_dict_ema", "model_ema")
SETTINGS_KEYS = ("settings", "args", "config")
# a path inside a file is nobody's order to open it; a trainer's own arguments of the other names mean anything
_NOT_INSIDE = ("mask", "as", "head_bias", "ema", *_data.NAMES)
_WRAPPERS = ("module.", "_orig_mod.")  # DataParallel's, and a compiled model's
_SETTING = (bool, int, float, str, list, tuple, type(None))  # what a trainer keeps by parameter that is no parameter


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """The state dict, the settings inside the file by place, and notes."""

    state: Mapping[Any, Any]
    settings: list[tuple[str, dict[str, Any]]]
    notes: tuple[str, ...] = ()


def state_of(content: Mapping[Any, Any], averaged: bool | None) -> Content:
    """What a file says of one model.

    Args:
        content: the file's.
        averaged: whether averaged weights are to be taken; None where nobody said.

    Raises:
        UnsupportedAdapterError: `ambiguous-source`, naming both models.
        CorruptFileError: `missing-tensor` where there are averaged weights only, and others are wanted.
    """
    usual, ema = _one_of(STATE_KEYS, content), _one_of(AVERAGED_KEYS, content)
    if averaged is False and ema and not usual:
        message = f"the file has averaged weights alone, under {ema}"
        raise CorruptFileError(message, Reason.MISSING_TENSOR, hint="leave out ema=no (settings={'ema': False})")
    chosen = usual if averaged is False or not ema else ema
    if not chosen:
        return Content(content, [])
    _require_no_other(content, chosen, [key for key in (usual, ema) if key])
    inside = []
    for key in SETTINGS_KEYS:
        values = content.get(key)
        values = vars(values) if type(values).__name__ == "Namespace" else values
        if isinstance(values, Mapping):
            inside.append((key, sidecar.select({k: v for k, v in values.items() if k not in _NOT_INSIDE}, key)))
    both = f"the averaged weights under {ema} were taken, as timm takes them; those under {usual}: --set ema=no"
    return Content(content[chosen], inside, (both,) if chosen == ema and usual and averaged is None else ())


def require_averaged(content: Mapping[Any, Any], said: Mapping[str, Any]) -> None:
    """Refuse the setting `ema` for a file without averaged weights.

    Raises:
        CallError: `bad-call`.
    """
    if "ema" in said and not any(isinstance(content.get(key), Mapping) for key in AVERAGED_KEYS):
        message = "the setting ema cannot change a file without averaged weights"
        hint = f"they are looked for under {' and '.join(AVERAGED_KEYS)} of a torch file"
        raise CallError(message, Reason.BAD_CALL, hint=hint)


def _one_of(keys: tuple[str, ...], content: Mapping[Any, Any]) -> str:
    found = [key for key in keys if isinstance(content.get(key), Mapping)]
    if len(found) > 1:
        raise _two(*found)
    return found[0] if found else ""


def _require_no_other(content: Mapping[Any, Any], chosen: str, known: list[str]) -> None:
    """Refuse a model under a key that nobody knows: a mapping with numbers, not settings, by some of the same names."""
    names = {_bare(name) for name in content[chosen]}
    for key, value in content.items():
        parts = value if isinstance(value, Mapping) and key not in known else {}
        if any(_bare(name) in names and not isinstance(part, _SETTING) for name, part in parts.items()):
            raise _two(chosen, str(key)[:80])


def _two(one: str, other: str) -> UnsupportedAdapterError:
    message = f"the file has a state dict under {one} and one under {other}"
    return UnsupportedAdapterError(
        message, Reason.AMBIGUOUS_SOURCE, hint="save the one that is meant, without the other"
    )


def _bare(name: Any) -> Any:
    while isinstance(name, str) and name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name


def without_prefix(state: Mapping[Any, Any]) -> dict[str, Any]:
    """The state dict without the `module.` and `_orig_mod.` that wrappers put before every name, in any order."""
    odd = [name for name in state if not isinstance(name, str)]
    if odd or not state:
        what = f"the name {odd[0]!r}" if odd else "nothing"
        raise CorruptFileError(f"the state dict has {what}", Reason.BAD_SOURCE, hint="expected tensors by name")
    names = list(state)
    while any(all(name.startswith(wrapper) for name in names) for wrapper in _WRAPPERS):
        names = [name.partition(".")[2] for name in names]
    return dict(zip(names, state.values()))
