"""One adapter tried out in one backbone: loaded, run on images, exported, unloaded, and the backbone compared.

This is what `adapterpack load` does. Whatever can be refused without the backbone is refused before it is made.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from adapterpack import _files
from adapterpack._outputs import refuse_inputs
from adapterpack.adapter import DataSettings
from adapterpack.container.index import TaskEntry
from adapterpack.errors import CallError, Reason, UnsupportedAdapterError
from adapterpack.methods import METHODS
from adapterpack.packing.bundle import Bundle
from adapterpack.runtime import backbone, deploy, export, export_onnx, images
from adapterpack.runtime.about import about_loaded
from adapterpack.runtime.devices import choose_device
from adapterpack.runtime.fingerprint import fingerprint
from adapterpack.runtime.load import Loaded
from adapterpack.runtime.plan import Fold

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """What to try.

    Attributes:
        bundle: the opened file.
        backbone: timm name, or path of a `.safetensors` file.
        task: which task; None where the file has one.
        fold: as for `load`.
        device: "auto", "cpu" or "cuda".
        images: paths of images to classify.
        top: how many classes to give for each.
        export: where to write the model with the adapter in it, `.safetensors` (folded) or `.onnx`; None for nowhere.
        force: replace an existing file there.
        check_fingerprint: False accepts any backbone of the right shape.
    """

    bundle: Bundle
    backbone: str
    task: str | None = None
    fold: Fold = "auto"
    device: str = "auto"
    images: tuple[str, ...] = ()
    top: int = 5
    export: Path | None = None
    force: bool = False
    check_fingerprint: bool = True


def try_out(trial: Trial) -> Json:
    """Do all of it.

    Returns:
        task, classes, backbone, random_weights, device, folded, attached, load_ms, images, export (where one was
        written), unload_exact and notes; a JSON object.

    Raises:
        CallError: as `check`; `bad-call`, an export where the backbone's own weights cannot be had.
        AdapterPackError: as `load`, `read_image`, `export_folded` and `export_onnx`.
    """
    device = check(trial)
    made = backbone.create_backbone(trial.backbone)
    if trial.export is not None and made.note:
        text = f"{trial.export} would be a model of random numbers: {made.note.rpartition(': ')[0]}"
        hint = "give the weights as a file: --backbone NAME.safetensors, its .json beside it"
        raise CallError(text, Reason.BAD_CALL, hint=hint)
    before = _digest(made.model)
    start = time.perf_counter()
    wanted = trial.check_fingerprint and not made.note  # random weights match no fingerprint, and the note says so
    loaded = deploy.load(trial.bundle, made.model, trial.task, trial.fold, device, check_fingerprint=wanted)
    result = {**_described(loaded, trial.backbone), "load_ms": round(1000 * (time.perf_counter() - start), 3)}
    result["images"] = [_classified(loaded, path, made.data, trial.top) for path in trial.images]
    notes = [made.note] * bool(made.note)
    if trial.export is not None:
        write = export_onnx.export_onnx if trial.export.suffix == ".onnx" else export.export_folded
        notes += write(made.model, trial.export, about=about_loaded(loaded, made, trial.backbone), force=trial.force)
        result["export"] = str(trial.export)
    loaded.unload()
    exact = _digest(made.model) == before
    return {**result, "random_weights": bool(made.note), "unload_exact": exact, "notes": notes}


def check(trial: Trial) -> str:
    """Refuse what can be refused without a backbone.

    Returns:
        The device to use.

    Raises:
        MissingFileError, CorruptFileError: an image that cannot be read.
        CallError: no such task or device, an export that would replace a file or that nothing is folded for.
        UnsupportedAdapterError: `not-foldable`.
    """
    trial.bundle.task_digest(trial.task)
    entry = next(entry for entry in trial.bundle.index.tasks if trial.task in (None, entry.name))
    _check_fold(trial, entry)
    if trial.export is not None:
        _check_export(trial, trial.export)
    device = choose_device(trial.device)
    for path in trial.images:
        images.check_image(path)
    return device


def _check_export(trial: Trial, path: Path) -> None:
    if path.suffix not in (".safetensors", ".onnx"):
        text = f"{path.name} is neither .safetensors nor .onnx"
        raise CallError(text, Reason.BAD_CALL, hint="the suffix of the export chooses its form")
    for file in (path,) if path.suffix == ".onnx" else export.files_of(path):
        refuse_inputs(file, [], trial.backbone)
        _files.refuse_output(file, force=trial.force)
    if path.suffix == ".onnx":
        export_onnx.require_packages()


def _check_fold(trial: Trial, entry: TaskEntry) -> None:
    if trial.export is not None and trial.export.suffix == ".onnx" and trial.fold != "always":
        return  # the graph takes what runs beside the weights
    if trial.export is not None and trial.fold == "never" and entry.groups:
        hint = 'leave out the export, or use fold="auto"'
        raise CallError("an export has everything folded in, and nothing shall be folded", Reason.BAD_CALL, hint=hint)
    if trial.export is None and trial.fold != "always":
        return
    for group in entry.groups:
        if group.method in METHODS and not METHODS[group.method].foldable:
            text = f"{group.method} at {group.sites[0]} cannot be folded"
            hint = "export to .onnx" if trial.export is not None and trial.fold == "auto" else 'use fold="auto"'
            raise UnsupportedAdapterError(text, Reason.NOT_FOLDABLE, group.sites[0], hint)


def _digest(model: nn.Module) -> str:
    """Of the frozen tensors, computed afresh: equal before and after means restored to the bit."""
    return fingerprint(model.state_dict())


def _described(loaded: Loaded, name: str) -> Json:
    return {
        "task": loaded.task,
        "classes": loaded.classes,
        "backbone": name,
        "device": str(next(loaded.model.parameters()).device),
        "folded": list(loaded.folded),
        "attached": list(loaded.attached),
    }


def _classified(loaded: Loaded, path: str, data: DataSettings, top: int) -> Json:
    image = images.read_image(path, loaded.data or data)
    best = images.top_classes(loaded.model, image, top, loaded.labels)
    rows = [{"class": b.index, "label": b.label or None, "probability": round(b.probability, 6)} for b in best]
    return {"path": path, "top": rows}
