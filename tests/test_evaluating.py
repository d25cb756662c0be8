"""A model is left in the mode that it was in, also after an error."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adapterpack.runtime.evaluating import evaluating


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_comes_back(training: bool) -> None:
    model = nn.Sequential(nn.Dropout(), nn.Linear(2, 2)).train(training)
    with pytest.raises(KeyError), evaluating(model):
        assert not model[0].training and not torch.is_grad_enabled()
        raise KeyError
    assert model.training is model[0].training is training and torch.is_grad_enabled()


def test_a_frozen_part_stays_frozen() -> None:
    """A norm that was put in eval mode by itself inside a model in training."""
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)).train()
    model[1].eval()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, False]
