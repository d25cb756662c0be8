"""`pack` and `unpack`: outside files ⇄ `.apk`. Apart from `api` because converters are needed here and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from adapterpack import _files
from adapterpack._arguments import check_task, check_types, checked_settings, facts_of, is_packed
from adapterpack._outputs import refuse_inputs
from adapterpack.adapter import Adapter
from adapterpack.api import PathLike, Summary
from adapterpack.converters import EXPORTERS, inputs_of, read
from adapterpack.converters import settings as given
from adapterpack.converters._base import Exporter, Hints, Imported, as_described
from adapterpack.converters._lost import Lossy
from adapterpack.converters._memory import check_memory
from adapterpack.converters.hf_names import NAMINGS
from adapterpack.converters.peft import Peft
from adapterpack.errors import CallError, MissingFileError, Reason
from adapterpack.packing.bundle import open_bundle, read_adapter
from adapterpack.packing.encode import encode_task
from adapterpack.packing.join import join
from adapterpack.packing.options import CODE_BITS, Options
from adapterpack.packing.requantize import Report, kept, requantize
from adapterpack.packing.sizes import describe_file


@dataclass(frozen=True, slots=True, eq=False)
class _Quantized:
    """An adapter as it is to be stored, and what there is to tell about how it came to that."""

    adapter: Adapter
    costs: Report
    accuracy: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()


class Written(tuple[Path, ...]):
    """The files that `unpack` wrote, the main one first.

    Attributes:
        notes: one sentence for each thing that the form could not hold, or that took another shape in it.
    """

    notes: tuple[str, ...]

    def __new__(cls, paths: Iterable[Path], notes: Iterable[str] = ()) -> Written:
        made = super().__new__(cls, paths)
        made.notes = tuple(notes)
        return made


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
    calibrate: PathLike | None = None,
    evaluate: PathLike | None = None,
    force: bool = False,
) -> Summary:
    """Make one `.apk` of a supported adapter.

    Of its preprocessing, the settings `input_size`, `mean` and `std` win over all. An adapter that describes itself (in
    memory, or written by this package) keeps its own. Otherwise the recipe of the trainer that the source comes from
    gives all but the input size, and the backbone gives that; where no recipe is known, the backbone gives all.

    Args:
        source: a file or folder that a converter recognises, the URL of a folder (`hf://user/repository`, `s3://…`),
            or an `Adapter` in memory; also an `.apk` of one task, to be quantized, described or stored in another way.
        out: the file to write, of any name; whole or not at all.
        profile: "small" (default) or "fast".
        task: the task's name.
        backbone: timm name or `.safetensors` file of the frozen model; gives name, fingerprint, what was frozen, and
            preprocessing.
        bits, group, head_bits: post-training quantization, see `packing.options.Options`.
        labels: class names in the head's row order.
        metadata: free values to keep with the task; `accuracy` wins over what `evaluate` measures.
        settings: what the source does not say itself (`{"reorder": False}`), or what is to win over it; see
            `converters.settings.KNOWN`.
        calibrate: images (labels are not needed) on which the scales of codes are fitted to what the branches give out,
            instead of to the weights; needs `backbone`.
        evaluate: a data set with `test/`, on which accuracy is measured before and after quantizing, or of a fine-tuned
            model and of what is kept of it; needs `backbone`. What is written has it as `accuracy` in its metadata.
        force: replace an existing file; never one that is read.

    Raises:
        CallError: the call is at fault: an option of no use, a bad name, an output that is an input.
        AdapterPackError: the source cannot be read, expressed or written, or does not fit the backbone; nothing is left
            behind.
    """
    check_types({"source": source, "out": out, "task": task, "backbone": backbone, "labels": labels})
    check_types({"metadata": metadata, "settings": settings, "force": force})
    check_types({"calibrate": calibrate, "evaluate": evaluate})
    options = Options(profile, bits, head_bits, group)
    said = checked_settings(settings)
    _check_images(options, backbone, calibrate, evaluate)
    check_task(task)
    images = [Path(path) for path in (calibrate, evaluate) if path is not None]
    refuse_inputs(Path(out), [*_inputs(source, said), *images], backbone)
    _files.refuse_output(Path(out), force=force)
    facts = facts_of(backbone)
    hints = Hints(task=task, labels=None if labels is None else tuple(labels), settings=said)
    hints = facts.added_to(hints) if facts else hints
    imported = _import(source, hints)
    if facts:
        facts.require_fit(imported.adapter)
    described = replace(imported.adapter, metadata={**imported.adapter.metadata, **(metadata or {})})
    tuned = _tuned(source, hints) if evaluate is not None and imported.matrices else None
    found = _quantized(described, options, tuned, backbone, calibrate, evaluate)
    adapter, costs = _measured(found, metadata or {}), found.costs
    data = join([encode_task(adapter, profile)], adapter.backbone)
    written = open_bundle(data)
    if not written.read().same_as(adapter):
        raise RuntimeError("the packed file does not read back as the adapter; please report this")
    _files.write_atomic(out, data, force=force)
    notes = (*([facts.note] if facts and facts.note else []), *imported.notes, *_notes(described, options, costs))
    sizes = {**describe_file(written), "path": str(out)}
    return Summary(str(out), sizes, (*notes, *found.notes), costs, found.accuracy, imported.matrices)


def unpack(
    source: _files.SourceLike, out: PathLike, *, to: str, task: str | None = None, names: str = "", force: bool = False
) -> Written:
    """Write one task in an outside form.

    Args:
        source: the `.apk`.
        out: the file to write (`petl-vit` writes a `.bin` and a `.yaml` beside it).
        to: a form's name: "petl-vit", "safetensors", "checkpoint", "gguf", ….
        task: which task, where the file has several.
        names: of "peft", whose module names: "timm", "vit", "deit", "dinov2", "clip", … (`converters.hf_names`); "" for
            those that the source had, else timm's.
        force: replace existing files; never the one that is read.

    Returns:
        The files that were written, and in `.notes` what the form has no place for.

    Raises:
        CallError: no such form, or a package that it needs is missing.
        MissingFileError: the folder that `out` is to be in is not there.
        UnsupportedAdapterError: `not-expressible`: the form cannot hold this adapter.
    """
    check_types({"out": out, "to": to, "task": task, "names": names, "force": force})
    form = _form(to, names)
    refuse_inputs(Path(out), [Path(source)] if isinstance(source, (str, os.PathLike)) else [])
    _files.refuse_no_folder(Path(out))
    adapter = read_adapter(source, task)
    notes = form.lost(adapter) if isinstance(form, Lossy) else ()
    return Written(form.write(adapter, Path(out), force=force), notes)


def _form(to: str, names: str) -> Exporter:
    """A form, writing certain names of modules where that was asked for."""
    if to not in EXPORTERS:
        hint = f"choose one of {', '.join(EXPORTERS)}"
        if to == "onnx":  # a graph is of a whole model
            hint = "a whole model is written by: adapterpack load FILE --backbone B --export OUT.onnx"
        raise CallError(f"there is no form {to!r}", Reason.BAD_CALL, hint=hint)
    form = EXPORTERS[to]
    if not names:
        return form
    if not isinstance(form, Peft):
        raise CallError(f"{to} has one kind of names", Reason.BAD_CALL, hint="--names (names=) is for peft")
    if names not in NAMINGS:
        hint = f"choose one of {', '.join(NAMINGS)}"
        raise CallError(f"there are no names {names[:80]!r}", Reason.BAD_CALL, hint=hint)
    return replace(form, names=names)


def _inputs(source: PathLike | Adapter, said: Mapping[str, Any]) -> list[Path]:
    """The paths that a source may be read from."""
    if isinstance(source, Adapter) or "://" in os.fspath(source):
        return []
    mask = [Path(source).parent / said["mask"]] if "mask" in said else []
    return [*inputs_of(Path(source)), *mask]


def _import(source: PathLike | Adapter, hints: Hints) -> Imported:
    if isinstance(source, Adapter):
        check_memory(source)
        given.only(hints.settings, (), "an adapter in memory")
        return Imported(as_described(source, hints))
    if not is_packed(os.fspath(source)):
        return read(source, hints)
    given.only(hints.settings, (), "what is packed already")
    bundle = open_bundle(source)
    if len(bundle.tasks) > 1:
        message = f"{bundle.source.name} has {len(bundle.tasks)} tasks"
        raise CallError(message, Reason.BAD_CALL, hint="take it apart with `adapterpack split`, and pack one of them")
    return Imported(as_described(bundle.read(), hints))


def _check_images(
    options: Options, backbone: PathLike | None, calibrate: PathLike | None, evaluate: PathLike | None
) -> None:
    for name, path in (("calibrate", calibrate), ("evaluate", evaluate)):
        if path is None:
            continue
        wanted = [bits for bits in (options.bits, options.head_bits) if bits is not None]
        if name == "calibrate" and min(wanted, default=32) > CODE_BITS:
            hint = f"give --bits or --head-bits (bits=, head_bits=) of at most {CODE_BITS}"
            raise CallError(f"--{name} ({name}=) without bits to quantize to", Reason.BAD_CALL, hint=hint)
        if backbone is None:
            hint = "give --backbone (backbone=)"
            raise CallError(f"--{name} ({name}=) needs the backbone", Reason.BAD_CALL, hint=hint)
        with _files.os_errors(str(path)):
            there = Path(path).exists()
        if not there:
            raise MissingFileError(f"there is no {path}", Reason.MISSING_FILE, hint=f"check --{name}")


def _tuned(source: PathLike | Adapter, hints: Hints) -> Adapter:
    """The whole fine-tuned model as a task: all that training changed, but for the rounding of a float32 sum."""
    return _import(source, replace(hints, settings={**hints.settings, "as": "sparse"})).adapter


def _quantized(
    adapter: Adapter,
    options: Options,
    tuned: Adapter | None,
    backbone: PathLike | None,
    calibrate: PathLike | None,
    evaluate: PathLike | None,
) -> _Quantized:
    """The adapter in the bits that were asked for; looked at on images where that was asked for, too."""
    coded, costs = requantize(adapter, options)
    if backbone is None or (calibrate is None and evaluate is None):
        return _Quantized(coded, costs)
    from adapterpack.train.quantization import Images, judge  # needs torch

    paths = (None if path is None else Path(path) for path in (calibrate, evaluate))
    found = judge(adapter, coded, costs, Images(os.fspath(backbone), *paths), tuned)
    accuracy = None if found.judged is None else asdict(found.judged)
    return _Quantized(found.adapter, found.costs, accuracy, found.notes)


def _measured(found: _Quantized, metadata: Mapping[str, Any]) -> Adapter:
    """The adapter with its accuracy, where that was measured and the caller did not say it."""
    if found.accuracy is None or "accuracy" in metadata:
        return found.adapter
    return replace(found.adapter, metadata={**found.adapter.metadata, "accuracy": found.accuracy["after"]})


def _notes(adapter: Adapter, options: Options, costs: Report) -> list[str]:
    """What quantization left alone."""
    same = kept(adapter, options)
    if same:
        one = "1 matrix was kept as it is: it has" if same == 1 else f"{same} matrices were kept as they are: they have"
        return [f"{one} as few bits already"]
    asked = options.bits is not None or options.head_bits is not None
    return ["nothing was quantized: there is no matrix to quantize"] if asked and not costs else []
