"""The linear probe: the backbone runs once over each image, then the head alone is trained on what it gave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from adapterpack.adapter import DataSettings
from adapterpack.runtime.images import normalised
from adapterpack.train.data import Split
from adapterpack.train.devices import Hardware
from adapterpack.train.measure import BATCH
from adapterpack.train.pictures import Order
from adapterpack.train.trainee import Trainee


class Features:
    """Features in the place of images: float32 [n, features]."""

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values

    def take(self, which: Order) -> Features:
        return Features(self._values[torch.from_numpy(which)])

    def batches(self, order: Sequence[Order]) -> Iterator[torch.Tensor]:
        return (self._values[torch.from_numpy(which)] for which in order)


class Probe(Trainee):
    """A trainee that reads features."""

    def inputs(self, pixels: torch.Tensor, settings: DataSettings) -> torch.Tensor:
        return pixels

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(images)
        return logits


@torch.no_grad()
def features(model: nn.Module, split: Split, settings: DataSettings, hardware: Hardware) -> Split:
    """What the head reads for each image of a split."""
    order = [np.arange(len(split))[start : start + BATCH] for start in range(0, len(split), BATCH)]
    model.eval()
    found = []
    for pixels in split.pictures.batches(order):
        tokens = model.forward_features(normalised(pixels.to(hardware.device), settings))  # type: ignore[operator]
        found.append(model.forward_head(tokens, pre_logits=True).float().cpu())  # type: ignore[operator]
    return Split(Features(torch.cat(found)), split.labels)
