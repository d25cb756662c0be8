"""One task in the model itself, so that `model(images)` answers for it: folded in place, or attached.

Every activation starts from the frozen backbone. What folding overwrites is kept in one pristine copy of the touched
rows, made when they are touched first, and copied back; parameters never move, so compiled models and captured graphs
that point to them stay valid.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from adapterpack.adapter import Site
from adapterpack.errors import CallError, Reason, UnsupportedAdapterError
from adapterpack.methods._base import Entries
from adapterpack.runtime.backbone import unwrap
from adapterpack.runtime.compiled import refuse_hooks
from adapterpack.runtime.fold import deltas
from adapterpack.runtime.load import (
    MARK,
    Changes,
    apply_step,
    bare_linear,
    memory_errors,
    restore_head,
    writing,
)
from adapterpack.runtime.places import Place
from adapterpack.runtime.plan import Fold, Step, plan
from adapterpack.runtime.pool.regions import Regions, is_plain
from adapterpack.runtime.pool.store import Packed
from adapterpack.runtime.values import Value, values_of


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """A task ready to go into the model.

    Attributes:
        name: in the pool.
        task: what it was read from.
        labels: class names, or None.
        steps, values: its branches and their tensors, in float32.
        head: tensors of its head, empty where it has none.
    """

    name: str
    task: Packed
    labels: tuple[str, ...] | None
    steps: list[Step]
    values: list[dict[str, Value]]
    head: Mapping[str, torch.Tensor]

    @property
    def changes_parameters(self) -> bool:
        return any(step.how in ("fold", "swap") for step in self.steps)

    @property
    def nbytes(self) -> int:
        held: list[Any] = [tensor for tensors in (*self.values, self.head) for tensor in tensors.values()]
        return sum(t.positions.nbytes + t.values.nbytes if isinstance(t, Entries) else t.nbytes for t in held)


class Front:
    """What the model shows: the frozen backbone, or one task.

    Args:
        model: a timm `VisionTransformer`, or one under `torch.compile`.
        how: "auto", "always" or "never", as for `load`.
        head_classes: how many rows the one head for all tasks has; None gives a head to each number of classes.
    """

    def __init__(self, model: nn.Module, how: Fold, head_classes: int | None) -> None:
        self.model = unwrap(model)
        self.chosen: Chosen | None = None
        self._given = model
        self._how, self._head_classes = how, head_classes
        self._regions = Regions()
        self._heads: dict[tuple[int, bool], nn.Linear] = {}
        self._undo: ExitStack | None = None

    @property
    def changed(self) -> bool:
        """Whether the backbone's own numbers are others now, those of its head included."""
        return self._regions.changed or (self.chosen is not None and self.chosen.changes_parameters)

    @property
    def kept_bytes(self) -> int:
        """Memory for going back, and of the heads."""
        heads = [tensor for head in list(self._heads.values()) for tensor in head.parameters()]
        return self._regions.nbytes + sum(tensor.nbytes for tensor in heads)

    def choose(self, name: str, task: Packed) -> Chosen:
        """Read, plan and inflate a task; nothing is touched.

        Raises:
            UnsupportedAdapterError: `not-foldable`; `unsupported-model`, a compiled model and what must be attached.
            CallError: `out-of-memory`, `bad-call`.
        """
        adapter = task.read()
        steps = plan(adapter, self.model, self._how)
        refuse_hooks(self._given, steps)
        if adapter.head is not None and self._head_classes is not None and adapter.head.classes > self._head_classes:
            text = f"{name} has {adapter.head.classes} classes, the pool's head {self._head_classes}"
            raise CallError(text, Reason.BAD_CALL, hint="make the pool with a larger head_classes")
        with memory_errors():
            *values, head = values_of(steps, adapter.head, next(self.model.parameters()).device)
        return Chosen(name, task, adapter.labels, steps, values, head)

    def show(self, chosen: Chosen | None) -> None:
        """Put a task, or none, in the place of what is there; a failure puts that back.

        Raises:
            CallError: `out-of-memory`.
        """
        before = self.chosen
        with memory_errors(), writing(self.model):
            self._take_out()
            try:
                self._put_in(chosen)
            except BaseException:
                self._put_back(before)
                raise

    def require_free(self) -> None:
        """Refuse a model that holds an adapter of somebody else.

        Raises:
            UnsupportedAdapterError: `already-loaded`.
        """
        found = self.model.__dict__.get(MARK)
        if found is not None and self.chosen is None:
            text = f"the model has the task {found} in it, which this pool did not put there"
            raise UnsupportedAdapterError(text, Reason.ALREADY_LOADED, hint="unload() it first")

    def forget(self) -> None:
        """Give up the copies and heads, because the model was moved; nothing may be shown."""
        self._regions, self._heads = Regions(), {}

    def _take_out(self) -> None:
        """All but what folds wrote into whole regions: the next task may write to the same ones."""
        if self._undo is not None:
            undo, self._undo, self.chosen = self._undo, None, None
            undo.close()

    def _put_back(self, before: Chosen | None) -> None:
        try:
            self._put_in(before)
        except BaseException:
            self._regions.restore()
            raise

    def _put_in(self, chosen: Chosen | None) -> None:
        if chosen is None:
            self._regions.restore()
            return
        with ExitStack() as undo:
            like, changes = next(self.model.parameters()), Changes(undo)
            self._regions.begin(chosen.steps)
            for step, tensors in zip(chosen.steps, chosen.values):
                if is_plain(step):
                    for role, delta in deltas(step.method, tensors, step.params, step.place).items():
                        self._regions.write(step.place, role, delta, replaces=step.method.replaces)
                else:
                    apply_step(step, tensors, like, changes)
            if chosen.head:
                self._put_head(chosen.head, undo)
            self.model.__dict__[MARK] = chosen.name
            undo.callback(self.model.__dict__.pop, MARK, None)
            self._undo, self.chosen = undo.pop_all(), chosen

    def _put_head(self, tensors: Mapping[str, torch.Tensor], undo: ExitStack) -> None:
        """Into the backbone's own head where that has the form, else into one that is kept for the form."""
        own, wanted = self.model.get_submodule("head"), self._padded(tensors)
        like, classes = next(self.model.parameters()), wanted["weight"].shape[0]
        undo.callback(restore_head, self.model, own, self.model.num_classes, (like.device, like.dtype))
        if isinstance(own, nn.Linear) and _form(own._parameters) == _form(wanted):
            place = Place(Site("head"), own)
            for role, values in wanted.items():
                self._regions.write(place, role, values, replaces=True)
        else:
            self.model._modules["head"] = self._head(wanted)
        self.model.num_classes = classes  # type: ignore[assignment]

    def _head(self, wanted: Mapping[str, torch.Tensor]) -> nn.Linear:
        like, (classes, features) = next(self.model.parameters()), wanted["weight"].shape
        key = (classes, "bias" in wanted)
        head = self._heads.get(key)
        if head is None:
            head = bare_linear(features, classes)
            for role, values in wanted.items():
                empty = torch.empty(values.shape, dtype=like.dtype, device=like.device)
                head._parameters[role] = nn.Parameter(empty, requires_grad=False)
            self._heads[key] = head.train(self.model.training)
        for role, values in wanted.items():
            head.get_parameter(role).copy_(values)
        return head

    def _padded(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """A head of `head_classes` rows whose spare ones are never the answer: their logit is minus infinity."""
        if self._head_classes is None:
            return tensors
        weight = tensors["weight"]
        classes, spare = len(weight), self._head_classes - len(weight)
        bias = tensors.get("bias", weight.new_zeros(classes))
        filled = torch.cat([bias, bias.new_full((spare,), float("-inf"))])
        return {"weight": torch.cat([weight, weight.new_zeros(spare, weight.shape[1])]), "bias": filled}


def _form(tensors: Mapping[str, Any]) -> dict[str, torch.Size]:
    return {role: tensor.shape for role, tensor in tensors.items() if tensor is not None}
