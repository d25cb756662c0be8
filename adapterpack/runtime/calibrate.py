"""An adapter in codes, its scales fitted to the output of its branches on images; and what that did to each matrix.

It puts `activations` and `refit` together: the matrices of a branch one after another, each one given those before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional

from adapterpack.adapter import Adapter, Branch, Head
from adapterpack.methods import METHODS
from adapterpack.packing.requantize import Cost, Report, cost_of
from adapterpack.runtime.activations import Activations, collect
from adapterpack.runtime.refit import branch_output, coded, refit, wide
from adapterpack.tensors import Tensor

Tensors = dict[str, Tensor]
Errors = dict[str, tuple[float, float]]  # by role: relative error of the output before and after


@dataclass(frozen=True, slots=True, eq=False)
class Calibrated:
    """The adapter with fitted scales, and the cost of each matrix that has another form than it had.

    Attributes:
        adapter: as `coded`, but for scales and offsets.
        costs: with output errors for what could be measured.
        unmeasured: names of matrices in codes whose output no branch gives.
    """

    adapter: Adapter
    costs: Report
    unmeasured: tuple[str, ...]


def calibrate(original: Adapter, coded_adapter: Adapter, model: nn.Module, images: torch.Tensor) -> Calibrated:
    """Fit the scales of an adapter's codes to what its branches give out on images.

    Args:
        original: before it was quantized.
        coded_adapter: the same, branch by branch, after.
        model: the backbone, left as it was.
        images: the model's input, [n, channels, height, width].

    Raises:
        AdapterPackError: the adapter does not fit the model.
    """
    seen = collect(original, model, images)
    costs: list[Cost] = []
    missed: list[str] = []
    branches = []
    for number, (before, after) in enumerate(zip(original.branches, coded_adapter.branches)):
        tensors, errors = _fitted_branch(before, after, seen.branches.get(number))
        branches.append(replace(after, tensors=tensors))
        costs += _costs(before.tensors, after.tensors, tensors, errors, f"{before.site}.")
        missed += [f"{before.site}.{role}" for role in _in_codes(before.tensors, after.tensors) if role not in errors]
    head = coded_adapter.head
    if original.head is not None and head is not None:
        fitted, errors = _fitted_head(original.head, head, seen)
        costs += _costs(original.head.tensors, head.tensors, fitted.tensors, errors, "head.")
        head = fitted
    return Calibrated(replace(coded_adapter, branches=tuple(branches), head=head), tuple(costs), tuple(missed))


def _fitted_branch(before: Branch, after: Branch, x: torch.Tensor | None) -> tuple[Tensors, Errors]:
    method = METHODS[before.method]
    roles = [role for role in method.roles.order if role in _in_codes(before.tensors, after.tensors)]
    if x is None or not roles:
        return dict(after.tensors), {}
    scale = before.params.get("scale", 1.0)
    factors = {role: scale if role in method.scaled else 1.0 for role in before.tensors}
    exact = {role: wide(tensor, factors[role]) for role, tensor in before.tensors.items()}
    inputs = x.double()
    target: torch.Tensor = method.branch(inputs, exact, before.params)
    found, plain, fitted, errors = dict(after.tensors), dict(exact), dict(exact), {}
    for role in roles:
        plain[role] = wide(after.tensors[role], factors[role])
        output = branch_output(method, before.params, inputs, fitted, role)
        found[role] = refit(after.tensors[role], output, exact[role], target, factors[role])
        fitted[role] = wide(found[role], factors[role])
        unfitted = method.branch(inputs, plain, before.params)
        errors[role] = (_relative(unfitted, target), _relative(output(fitted[role]), target))
    if errors[roles[-1]][1] > errors[roles[-1]][0]:  # the first matrix was fitted to an output that is not the last
        return dict(after.tensors), {role: (first, first) for role, (first, _) in errors.items()}
    return found, errors


def _fitted_head(before: Head, after: Head, seen: Activations) -> tuple[Head, Errors]:
    if seen.head is None or after.weight is before.weight or not coded(after.weight):
        return after, {}
    x = seen.head.double()

    def output(weight: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, weight)

    exact = wide(before.weight)
    target = output(exact)
    weight = refit(after.weight, output, exact, target)
    errors = tuple(_relative(output(wide(tensor)), target) for tensor in (after.weight, weight))
    return Head(weight, after.bias), {"weight": (errors[0], errors[1])}


def _in_codes(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """The roles whose tensors were put into codes."""
    return [role for role, tensor in after.items() if tensor is not before[role] and coded(tensor)]


def _costs(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], fitted: Mapping[str, Tensor], errors: Errors, place: str
) -> list[Cost]:
    """One row for each tensor whose form was changed, in the order that `requantize` reports them."""
    rows = []
    for role, tensor in before.items():
        if after[role] is not tensor:
            first, last = errors.get(role, (None, None))
            unfitted = cost_of(place + role, tensor, after[role])
            row = cost_of(place + role, tensor, fitted[role])
            rows.append(
                replace(row, unfitted_error=unfitted.relative_error, output_before=first, output_after=last)
                if last is not None
                else row
            )
    return rows


def _relative(found: torch.Tensor, target: torch.Tensor) -> float:
    """Norm of the difference over that of the target; 0 for a target of zeros that was met."""
    norm, gap = float(target.norm()), float((found - target).norm())
    return gap / norm if norm else (0.0 if gap == 0 else float("inf"))
