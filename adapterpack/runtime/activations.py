"""What the branches of an adapter read when the model sees images: a sample of activations for each branch.

The adapter is in the model while they are taken, so a branch sees what it will see in use. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from adapterpack.adapter import Adapter, Branch
from adapterpack.methods._base import Method, Params, Tap
from adapterpack.runtime.attach import attached
from adapterpack.runtime.families import classifier
from adapterpack.runtime.load import load_adapter

TOKENS = 1024  # a branch; enough to tell a few hundred scales apart
BATCH = 16
_WHOLE = frozenset({"convpass"})  # methods whose tokens see each other: whole images are kept


@dataclass(frozen=True, slots=True, eq=False)
class Activations:
    """Samples of what was read, float32 on the CPU.

    Attributes:
        branches: by the branch's number in the adapter: [tokens, in], or [images, tokens, in] where a method needs
            whole images. Branches that replace parameters, or go into what is no linear layer, read nothing.
        head: features [images, in], or None where the adapter has no head.
    """

    branches: Mapping[int, torch.Tensor]
    head: torch.Tensor | None


def collect(adapter: Adapter, model: nn.Module, images: torch.Tensor) -> Activations:
    """Run a model with the adapter beside it on images, and keep what each branch reads.

    Args:
        adapter: not yet in the model.
        model: a timm `VisionTransformer`; left as it was.
        images: the model's input, [n, channels, height, width].

    Raises:
        AdapterPackError: as `load_adapter`.
    """
    kept: dict[int, list[torch.Tensor]] = {}
    features: list[torch.Tensor] = []
    with load_adapter(adapter, model, fold="never"), ExitStack() as undo, _evaluating(model):
        for hook in attached(model):
            number = _number(adapter, hook.site, hook.method.name, hook.params)
            whole = hook.method.name in _WHOLE
            watch = _Watch(hook.method, kept.setdefault(number, []), -(-TOKENS // len(images)), whole)
            hook.method = cast(Method, watch)
        if adapter.head is not None:
            head = classifier(model)
            undo.callback(head.register_forward_pre_hook(lambda _, args: features.append(args[0].cpu())).remove)
        like = next(model.parameters())
        for start in range(0, len(images), BATCH):
            model(images[start : start + BATCH].to(like.device, like.dtype))
    return Activations(
        {number: torch.cat(parts).float() for number, parts in kept.items()},
        torch.cat(features).float() if features else None,
    )


class _Watch:
    """A method in a hook that keeps some of what it reads: `per_image` tokens of each image, or whole images."""

    def __init__(self, method: Method, kept: list[torch.Tensor], per_image: int, whole: bool) -> None:
        self._method, self._kept, self._per_image, self._whole = method, kept, per_image, whole
        self.name = method.name
        self._random = torch.Generator().manual_seed(0)

    def tap(self, params: Params) -> Tap:
        return self._method.tap(params)

    def branch(self, x: torch.Tensor, t: Mapping[str, torch.Tensor], params: Params) -> Any:
        if not self._whole:
            self._kept.append(self._some(x).reshape(-1, x.shape[-1]).cpu().clone())  # x may be written to later
        elif sum(part.shape[0] for part in self._kept) * x.shape[1] < TOKENS:
            self._kept.append(x[: -(-TOKENS // x.shape[1])].cpu().clone())
        return self._method.branch(x, t, params)

    def _some(self, x: torch.Tensor) -> torch.Tensor:
        """The first token, which the classifier usually reads, and others by chance; the same ones on every run."""
        if x.ndim < 3 or x.shape[-2] <= self._per_image:
            return x
        others = torch.randperm(x.shape[-2] - 1, generator=self._random)[: self._per_image - 1] + 1
        return x[..., torch.cat([torch.zeros(1, dtype=torch.long), others]).to(x.device), :]


def _number(adapter: Adapter, site: str, method: str, params: Params) -> int:
    def same(branch: Branch) -> bool:
        return str(branch.site) == site and branch.method == method and branch.params is params

    return next(number for number, branch in enumerate(adapter.branches) if same(branch))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    try:
        with torch.no_grad():
            model.eval()
            yield
    finally:
        model.train(training)
