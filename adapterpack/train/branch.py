"""A trained branch: its tensors in the bank, what the site gains in training, and its form in a file.

Every kind of branch computes in evaluation what its method's formula gives; in training, dropout comes into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

from adapterpack.adapter import Branch, Site
from adapterpack.methods import METHODS
from adapterpack.train.bank import Bank

Starts = Mapping[str, tuple[torch.Tensor, int]]  # by role: what it starts from, and its bits


class TrainedBranch:
    """One branch.

    Args:
        site: in our grammar ("blocks.3.attn.qkv[q]").
        method: name in `METHODS`.
        params: the method's settings.
        bank: keeps the tensors.
        starts: by role.
        hidden_drop, input_drop, path_drop: probabilities of dropout on the hidden vector, of dropout on what the
            branch reads, and of leaving the branch out for a sample.
    """

    def __init__(
        self,
        site: str,
        method: str,
        params: Mapping[str, Any],
        bank: Bank,
        starts: Starts,
        *,
        hidden_drop: float = 0.0,
        input_drop: float = 0.0,
        path_drop: float = 0.0,
    ) -> None:
        self.site, self.method, self.params = Site.parse(site), METHODS[method], dict(params)
        self._bank = bank
        self._handles = {role: bank.add(start, bits) for role, (start, bits) in starts.items()}
        self._hidden_drop, self._path_drop, self.input_drop = hidden_drop, path_drop, input_drop

    @property
    def tap(self) -> str:
        return self.method.tap(self.params)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The weights of this pass by role, scale included."""
        scale = self.params.get("scale", 1.0)
        found = {role: self._bank.weights(handle) for role, handle in self._handles.items()}
        return {role: w * scale if scale != 1 and role in self.method.scaled else w for role, w in found.items()}

    def gain(self, x: torch.Tensor) -> torch.Tensor:
        """What the site's output, or the residual stream, gains: [..., in] → [..., out]."""
        return drop_path(self.formula(x, self.tensors()), self._path_drop, training=self._bank.training)

    def formula(self, x: torch.Tensor, t: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The method's formula."""
        out: torch.Tensor = self.method.branch(x, t, self.params)
        return out

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        """Dropout on the hidden vector."""
        return functional.dropout(x, self._hidden_drop, training=self._bank.training and self._hidden_drop > 0)

    def reading(self, x: torch.Tensor) -> torch.Tensor:
        """Dropout on what the branch reads."""
        return functional.dropout(x, self.input_drop, training=self._bank.training and self.input_drop > 0)

    def export(self) -> Branch:
        """The branch as a file keeps it."""
        tensors = {role: self._bank.stored(handle) for role, handle in self._handles.items()}
        return Branch(self.site, self.method.name, self.params, tensors)


class Lora(TrainedBranch):
    """LoRA with dropout on the hidden vector."""

    def formula(self, x: torch.Tensor, t: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return functional.linear(self.hidden(functional.linear(x, t["down"])), t["up"])


class AdaptFormer(TrainedBranch):
    """AdaptFormer without biases, dropout after the ReLU."""

    def formula(self, x: torch.Tensor, t: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return functional.linear(self.hidden(functional.linear(x, t["down"]).relu()), t["up"])


class Bottleneck(TrainedBranch):
    """SPT's GELU adapter with both biases."""

    def formula(self, x: torch.Tensor, t: Mapping[str, torch.Tensor]) -> torch.Tensor:
        hidden = functional.gelu(functional.linear(x, t["down"], t["down_bias"]))
        return functional.linear(hidden, t["up"], t["up_bias"])


def drop_path(x: torch.Tensor, probability: float, *, training: bool) -> torch.Tensor:
    """Leave a branch out for a random part of the samples and strengthen it for the others."""
    if not training or probability <= 0:
        return x
    keep = 1 - probability
    mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
    return x * (mask / keep)
