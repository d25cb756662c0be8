"""Whether a branch from an outside file is well formed: a known method, its settings, its roles, fitting shapes.

Knows the registry of methods and nothing of any outside form.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterpack.adapter import Adapter, Branch, Head
from adapterpack.bits import packed_bytes, padding_is_zero
from adapterpack.codebooks import is_codebook
from adapterpack.errors import CorruptFileError, Reason, UnsupportedVersionError
from adapterpack.methods import METHODS
from adapterpack.methods._base import Method
from adapterpack.tensors import Dense, Quantized, Sparse, Tensor, groups_of, numel, widen_bfloat16


def check_adapter(adapter: Adapter) -> Adapter:
    """The adapter itself, when all of its branches and its head are well formed.

    Raises:
        UnsupportedVersionError: `unknown-method`.
        CorruptFileError: `bad-parameter`, `missing-tensor`, `unmapped-tensor`, `bad-shape`, `duplicate-name`,
            `not-finite`, `bad-scale`, `padding-bits`, `bad-positions`, `bad-labels`.
    """
    seen: set[tuple[str, str, str]] = set()
    for branch in adapter.branches:
        check_branch(branch)
        key = (str(branch.site), branch.method, repr(sorted(branch.params.items())))
        if key in seen:
            raise CorruptFileError("two branches of one kind", Reason.DUPLICATE_NAME, f"{branch.site} {branch.method}")
        seen.add(key)
    if adapter.head is not None:
        _check_head(adapter.head)
    if adapter.labels is not None and (adapter.head is None or len(adapter.labels) != adapter.head.classes):
        raise CorruptFileError(f"{len(adapter.labels)} labels do not fit the head", Reason.BAD_LABELS)
    return adapter


def check_branch(branch: Branch) -> None:
    """See `check_adapter`."""
    where = f"{branch.site} {branch.method}"
    if branch.method not in METHODS:
        raise UnsupportedVersionError(f"unknown method {branch.method!r}", Reason.UNKNOWN_METHOD, where)
    method = METHODS[branch.method]
    _check_params(branch, method, where)
    missing = [role for role in method.roles.required if role not in branch.tensors]
    if missing or not branch.tensors:
        raise CorruptFileError(f"there is no {' and no '.join(missing) or 'tensor'}", Reason.MISSING_TENSOR, where)
    extra = sorted(set(branch.tensors) - set(method.roles.order))
    if extra:
        raise CorruptFileError(f"there is no role {extra[0]!r}", Reason.UNMAPPED_TENSOR, where)
    try:
        method.features({role: tensor.shape for role, tensor in branch.tensors.items()}, branch.params)
    except ValueError as error:
        raise CorruptFileError(str(error), Reason.BAD_SHAPE, where) from error
    for role, tensor in branch.tensors.items():
        check_tensor(tensor, f"{where} {role}")


def _check_params(branch: Branch, method: Method, where: str) -> None:
    if branch.params.keys() != method.settings.keys():
        message = f"the settings are {sorted(branch.params)}, expected {sorted(method.settings)}"
        raise CorruptFileError(message, Reason.BAD_PARAMETER, where)
    for name, setting in method.settings.items():
        value = branch.params[name]
        good = type(value) is setting.type and (not setting.choices or value in setting.choices)
        if not good or (setting.type is float and not math.isfinite(value)):
            raise CorruptFileError(
                f"{name} is {value!r}", Reason.BAD_PARAMETER, where, f"expected {setting.type.__name__}"
            )


def _check_head(head: Head) -> None:
    if len(head.weight.shape) != 2 or 0 in head.weight.shape:
        raise CorruptFileError(f"the head's weight has shape {list(head.weight.shape)}", Reason.BAD_SHAPE, "head")
    if head.bias is not None and head.bias.shape != (head.classes,):
        message = f"the head's bias has shape {list(head.bias.shape)}, expected [{head.classes}]"
        raise CorruptFileError(message, Reason.BAD_SHAPE, "head")
    for role, tensor in head.tensors.items():
        check_tensor(tensor, f"head {role}")


def check_tensor(tensor: Tensor, where: str) -> None:
    """Whether the content of a tensor is what its form promises; see `check_adapter`."""
    if isinstance(tensor, Dense):
        require_finite(widen_bfloat16(tensor.data) if tensor.dtype == "bfloat16" else tensor.data, where)
    elif isinstance(tensor, Quantized):
        _check_quantized(tensor, where)
    else:
        _check_sparse(tensor, where)


def require_finite(values: NDArray[Any], where: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        CorruptFileError: `not-finite`.
    """
    if not np.isfinite(values).all():
        raise CorruptFileError(
            "the tensor holds NaN or infinity", Reason.NOT_FINITE, where, "retrain or repair it first"
        )


def _check_quantized(tensor: Quantized, where: str) -> None:
    if not is_codebook(tensor.levels, tensor.bits):
        message = f"unknown codebook {tensor.levels!r} of {tensor.bits} bit"
        raise UnsupportedVersionError(message, Reason.BAD_PARAMETER, where)
    groups = groups_of(tensor.entries, tensor.group)
    sizes = [len(tensor.packed), len(tensor.scale), groups if tensor.offset is None else len(tensor.offset)]
    if tensor.group < 0 or sizes != [packed_bytes(tensor.entries, tensor.bits), groups, groups]:
        raise CorruptFileError("codes, scales and offsets do not fit the shape", Reason.BAD_SHAPE, where)
    require_finite(tensor.scale, where)
    require_finite(np.zeros(0) if tensor.offset is None else tensor.offset, where)
    if np.signbit(tensor.scale).any():
        raise CorruptFileError("a scale is negative", Reason.BAD_SCALE, where)
    if not padding_is_zero(tensor.packed, tensor.entries, tensor.bits):
        raise CorruptFileError("the pad bits are not zero", Reason.PADDING_BITS, where)


def _check_sparse(tensor: Sparse, where: str) -> None:
    at = tensor.positions
    ascending = bool((np.diff(at) > 0).all())
    if not ascending or (len(at) and not 0 <= int(at[0]) <= int(at[-1]) < numel(tensor.shape)):
        raise CorruptFileError("the positions do not ascend within the tensor", Reason.BAD_POSITIONS, where)
    if tensor.values.shape != (len(at),):
        raise CorruptFileError(f"{len(at)} positions, values {list(tensor.values.shape)}", Reason.BAD_SHAPE, where)
    check_tensor(tensor.values, where)
