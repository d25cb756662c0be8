"""Whether branches are what their methods allow (settings, roles, shapes), in files and in adapters to be written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapterpack.adapter import Adapter, Site
from adapterpack.container import strict_json
from adapterpack.container.index import Group
from adapterpack.errors import (
    CorruptFileError,
    Reason,
    UnsupportedAdapterError,
    UnsupportedVersionError,
)
from adapterpack.methods import METHODS
from adapterpack.methods._base import Method

Shape = tuple[int, ...]

_LARGEST = 3.4028234663852886e38  # that float32 holds: a larger scale makes infinities of finite weights


def check_group(group: Group, where: str) -> None:
    """Check a group of an index.

    Raises:
        UnsupportedVersionError: `unknown-method`.
        CorruptFileError: `bad-parameter`, `missing-field`, `unknown-field`, `bad-shape`.
    """
    method = METHODS.get(group.method)
    if method is None:
        hint = "upgrade adapterpack"
        raise UnsupportedVersionError(f"the method {group.method!r} is unknown", Reason.UNKNOWN_METHOD, where, hint)
    _check(method, group.params, {role: row.shape for role, row in group.tensors.items()}, where)


def check_adapter(adapter: Adapter) -> None:
    """Check an adapter before it is written.

    Raises:
        UnsupportedAdapterError: as `check_group`; also head, names and class names that a file may not hold.
    """
    try:
        _check_names(adapter)
        for branch in adapter.branches:
            Site.parse(str(branch.site))
            if branch.method not in METHODS:
                raise UnsupportedAdapterError(f"the method {branch.method!r} is unknown", Reason.UNKNOWN_METHOD)
            shapes = {role: tensor.shape for role, tensor in branch.tensors.items()}
            _check(METHODS[branch.method], branch.params, shapes, str(branch.site))
    except CorruptFileError as error:
        reason = Reason(error.reason)
        raise UnsupportedAdapterError(error.message, reason, error.where, error.hint) from error


def _check_names(adapter: Adapter) -> None:
    if not adapter.branches and adapter.head is None:
        raise UnsupportedAdapterError("the adapter is empty: no branch and no head", Reason.NOT_EXPRESSIBLE)
    _check_described(adapter)
    if adapter.labels is not None and (adapter.head is None or len(adapter.labels) != adapter.head.classes):
        classes = adapter.head.classes if adapter.head else 0
        hint = "give one name a class, in the head's order"
        raise UnsupportedAdapterError(
            f"{len(adapter.labels)} class names for {classes} classes", Reason.BAD_LABELS, hint=hint
        )


def _check_described(adapter: Adapter) -> None:
    """What goes into the index as text must come out of it the same."""
    task = {"name": adapter.name, "metadata": dict(adapter.metadata)}
    described = {"tasks": [task], "backbone": adapter.backbone.name}  # as deep as in the index
    try:
        same = strict_json.loads(strict_json.dumps(described)) == described
    except (TypeError, ValueError) as error:  # no JSON value, NaN, a lone surrogate
        if isinstance(error, CorruptFileError):
            raise CorruptFileError(f"name or metadata: {error.message}", Reason(error.reason)) from error
        raise UnsupportedAdapterError(f"name or metadata: {error}", Reason.NOT_EXPRESSIBLE) from error
    except RecursionError as error:
        raise UnsupportedAdapterError("metadata is nested too deeply", Reason.TOO_DEEP) from error
    if not same:
        hint = "use text as keys, and lists instead of tuples"
        raise UnsupportedAdapterError("metadata is not what JSON can hold", Reason.NOT_EXPRESSIBLE, hint=hint)


def _check(method: Method, params: Mapping[str, Any], shapes: Mapping[str, Shape], where: str) -> None:
    check_settings(method, params, where)
    required, known = set(method.roles.required), set(method.roles.order)
    if not required <= set(shapes):
        missing = ", ".join(sorted(required - set(shapes)))
        raise CorruptFileError(f"{method.name} lacks its {missing}", Reason.MISSING_FIELD, where)
    if not shapes or not set(shapes) <= known:
        unknown = ", ".join(sorted(set(shapes) - known)) or "nothing"
        raise CorruptFileError(
            f"{method.name} has {unknown}", Reason.UNKNOWN_FIELD, where, f"known: {', '.join(known)}"
        )
    try:
        method.features(shapes, params)
    except ValueError as error:
        raise CorruptFileError(f"{method.name}: {error}", Reason.BAD_SHAPE, where) from error


def check_settings(method: Method, params: Mapping[str, Any], where: str) -> None:
    """Check that a branch gives all of its method's settings, each of its type and value, and no others.

    Raises:
        CorruptFileError: `bad-parameter`.
    """
    for wrong in sorted(params.keys() ^ method.settings.keys()):
        text = f"{method.name}: setting {wrong} is {'unknown' if wrong in params else 'missing'}"
        hint = f"expected {', '.join(sorted(method.settings)) or 'none'}"
        raise CorruptFileError(text, Reason.BAD_PARAMETER, where, hint)
    for name, setting in method.settings.items():
        value = params[name]
        fine = type(value) is setting.type and (not setting.choices or value in setting.choices)
        if not fine or (setting.type is float and not abs(value) <= _LARGEST):
            limit = f" of at most {_LARGEST:.7g}" if setting.type is float else ""
            expected = " or ".join(map(str, setting.choices)) or setting.type.__name__ + limit
            raise CorruptFileError(
                f"{method.name}: {name} is {value!r}", Reason.BAD_PARAMETER, where, f"expected {expected}"
            )
