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
from adapterpack.errors import AdapterPackError, CorruptFileError, Reason

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
        data: preprocessing.
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
    """An adapter, and one sentence for each thing that happened to it on the way in."""

    adapter: Adapter
    notes: tuple[str, ...] = ()


class Converter(Protocol):
    """One outside form."""

    @property
    def name(self) -> str: ...

    def recognise(self, source: Path) -> bool:
        """Whether the source is of this form, by its name and first bytes; never raises."""
        ...

    def read(self, source: Path, hints: Hints) -> Imported:
        """The adapter in the source.

        Raises:
            AdapterPackError: the source is damaged, incomplete or holds what no rule explains.
        """
        ...

    def write(self, adapter: Adapter, out: Path, *, force: bool) -> None:
        """Write the adapter in this form, all of its files or none.

        Raises:
            UnsupportedAdapterError: `not-expressible`.
            CallError: `file-exists` without `force`.
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
        CorruptFileError: `bad-labels` when there are more or fewer labels than classes.
    """
    labels = adapter.labels if hints.labels is None else hints.labels
    if labels is not None and (adapter.head is None or adapter.head.classes != len(labels)):
        classes = adapter.head.classes if adapter.head else 0
        raise CorruptFileError(
            f"{len(labels)} labels for {classes} classes", Reason.BAD_LABELS, hint="one label a class"
        )
    backbone = Backbone(hints.backbone_name or adapter.backbone.name, hints.fingerprint or adapter.backbone.fingerprint)
    return replace(
        adapter,
        name=hints.task or adapter.name,
        labels=labels,
        data=hints.data or adapter.data,
        backbone=backbone,
        branches=tuple(sorted(adapter.branches, key=canonical_order)),
    )
