"""Scales and offsets of codes, fitted to what a branch gives out instead of to its weights.

The codes stay. Weights are linear in scales and offsets, so where a branch is linear in a matrix the best ones are a
least-squares solution; where it is not (a ReLU behind it), it is solved once for the tangent. Conjugate gradients from
the weights' own fit never need the normal matrix, and leave alone what the images say nothing about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Union, cast

import numpy as np
import torch

from adapterpack.codebooks import levels_of
from adapterpack.methods._base import Method, Params
from adapterpack.tensors import Quantized, Sparse, Tensor, numel

Coded = Union[Quantized, Sparse]  # a Sparse one with quantized values
Output = Callable[[torch.Tensor], torch.Tensor]  # a matrix, its scale included → what the branch gives out
WEIGHT = 0.01  # what an error of the weights counts beside one of the output
Pull = Callable[[torch.Tensor], tuple[torch.Tensor]]
STEPS = 60
ENOUGH = 1e-9  # of the first gradient


def coded(tensor: Tensor) -> bool:
    """Whether a tensor has scales that can be fitted."""
    return isinstance(_codes(tensor), Quantized)


def wide(tensor: Tensor, factor: float = 1.0) -> torch.Tensor:
    """The values, float64 [shape], times the branch's scale."""
    return torch.from_numpy(tensor.dense().astype(np.float64)) * factor


def branch_output(
    method: Method, params: Params, x: torch.Tensor, tensors: Mapping[str, torch.Tensor], role: str
) -> Output:
    """What a branch gives out as a function of one of its tensors, the others given."""

    def output(values: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = method.branch(x, {**tensors, role: values}, params)
        return found

    return output


def refit(tensor: Tensor, output: Output, exact: torch.Tensor, target: torch.Tensor, factor: float = 1.0) -> Tensor:
    """The tensor with the scales and offsets that bring an output nearest to a target.

    What is made smallest is the squared relative error of the output, and `WEIGHT` times that of the weights: a few
    images leave directions open in which the weights could go anywhere, and other images would notice.

    Args:
        tensor: with codes.
        output: of the tensor's values times `factor`, float64.
        exact: what those values were before they became codes, times `factor`, float64.
        target: what the output should be, float64.
        factor: the branch's scale, where it multiplies this tensor.

    Returns:
        The tensor with other scales, or itself where they bring the output no nearer.
    """
    codes = _codes(tensor)
    if not isinstance(codes, Quantized):
        raise RuntimeError("only codes have scales to fit")
    weights = _weights_of(tensor, codes, factor)
    start = _stacked(codes)

    size = float(exact.norm())
    share = WEIGHT**0.5 * float(target.norm()) / size if size else 0.0

    def model(parameters: torch.Tensor) -> torch.Tensor:
        values = weights(parameters)
        return torch.cat([output(values).reshape(-1), share * values.reshape(-1)])

    solved = start + _least_squares(model, start, torch.cat([target.reshape(-1), share * exact.reshape(-1)]))
    changed = _with(tensor, codes, solved)
    if changed is None or _gap(output, changed, factor, target) >= _gap(output, tensor, factor, target):
        return tensor
    return changed


def _codes(tensor: Tensor) -> Tensor:
    return tensor.values if isinstance(tensor, Sparse) else tensor


def _stacked(codes: Quantized) -> torch.Tensor:
    """Scales, then offsets: float64 [1 or 2, groups]."""
    parts = [codes.scale] if codes.offset is None else [codes.scale, codes.offset]
    return torch.from_numpy(np.stack([part.astype(np.float64) for part in parts]))


def _weights_of(tensor: Tensor, codes: Quantized, factor: float) -> Callable[[torch.Tensor], torch.Tensor]:
    levels = torch.from_numpy(levels_of(codes.levels, codes.bits).astype(np.float64)[codes.codes()])
    group = torch.arange(codes.entries) // (codes.group or max(codes.entries, 1))
    places = torch.from_numpy(np.array(tensor.positions)) if isinstance(tensor, Sparse) else None

    def weights(parameters: torch.Tensor) -> torch.Tensor:
        values = levels * parameters[0][group]
        if len(parameters) > 1:
            values = values + parameters[1][group]
        if places is not None:
            values = torch.zeros(numel(tensor.shape), dtype=torch.float64).index_put((places,), values)
        return factor * values.reshape(tensor.shape)

    return weights


def _least_squares(
    model: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    """What to add to `start` so that the model's tangent there comes nearest to the target: conjugate gradients on
    the normal equations (CGLS), from 0."""
    now, pull = cast("tuple[torch.Tensor, Pull]", torch.func.vjp(model, start))
    # what a step moves is the transpose of what pulls back: one linear map, its derivative anywhere
    _, push = cast("tuple[Any, Pull]", torch.func.vjp(lambda outputs: pull(outputs)[0], torch.zeros_like(now)))
    gap = target - now
    step = torch.zeros_like(start)
    (gradient,) = pull(gap)
    direction, size = gradient, gradient.square().sum()
    enough = size * ENOUGH**2
    for _ in range(min(STEPS, 2 * start.numel())):
        if size <= enough:
            break
        (moved,) = push(direction)
        power = moved.square().sum()
        if power <= 0:
            break
        step = step + size / power * direction
        gap = gap - size / power * moved
        (gradient,) = pull(gap)
        before, size = size, gradient.square().sum()
        direction = gradient + size / before * direction
    return step


def _with(tensor: Tensor, codes: Quantized, parameters: torch.Tensor) -> Tensor | None:
    """The tensor with these scales, a negative one as 0; None where its number format does not reach."""
    with np.errstate(over="ignore"):
        scale = parameters[0].clip(min=0).numpy().astype(codes.scale.dtype)
        offset = None if codes.offset is None else parameters[1].numpy().astype(codes.offset.dtype)
    if not np.isfinite(scale).all() or (offset is not None and not np.isfinite(offset).all()):
        return None
    changed = replace(codes, scale=scale, offset=offset)
    return replace(tensor, values=changed) if isinstance(tensor, Sparse) else changed


def _gap(output: Output, tensor: Tensor, factor: float, target: torch.Tensor) -> float:
    return float((output(wide(tensor, factor)) - target).norm())
