"""How good a model is: accuracy and loss over a split."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from adapterpack.adapter import DataSettings
from adapterpack.errors import Reason, UnsupportedAdapterError
from adapterpack.runtime.images import normalised
from adapterpack.runtime.load import Loaded
from adapterpack.train.data import Split, Task
from adapterpack.train.devices import Hardware

BATCH = 256


class Score(NamedTuple):
    """Share of right answers, mean cross-entropy, and over how many images."""

    accuracy: float
    loss: float
    examples: int

    def better_than(self, other: Score) -> bool:
        """More right answers, or as many with a lower loss."""
        return (self.accuracy, -self.loss) > (other.accuracy, -other.loss)


NOTHING = Score(-1.0, float("inf"), 0)  # what any score is better than


class Model(Protocol):
    """What is scored: a module that knows how its input is made."""

    def inputs(self, pixels: torch.Tensor, settings: DataSettings) -> torch.Tensor: ...
    def eval(self) -> object: ...
    def __call__(self, images: torch.Tensor) -> torch.Tensor: ...


class Plain:
    """A model that takes images."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def inputs(self, pixels: torch.Tensor, settings: DataSettings) -> torch.Tensor:
        return normalised(pixels, settings)

    def eval(self) -> object:
        return self._model.eval()

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._model(images)
        return logits


@torch.no_grad()
def score(model: Model, split: Split, settings: DataSettings, hardware: Hardware) -> Score:
    """Accuracy and loss, shared among the processes; the model is left in eval mode.

    Args:
        model: gives logits [n, classes].
        split: images and labels.
        settings: makes input of 8-bit values.
        hardware: of this process.
    """
    model.eval()
    mine = np.arange(len(split))[hardware.rank :: hardware.world]
    order = [mine[start : start + BATCH] for start in range(0, len(mine), BATCH)]
    sums = torch.zeros(3, dtype=torch.float64, device=hardware.device)
    for which, pixels in zip(order, split.pictures.batches(order)):
        labels = torch.from_numpy(split.labels[which]).to(hardware.device)
        logits = model(model.inputs(pixels.to(hardware.device), settings)).float()
        sums[0] += (logits.argmax(dim=1) == labels).sum()
        sums[1] += functional.cross_entropy(logits, labels, reduction="sum")
        sums[2] += len(which)
    right, loss, count = hardware.total(sums).tolist()
    return Score(right / count, loss / count, int(count))


def in_rows_of(task: Task, loaded: Loaded, split: Split) -> Split:
    """A split whose labels are the rows of an adapter's head: matched by name where the adapter has labels.

    Raises:
        UnsupportedAdapterError: `bad-labels`, a class that the adapter does not know, or another number of classes.
    """
    if loaded.labels is None:
        if len(task.classes) != loaded.classes:
            text = f"{task.name} has {len(task.classes)} classes, the adapter {loaded.classes} without names"
            raise UnsupportedAdapterError(text, Reason.BAD_LABELS, hint="pack it with --labels")
        return split
    unknown = sorted(set(task.classes) - set(loaded.labels))
    if unknown:
        text = f"the adapter has no class {unknown[0]!r}"
        raise UnsupportedAdapterError(text, Reason.BAD_LABELS, hint=f"it knows {', '.join(loaded.labels[:8])}")
    rows = np.array([loaded.labels.index(name) for name in task.classes], np.int64)
    return Split(split.pictures, rows[split.labels])
