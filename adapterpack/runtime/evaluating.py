"""A model in eval mode and without gradients for as long as a block runs. It knows of no adapter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a block with the model in eval mode; afterwards it is in the mode that it was in, whatever happened."""
    training = model.training
    try:
        with torch.no_grad():
            model.eval()
            yield
    finally:
        model.train(training)
