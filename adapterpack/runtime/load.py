"""Put a decoded adapter into a live model, and take it out again so that the backbone is bit for bit what it was.

Everything is checked first (see `plan`); then every change is recorded as it is made, so a failure half-way leaves the
model as it was too.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import TracebackType
from typing import Any

import torch
from torch import nn

from adapterpack.adapter import Adapter, DataSettings
from adapterpack.errors import (
    AdapterPackError,
    BackboneMismatchError,
    CallError,
    Reason,
    Translating,
    UnsupportedAdapterError,
)
from adapterpack.runtime.attach import Hooks
from adapterpack.runtime.backbone import unwrap
from adapterpack.runtime.compiled import refuse_hooks
from adapterpack.runtime.devices import require_device
from adapterpack.runtime.families import features_of as features_of
from adapterpack.runtime.families import first_parameter, put_classifier, require_supported
from adapterpack.runtime.fingerprint import fingerprint, remember, state_of
from adapterpack.runtime.fold import Arena, deltas, fold, swap
from adapterpack.runtime.places import Residual
from adapterpack.runtime.plan import Fold, Step, check_head, plan
from adapterpack.runtime.values import Value, values_of

MARK = "_adapterpack_task"  # an attribute of the model: it survives copy.deepcopy, as the hooks do


class MissingFingerprintWarning(UserWarning):
    """The adapter does not say which backbone it was trained on, so the model could not be checked."""


class Loaded:
    """An adapter in a model; made by `load_adapter`.

    As a context manager it unloads at the end. `unload()` a second time does nothing.

    Attributes:
        task: the adapter's name.
        labels: class names in the order of the logits, or None.
        data: the preprocessing that the file records, or None.
        folded, attached: the sites, each once, in the adapter's order.
        model: the model.
    """

    def __init__(self, adapter: Adapter, model: nn.Module, steps: list[Step], undo: ExitStack) -> None:
        self.task = adapter.name
        self.labels: tuple[str, ...] | None = adapter.labels
        self.data: DataSettings | None = adapter.data
        self._sites = [(step.how == "fold", step.site) for step in steps]
        self.model = model
        self._undo: ExitStack | None = undo
        self._state = state_of(model) if any(folded for folded, _ in self._sites) else None
        self._fingerprint: str | None = None

    @property
    def folded(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(str(site) for folded, site in self._sites if folded))

    @property
    def attached(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(str(site) for folded, site in self._sites if not folded))

    @property
    def classes(self) -> int:
        """How many logits the model gives."""
        return int(self.model.num_classes)  # type: ignore[arg-type]

    def unload(self) -> None:
        """Restore every parameter, buffer and module; a second call does nothing."""
        if self._undo is None:
            return
        undisturbed = self._state is not None and self._state == state_of(self.model)
        undo, self._undo = self._undo, None
        with writing(self.model):
            undo.close()
        if undisturbed and self._fingerprint is not None:
            remember(self.model, self._fingerprint)

    def __enter__(self) -> Loaded:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unload()


def load_adapter(
    adapter: Adapter,
    model: nn.Module,
    *,
    fold: Fold = "auto",
    device: str | torch.device | None = None,
    check_fingerprint: bool = True,
) -> Loaded:
    """Put an adapter and its head into a model.

    Args:
        adapter: decoded.
        model: a timm `VisionTransformer`, or of another family of docs/backbones.md; one under `torch.compile` takes
            what can be folded.
        fold: "auto" adds into the weights what can be added exactly and attaches the rest, "always" refuses what
            cannot be folded, "never" leaves the backbone's weights alone.
        device: where to move the model first, after all checks; None leaves it where it is.
        check_fingerprint: False skips the comparison with the backbone that the adapter was trained on.

    Returns:
        The handle that unloads it.

    Raises:
        UnsupportedAdapterError: the adapter does not fit the model, see `plan`; or `already-loaded`.
        BackboneMismatchError: `fingerprint-mismatch`.
        CallError: `bad-call`, `out-of-memory`.

    Warns:
        MissingFingerprintWarning: the adapter has no fingerprint to compare.
    """
    inner = unwrap(model)
    require_supported(inner)
    if MARK in inner.__dict__:
        text = f"the model has the task {inner.__dict__[MARK]} in it already"
        raise UnsupportedAdapterError(
            text, Reason.ALREADY_LOADED, hint="unload() it first, and copy a model before that"
        )
    steps = plan(adapter, inner, fold)
    check_head(adapter, features_of(inner))
    refuse_hooks(model, steps)
    known = _checked_fingerprint(adapter, inner) if check_fingerprint else None
    loaded = _load(adapter, inner, steps, require_device(device) if device is not None else None)
    loaded._fingerprint = known
    return loaded


@contextmanager
def writing(model: nn.Module) -> Iterator[torch.Tensor]:
    """No gradients, no autocast, and inference mode exactly where the parameters were made in it; gives one of them."""
    first = first_parameter(model)
    kind = first.device.type
    if kind == "meta":
        text = "the model is on the device meta: it has no numbers"
        raise UnsupportedAdapterError(
            text, Reason.UNSUPPORTED_MODEL, hint="move it with to_empty() and load its weights"
        )
    plain = torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
    another = first.is_inference() != torch.is_inference_mode_enabled()
    mode = torch.inference_mode(first.is_inference()) if another else nullcontext()
    with mode, torch.no_grad(), plain:
        yield first


def _load(adapter: Adapter, model: nn.Module, steps: list[Step], device: torch.device | None) -> Loaded:
    with memory_errors(), writing(model) as like, ExitStack() as undo:
        target = device or like.device
        values = values_of(steps, adapter.head, target)
        if target != like.device:
            model.to(target)
            like = first_parameter(model)
        changes = Changes(undo)
        for step, tensors in zip(steps, values):
            apply_step(step, tensors, like, changes)
        if adapter.head is not None:
            _put_head(model, values[-1], like, undo)
        model.__dict__[MARK] = adapter.name
        undo.callback(model.__dict__.pop, MARK, None)
        return Loaded(adapter, model, steps, undo.pop_all())
    raise RuntimeError("unreachable: an ExitStack that swallowed an error")


class Changes:
    """What is changed in a model, so that `undo` can change it back.

    Attributes:
        undo: is told how, before or as soon as something is changed.
        hooks: that are added.
        arena: where values are kept that are overwritten.
    """

    __slots__ = ("arena", "hooks", "undo")

    def __init__(self, undo: ExitStack) -> None:
        self.undo, self.hooks, self.arena = undo, Hooks(), Arena()
        undo.callback(self.hooks.remove)


def apply_step(step: Step, tensors: dict[str, Value], like: torch.Tensor, changes: Changes) -> None:
    """Put one branch in."""
    site, method, params = step.site, step.method, step.params
    if isinstance(step.at, Residual):
        changes.hooks.attach_residual(step.at, site, method, tensors, params, like)
    elif step.how == "hook":
        changes.hooks.attach(step.at, site, method, tensors, params)
    else:
        for role, delta in deltas(method, tensors, params, step.place).items():
            if step.how == "fold":
                fold(step.at, role, delta, replaces=method.replaces, undo=changes.undo, arena=changes.arena)
            else:
                swap(step.at, role, delta, replaces=method.replaces, undo=changes.undo)


def _put_head(model: nn.Module, tensors: dict[str, Value], like: torch.Tensor, undo: ExitStack) -> None:
    classes, features = tensors["weight"].shape
    head = bare_linear(features, classes)
    for role, values in tensors.items():
        head._parameters[role] = nn.Parameter(values.to(like.device, like.dtype), requires_grad=False)
    head.training, before = model.training, model.num_classes
    undo.callback(restore_head, model, put_classifier(model, head, classes), before, (like.device, like.dtype))


def bare_linear(features: int, classes: int) -> nn.Linear:
    """A linear layer without its parameters: the constructor would draw random numbers that nobody needs."""
    layer = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(layer)
    vars(layer).update(in_features=features, out_features=classes)  # torch looks at every attribute that is set
    layer._parameters.update({"weight": None, "bias": None})
    return layer


def restore_head(model: nn.Module, head: nn.Module, classes: Any, made_for: tuple[torch.device, torch.dtype]) -> None:
    """Put a head back that was in a model when the model's device and dtype were `made_for`."""
    like = next(model.parameters())
    if (like.device, like.dtype) != made_for:
        head.to(like.device, like.dtype)  # the model was moved or cast meanwhile, without this head
    put_classifier(model, head, classes)


def _checked_fingerprint(adapter: Adapter, model: nn.Module) -> str | None:
    if adapter.backbone.fingerprint is None:
        text = f"{adapter.name} does not say which backbone it was trained on: results on another one are meaningless"
        warnings.warn(text, MissingFingerprintWarning, stacklevel=3)
        return None
    found = fingerprint(model)
    require_backbone(adapter, found)
    return found


def require_backbone(adapter: Adapter, found: str) -> None:
    """Refuse an adapter that was trained on a backbone of another fingerprint than `found`.

    Raises:
        BackboneMismatchError: `fingerprint-mismatch`.
    """
    expected = adapter.backbone.fingerprint
    if expected is not None and found != expected:
        text = (
            f"{adapter.name} was trained on {adapter.backbone.name or 'a backbone'} ({expected}), this model is {found}"
        )
        hint = "load that backbone's own weights, in float32; cast the model afterwards"
        raise BackboneMismatchError(text, Reason.FINGERPRINT, "backbone", hint)


class memory_errors(Translating):
    """What torch and numpy raise where memory runs out, as `CallError` (`out-of-memory`)."""

    __slots__ = ()

    def translate(self, error: BaseException) -> AdapterPackError | None:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            return CallError("there is not enough memory for the adapter", Reason.OUT_OF_MEMORY)
        return None
