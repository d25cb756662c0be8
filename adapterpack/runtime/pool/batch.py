"""The rows of a mixed batch: checked, sorted by task, and each task's head at the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from adapterpack.errors import CallError, Reason
from adapterpack.runtime.images import require_size
from adapterpack.runtime.pool.gather import order_key, products
from adapterpack.runtime.pool.parts import Segment
from adapterpack.runtime.pool.ready import Ready
from adapterpack.runtime.pool.station import Batch

Run = tuple[int, int, Ready]  # a task's rows in a sorted batch


def require_batch(model: nn.Module, images: torch.Tensor, tasks: Sequence[str]) -> list[str]:
    """The tasks of a batch, one an image.

    Raises:
        CallError: `bad-call`.
        UnsupportedAdapterError: `site-shape`, images of another size than the model takes.
    """
    if not isinstance(images, torch.Tensor) or images.ndim != 4 or not images.is_floating_point():
        found = list(images.shape) if isinstance(images, torch.Tensor) else type(images).__name__
        raise CallError(
            f"the images are {found}", Reason.BAD_CALL, hint="expected a float tensor [n, 3, height, width]"
        )
    names = require_names(len(images), tasks)
    if names:
        require_size(model, images[0])
    return names


def require_names(count: int, tasks: Sequence[str]) -> list[str]:
    """The tasks of so many images.

    Raises:
        CallError: `bad-call`.
    """
    names = list(tasks) if isinstance(tasks, Iterable) and not isinstance(tasks, str) else [None]
    if not all(isinstance(name, str) for name in names):
        raise CallError("tasks is no list of names", Reason.BAD_CALL, hint='give one an image: tasks=["cifar", …]')
    if len(names) != count:
        text = f"{count} images and {len(names)} tasks"
        raise CallError(text, Reason.BAD_CALL, hint="give one task an image")
    return [str(name) for name in names]


def order_of(names: Sequence[str], ready: Mapping[str, Ready]) -> list[int]:
    """The rows sorted by task: those that run on the backbone's own parameters first, tasks of one form together."""
    key = {name: (task.changes_parameters, order_key(task.stacks), name) for name, task in ready.items()}
    return sorted(range(len(names)), key=lambda i: key[names[i]])


def runs_of(names: Sequence[str], ready: Mapping[str, Ready]) -> list[Run]:
    """Each task's rows, of names that are sorted."""
    runs: list[Run] = []
    start = 0
    for i in range(1, len(names) + 1):
        if i == len(names) or names[i] != names[start]:
            runs.append((start, i, ready[names[start]]))
            start = i
    return runs


def batch_of(runs: Sequence[Run], *, gather: bool) -> Batch:
    """What the stations must know of sorted rows."""
    segments = [Segment(start, stop, task.parts) for start, stop, task in runs]
    return Batch(segments, products([(a, b, task.stacks) for a, b, task in runs]) if gather and len(runs) > 1 else {})


def heads(model: nn.Module, features: torch.Tensor, runs: Sequence[Run]) -> list[torch.Tensor]:
    """One vector of logits a row, by its task's own head."""
    out: list[torch.Tensor] = []
    for start, stop, task in runs:
        rows = features[start:stop]
        if task.head:
            out += F.linear(rows, task.head["weight"], task.head.get("bias"))
        else:
            out += model.get_submodule("head")(rows)
    return out
