"""`pack` and `unpack`: outside files ⇄ `.apk`. Apart from `api` because converters are needed here and nowhere else."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from adapterpack import _files
from adapterpack.adapter import Adapter
from adapterpack.api import PathLike, Summary
from adapterpack.container import limits
from adapterpack.converters import CONVERTERS, inputs_of, recognise
from adapterpack.converters import settings as given
from adapterpack.converters._base import Hints, Imported, as_described
from adapterpack.errors import CallError, Reason, steering
from adapterpack.packing.bundle import open_bundle
from adapterpack.packing.encode import encode_task
from adapterpack.packing.join import join
from adapterpack.packing.options import Options
from adapterpack.packing.requantize import Report, kept, requantize
from adapterpack.packing.sizes import describe_file

if TYPE_CHECKING:
    from adapterpack.runtime.facts import BackboneFacts

_PATH = ((str, os.PathLike), "a path")
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "source": ((str, os.PathLike, Adapter), "a path or an Adapter"),
    "out": _PATH,
    "to": ((str,), "a form's name"),
    "task": ((str, NoneType), "a name"),
    "backbone": ((*_PATH[0], NoneType), "a timm name or a path"),
    "labels": ((list, tuple, NoneType), "a list of class names"),
    "metadata": ((Mapping, NoneType), "values by name"),
    "settings": ((Mapping, NoneType), "values by name"),
    "force": ((bool,), "True or False"),
}


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

    Of its preprocessing, the settings `input_size`, `mean` and `std` win over all. An adapter that describes itself (in
    memory, or written by this package) keeps its own. Otherwise the recipe of the trainer that the source comes from
    gives all but the input size, and the backbone gives that; where no recipe is known, the backbone gives all.

    Args:
        source: a file or folder that a converter recognises, or an `Adapter` in memory.
        out: the file to write, of any name; whole or not at all.
        profile: "small" (default) or "fast".
        task: the task's name.
        backbone: timm name or `.safetensors` file of the frozen model; gives name, fingerprint, what was frozen, and
            preprocessing.
        bits, group, head_bits: post-training quantization, see `packing.options.Options`.
        labels: class names in the head's row order.
        metadata: free values to keep with the task.
        settings: what the source does not say itself (`{"reorder": False}`), or what is to win over it; see
            `converters.settings.KNOWN`.
        force: replace an existing file; never one that is read.

    Raises:
        CallError: the call is at fault: an option of no use, a bad name, an output that is an input.
        AdapterPackError: the source cannot be read, expressed or written; nothing is left behind.
    """
    _check_types({"source": source, "out": out, "task": task, "backbone": backbone, "labels": labels})
    _check_types({"metadata": metadata, "settings": settings, "force": force})
    options = Options(profile, bits, head_bits, group)
    said = given.checked(settings or {})
    _check_task(task)
    _refuse_inputs(Path(out), _inputs(source, backbone, said))
    _files.refuse_existing(Path(out), force=force)
    facts = _facts(backbone)
    hints = Hints(
        task=task,
        backbone_name=facts.name if facts else None,
        fingerprint=facts.fingerprint if facts else None,
        labels=None if labels is None else tuple(labels),
        data=facts.data if facts else None,
        settings=said,
        backbone=facts.tensors if facts else None,
    )
    imported = _import(source, hints)
    described = replace(imported.adapter, metadata={**imported.adapter.metadata, **(metadata or {})})
    adapter, costs = requantize(described, options)
    data = join([encode_task(adapter, profile)], adapter.backbone)
    written = open_bundle(data)
    if not written.read().same_as(adapter):
        raise RuntimeError("the packed file does not read back as the adapter; please report this")
    _files.write_atomic(out, data, force=force)
    notes = (*([facts.note] if facts and facts.note else []), *imported.notes, *_notes(described, options, costs))
    return Summary(str(out), {**describe_file(written), "path": str(out)}, notes, costs)


def unpack(
    source: _files.SourceLike, out: PathLike, *, to: str, task: str | None = None, force: bool = False
) -> tuple[Path, ...]:
    """Write one task in an outside form.

    Args:
        source: the `.apk`.
        out: the file to write (`petl-vit` writes a `.bin` and a `.yaml` beside it).
        to: a converter's name: "petl-vit", "safetensors", "checkpoint", ….
        task: which task, where the file has several.
        force: replace existing files; never the one that is read.

    Returns:
        The files that were written.

    Raises:
        CallError: no such form.
        UnsupportedAdapterError: `not-expressible`: the form cannot hold this adapter.
    """
    _check_types({"out": out, "to": to, "task": task, "force": force})
    if to not in CONVERTERS:
        raise CallError(f"there is no form {to!r}", Reason.BAD_CALL, hint=f"choose one of {', '.join(CONVERTERS)}")
    _refuse_inputs(Path(out), [Path(source)] if isinstance(source, (str, os.PathLike)) else [])
    return CONVERTERS[to].write(open_bundle(source).read(task), Path(out), force=force)


def _check_types(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of another type than `_KINDS` says, and lists or mappings of names that are no text."""
    for name, value in arguments.items():
        kinds, words = _KINDS[name]
        if not isinstance(value, kinds):
            raise CallError(f"{name} is of type {type(value).__name__}", Reason.BAD_CALL, hint=f"expected {words}")
        if isinstance(value, (list, tuple, Mapping)) and not all(isinstance(item, str) for item in value):
            odd = next(item for item in value if not isinstance(item, str))
            raise CallError(f"{name} has the name {odd!r}", Reason.BAD_CALL, hint="names are text")


def _check_task(task: str | None) -> None:
    """The format's rule for names, so that a bad one is the call's fault and not the source's."""
    if task is None:
        return
    if not task or steering(task) or "/" in task or "\\" in task or task.startswith("."):
        fits = False
    else:
        fits = len(task.encode()) <= limits.NAME_BYTES
    if not fits:
        hint = f"a name has 1 to {limits.NAME_BYTES} bytes, no / \\ or control character, and no dot at its start"
        raise CallError(f"a task cannot be called {task[:80]!r}", Reason.BAD_NAME, hint=hint)


def _inputs(source: PathLike | Adapter, backbone: PathLike | None, said: Mapping[str, Any]) -> list[Path]:
    """The paths that packing may read."""
    found = [] if backbone is None else [Path(backbone)]
    found += [path.with_suffix(".json") for path in found if path.suffix == ".safetensors"]
    if isinstance(source, Adapter):
        return found
    mask = [Path(source).parent / said["mask"]] if "mask" in said else []
    return [*inputs_of(Path(source)), *mask, *found]


def _refuse_inputs(out: Path, inputs: Iterable[Path]) -> None:
    """Refuse an output that is an input, or no file, before any work is done."""
    if str(out) == "-":
        raise CallError("standard output is no place for a file", Reason.BAD_CALL, hint="name a file")
    for path in inputs:
        with contextlib.suppress(OSError, ValueError):  # one of them is not there, or is no path at all
            if out.samefile(path):
                message = f"{out} is read, so it cannot be written"
                raise CallError(message, Reason.BAD_CALL, hint="give the output another name")


def _import(source: PathLike | Adapter, hints: Hints) -> Imported:
    if isinstance(source, Adapter):
        given.only(hints.settings, (), "an adapter in memory")
        return Imported(as_described(source, hints))
    path = Path(source)
    return recognise(path).read(path, hints)


def _facts(backbone: PathLike | None) -> BackboneFacts | None:
    if backbone is None:
        return None
    from adapterpack.runtime.facts import backbone_facts  # needs torch, which opening and inspecting must not

    return backbone_facts(backbone)


def _notes(adapter: Adapter, options: Options, costs: Report) -> list[str]:
    """What quantization left alone."""
    same = kept(adapter, options)
    if same:
        one = "1 matrix was kept as it is: it has" if same == 1 else f"{same} matrices were kept as they are: they have"
        return [f"{one} as few bits already"]
    asked = options.bits is not None or options.head_bits is not None
    return ["nothing was quantized: there is no matrix to quantize"] if asked and not costs else []
