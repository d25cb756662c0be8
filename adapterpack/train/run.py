"""One run from data to `run.ckpt`: the composition behind `adapterpack train`. Every decision is made elsewhere."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adapterpack._files import refuse_existing, write_atomic
from adapterpack.adapter import Adapter, Backbone, DataSettings
from adapterpack.converters.checkpoint import read_spt_mask, save_run
from adapterpack.converters.spt_mask import SptMask
from adapterpack.runtime.backbone import Created, create_backbone
from adapterpack.runtime.fingerprint import fingerprint
from adapterpack.train.data import Split, Task, read_task, with_validation
from adapterpack.train.devices import Hardware, choose, seeded
from adapterpack.train.inputs import input_settings
from adapterpack.train.loop import Fit, Progress, State
from adapterpack.train.measure import Score, score
from adapterpack.train.probe import Probe, features
from adapterpack.train.recipe import SCALES, Recipe
from adapterpack.train.resume import load_state, part_of, save_state, stored_scale
from adapterpack.train.select import mask_for
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

    def trainee(self, recipe: Recipe) -> Trainee:
        kind = Probe if recipe.method == "linear" else Trainee
        with seeded(recipe.seed, torch.device("cpu")):  # the start is drawn on the CPU, alike on all devices
            return kind(self.model, recipe, self.classes, self.mask)

    def fit(self, trainee: Trainee, save: Callable[[State], object], stage: str = "train") -> Fit:
        splits = (self.train, self.validation)
        return Fit(trainee, *splits, self.settings, self.hardware, self.report, save, stage)


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
    refuse_existing(request.out, force=request.force)
    hardware = choose(request.device, recipe.precision)
    made = create_backbone(request.backbone)
    settings = input_settings(recipe.method, made.data, request.backbone, request.inputs)
    task = read_task(request.data, settings, skip_corrupt=request.skip_corrupt)
    parts = with_validation(task, recipe.val_share, recipe.seed)
    backbone = _identity(request.backbone, made)
    made.model.to(hardware.device)
    mask = read_spt_mask(request.mask) if request.mask else None
    begin = time.perf_counter()
    setup = _Setup(made.model, *_inputs(made.model, recipe, parts, settings, hardware), len(task.classes), settings,
                   hardware, mask, report)  # fmt: skip
    if recipe.method.startswith("spt-") and mask is None:
        setup = replace(setup, mask=mask_for(made.model, parts[0], setup.classes, settings, hardware, recipe))
    recipe = _with_scale(setup, recipe, request)
    key = {**recipe.to_json(), "data": task.digest, "backbone": backbone.fingerprint, "inputs": repr(settings)}
    trainee = setup.trainee(recipe)
    try:
        state = setup.fit(trainee, lambda now: save_state(request.out, key, now)).run(
            load_state(request.out, key) if request.resume else None
        )
        seconds = time.perf_counter() - begin
        return _finish(request, setup, trainee, state, task, backbone, (made.note, *task.notes, parts[2]), seconds)
    finally:
        trainee.close()


def _finish(
    request: Request,
    setup: _Setup,
    trainee: Trainee,
    state: State,
    task: Task,
    backbone: Backbone,
    notes: tuple[str, ...],
    seconds: float,
) -> Result:
    test = None
    if "test" in task.splits:
        test = score(trainee_on_images(trainee), task.splits["test"], setup.settings, setup.hardware)
    recipe = trainee.recipe
    metadata = {"training": _about(recipe, state, notes[-1])}
    name = request.task or task.name
    adapter = trainee.adapter(
        name, labels=task.classes, data=setup.settings, backbone=backbone, metadata=metadata
    )
    if setup.hardware.rank == 0:
        if recipe.method == "full":
            _save_model(trainee.model, request.out, force=request.force)
        else:
            save_run(adapter, request.out, force=request.force)
        part_of(request.out).unlink(missing_ok=True)
    setup.hardware.wait()
    count = sum(p.numel() for name, p in trainee.trained().items() if not name.startswith(("head", "model.head")))
    told = tuple(note for note in notes if note)
    return Result(None if recipe.method == "full" else adapter, recipe, state, test, count, told, seconds)
