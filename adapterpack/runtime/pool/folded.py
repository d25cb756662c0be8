"""Images of one task through the model with that task folded into its weights: the frozen backbone's own speed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from adapterpack.adapter import DataSettings
from adapterpack.runtime.images import normalised, read_pixels, require_classes, require_input
from adapterpack.runtime.pool.facts import Prediction
from adapterpack.runtime.pool.pool import AdapterPool
from adapterpack.runtime.pool.predict import Picture


def predict_folded(
    pool: AdapterPool, images: Sequence[Picture], task: str, settings: DataSettings, top: int
) -> list[Prediction]:
    """As `AdapterPool.predict` for images that all belong to one task; the task stays active afterwards.

    Args:
        pool: holds the task.
        images: n pictures in memory.
        task: its name.
        settings: the task's preprocessing.
        top: how many classes to give, at most the number of the task's classes.

    Raises:
        CallError: `unknown-task`, `out-of-memory`.
        UnsupportedAdapterError: `site-shape`, the task wants images of another size than the model takes;
            `missing-site`, neither it nor the backbone has a head.
    """
    require_input(pool.model, settings)
    batch = torch.from_numpy(np.stack([read_pixels(image, settings) for image in images]))
    pool.activate(task)
    with pool.using(task) as model, torch.inference_mode():
        require_classes(model, task)
        like = next(model.parameters())
        logits = model(normalised(batch.to(like.device), settings).to(like.dtype))
        labels = pool.info(task).labels  # while nobody can replace the task
    best = logits.float().softmax(dim=1).cpu().topk(min(top, logits.shape[1]))
    return [
        Prediction(task, tuple(str(i) if labels is None else labels[i] for i in row), tuple(values), tuple(row))
        for row, values in zip(best.indices.tolist(), best.values.tolist())
    ]
