"""Top-1 accuracy of a stored adapter on a data set: the composition behind `adapterpack evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterpack.adapter import Adapter
from adapterpack.converters.checkpoint import Checkpoint, load_run
from adapterpack.packing.bundle import read_adapter
from adapterpack.runtime.backbone import Created, create_backbone
from adapterpack.runtime.load import load_adapter
from adapterpack.runtime.plan import Fold
from adapterpack.train.data import Task, read_task
from adapterpack.train.devices import Hardware, choose
from adapterpack.train.measure import Plain, Score, in_rows_of, score


@dataclass(frozen=True, slots=True)
class Question:
    """What to evaluate.

    Attributes:
        file: an `.apk`, or a `run.ckpt` of this package.
        data: folder or `.npz`.
        backbone: timm name or `.safetensors` file.
        task: which task, where the file has several.
        split: "test", "val" or "train".
        fold: as in `load`.
        device, precision: as in training.
        skip_corrupt: leave out images that cannot be read.
        check_fingerprint: False accepts any backbone of the right shape.
    """

    file: Path
    data: Path
    backbone: str
    task: str | None = None
    split: str = "test"
    fold: Fold = "auto"
    device: str = "auto"
    precision: str = "float32"
    skip_corrupt: bool = False
    check_fingerprint: bool = True


def evaluate(question: Question) -> dict[str, Any]:
    """Accuracy, examples, file_bytes and what it was measured with.

    Raises:
        AdapterPackError: the file is damaged, does not fit the backbone or the classes, or there are no such images.
    """
    adapter = _read(question)
    hardware = choose(question.device, question.precision)
    made = create_backbone(question.backbone)
    check = question.check_fingerprint and not made.note
    settings = adapter.data or made.data
    data = read_task(question.data, settings, skip_corrupt=question.skip_corrupt, only=(question.split,))
    found = score_of(adapter, made, data, question.split, hardware, fold=question.fold, check_fingerprint=check)
    notes = [note for note in (made.note, *data.notes) if note]
    return {
        "path": str(question.file),
        "task": adapter.name,
        "split": question.split,
        "accuracy": found.accuracy,
        "loss": found.loss,
        "examples": found.examples,
        "file_bytes": question.file.stat().st_size,
        "device": str(hardware.device),
        "notes": notes,
    }


def score_of(
    adapter: Adapter,
    made: Created,
    data: Task,
    split: str,
    hardware: Hardware,
    *,
    fold: Fold = "auto",
    check_fingerprint: bool = True,
) -> Score:
    """Accuracy of an adapter in a backbone, which is left as it was.

    Args:
        adapter: decoded.
        made: the backbone.
        data: images, fitted to the adapter's preprocessing, or to the backbone's where it has none.
        split: which of them.
        hardware: of this process.
        fold, check_fingerprint: as in `load_adapter`.

    Raises:
        AdapterPackError: it does not fit the backbone or the classes, or there are no such images.
    """
    chosen, device = data.split(split), hardware.device
    loading = load_adapter(adapter, made.model, fold=fold, device=device, check_fingerprint=check_fingerprint)
    with loading as loaded, hardware.autocast():
        return score(Plain(made.model), in_rows_of(data, loaded, chosen), adapter.data or made.data, hardware)


def _read(question: Question) -> Adapter:
    if Checkpoint().recognise(question.file):
        return load_run(question.file)[0]
    return read_adapter(question.file, question.task)
