"""One run from data to `run.ckpt`: the composition behind `adapterpack train`. Every decision is made elsewhere."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adapterpack._files import refuse_output, write_atomic
from adapterpack._outputs import refuse_inputs
from adapterpack.adapter import Adapter, Backbone, DataSettings
from adapterpack.codecs import labels
from adapterpack.container.names import TASK_NAMES, fits_task
from adapterpack.converters.checkpoint import read_spt_mask, save_run
from adapterpack.converters.spt_mask import SptMask
from adapterpack.errors import CallError, Reason
from adapterpack.runtime.backbone import Created, create_backbone
from adapterpack.runtime.fingerprint import fingerprint
from adapterpack.train.data import Split, Task, read_task, with_validation
from adapterpack.train.devices import Hardware, choose, seeded
from adapterpack.train.inputs import input_settings
from adapterpack.train.loop import Fit, Progress, State
from adapterpack.train.measure import Score, score
from adapterpack.train.probe import Probe, features
from adapterpack.train.recipe import Recipe
from adapterpack.train.resume import Journal, part_of, read_journal
from adapterpack.train.select import Setting, best_scale, mask_for
from adapterpack.train.sensitivity import digest_of
from adapterpack.train.trainee import Trainee

Json = dict[str, Any]
Report = Callable[[Progress], object]


@dataclass(frozen=True, slots=True)
class Request:
    """What to train on, and where the result goes.

    Attributes:
        data: folder or `.npz`.
        backbone: timm name or `.safetensors` file.
        out: the checkpoint.
        task: the task's name; by default the data's.
        mask: SPT's, a `param_req_*.pth`; by default it is made first.
        inputs: "auto", "recipe" or "backbone", see `inputs`.
        device: "auto", "cpu", "cuda".
        skip_corrupt: leave out images that cannot be read.
        resume: go on where an earlier run was stopped.
        force: replace `out`.
    """

    data: Path
    backbone: str
    out: Path
    task: str = ""
    mask: Path | None = None
    inputs: str = "auto"
    device: str = "auto"
    skip_corrupt: bool = False
    resume: bool = False
    force: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What a run led to.

    Attributes:
        adapter: None for full fine-tuning.
        recipe: with the scale that was found.
        state: history and the best epoch.
        test: on the test images, where there are any; they chose nothing.
        parameters: trained, the head left out.
        notes: what a user should know.
        seconds: of training.
    """

    adapter: Adapter | None
    recipe: Recipe
    state: State
    test: Score | None
    parameters: int
    notes: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class _Setup:
    """Everything that stays the same between the runs of a search."""

    model: nn.Module
    train: Split
    validation: Split
    classes: int
    settings: DataSettings
    hardware: Hardware
    mask: SptMask | None
    report: Report
    journal: Journal

    def trainee(self, recipe: Recipe) -> Trainee:
        kind = Probe if recipe.method == "linear" else Trainee
        with seeded(recipe.seed, torch.device("cpu")):  # the start is drawn on the CPU, alike on all devices
            return kind(self.model, recipe, self.classes, self.mask)

    def try_one(self, recipe: Recipe, stage: str) -> Score:
        """A short run of a search: its best validation score."""
        trainee = self.trainee(recipe)
        try:
            return self.run(trainee, stage).best_score
        finally:
            trainee.close()

    def run(self, trainee: Trainee, stage: str = "train") -> State:
        """Train from where the stage stands."""
        splits, save = (self.train, self.validation), partial(self.journal.save, stage)
        fit = Fit(trainee, *splits, self.settings, self.hardware, self.report, save, stage)
        return fit.run(self.journal.at(stage))


def train(request: Request, recipe: Recipe, report: Report) -> Result:
    """Train, keep the epoch that is best on the validation images, write the checkpoint.

    Args:
        request: data, backbone, output.
        recipe: what and how.
        report: is told of every step.

    Raises:
        AdapterPackError: bad data, backbone or settings; a loss that is no number; a full disk. What was trained until
            the last epoch is in `run.ckpt.part`.
    """
    _require_name(request.task or None)
    refuse_inputs(request.out, [request.data, *([request.mask] if request.mask else [])], request.backbone)
    refuse_output(request.out, force=request.force)
    hardware = choose(request.device, recipe.precision)
    made = create_backbone(request.backbone)
    settings = input_settings(recipe.method, made.data, request.backbone, request.inputs)
    task = read_task(request.data, settings, skip_corrupt=request.skip_corrupt)
    _require_name(request.task or task.name)
    labels.encode(task.classes)  # refuses class names that no file can hold, for the same reason
    fitting, validation, aside = with_validation(task, recipe.val_share, recipe.seed)
    backbone = _identity(request.backbone, made)
    made.model.to(hardware.device)
    begin = time.perf_counter()
    mask = _mask(request, recipe, made.model, Setting(fitting, len(task.classes), settings, hardware))
    key = _key(recipe, task, backbone, settings, mask)
    journal = _journal(request, key, hardware)
    if recipe.method == "linear":
        fitting, validation = (features(made.model, part, settings, hardware) for part in (fitting, validation))
    setup = _Setup(made.model, fitting, validation, len(task.classes), settings, hardware, mask, report, journal)
    if recipe.scale is None:
        recipe = replace(recipe, scale=best_scale(recipe, setup.try_one, journal.tried))
    trainee = setup.trainee(recipe)
    try:
        state = setup.run(trainee)
        about = _about(trainee, state, aside)
        notes = tuple(
            note for note in (made.note, *task.notes, f"validated on {aside}", _lost(recipe, settings)) if note
        )
        seconds = time.perf_counter() - begin
        test = _test(trainee, task, setup)
        adapter = trainee.adapter(
            request.task or task.name,
            labels=task.classes,
            data=settings,
            backbone=backbone,
            metadata={"training": about},
        )
        if hardware.rank == 0:
            _save(trainee, adapter, request)
        hardware.wait()
        kept = None if recipe.method == "full" else adapter
        return Result(kept, recipe, state, test, _count(trainee), notes, seconds)
    finally:
        trainee.close()


def _require_name(task: str | None) -> None:
    """Before any work, because nothing could be packed of what comes of it."""
    if task is not None and not fits_task(task):
        text = f"a task cannot be called {task[:80]!r}"
        raise CallError(text, Reason.BAD_NAME, hint=f"give another --task: {TASK_NAMES}")


def _identity(name_or_file: str, made: Created) -> Backbone:
    """What the adapter records of its backbone; random weights have no fingerprint worth comparing."""
    name = Path(name_or_file).stem if name_or_file.endswith(".safetensors") else name_or_file
    return Backbone(name, None if made.note else fingerprint(made.model))


def _mask(request: Request, recipe: Recipe, model: nn.Module, setting: Setting) -> SptMask | None:
    if not recipe.method.startswith("spt-"):
        return None
    found = read_spt_mask(request.mask) if request.mask else mask_for(model, setting, recipe)
    return setting.hardware.of_first(found)  # type: ignore[no-any-return]


def _key(recipe: Recipe, task: Task, backbone: Backbone, settings: DataSettings, mask: SptMask | None) -> Json:
    """What decides a run: one that differs in any of it is another run."""
    return {
        **recipe.to_json(),
        "data": task.digest,
        "backbone": backbone.fingerprint or backbone.name,
        "inputs": repr(settings),
        "mask": None if mask is None else digest_of(mask),
    }


def _journal(request: Request, key: Json, hardware: Hardware) -> Journal:
    """What the first process knows: beside another one, on another machine, may lie what is left of another run."""
    known = request.resume and hardware.rank == 0
    found = hardware.of_first(read_journal(request.out, key) if known else Journal(request.out, key))
    return found  # type: ignore[no-any-return]


def _test(trainee: Trainee, task: Task, setup: _Setup) -> Score | None:
    """On the test images, in float32."""
    if "test" not in task.splits:
        return None
    exact = replace(setup.hardware, bf16=False)
    split = task.splits["test"]
    if isinstance(trainee, Probe):
        split = features(trainee.model, split, setup.settings, exact)
    return score(trainee, split, setup.settings, exact)


def _about(trainee: Trainee, state: State, aside: str) -> Json:
    return {
        "recipe": trainee.recipe.to_json(),
        "epoch": state.best_epoch,
        "validation_accuracy": round(state.best_score.accuracy, 6),
        "validated_on": aside,
    }


def _lost(recipe: Recipe, settings: DataSettings) -> str:
    """What a whole model's state dict has no place for."""
    if recipe.method != "full":
        return ""
    mean, std = (",".join(f"{value:g}" for value in values) for values in (settings.mean, settings.std))
    return f"a whole model keeps no class names and no input values (mean {mean}, std {std}), see docs/finetunes.md"


def _count(trainee: Trainee) -> int:
    head = {id(parameter) for parameter in trainee.head.parameters()}
    return sum(parameter.numel() for parameter in trainee.trained().values() if id(parameter) not in head)


def _save(trainee: Trainee, adapter: Adapter, request: Request) -> None:
    if trainee.recipe.method == "full":
        buffer = io.BytesIO()
        torch.save({name: value.detach().cpu() for name, value in trainee.model.state_dict().items()}, buffer)
        write_atomic(request.out, buffer.getvalue(), force=request.force)
    else:
        save_run(adapter, request.out, force=request.force)
    part_of(request.out).unlink(missing_ok=True)
