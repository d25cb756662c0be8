"""The public verbs that need no model in memory: open, pack, unpack, bundle, split.

Compositions of the layers below; nothing is decided here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapterpack import _files
from adapterpack.adapter import Adapter, Backbone
from adapterpack.container.limits import Limits
from adapterpack.converters import CONVERTERS, recognise
from adapterpack.converters._base import Hints, Imported
from adapterpack.errors import CallError, Reason
from adapterpack.packing.bundle import Bundle, open_bundle
from adapterpack.packing.encode import encode_task
from adapterpack.packing.join import common_backbone, join
from adapterpack.packing.options import Options
from adapterpack.packing.requantize import Report, requantize
from adapterpack.packing.sizes import describe_file

SUFFIXES = (".apk", ".adapterpack")
PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True, eq=False)
class Summary:
    """What `pack`, `bundle` or `split` wrote.

    Attributes:
        path: the file.
        sizes: as `inspect --json` gives for a file; see `packing.sizes.describe_file`.
        notes: one sentence for each thing that happened on the way in.
        costs: relative error of each tensor that was quantized.
    """

    path: str
    sizes: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    costs: Report = ()


def open(source: _files.SourceLike, *, limits: Limits | None = None) -> Bundle:
    """Open an `.apk`, reading and verifying its head only.

    Args:
        source: path, bytes, seekable binary file object, or URL that fsspec opens.
        limits: tighter or wider than the default of 4 GiB decoded.

    Returns:
        A `Bundle`: `.tasks`, `.read(task)`, `.digest`.

    Raises:
        MissingFileError, CallError: nothing there, or no regular file.
        CorruptFileError, UnsupportedVersionError: not a file of ours, damaged, or newer than this reader.

    Source: spec/README.md.
    """
    return open_bundle(source, limits)


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
    hints = _hints(task, backbone, labels, settings)
    imported = _import(source, hints)
    adapter, costs = requantize(_described(imported.adapter, hints, metadata), options)
    data = join([encode_task(adapter, profile)], adapter.backbone)
    written = open_bundle(data)
    if not written.read().same_as(adapter):
        raise RuntimeError("the packed file does not read back as the adapter; please report this")
    _files.write_atomic(out, data, force=force)
    return Summary(str(out), {**describe_file(written), "path": str(out)}, imported.notes, costs)


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


def bundle(sources: Sequence[_files.SourceLike], out: PathLike, *, force: bool = False) -> Summary:
    """Put the tasks of several files into one; payloads move unread, digests stay.

    Raises:
        BackboneMismatchError: `backbones-differ`.
        CallError: `duplicate-name`, `file-exists`.
    """
    _files.refuse_existing(Path(out), force=force)
    opened = [open_bundle(source) for source in sources]
    shared = common_backbone([(one.source.name, one.backbone) for one in opened])
    data = join([one.encoded(task) for one in opened for task in one.tasks], shared)
    _files.write_atomic(out, data, force=force)
    return Summary(str(out), {**describe_file(open_bundle(data)), "path": str(out)})


def split(source: _files.SourceLike, folder: PathLike, *, force: bool = False) -> tuple[Summary, ...]:
    """Write each task of a file into a file of its own, `<task>.apk` in `folder`; all are written or none is begun.

    Raises:
        CallError: `file-exists`, naming the first file in the way.
    """
    opened = open_bundle(source)
    target = Path(folder)
    names = {task: target / f"{task}.apk" for task in opened.tasks}
    for path in names.values():
        _files.refuse_existing(path, force=force)
    files = {path: join([opened.encoded(task)], opened.backbone) for task, path in names.items()}
    _files.make_folder(target)
    for path, data in files.items():
        _files.write_atomic(path, data, force=force)
    return tuple(
        Summary(str(path), {**describe_file(open_bundle(data)), "path": str(path)}) for path, data in files.items()
    )


def _import(source: PathLike | Adapter, hints: Hints) -> Imported:
    if isinstance(source, Adapter):
        return Imported(source)
    path = Path(source)
    return recognise(path).read(path, hints)


def _hints(
    task: str | None, backbone: PathLike | None, labels: Sequence[str] | None, settings: Mapping[str, Any] | None
) -> Hints:
    names = None if labels is None else tuple(labels)
    plain = Hints(task=task, labels=names, settings=dict(settings or {}))
    if backbone is None:
        return plain
    from adapterpack.runtime.facts import backbone_facts  # needs torch, which opening and inspecting must not

    facts = backbone_facts(backbone)
    return replace(plain, backbone_name=facts.name, fingerprint=facts.fingerprint, backbone=facts.tensors, data=None)


def _described(adapter: Adapter, hints: Hints, metadata: Mapping[str, Any] | None) -> Adapter:
    """What the caller said wins over what the source said."""
    backbone = Backbone(hints.backbone_name or adapter.backbone.name, hints.fingerprint or adapter.backbone.fingerprint)
    return replace(
        adapter,
        name=hints.task or adapter.name,
        labels=hints.labels if hints.labels is not None else adapter.labels,
        backbone=backbone,
        metadata={**adapter.metadata, **(metadata or {})},
    )
