"""A frozen model with everything that a run trains in it, as one module; and the adapter that comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from adapterpack.adapter import Adapter, Backbone, DataSettings, canonical_order
from adapterpack.converters.spt_mask import SptMask
from adapterpack.errors import CallError, Reason, UnsupportedAdapterError
from adapterpack.runtime.families import blocks_of, classifier, features_of, put_classifier, require_supported
from adapterpack.runtime.images import normalised
from adapterpack.train import consolidator, simple, spt
from adapterpack.train.attachment import Attachment
from adapterpack.train.branch import drop_path
from adapterpack.train.head import TrainedHead
from adapterpack.train.recipe import Recipe

_PATHS = ("drop_path1", "drop_path2", "drop_path")
_PLAIN: Mapping[str, Callable[[Attachment, Recipe], None]] = {
    "lora": simple.attach_lora,
    "adaptformer": simple.attach_adaptformer,
    "consolidator": consolidator.attach,
    "linear": simple.attach_nothing,
    "bias": simple.attach_bias,
    "full": simple.attach_everything,
}


class _DropPath(nn.Module):
    """Drop path of a whole residual branch, for the time of training."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return drop_path(x, self.probability, training=self.training)


class Trainee(nn.Module):
    """A model in training; `close` leaves it as it was.

    Args:
        model: a frozen timm model, see docs/backbones.md; it is hooked and its head replaced until `close`.
        recipe: what to train.
        classes: of the task.
        mask: SPT's.

    Raises:
        UnsupportedAdapterError: the model lacks a site that the recipe trains; the model is untouched.
        CallError: `bad-call`, SPT without a mask.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, classes: int, mask: SptMask | None = None) -> None:
        super().__init__()
        require_supported(model)
        _require_no_batch_norm(model)
        self.recipe, self.model = recipe, model
        self.at = Attachment(model)
        self.bank = self.at.bank
        was_training = model.training
        self.at.on_close(lambda: model.train(was_training))
        freeze(self.at)
        try:
            set_drop_path(self.at, recipe.drop_path)
            _attach(self.at, recipe, mask)
            device = next(model.parameters()).device
            self.bank.seal(device)
            self.head = TrainedHead(features_of(model), classes, recipe).to(device)
            put_head(self.at, self.head, classes)
        except BaseException:
            self.at.close()
            raise

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.at.refresh()
        logits: torch.Tensor = self.model(images)
        return logits

    def inputs(self, pixels: torch.Tensor, settings: DataSettings) -> torch.Tensor:
        """8-bit values as the model takes them."""
        return normalised(pixels, settings)

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups for AdamW: which of them decay; tokens and positions, as timm has it, do not."""
        spare: set[str] = getattr(self.model, "no_weight_decay", set)()
        matrices = {id(parameter) for parameter, matrix in self.bank.matrices() if matrix}
        stacked = {id(parameter) for parameter in self.bank.parameters()}
        decaying: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        for name, parameter in self.trained().items():
            whole = parameter.ndim > 1 and name.removeprefix("model.") not in spare
            matrix = id(parameter) in matrices if id(parameter) in stacked else whole
            (decaying if matrix or self.recipe.decay_vectors else plain).append(parameter)
        groups = [(decaying, self.recipe.weight_decay), (plain, 0.0)]
        return [{"params": params, "weight_decay": decay} for params, decay in groups if params]

    def snapshot(self) -> dict[str, torch.Tensor]:
        """Copies of the trained parameters, on the CPU."""
        return {name: parameter.detach().to("cpu", copy=True) for name, parameter in self.trained().items()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put a snapshot back."""
        for name, parameter in self.trained().items():
            parameter.copy_(tensors[name])

    def close(self) -> None:
        """Take everything out of the model again; a second call does nothing."""
        self.at.close()

    def adapter(
        self,
        name: str,
        *,
        labels: Sequence[str] | None = None,
        data: DataSettings | None = None,
        backbone: Backbone | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Adapter:
        """What was trained, as it is now; `full` has no adapter, its state dict is the result."""
        branches = consolidator.consolidated(self.at.export())
        return Adapter(
            name,
            self.recipe.method,
            tuple(sorted(branches, key=canonical_order)),
            self.head.export(),
            None if labels is None else tuple(labels),
            data,
            dict(metadata or {}),
            backbone or Backbone(),
        )


def _require_no_batch_norm(model: nn.Module) -> None:
    """Its statistics change in training without being parameters, and an adapter has no place for them."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            text = f"{name} is a batch norm, whose statistics training would change"
            raise UnsupportedAdapterError(text, Reason.UNSUPPORTED_MODEL, name, "train another family")


def freeze(at: Attachment) -> None:
    """Train no parameter of the model's own until `close`."""
    free = [parameter for parameter in at.model.parameters() if parameter.requires_grad]

    def back() -> None:
        for parameter in free:
            parameter.requires_grad_(True)
            parameter.grad = None

    at.on_close(back)
    at.model.requires_grad_(False)


def set_drop_path(at: Attachment, last: float) -> None:
    """Give the blocks drop path, growing linearly from 0 at the first to `last` at the last one."""
    numbered = at.model._modules.get("blocks")
    blocks = [block for _, block in blocks_of(at.model)] if numbered is None else list(numbered.children())
    for number, block in enumerate(blocks):
        rate = last * number / max(len(blocks) - 1, 1)
        for name in _PATHS:
            child = block._modules.get(name)
            if child is not None and rate > 0:
                block._modules[name] = _DropPath(rate)
                at.on_close(partial(block._modules.__setitem__, name, child))


def put_head(at: Attachment, head: nn.Module, classes: int) -> None:
    """Put a classifier into the model until `close`."""
    model = at.model
    before, count = classifier(model), model.num_classes
    put_classifier(model, head, classes)

    def back() -> None:
        put_classifier(model, before, count)

    at.on_close(back)


def _attach(at: Attachment, recipe: Recipe, mask: SptMask | None) -> None:
    if recipe.method.startswith("spt-"):
        if mask is None:
            raise CallError("SPT needs a mask", Reason.BAD_CALL, hint="make one with `adapterpack sensitivity`")
        spt.attach(at, recipe, mask)
    else:
        _PLAIN[recipe.method](at, recipe)
