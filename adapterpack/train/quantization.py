"""Quantization judged by images: scales fitted to what branches give out, and accuracy before and after.

The composition behind `pack --calibrate` and `pack --evaluate`; `runtime.calibrate` and `measure` give the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from adapterpack.adapter import Adapter
from adapterpack.errors import CallError, Reason
from adapterpack.packing.requantize import Report
from adapterpack.runtime.backbone import Created, create_backbone
from adapterpack.runtime.calibrate import Calibrated, calibrate
from adapterpack.runtime.images import normalised
from adapterpack.train.data import read_some, read_task
from adapterpack.train.devices import choose
from adapterpack.train.evaluate import score_of

IMAGES = 64


@dataclass(frozen=True, slots=True)
class Judged:
    """Accuracy on test images, before and after.

    Attributes:
        examples: how many images.
        before: of what `baseline` names.
        after: of what is stored.
        baseline: "unquantized", the adapter before its matrices were put into codes; "fine-tuned", the whole model that
            it was extracted from; "same", where it is stored as it came.
    """

    examples: int
    before: float
    after: float
    baseline: str


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


def judge(
    original: Adapter, coded: Adapter, costs: Report, images: Images, tuned: Adapter | None = None
) -> Quantization:
    """Fit scales and measure accuracy, as far as asked for.

    Args:
        original: before it was quantized.
        coded: after.
        costs: of its matrices, which are replaced where scales are fitted.
        images: what to do it with.
        tuned: the whole fine-tuned model that `original` is an extract of, to compare with instead of `original`.

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
    judged = None
    if images.evaluate is not None:
        before = tuned or (original if costs else None)
        baseline = "fine-tuned" if tuned else "unquantized" if costs else "same"
        judged = _judged(before, coded, made, images.evaluate, baseline)
    return Quantization(coded, costs, judged, notes)


def _calibrated(
    original: Adapter, coded: Adapter, made: Created, folder: Path
) -> tuple[Adapter, Report, tuple[str, ...]]:
    settings = original.data or made.data
    pixels = read_some(folder, settings, IMAGES)
    found = calibrate(original, coded, made.model, normalised(pixels, settings))
    return found.adapter, found.costs, tuple(_told(found, f"{len(pixels)} images of {folder.resolve().name}"))


def _told(found: Calibrated, images: str) -> Iterator[str]:
    """How many matrices were fitted, and which were not, and why."""
    measured = [cost for cost in found.costs if cost.output_after is not None]
    fitted = sum(cost.output_after != cost.output_before for cost in measured)
    if fitted:
        some = f"{fitted} of {len(measured)}" if fitted < len(measured) else f"{fitted}"
        more = ", to no gain for the others" if fitted < len(measured) else ""
        yield f"the scales of {some} {'matrix' if some == '1' else 'matrices'} were fitted on {images}{more}"
    elif measured:
        yield f"no scale was changed for {images}: the fit to the weights gives the least output error that was found"
    else:
        why = "no branch gives the output of a matrix in codes" if found.unmeasured else "no matrix was put into codes"
        yield f"no scales were fitted on images: {why}"
    if found.unmeasured:
        count, first = len(found.unmeasured), found.unmeasured[0]
        more = f" and {count - 1} more" if count > 1 else ""
        yield f"{first}{more} kept the fit to the weights: no branch gives their output"


def _judged(before: Adapter | None, coded: Adapter, made: Created, path: Path, baseline: str) -> Judged:
    hardware = choose("auto", "float32")
    data = read_task(path, coded.data or made.data, only=("test",))
    after = score_of(coded, made, data, "test", hardware)
    first = after if before is None else score_of(before, made, data, "test", hardware)
    return Judged(after.examples, first.accuracy, after.accuracy, baseline)
