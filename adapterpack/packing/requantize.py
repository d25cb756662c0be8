"""Post-training quantization of an adapter, and what it costs in accuracy of each matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from adapterpack.adapter import Adapter, Branch, Head
from adapterpack.errors import CallError, Reason
from adapterpack.packing.options import CODE_BITS, Options
from adapterpack.quantize import quantize, relative_error
from adapterpack.tensors import F32, Dense, Quantized, Sparse, Tensor, round_bfloat16

Report = tuple["Cost", ...]


@dataclass(frozen=True, slots=True)
class Cost:
    """What changing one tensor's form did; every error is a Frobenius norm of a difference over that of the original.

    Attributes:
        tensor: site and role.
        relative_error: of the weights, as written.
        unfitted_error: of the weights before scales were fitted to outputs; None, as the next two, without that.
        output_before, output_after: of what the branch gives out on images, with this matrix and those before it in
            codes, before and after scales were fitted.
    """

    tensor: str
    relative_error: float
    unfitted_error: float | None = None
    output_before: float | None = None
    output_after: float | None = None


def cost_of(name: str, before: Tensor, after: Tensor) -> Cost:
    """The error that a change of form makes in a tensor's values."""
    return Cost(name, relative_error(before.dense(), after.dense()))


def requantize(adapter: Adapter, options: Options) -> tuple[Adapter, Report]:
    """The adapter with its matrices in `options.bits` and its head's weight in `options.head_bits`.

    Vectors (biases, norms, the class token) keep their form: they are few, and one scale would serve them badly. So do
    tensors that have codes of as few bits already.

    Returns:
        The adapter and the cost of every tensor that was changed; both unchanged and empty without bits.

    Raises:
        CallError: `not-finite` for a value that float16 cannot hold.
    """
    costs: list[Cost] = []

    def change(tensor: Tensor, bits: int | None, name: str) -> Tensor:
        if bits is None or not _is_matrix(tensor) or _is_coarser(tensor, bits):
            return tensor
        changed = _in_bits(tensor, bits, options.group, name)
        costs.append(cost_of(name, tensor, changed))
        return changed

    branches = tuple(_changed_branch(branch, options.bits, change) for branch in adapter.branches)
    head = adapter.head
    if head is not None:
        head = Head(change(head.weight, options.head_bits, "head.weight"), head.bias)
    return replace(adapter, branches=branches, head=head), tuple(costs)


def kept(adapter: Adapter, options: Options) -> int:
    """How many matrices `requantize` leaves alone because they have as few bits already."""
    found = [(tensor, options.bits) for branch in adapter.branches for tensor in branch.tensors.values()]
    if adapter.head is not None:
        found.append((adapter.head.weight, options.head_bits))
    return sum(bits is not None and _is_matrix(tensor) and _is_coarser(tensor, bits) for tensor, bits in found)


def _is_matrix(tensor: Tensor) -> bool:
    return len(tensor.shape) > 1 or isinstance(tensor, Sparse)


def _is_coarser(tensor: Tensor, bits: int) -> bool:
    """Whether the tensor has codes of no more bits already: finer codes would cost bytes and gain nothing."""
    plain = tensor.values if isinstance(tensor, Sparse) else tensor
    return isinstance(plain, Quantized) and plain.bits <= bits <= CODE_BITS


def _changed_branch(branch: Branch, bits: int | None, change: Callable[[Tensor, int | None, str], Tensor]) -> Branch:
    tensors = {role: change(t, bits, f"{branch.site}.{role}") for role, t in branch.tensors.items()}
    return replace(branch, tensors=tensors)


def _in_bits(tensor: Tensor, bits: int, group: int, name: str) -> Tensor:
    if isinstance(tensor, Sparse):
        if not tensor.entries:
            return tensor
        return replace(tensor, values=_dense_in_bits(tensor.values, bits, group, name))
    return _dense_in_bits(tensor, bits, group, name)


def _dense_in_bits(tensor: Dense | Quantized, bits: int, group: int, name: str) -> Dense | Quantized:
    values32 = tensor.dense()
    if bits == 32:
        return Dense(values32)
    if bits == 16:
        return _half(values32, name)
    scale = "float16" if group else "float32"
    return quantize(values32, bits, group, scale=scale, offset=group == 0)


def _half(values: F32, name: str) -> Dense:
    """float16 where it reaches, bfloat16 where a value is beyond its range."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if np.isfinite(half).all():
        return Dense(half, "float16")
    if not np.isfinite(values).all():
        raise CallError(f"{name} holds NaN or infinity", Reason.NOT_FINITE)
    return Dense(round_bfloat16(values), "bfloat16")
