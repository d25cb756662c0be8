"""`diff`: two adapters of any form that can be read, compared by site. Apart from `api` because it needs converters."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Union

from adapterpack._arguments import checked_settings, facts_of, is_packed
from adapterpack.adapter import Adapter, DataSettings
from adapterpack.converters import read
from adapterpack.converters._base import Hints
from adapterpack.converters._fetch import SETTINGS
from adapterpack.errors import MissingFileError
from adapterpack.packing.bundle import Bundle, open_bundle, read_adapter
from adapterpack.packing.differences import Differences, differences
from adapterpack.packing.encode import encode_task
from adapterpack.stores import read_folder, shown

Source = Union[str, "os.PathLike[str]", Adapter]


@dataclass(frozen=True, slots=True)
class Side:
    """One of two adapters: what it is called, its method, the digest of its content, branches and classes."""

    path: str
    task: str
    method: str
    digest: str
    branches: int
    classes: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Diff:
    """What is different between two adapters.

    Attributes:
        a, b: what was compared.
        identical: the same content to the bit: what the digest covers, whatever the names are.
        same_numbers: every branch and tensor is in both with the same settings and values, in whatever form.
        description: what is said of the adapters and differs, first and second value: task, method, backbone,
            fingerprint, classes, labels, preprocessing (`data.mean`, …), metadata (`metadata.dataset`, …).
        differences: by branch and tensor.
    """

    a: Side
    b: Side
    identical: bool
    same_numbers: bool
    description: Mapping[str, tuple[Any, Any]]
    differences: Differences


def diff(
    a: Source,
    b: Source,
    *,
    task: str | None = None,
    other_task: str | None = None,
    backbone: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Diff:
    """Compare two adapters by site.

    Args:
        a, b: an `.apk` (path or URL), a file or folder that a converter reads (the URL of such a folder, too), or an
            `Adapter` in memory.
        task: which task of `a`, where it has several; and of `b`, unless `other_task` is given.
        other_task: which task of `b`.
        backbone: timm name or `.safetensors` file, for sources that do not say which tensors are trained.
        settings: what an outside source does not say itself, see `pack`.

    Raises:
        AdapterPackError: one of them cannot be read.
    """
    said = checked_settings(settings)
    first, second = (_read(source, name, backbone, said) for source, name in ((a, task), (b, other_task or task)))
    one, other, found = _side(a, first), _side(b, second), differences(first, second)
    numbers = found.same_numbers and (first.head is None) == (second.head is None)
    return Diff(one, other, one.digest == other.digest, numbers, _described(first, second), found)


def _read(source: Source, task: str | None, backbone: str | None, settings: Mapping[str, Any]) -> Adapter:
    if isinstance(source, Adapter):
        return source
    text = os.fspath(source)
    if is_packed(text):
        return read_adapter(source, task)
    bundle = _at_url(text) if "://" in text else None
    return read(text, _hints(backbone, settings)).adapter if bundle is None else bundle.read(task)


def _at_url(url: str) -> Bundle | None:
    """The `.apk` at a URL, or the only one in the folder there; None for a folder of a trainer's."""
    try:
        return open_bundle(url)
    except MissingFileError:
        if SETTINGS in read_folder(url).names():
            return None
        raise


def _hints(backbone: str | None, settings: Mapping[str, Any]) -> Hints:
    facts, said = facts_of(backbone), Hints(settings=settings)
    return facts.added_to(said) if facts else said


def _side(source: Source, adapter: Adapter) -> Side:
    path = "" if isinstance(source, Adapter) else shown(str(source))
    digest = f"sha256:{encode_task(adapter, 'fast').digest.hex()}"
    classes = adapter.head.classes if adapter.head is not None else None
    return Side(path, adapter.name, adapter.method, digest, len(adapter.branches), classes)


def _described(a: Adapter, b: Adapter) -> dict[str, tuple[Any, Any]]:
    first, second = _plain(a), _plain(b)
    names = [*first, *(name for name in second if name not in first)]
    return {name: (first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)}


def _plain(adapter: Adapter) -> dict[str, Any]:
    """What an adapter says of itself, flat; values that JSON holds."""
    found: dict[str, Any] = {
        "task": adapter.name,
        "method": adapter.method,
        "backbone": adapter.backbone.name or None,
        "fingerprint": adapter.backbone.fingerprint,
        "classes": adapter.head.classes if adapter.head is not None else None,
        "labels": None if adapter.labels is None else list(adapter.labels),
    }
    if adapter.data is not None:
        for field in fields(DataSettings):
            value = getattr(adapter.data, field.name)
            found[f"data.{field.name}"] = list(value) if isinstance(value, tuple) else value
    return {**found, **{f"metadata.{name}": value for name, value in sorted(adapter.metadata.items())}}
