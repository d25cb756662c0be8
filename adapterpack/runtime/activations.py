"""What the branches of an adapter read when the model sees images: a sample of activations for each branch.

The adapter is in the model while they are taken, so a branch sees what it will see in use. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from adapterpack.adapter import Adapter, Branch, Site
from adapterpack.methods import METHODS
from adapterpack.methods._base import Method, Params, Tap, transforms
from adapterpack.runtime.attach import attached
from adapterpack.runtime.evaluating import evaluating
from adapterpack.runtime.families import classifier, reads_weight
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
        model: a timm model; left as it was.
        images: the model's input, [n, channels, height, width].

    Raises:
        AdapterPackError: as `load_adapter`.
    """
    kept: dict[int, list[torch.Tensor]] = {}
    features: list[torch.Tensor] = []
    watches: list[_Watch] = []
    per_image = -(-TOKENS // len(images))
    with load_adapter(adapter, model, fold="never"), ExitStack() as undo, evaluating(model):
        for hook in attached(model):
            number = _number(adapter, hook.site, hook.method.name, hook.params)
            whole = hook.method.name in _WHOLE
            watch = _Watch(hook.method, kept.setdefault(number, []), per_image, whole)
            watches.append(watch)
            hook.method = cast(Method, watch)
        for number, parent in _read_by_parents(adapter, model, kept):
            watch = _Watch(METHODS[adapter.branches[number].method], kept.setdefault(number, []), per_image, False)
            watches.append(watch)
            undo.callback(parent.register_forward_pre_hook(watch.look).remove)
        if adapter.head is not None:
            head = classifier(model)
            undo.callback(head.register_forward_pre_hook(lambda _, args: features.append(args[0].cpu())).remove)
        like = next(model.parameters())
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH].to(like.device, like.dtype)
            for watch in watches:
                watch.images = len(batch)
            model(batch)
    return Activations(
        {number: torch.cat(parts).float() for number, parts in kept.items()},
        torch.cat(features).float() if features else None,
    )


class _Watch:
    """A method in a hook that keeps some of what it reads: `per_image` tokens of each image, or whole images.

    Attributes:
        images: how many are in the batch that runs.
    """

    def __init__(self, method: Method, kept: list[torch.Tensor], per_image: int, whole: bool) -> None:
        self._method, self._kept, self._per_image, self._whole = method, kept, per_image, whole
        self.name, self.images = method.name, 1
        self._random = torch.Generator().manual_seed(0)

    def tap(self, params: Params) -> Tap:
        return self._method.tap(params)

    def branch(self, x: torch.Tensor, t: Mapping[str, torch.Tensor], params: Params) -> Any:
        self._keep(x)
        return self._method.branch(x, t, params)

    def look(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A pre-hook of the module that is given what the branch reads."""
        self._keep(args[0])

    def _keep(self, x: torch.Tensor) -> None:
        if not self._whole:
            self._kept.append(self._some(x).cpu().clone())  # x may be written to later
        elif sum(part.shape[0] for part in self._kept) * x.shape[1] < TOKENS:
            self._kept.append(x[: -(-TOKENS // x.shape[1])].cpu().clone())

    def _some(self, x: torch.Tensor) -> torch.Tensor:
        """The first token of each image, which the classifier usually reads, and others by chance, the same ones on
        every run; channels are last, and what is before them may be tokens, rows and columns, or windows."""
        count, whole = self.images, x.numel() // max(x.shape[-1], 1) % self.images == 0
        tokens = x.reshape(count if whole else 1, -1, x.shape[-1])
        wanted = self._per_image * (1 if whole else count)
        if tokens.shape[1] > wanted:
            others = torch.randperm(tokens.shape[1] - 1, generator=self._random)[: wanted - 1] + 1
            tokens = tokens[:, torch.cat([torch.zeros(1, dtype=torch.long), others]).to(x.device)]
        return tokens.reshape(-1, x.shape[-1])


def _read_by_parents(adapter: Adapter, model: nn.Module, kept: Collection[int]) -> Iterator[tuple[int, nn.Module]]:
    """Branches in weights that the module around them reads itself, and that module: it is given what they read."""
    for number, branch in enumerate(adapter.branches):
        method = METHODS[branch.method]
        if number in kept or method.replaces or transforms(method) or method.tap(branch.params) != "input":
            continue
        parent, _, name = branch.site.path.rpartition(".")
        if parent and reads_weight(model.get_submodule(parent), name):
            yield number, model.get_submodule(parent)


def _number(adapter: Adapter, site: Site, method: str, params: Params) -> int:
    def same(branch: Branch) -> bool:
        return branch.site == site and branch.method == method and branch.params == params

    return next(number for number, branch in enumerate(adapter.branches) if same(branch))
