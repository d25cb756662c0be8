"""From data to a mask file: the composition behind `adapterpack sensitivity`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterpack._files import refuse_output
from adapterpack._outputs import refuse_inputs
from adapterpack.runtime.backbone import create_backbone
from adapterpack.train.data import read_task
from adapterpack.train.devices import choose
from adapterpack.train.inputs import input_settings
from adapterpack.train.recipe import recipe_for
from adapterpack.train.select import Setting, mask_for
from adapterpack.train.sensitivity import describe_mask, save_mask


@dataclass(frozen=True, slots=True)
class MaskRequest:
    """What to measure, and where the mask goes.

    Attributes:
        data: folder or `.npz`; only its training images are read.
        backbone: timm name or `.safetensors` file.
        budget: in millions of parameters.
        out: the mask.
        kind: "lora" or "adapter".
        dim: rank of the modules.
        seed: of the head, the order and drop path.
        device, inputs: as in training.
        skip_corrupt: leave out images that cannot be read.
        force: replace `out`.
    """

    data: Path
    backbone: str
    budget: float
    out: Path
    kind: str = "lora"
    dim: int = 8
    seed: int = 0
    device: str = "auto"
    inputs: str = "auto"
    skip_corrupt: bool = False
    force: bool = False


def write_mask(request: MaskRequest, step: Callable[[], object]) -> dict[str, Any]:
    """Measure, choose, write; what was chosen, in numbers.

    Args:
        request: what to measure.
        step: is called after each of at most 16 batches.

    Raises:
        AdapterPackError: bad data or backbone, or a budget that no mask of this model comes near.
    """
    changes = {"budget": request.budget, "dim": request.dim, "seed": request.seed, "precision": "float32"}
    recipe = recipe_for(f"spt-{request.kind}", changes)
    refuse_inputs(request.out, [request.data], request.backbone)
    refuse_output(request.out, force=request.force)
    hardware = choose(request.device, "float32")
    made = create_backbone(request.backbone)
    settings = input_settings(recipe.method, made.data, request.backbone, request.inputs)
    task = read_task(request.data, settings, skip_corrupt=request.skip_corrupt, only=("train",))
    model = made.model.to(hardware.device)
    mask = mask_for(model, Setting(task.split("train"), len(task.classes), settings, hardware), recipe, step)
    save_mask(mask, request.out, force=request.force)
    notes = [note for note in (made.note, *task.notes) if note]
    return {"path": str(request.out), **describe_mask(mask), "notes": notes}
