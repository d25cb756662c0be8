"""The classifier that a run trains: in float with a bias, or in few bits and, as in the paper, without one."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from adapterpack.adapter import Head
from adapterpack.tensors import Dense
from adapterpack.train.quantise import linear_start, quantise, stored
from adapterpack.train.recipe import Recipe


class TrainedHead(nn.Module):
    """A linear classifier.

    Args:
        features, classes: its size.
        recipe: bits of the weight, and what it starts from.
    """

    def __init__(self, features: int, classes: int, recipe: Recipe) -> None:
        super().__init__()
        self.in_features, self.out_features, self._bits = features, classes, recipe.head_bits
        normal = recipe.head_start == "normal"
        shape = (classes, features)
        start = nn.init.trunc_normal_(torch.empty(shape), std=0.02) if normal else linear_start(shape)
        self.weight = nn.Parameter(start)
        self.bias: nn.Parameter | None = None
        if recipe.head_bits == 32:
            self.bias = nn.Parameter(torch.zeros(classes) if normal else _bias_start(features, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, quantise(self.weight[None], self._bits)[0], self.bias)

    def export(self) -> Head:
        """The classifier as a file keeps it."""
        bias = None if self.bias is None else Dense(self.bias.detach().float().cpu().numpy().copy())
        return Head(stored(self.weight, self._bits), bias)


def _bias_start(features: int, classes: int) -> torch.Tensor:
    return linear_start((classes, features))[:, 0].clone()
