"""The public verbs that need neither a model nor a converter: open, bundle, split. Nothing is decided here."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from adapterpack import _files
from adapterpack.container.limits import Limits
from adapterpack.errors import CallError, Reason
from adapterpack.packing.bundle import Bundle, open_bundle
from adapterpack.packing.cross import cross_coded, standalone
from adapterpack.packing.join import common_backbone, join, require_different
from adapterpack.packing.sizes import describe_file

if TYPE_CHECKING:
    from adapterpack.converters._report import Extracted
    from adapterpack.packing.requantize import Report

PathLike = Union[str, "os.PathLike[str]"]


@dataclass(frozen=True, slots=True, eq=False)
class Summary:
    """What `pack`, `bundle` or `split` wrote.

    Attributes:
        path: the file.
        sizes: as `inspect --json` gives for a file; see `packing.sizes.describe_file`.
        notes: one sentence for each thing that happened on the way in.
        costs: what quantizing did to each matrix, see `packing.requantize.Cost`.
        accuracy: `before` and `after` quantizing on so many `examples`, where `pack` was asked to evaluate; `baseline`
            says what was before: "unquantized", "fine-tuned" (the whole model), or "same".
        matrices: what was kept of each tensor of a fine-tuned model, before quantizing; see `converters.finetune`.
    """

    path: str
    sizes: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    costs: Report = ()
    accuracy: Mapping[str, Any] | None = None
    matrices: tuple[Extracted, ...] = ()


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


def bundle(
    sources: Sequence[_files.SourceLike], out: PathLike, *, cross_task: bool = False, force: bool = False
) -> Summary:
    """Put the tasks of several files into one; digests stay.

    Args:
        sources: the files.
        out: the file to write; whole or not at all.
        cross_task: code the signs of a task given the tasks before it, where that is smaller (tasks trained from one
            seed). Reading such a task reads and decodes those that it is given, too. Otherwise payloads move unread.
        force: replace an existing file.

    Returns:
        What was written; with `cross_task`, `sizes["cross_task"]` has the bytes of the file before and after.

    Raises:
        BackboneMismatchError: `backbones-differ`.
        CallError: `duplicate-name`, `file-exists`; `bad-call`, no sources.
        CorruptFileError: with `cross_task`, a task that cannot be decoded.
    """
    if isinstance(sources, (str, bytes, os.PathLike)) or not isinstance(sources, Iterable):
        text = f"sources is of type {type(sources).__name__}"
        raise CallError(text, Reason.BAD_CALL, hint="expected a list of files")
    _files.refuse_output(_path(out), force=force)
    opened = [open_bundle(source) for source in sources]
    if not opened:
        raise CallError("there is nothing to bundle", Reason.BAD_CALL, hint="give at least one file")
    shared = common_backbone([(one.source.name, one.backbone) for one in opened])
    require_different([(task, one.source.name) for one in opened for task in one.tasks])
    data = plain = join([one.encoded(task) for one in opened for task in one.tasks], shared)
    if cross_task:
        data = cross_coded(plain)
    sizes = {**describe_file(open_bundle(data)), "path": str(out)}
    if cross_task:
        sizes["cross_task"] = {"bytes_before": len(plain), "bytes_after": len(data)}
    _files.write_atomic(out, data, force=force)
    return Summary(str(out), sizes)


def split(source: _files.SourceLike, folder: PathLike, *, force: bool = False) -> tuple[Summary, ...]:
    """Write each task of a file into a file of its own, `<task>.apk` in `folder`; all are written or none is begun.

    Segments that were coded given other tasks are coded anew, as the small profile does; all others move unread.

    Raises:
        CallError: `file-exists`, naming the first file in the way.
    """
    opened = open_bundle(source)
    target = _path(folder)
    names = {task: target / f"{task}.apk" for task in opened.tasks}
    if len({str(path).casefold() for path in names.values()}) < len(names):
        text = "two task names differ in case only, which some file systems ignore"
        raise CallError(text, Reason.DUPLICATE_NAME, hint="rename one: pack it again with --task")
    for path in names.values():
        _files.refuse_existing(path, force=force)
    files = {path: join([standalone(opened, task)], opened.backbone) for task, path in names.items()}
    _files.make_folder(target)
    _files.write_all(files, force=force)
    return tuple(
        Summary(str(path), {**describe_file(open_bundle(data)), "path": str(path)}) for path, data in files.items()
    )


def _path(out: PathLike) -> Path:
    if not isinstance(out, (str, os.PathLike)):
        raise CallError(f"the output is of type {type(out).__name__}", Reason.BAD_CALL, hint="expected a path")
    return Path(out)
