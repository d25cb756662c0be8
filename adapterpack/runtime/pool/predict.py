"""Pictures to model input by each task's own preprocessing, and logits to labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
from torch import nn

from adapterpack.runtime import images
from adapterpack.runtime.backbone import settings_of
from adapterpack.runtime.images import normalised, read_pixels, require_input
from adapterpack.runtime.pool.facts import Prediction
from adapterpack.runtime.pool.ready import Ready

Picture: TypeAlias = images.Picture


def inputs_of(
    model: nn.Module, pictures: Sequence[Picture], tasks: Sequence[Ready]
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Batches of one size: the rows, and float32 [rows, channels, height, width].

    A task that records no preprocessing gets the backbone's. Where all tasks want one size, there is one batch.

    Raises:
        MissingFileError, CorruptFileError, UnsupportedAdapterError: as `read_image` and `require_input`.
    """
    default = settings_of(model)
    alike: dict[torch.Size, list[tuple[int, torch.Tensor]]] = {}
    for row, (picture, task) in enumerate(zip(pictures, tasks)):
        settings = task.data or default
        require_input(model, settings)
        pixels = torch.from_numpy(read_pixels(picture, settings))
        alike.setdefault(pixels.shape, []).append((row, normalised(pixels[None], settings)[0]))
    for found in alike.values():
        yield [row for row, _ in found], torch.stack([pixels for _, pixels in found])


def predictions(
    names: Sequence[str], tasks: Sequence[Ready], logits: Sequence[torch.Tensor], top: int
) -> list[Prediction]:
    """The `top` most probable classes of each row."""
    return [_best(name, task, row, top) for name, task, row in zip(names, tasks, logits)]


def _best(name: str, task: Ready, logits: torch.Tensor, top: int) -> Prediction:
    best = logits.float().softmax(dim=0).cpu().topk(min(top, len(logits)))
    indices = tuple(best.indices.tolist())
    labels = tuple(str(i) if task.labels is None else task.labels[i] for i in indices)
    return Prediction(name, labels, tuple(best.values.tolist()), indices)
