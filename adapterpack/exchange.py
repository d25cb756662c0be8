"""`pack` and `unpack`: outside files ⇄ `.apk`. Apart from `api` because converters are needed here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterpack import _files
from adapterpack.adapter import Adapter, Backbone
from adapterpack.api import PathLike, Summary
from adapterpack.converters import CONVERTERS, recognise
from adapterpack.converters._base import Hints, Imported
from adapterpack.errors import CallError, Reason
from adapterpack.packing.bundle import open_bundle
from adapterpack.packing.encode import encode_task
from adapterpack.packing.join import join
from adapterpack.packing.options import Options
from adapterpack.packing.requantize import requantize
from adapterpack.packing.sizes import describe_file

if TYPE_CHECKING:
    from adapterpack.runtime.facts import BackboneFacts


def pack(
    source: PathLike | Adapter,
    out: PathLike,
    *,
    profile: str = "small",
    task: str | None = None,
    backbone: PathLike | None = None,
    bits: int | None = None,
    group: int = 0,
    head_bits: int | None = None,
    labels: Sequence[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Summary:
    """Make one `.apk` of a supported adapter.

    Args:
        source: a file or folder that a converter recognises, or an `Adapter` in memory.
        out: the file to write; whole or not at all.
        profile: "small" (default) or "fast".
        task: the task's name.
        backbone: timm name or `.safetensors` file of the frozen model; gives name, fingerprint, and what was frozen.
        bits, group, head_bits: post-training quantization, see `packing.options.Options`.
        labels: class names in the head's row order.
        metadata: free values to keep with the task.
        settings: what the source does not say itself (`{"reorder": False}`).
        force: replace an existing file.

    Raises:
        AdapterPackError: the source cannot be read, expressed or written; nothing is left behind.
    """
    options = Options(profile, bits, head_bits, group)
    _files.refuse_existing(Path(out), force=force)
    facts = _facts(backbone)
    hints = Hints(
        task=task,
        backbone_name=facts.name if facts else None,
        fingerprint=facts.fingerprint if facts else None,
        labels=None if labels is None else tuple(labels),
        settings=dict(settings or {}),
        backbone=facts.tensors if facts else None,
    )
    imported = _import(source, hints)
    adapter, costs = requantize(_described(imported.adapter, hints, facts, metadata), options)
    data = join([encode_task(adapter, profile)], adapter.backbone)
    written = open_bundle(data)
    if not written.read().same_as(adapter):
        raise RuntimeError("the packed file does not read back as the adapter; please report this")
    _files.write_atomic(out, data, force=force)
    notes = imported.notes if facts is None or not facts.note else (facts.note, *imported.notes)
    if (bits or head_bits) and not costs:
        notes = (*notes, "nothing was quantized: every matrix has as few bits already")
    return Summary(str(out), {**describe_file(written), "path": str(out)}, notes, costs)


def unpack(source: _files.SourceLike, out: PathLike, *, to: str, task: str | None = None, force: bool = False) -> None:
    """Write one task in an outside form.

    Args:
        source: the `.apk`.
        out: the file to write (`petl-vit` writes a `.bin` and a `.yaml` beside it).
        to: a converter's name: "petl-vit", "safetensors", "checkpoint", ….
        task: which task, where the file has several.
        force: replace existing files.

    Raises:
        CallError: no such form.
        UnsupportedAdapterError: `not-expressible`: the form cannot hold this adapter.
    """
    if to not in CONVERTERS:
        raise CallError(f"there is no form {to!r}", Reason.BAD_CALL, hint=f"choose one of {', '.join(CONVERTERS)}")
    CONVERTERS[to].write(open_bundle(source).read(task), Path(out), force=force)


def _import(source: PathLike | Adapter, hints: Hints) -> Imported:
    if isinstance(source, Adapter):
        return Imported(source)
    path = Path(source)
    return recognise(path).read(path, hints)


def _facts(backbone: PathLike | None) -> BackboneFacts | None:
    if backbone is None:
        return None
    from adapterpack.runtime.facts import backbone_facts  # needs torch, which opening and inspecting must not

    return backbone_facts(backbone)


def _described(
    adapter: Adapter, hints: Hints, facts: BackboneFacts | None, metadata: Mapping[str, Any] | None
) -> Adapter:
    """What the caller said wins over what the source said; the backbone's preprocessing serves where neither did."""
    return replace(
        adapter,
        name=hints.task or adapter.name,
        labels=hints.labels if hints.labels is not None else adapter.labels,
        data=adapter.data or (facts.data if facts else None),
        backbone=Backbone(
            hints.backbone_name or adapter.backbone.name, hints.fingerprint or adapter.backbone.fingerprint
        ),
        metadata={**adapter.metadata, **(metadata or {})},
    )
