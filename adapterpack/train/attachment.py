"""What one run trains in a model: branches beside it, parameters in place of its own, entries added into them.

Everything is recorded as it is done, so that `close` leaves the model bit for bit what it was. It knows sites and
tensors, not methods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from adapterpack.adapter import Branch, Site, canonical_order
from adapterpack.errors import Reason, UnsupportedAdapterError
from adapterpack.runtime.places import Place, residual, resolve
from adapterpack.tensors import Dense, Sparse, Tensor
from adapterpack.train.bank import Bank, Handle
from adapterpack.train.branch import TrainedBranch
from adapterpack.train.hooks import ResidualHook, SiteHook
from adapterpack.train.quantise import truncated_normal

# Fewer entries than this are kept as float32: their mean and deviation would weigh more than the bits save.
SMALLEST_QUANTISED = 16


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """Part of a parameter that is trained: entries to add (`add`), or rows that take the place of the old ones."""

    place: Place
    role: str
    handle: Handle
    shape: tuple[int, ...]  # of the site's own rows
    positions: NDArray[np.int64]  # within them
    add: bool


class _Composed:
    """A parameter that is put together anew for each pass, from the frozen one and its trained pieces."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name = module, name
        self.base: nn.Parameter = module._parameters[name]  # type: ignore[assignment]
        self._pieces: list[tuple[_Piece, torch.Tensor]] = []
        self._products: list[tuple[Place, TrainedBranch]] = []

    def add_product(self, place: Place, branch: TrainedBranch) -> None:
        """LoRA where the model reads the weight without calling its layer; there is no hidden vector to drop from."""
        self._products.append((place, branch))

    def take(self, piece: _Piece) -> None:
        start = piece.place.rows[0] * (self.base.numel() // self.base.shape[0]) if piece.place.rows else 0
        self._pieces.append((piece, torch.from_numpy(piece.positions + start).to(self.base.device)))

    def compose(self, bank: Bank) -> None:
        flat = self.base.detach().reshape(-1)
        for piece, positions in self._pieces:
            values = bank.weights(piece.handle).reshape(-1)
            flat = flat.index_add(0, positions, values) if piece.add else flat.index_copy(0, positions, values)
        weight = flat.view(self.base.shape)
        for place, branch in self._products:
            tensors = branch.tensors()
            start, length = place.rows or (0, weight.shape[0])
            gained = weight.narrow(0, start, length) + tensors["up"] @ tensors["down"]
            weight = torch.cat([weight[:start], gained, weight[start + length :]])
        self.module._parameters.pop(self.name, None)
        setattr(self.module, self.name, weight)

    def restore(self) -> None:
        self.module.__dict__.pop(self.name, None)
        self.module._parameters[self.name] = self.base


class Attachment:
    """What is trained in a model.

    Args:
        model: a frozen timm `VisionTransformer`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.bank = model, Bank()
        self.branches: list[TrainedBranch] = []
        self._hooks: dict[int, SiteHook] = {}
        self._composed: dict[tuple[int, str], _Composed] = {}
        self._pieces: list[_Piece] = []
        self._whole: list[tuple[Place, str, nn.Parameter]] = []
        self._undo = ExitStack()

    def place(self, site: str) -> Place:
        """A site of the model.

        Raises:
            UnsupportedAdapterError: `missing-site`.
        """
        return resolve(self.model, Site.parse(site))

    def size(self, site: str) -> tuple[int, int]:
        """(out, in) of a linear layer, or of a fused projection's part.

        Raises:
            UnsupportedAdapterError: `missing-site`.
        """
        shape = self.place(site).shape("weight") or (0, 0)
        return shape[0], shape[1]

    def beside(self, branch: TrainedBranch) -> None:
        """A branch that reads or follows a module.

        Raises:
            UnsupportedAdapterError: `missing-site`; `unsupported-model` where a hook would not run.
        """
        place = resolve(self.model, branch.site)
        self.branches.append(branch)
        if place.no_hook:
            self._into_weight(place, branch)
            return
        hook = self._hooks.get(id(place.module))
        if hook is None:
            hook = self._hooks[id(place.module)] = SiteHook()
            self._undo.callback(place.module.register_forward_hook(hook).remove)
        hook.take(place, branch)

    def _into_weight(self, place: Place, branch: TrainedBranch) -> None:
        if branch.method.name != "lora" or not place.has("weight"):
            text = f"{place.site}: {place.no_hook}, so {branch.method.name} cannot be trained beside this layer"
            raise UnsupportedAdapterError(text, Reason.UNSUPPORTED_MODEL, str(place.site), "train lora or adaptformer")
        self._composed_at(place, "weight").add_product(place, branch)

    def around(self, branch: TrainedBranch) -> None:
        """A branch beside an MLP."""
        for handle in ResidualHook(branch).register(residual(self.model, branch.site)):
            self._undo.callback(handle.remove)
        self.branches.append(branch)

    def replace(self, site: str, role: str) -> None:
        """Train a whole vector, from its own value on."""
        place = self.place(site)
        now = place.tensor(role)
        if now is None:  # a layer without a bias: nothing to train
            return
        if place.rows is not None:
            positions = np.arange(now.numel(), dtype=np.int64)
            handle = self.bank.add(now.detach().clone(), 32)
            self._compose(_Piece(place, role, handle, tuple(now.shape), positions, add=False))
            return
        name = place.name(role)
        original = place.module._parameters[name]
        trained = nn.Parameter(now.detach().clone())
        place.module._parameters[name] = trained
        self._undo.callback(place.module._parameters.__setitem__, name, original)
        self._whole.append((place, role, trained))

    def entries(self, site: str, role: str, positions: NDArray[np.int64], bits: int) -> None:
        """Train a few entries of a parameter, from zero; quantized ones from a normal distribution of 0.001.

        From zero the quantizer could never leave it: all weights equal, their deviation is 0.

        Args:
            site, role: which parameter.
            positions: int64 [n], ascending, into the site's flattened rows.
            bits: of the entries; few of them stay in 32.
        """
        few = len(positions) < SMALLEST_QUANTISED
        start = torch.zeros(len(positions))
        if bits < 32 and not few:
            start = truncated_normal(tuple(start.shape), 0.001, 0.002)
        handle = self.bank.add(start, 32 if few else bits)
        place = self.place(site)
        self._compose(_Piece(place, role, handle, tuple(place.shape(role) or ()), positions, add=True))

    def on_close(self, undo: Callable[[], object]) -> None:
        """Something more to undo."""
        self._undo.callback(undo)

    def refresh(self) -> None:
        """Quantize and compose what the next pass uses."""
        self.bank.refresh()
        for composed in self._composed.values():
            composed.compose(self.bank)

    def close(self) -> None:
        """Make the model what it was; a second call does nothing."""
        self._undo.close()
        self.bank.forget()

    def in_place(self) -> Iterator[nn.Parameter]:
        """The whole vectors that are trained."""
        return (parameter for _, _, parameter in self._whole)

    def export(self) -> tuple[Branch, ...]:
        """All branches as a file keeps them, in canonical order."""
        found = [branch.export() for branch in self.branches]
        swapped: dict[tuple[str, str], dict[str, Tensor]] = {}
        for place, role, parameter in self._whole:
            tensor = Dense(parameter.detach().float().cpu().numpy().copy())
            swapped.setdefault((str(place.site), "replace"), {})[role] = tensor
        for piece in self._pieces:
            method = "sparse" if piece.add else "replace"
            swapped.setdefault((str(piece.place.site), method), {})[piece.role] = self._stored(piece)
        found += [Branch(Site.parse(site), method, {}, tensors) for (site, method), tensors in swapped.items()]
        return tuple(sorted(found, key=canonical_order))

    def _stored(self, piece: _Piece) -> Tensor:
        values = self.bank.stored(piece.handle)
        return Sparse(piece.shape, piece.positions, values) if piece.add else values

    def _compose(self, piece: _Piece) -> None:
        self._composed_at(piece.place, piece.place.name(piece.role)).take(piece)
        self._pieces.append(piece)

    def _composed_at(self, place: Place, name: str) -> _Composed:
        key = (id(place.module), name)
        if key not in self._composed:
            composed = self._composed[key] = _Composed(place.module, name)
            self._undo.callback(composed.restore)
        return self._composed[key]
