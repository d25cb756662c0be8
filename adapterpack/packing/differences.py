"""Two adapters side by side: which branches both have, how far their tensors and what they add to a weight are apart.

It reads two adapters and decides nothing. Errors are Frobenius norms of a difference over that of the first adapter's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adapterpack.adapter import Adapter, Branch, canonical_order
from adapterpack.methods import METHODS
from adapterpack.methods._base import Entries, transforms
from adapterpack.quantize import relative_error
from adapterpack.tensors import F32, Quantized, Tensor, numel, same_tensor

Form = Mapping[str, Any]
Key = tuple[str, str, int]  # site, method, and which of several


@dataclass(frozen=True, slots=True, eq=False)
class TensorDifference:
    """One tensor that both adapters have.

    Attributes:
        role: "down", "weight", ….
        shapes, forms: of the first and of the second.
        error: relative error of the second's values; None where the shapes differ, or where the first is all zeros and
            the second is not.
        same_signs: share of equal signs where both have one bit a weight, else None.
        identical: to the bit, form included.
    """

    role: str
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    forms: tuple[Form, Form]
    error: float | None
    same_signs: float | None
    identical: bool


@dataclass(frozen=True, slots=True, eq=False)
class BranchDifference:
    """One branch that both adapters have, by site and method.

    Attributes:
        site, method: where and what.
        settings: those that differ, first and second value; None for a setting that one lacks.
        only_a, only_b: roles that one alone has.
        tensors: the roles of both.
        delta_error: relative error of what the branch adds to the weight, scale included; of a branch with an
            activation between its two matrices, of their product. None where there is no such thing, where the shapes
            differ, or where the first is all zeros and the second is not.
        identical: all of it, to the bit.
    """

    site: str
    method: str
    settings: Mapping[str, tuple[Any, Any]]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    tensors: tuple[TensorDifference, ...]
    delta_error: float | None
    identical: bool


@dataclass(frozen=True, slots=True, eq=False)
class Differences:
    """Everything about two adapters but their description.

    Attributes:
        only_a, only_b: branches that one alone has, as "site method".
        branches: those of both.
        sites: sites at which both add something to a weight, but by different methods or numbers of branches, with the
            relative error of the sums.
        head: tensors of both heads; empty where one has no head.
        head_only_a, head_only_b: roles of the head that one alone has.
    """

    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    branches: tuple[BranchDifference, ...]
    sites: Mapping[str, float | None]
    head: tuple[TensorDifference, ...]
    head_only_a: tuple[str, ...] = ()
    head_only_b: tuple[str, ...] = ()

    @property
    def same_numbers(self) -> bool:
        """Whether all that both have is all there is, and no value differs."""
        one_sided = self.only_a or self.only_b or self.head_only_a or self.head_only_b
        uneven = any(branch.settings or branch.only_a or branch.only_b for branch in self.branches)
        tensors = [tensor for branch in self.branches for tensor in branch.tensors] + list(self.head)
        return not (one_sided or uneven) and all(tensor.error == 0 for tensor in tensors)


def differences(a: Adapter, b: Adapter) -> Differences:
    """Compare two adapters branch by branch."""
    first, second = _by_key(a.branches), _by_key(b.branches)
    common = [key for key in first if key in second]
    only_a, only_b = ([key for key in one if key not in other] for one, other in ((first, second), (second, first)))
    uneven = sorted({site for site, *_ in (*only_a, *only_b) if site in a.sites and site in b.sites})
    heads = (a.head.tensors if a.head else {}, b.head.tensors if b.head else {})
    return Differences(
        tuple(f"{site} {method}" for site, method, _ in only_a),
        tuple(f"{site} {method}" for site, method, _ in only_b),
        tuple(_branch(first[key], second[key]) for key in common),
        {site: _delta_error(a.sites[site], b.sites[site]) for site in uneven},
        tuple(_tensor(role, heads[0][role], heads[1][role]) for role in heads[0] if role in heads[1]),
        *(tuple(sorted(one.keys() - other.keys())) for one, other in (heads, heads[::-1])),
    )


def _by_key(branches: Sequence[Branch]) -> dict[Key, Branch]:
    """Branches in canonical order; several of one method at one site in the order of their settings."""
    found: dict[Key, Branch] = {}
    ordered = sorted(branches, key=lambda branch: (canonical_order(branch), repr(sorted(branch.params.items()))))
    for branch in ordered:
        number = sum(key[:2] == (str(branch.site), branch.method) for key in found)
        found[str(branch.site), branch.method, number] = branch
    return found


def _branch(a: Branch, b: Branch) -> BranchDifference:
    names = sorted(a.params.keys() | b.params.keys())
    settings = {n: (a.params.get(n), b.params.get(n)) for n in names if a.params.get(n) != b.params.get(n)}
    roles = [role for role in a.tensors if role in b.tensors]
    tensors = tuple(_tensor(role, a.tensors[role], b.tensors[role]) for role in roles)
    only_a, only_b = (
        tuple(sorted(one.keys() - other.keys())) for one, other in ((a.tensors, b.tensors), (b.tensors, a.tensors))
    )
    same = not (settings or only_a or only_b) and all(tensor.identical for tensor in tensors)
    return BranchDifference(str(a.site), a.method, settings, only_a, only_b, tensors, _delta_error((a,), (b,)), same)


def _tensor(role: str, a: Tensor, b: Tensor) -> TensorDifference:
    error = _error(a.dense(), b.dense()) if a.shape == b.shape else None
    return TensorDifference(role, (a.shape, b.shape), (a.form(), b.form()), error, _same_signs(a, b), same_tensor(a, b))


def _same_signs(a: Tensor, b: Tensor) -> float | None:
    if not (isinstance(a, Quantized) and isinstance(b, Quantized)) or a.shape != b.shape or not a.entries:
        return None
    return float((a.codes() == b.codes()).mean()) if a.bits == b.bits == 1 else None


def _delta_error(a: Sequence[Branch], b: Sequence[Branch]) -> float | None:
    first, second = _added(a), _added(b)
    if first is None or second is None:
        return None
    shapes = [{name: values.shape for name, values in found.items()} for found in (first, second)]
    if not first or shapes[0] != shapes[1]:
        return None
    stacked = [np.concatenate([found[name].reshape(-1) for name in sorted(found)]) for found in (first, second)]
    return _error(stacked[0], stacked[1])


def _error(a: F32, b: F32) -> float | None:
    found = relative_error(a, b)
    return found if np.isfinite(found) else None


def _added(branches: Sequence[Branch]) -> dict[str, F32] | None:
    """What branches at one site add to its parameters together, or None where that is no sum."""
    total: dict[str, F32] = {}
    for branch in branches:
        found = _delta(branch)
        if found is None or (len(branches) > 1 and not METHODS[branch.method].foldable):
            return None
        for role, values in found.items():
            if role in total and total[role].shape != values.shape:
                return None
            total[role] = total[role] + values if role in total else values
    return total


def _delta(branch: Branch) -> dict[str, F32] | None:
    method = METHODS.get(branch.method)
    if method is None or method.replaces or transforms(method):
        return None
    factor = np.float32(branch.params.get("scale", 1.0))
    t = {role: x.dense() * factor if role in method.scaled else x.dense() for role, x in branch.tensors.items()}
    try:
        shapes = method.features({role: values.shape for role, values in t.items()}, branch.params)
    except ValueError:  # the tensors do not belong together: there is nothing to form
        return None
    if not method.foldable:
        return {"product": np.asarray(t["up"] @ t["down"], np.float32)} if "down" in t and "conv" not in t else None
    return {role: _written_out(part, shapes[role]) for role, part in method.delta(t, branch.params).items()}


def _written_out(part: Any, shape: tuple[int, ...]) -> F32:
    if not isinstance(part, Entries):
        return np.asarray(part, np.float32)
    out = np.zeros(numel(shape), np.float32)
    np.add.at(out, part.positions, part.values)
    return out.reshape(shape)
