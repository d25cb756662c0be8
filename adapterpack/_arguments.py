"""What the arguments of `pack`, `unpack` and `diff` may be: a wrong one is the call's fault and no one else's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from adapterpack.adapter import Adapter
from adapterpack.container.framing import MAGIC
from adapterpack.container.names import TASK_NAMES, fits_task
from adapterpack.converters._base import prefix_of
from adapterpack.converters.finetune import parse_how
from adapterpack.converters.settings import checked
from adapterpack.errors import CallError, Reason
from adapterpack.stores import SUFFIXES

if TYPE_CHECKING:
    from adapterpack.runtime.facts import BackboneFacts

_PATH = ((str, os.PathLike), "a path")
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "source": ((str, os.PathLike, Adapter), "a path or an Adapter"),
    "out": _PATH,
    "to": ((str,), "a form's name"),
    "names": ((str,), "whose names"),
    "task": ((str, NoneType), "a name"),
    "backbone": ((*_PATH[0], NoneType), "a timm name or a path"),
    "calibrate": ((*_PATH[0], NoneType), "a folder of images"),
    "evaluate": ((*_PATH[0], NoneType), "a data set"),
    "labels": ((list, tuple, NoneType), "a list of class names"),
    "metadata": ((Mapping, NoneType), "values by name"),
    "settings": ((Mapping, NoneType), "values by name"),
    "force": ((bool,), "True or False"),
}


def check_types(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of another type than `_KINDS` says, and lists or mappings of names that are no text."""
    for name, value in arguments.items():
        kinds, words = _KINDS[name]
        if not isinstance(value, kinds):
            raise CallError(f"{name} is of type {type(value).__name__}", Reason.BAD_CALL, hint=f"expected {words}")
        if isinstance(value, (list, tuple, Mapping)) and not all(isinstance(item, str) for item in value):
            odd = next(item for item in value if not isinstance(item, str))
            raise CallError(f"{name} has the name {odd!r}", Reason.BAD_CALL, hint="names are text")


def check_task(task: str | None) -> None:
    """The format's rule for names, so that a bad one is the call's fault and not the source's."""
    if task is not None and not fits_task(task):
        raise CallError(f"a task cannot be called {task[:80]!r}", Reason.BAD_NAME, hint=TASK_NAMES)


def checked_settings(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """The caller's settings, as `converters.settings.checked` gives them.

    Raises:
        CallError: as there; also `as` that names no way to keep differences.
    """
    found = checked(settings or {})
    if "as" in found:
        parse_how(found["as"])
    return found


def facts_of(backbone: str | os.PathLike[str] | None) -> BackboneFacts | None:
    """What there is to know of a backbone, None where none is given.

    Raises:
        CallError: `missing-extra`; as `create_backbone`.
        AdapterPackError: as `create_backbone`.
    """
    if backbone is None:
        return None
    try:
        from adapterpack.runtime.facts import backbone_facts  # needs torch, which opening and inspecting must not
    except ModuleNotFoundError as error:
        hint = "pip install 'adapterpack[torch]'"
        raise CallError(f"--backbone (backbone=) needs {error.name}", Reason.MISSING_EXTRA, hint=hint) from error
    return backbone_facts(backbone)


def is_packed(source: str) -> bool:
    """Whether a source is of our own format, by its first bytes or, damaged or at a URL, by its name."""
    first = b"" if "://" in source else prefix_of(Path(source))
    return first.startswith(MAGIC) or (source.endswith(SUFFIXES) and not first.startswith(b"PK"))
