"""Quantization judged by images: scales fitted to what branches give out, and accuracy before and after.

The composition behind `pack --calibrate` and `pack --evaluate`; `runtime.calibrate` and `measure` give the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adapterpack.adapter import Adapter
from adapterpack.errors import CallError, Reason
from adapterpack.packing.requantize import Report
from adapterpack.runtime.backbone import Created, create_backbone
from adapterpack.runtime.calibrate import calibrate
from adapterpack.runtime.images import normalised
from adapterpack.train.data import read_some, read_task
from adapterpack.train.devices import choose
from adapterpack.train.evaluate import score_of

IMAGES = 64


@dataclass(frozen=True, slots=True)
class Judged:
    """Accuracy on test images before an adapter was quantized, and after."""

    examples: int
    before: float
    after: float


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """A backbone, and what to judge on.

    Attributes:
        backbone: timm name or `.safetensors` file.
        calibrate: images to fit scales on; None for no fitting.
        evaluate: a data set whose test images are classified; None for none.
    """

    backbone: str
    calibrate: Path | None = None
    evaluate: Path | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Quantization:
    """An adapter in codes, and what that cost.

    Attributes:
        adapter: with fitted scales where that was asked for.
        costs: of each matrix.
        judged: accuracies, or None.
        notes: one sentence for each thing that a user should know.
    """

    adapter: Adapter
    costs: Report
    judged: Judged | None
    notes: tuple[str, ...]


def judge(original: Adapter, coded: Adapter, costs: Report, images: Images) -> Quantization:
    """Fit scales and measure accuracy, as far as asked for.

    Args:
        original: before it was quantized.
        coded: after.
        costs: of its matrices, which are replaced where scales are fitted.
        images: what to do it with.

    Raises:
        CallError: `bad-call`, the backbone's own weights cannot be had.
        AdapterPackError: an image or data set cannot be read, or the adapter does not fit the backbone.
    """
    made = create_backbone(images.backbone)
    if made.note:
        hint = "give the backbone as a .safetensors file"
        raise CallError(f"outputs of random weights mean nothing: {made.note}", Reason.BAD_CALL, hint=hint)
    notes: tuple[str, ...] = ()
    if images.calibrate is not None:
        coded, costs, notes = _calibrated(original, coded, made, images.calibrate)
    judged = None if images.evaluate is None else _judged(original, coded, made, images.evaluate)
    return Quantization(coded, costs, judged, notes)


def _calibrated(
    original: Adapter, coded: Adapter, made: Created, folder: Path
) -> tuple[Adapter, Report, tuple[str, ...]]:
    settings = original.data or made.data
    pixels = read_some(folder, settings, IMAGES)
    found = calibrate(original, coded, made.model, normalised(pixels, settings))
    notes = [f"scales were fitted on {len(pixels)} images of {folder.resolve().name}"]
    if found.unmeasured:
        count, first = len(found.unmeasured), found.unmeasured[0]
        more = f" and {count - 1} more" if count > 1 else ""
        notes.append(f"{first}{more} kept the fit to the weights: no branch gives their output")
    return found.adapter, found.costs, tuple(notes)


def _judged(original: Adapter, coded: Adapter, made: Created, path: Path) -> Judged:
    hardware = choose("auto", "float32")
    data = read_task(path, original.data or made.data, only=("test",))
    before, after = (score_of(adapter, made, data, "test", hardware) for adapter in (original, coded))
    return Judged(before.examples, before.accuracy, after.accuracy)
