"""What a converter is: one outside form of an adapter, read and written by the same file.

A converter knows one form and nothing of the others, of `.apk`, or of models. `Hints` is what the caller said, which
wins over what the outside file says; `Imported` is the adapter and what there is to tell about how it was read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from adapterpack._files import PathSource, read_exactly
from adapterpack.adapter import Adapter, Backbone, DataSettings, canonical_order
from adapterpack.converters._data import as_said
from adapterpack.converters._report import Extracted
from adapterpack.errors import AdapterPackError, BackboneMismatchError, CallError, CorruptFileError, Reason

F32 = NDArray[np.float32]
SOURCE_BYTES = 4 << 30


@dataclass(frozen=True, slots=True, eq=False)
class Hints:
    """What the caller said about a source.

    Attributes:
        task: the task's name.
        backbone_name: timm's name of the backbone.
        fingerprint: of the backbone, where the caller has it ("sha256:…").
        labels: class names in the head's row order.
        data: the backbone's preprocessing, for what the source does not say.
        settings: settings that the source lacks or that are to win over it, see `settings.KNOWN`.
        backbone: the frozen model's tensors by timm's names, float32, for dropping what was not trained.
    """

    task: str | None = None
    backbone_name: str | None = None
    fingerprint: str | None = None
    labels: tuple[str, ...] | None = None
    data: DataSettings | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    backbone: Mapping[str, F32] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Imported:
    """An adapter, one sentence for each thing that happened to it on the way in, and, of a whole fine-tuned model, what
    was kept of each tensor."""

    adapter: Adapter
    notes: tuple[str, ...] = ()
    matrices: tuple[Extracted, ...] = ()


class Exporter(Protocol):
    """One outside form, as far as it is written; see `_lost.Lossy` for one that cannot hold everything."""

    @property
    def name(self) -> str: ...

    def write(self, adapter: Adapter, out: Path, *, force: bool) -> tuple[Path, ...]:
        """Write the adapter in this form, all of its files or none.

        Returns:
            The files, the one that `Converter.read` takes first.

        Raises:
            UnsupportedAdapterError: `not-expressible`.
            CallError: `file-exists` without `force`.
        """
        ...


class Converter(Exporter, Protocol):
    """One outside form, read and written."""

    def recognise(self, source: Path) -> bool:
        """Whether the source is of this form, by its name and first bytes; never raises."""
        ...

    def read(self, source: Path, hints: Hints) -> Imported:
        """The adapter in the source.

        Raises:
            AdapterPackError: the source is damaged, incomplete or holds what no rule explains.
        """
        ...


def prefix_of(source: Path, length: int = 64) -> bytes:
    """The first bytes of a file, nothing where there is none to read; never raises."""
    try:
        return PathSource(source).read_at(0, length)
    except (AdapterPackError, OSError, ValueError):
        return b""


def read_bytes(source: Path, limit: int = SOURCE_BYTES) -> bytes:
    """A whole file.

    Raises:
        MissingFileError, CallError: it is missing or no regular file.
        CorruptFileError: `limit-exceeded`, before anything is read.
    """
    file = PathSource(source)
    if file.size() > limit:
        raise CorruptFileError(f"{source} has {file.size():,} bytes", Reason.LIMIT, hint=f"at most {limit:,} are read")
    return read_exactly(file, 0, file.size(), str(source))


def finish(adapter: Adapter, hints: Hints) -> Adapter:
    """The adapter as the caller wants it described, its branches in canonical order.

    Raises:
        CorruptFileError: `bad-labels` when the source has more or fewer labels than classes.
        CallError: as `as_described`.
    """
    described = as_described(adapter, hints)
    classes = adapter.head.classes if adapter.head else 0
    if described.labels is not None and len(described.labels) != classes:
        message = f"{len(described.labels)} labels for {classes} classes"
        raise CorruptFileError(message, Reason.BAD_LABELS, hint="give one a class with --labels (labels=…)")
    return replace(described, branches=tuple(sorted(adapter.branches, key=canonical_order)))


def _of_one_backbone(own: Backbone, hints: Hints) -> Backbone:
    """Name and fingerprint of the same weights: a bare name does not go with a fingerprint that is there already."""
    given = hints.fingerprint
    if own.fingerprint and given and own.fingerprint != given:
        message = f"the adapter was trained on {own.name or 'a backbone'} ({own.fingerprint}), this one is {given}"
        hint = "give --backbone (backbone=) that backbone's own weights, or leave it out"
        raise BackboneMismatchError(message, Reason.FINGERPRINT, "backbone", hint)
    return own if own.fingerprint and not given else Backbone(hints.backbone_name or own.name, given)


def as_described(adapter: Adapter, hints: Hints) -> Adapter:
    """The adapter with what the caller said of it in place.

    Raises:
        CallError: `bad-labels` when the caller gives more or fewer labels than classes; those of `_data.as_said`.
        BackboneMismatchError: `fingerprint-mismatch` when the adapter records another backbone than the caller's.
    """
    classes = adapter.head.classes if adapter.head else 0
    if hints.labels is not None and len(hints.labels) != classes:
        message = f"{len(hints.labels)} labels for {classes} classes"
        raise CallError(message, Reason.BAD_LABELS, hint="give one a class, in the head's order")
    return replace(
        adapter,
        name=hints.task or adapter.name,
        labels=adapter.labels if hints.labels is None else hints.labels,
        data=as_said(adapter.data or hints.data, hints.settings),
        backbone=_of_one_backbone(adapter.backbone, hints),
    )
