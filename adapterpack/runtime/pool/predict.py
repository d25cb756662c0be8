"""Pictures to model input by each task's own preprocessing, and logits to labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral
from typing import TypeAlias, get_args

import torch
from torch import nn

from adapterpack.errors import CallError, Reason
from adapterpack.runtime import images
from adapterpack.runtime.backbone import settings_of
from adapterpack.runtime.images import normalised, read_pixels, require_input
from adapterpack.runtime.pool.facts import Prediction
from adapterpack.runtime.pool.ready import Ready

Picture: TypeAlias = images.Picture
_KINDS = get_args(images.Picture)


def require_pictures(pictures: Sequence[Picture], top: int) -> list[Picture]:
    """What `AdapterPool.predict` is asked, of the right types.

    Raises:
        CallError: `bad-call`.
    """
    hint = "give a list of PIL.Image.Image or paths"
    if isinstance(pictures, _KINDS) or not isinstance(pictures, Iterable):
        raise CallError(f"images is a {type(pictures).__name__}", Reason.BAD_CALL, hint=hint)
    found = list(pictures)
    for picture in found:
        if not isinstance(picture, _KINDS):
            raise CallError(f"an image is a {type(picture).__name__}", Reason.BAD_CALL, hint=hint)
    if not isinstance(top, Integral) or top < 1:
        raise CallError(f"top is {top!r}", Reason.BAD_CALL, hint="ask for at least 1 class")
    return found


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
    best = logits.float().softmax(dim=0).cpu().topk(min(int(top), len(logits)))
    indices = tuple(best.indices.tolist())
    labels = tuple(str(i) if task.labels is None else task.labels[i] for i in indices)
    return Prediction(name, labels, tuple(best.values.tolist()), indices)
