"""What a method is: the mathematics of one kind of branch, in expressions that numpy arrays and torch tensors share.

No framework is imported by any method file, so one formula trains, runs, folds and is tested without torch.

The scale multiplies the tensors of `Method.scaled` once, before `branch` or `delta` sees them:
a folded LoRA adds (s·up) @ down, and an attached one adds (x @ downᵀ) @ (s·up)ᵀ. See spec/methods.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeGuard, Union

Array = Any  # a numpy array or a torch tensor: the methods use only what both have
Shape = tuple[int, ...]
Params = Mapping[str, Any]
Tap = Literal["input", "residual", "output", "sum"]


@dataclass(frozen=True, slots=True, eq=False)
class Entries:
    """A few entries to add into a parameter: `positions` int64 [n] into the flattened (row-major) parameter."""

    positions: Any
    values: Array


Delta = Union[Array, Entries, None]


@dataclass(frozen=True, slots=True)
class Roles:
    """Which tensors a branch has: all of `required`, any of `optional`, at least one, and no others."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @property
    def order(self) -> tuple[str, ...]:
        """The order in which a file lists them."""
        return (*self.required, *self.optional)


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a method: its type, and the values that make sense (empty: any of that type)."""

    type: type
    choices: tuple[Any, ...] = ()


class Method(Protocol):
    """One kind of branch.

    Attributes:
        name: as written in files; never reused.
        roles: its tensors.
        settings: its params; a branch gives all of them and no others.
        scaled: the roles that `params["scale"]` multiplies; empty for a method without a scale.
        foldable: whether its effect can be added into the backbone's weights.
        replaces: True where the tensors take the place of parameters instead of being added to something.
    """

    @property
    def name(self) -> str: ...
    @property
    def roles(self) -> Roles: ...
    @property
    def settings(self) -> Mapping[str, Setting]: ...
    @property
    def scaled(self) -> tuple[str, ...]: ...
    @property
    def foldable(self) -> bool: ...
    @property
    def replaces(self) -> bool: ...

    def tap(self, params: Params) -> Tap:
        """Where x of `branch` comes from: the "input" or "output" of the site's module; the "residual" stream before
        the norm that precedes it; or the "sum" of that stream and what the site gives it. With the last two, what the
        branch gives is added to the residual stream."""
        ...

    def features(self, shapes: Mapping[str, Shape], params: Params) -> dict[str, Shape]:
        """The shapes that the site's parameters must have for these tensors to fit: {"weight": (out, in), …}; a branch
        on the residual stream gives {"residual": (width,)}. "input" and "output" stand for how many features the
        module takes and gives, whatever its weight's shape.

        Raises:
            ValueError: the tensors do not belong together; the text says why.
        """
        ...

    def branch(self, x: Array, t: Mapping[str, Array], params: Params) -> Array:
        """What the site's output (or the residual stream) gains: x [..., in] → [..., out]."""
        ...

    def delta(self, t: Mapping[str, Any], params: Params) -> dict[str, Delta]:
        """What each parameter of the site gains ({"weight": [out, in], "bias": [out]}); for a method that
        `replaces`, the new values. `sparse` alone is given sparse tensors as `Entries`, all others get their zeros
        written out. Foldable methods only, and of those the ones without a `transform`."""
        ...


class Transform(Method, Protocol):
    """A foldable method whose new parameters follow from those that are there: it has this in the place of `delta`."""

    def transform(self, own: Mapping[str, Array], t: Mapping[str, Array], params: Params) -> dict[str, Array]:
        """The new values of the site's parameters.

        Args:
            own: those that the site has, by role ("weight", "bias"), float32 or wider; they are left as they are.
            t: by role, scale included, dense.
            params: the method's settings.
        """
        ...


def transforms(method: Method) -> TypeGuard[Transform]:
    """Whether a method has a `transform`; it asks by name, because a protocol's `isinstance` takes 15 µs a call."""
    return hasattr(method, "transform")


def one_shape(shapes: Mapping[str, Shape], role: str, ndim: int) -> Shape:
    """The shape of a role, checked for its number of dimensions.

    Raises:
        ValueError: another number of dimensions, or a dimension of 0.
    """
    shape = shapes[role]
    if len(shape) != ndim or 0 in shape:
        raise ValueError(f"{role} has shape {list(shape)}, expected {ndim} dimension(s), none of them 0")
    return shape


def bottleneck(shapes: Mapping[str, Shape]) -> tuple[int, int, int]:
    """(out, hidden, in) of a down/up pair with optional biases.

    Raises:
        ValueError: the hidden dimensions or a bias differ.
    """
    hidden, inward = one_shape(shapes, "down", 2)
    outward, rank = one_shape(shapes, "up", 2)
    if rank != hidden:
        raise ValueError(f"down has {hidden} rows but up has {rank} columns")
    for role, size in (("down_bias", hidden), ("up_bias", outward)):
        if role in shapes and shapes[role] != (size,):
            raise ValueError(f"{role} has shape {list(shapes[role])}, expected [{size}]")
    return outward, hidden, inward
