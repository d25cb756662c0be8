"""Whether an adapter in memory, which anybody may have put together, holds what its types say.

A file's adapter need not be asked: whoever reads it makes arrays of the right kind, and checks what is in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from types import NoneType
from typing import Any

import numpy as np

from adapterpack.adapter import Adapter, Backbone, Branch, DataSettings, Head, Site
from adapterpack.converters._check import check_tensor
from adapterpack.errors import CallError, Reason
from adapterpack.tensors import DENSE_DTYPES, SCALE_DTYPES, Dense, Quantized, Sparse, Tensor

# what the fields are
_PARTS: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "method": (str,),
    "branches": (Sequence,),
    "head": (Head, NoneType),
    "labels": (tuple, NoneType),
    "data": (DataSettings, NoneType),
    "metadata": (Mapping,),
    "backbone": (Backbone,),
}
_NUMBERS = ("input_size", "mean", "std")  # of `DataSettings`: a number a dimension or channel


def check_memory(adapter: Adapter) -> None:
    """Refuse an adapter that holds other types than it should: numbers would be rounded without a word.

    Raises:
        CallError: `bad-call`, naming the field or the tensor.
        CorruptFileError: as `check_tensor`.
    """
    for name, kinds in _PARTS.items():
        _require(getattr(adapter, name), kinds, f"the adapter's {name}")
    for label in adapter.labels or ():
        _require(label, (str,), "a class name")
    if adapter.data is not None:
        _check_data(adapter.data)
    named: dict[str, Tensor] = {}
    if adapter.head is not None:
        named.update({f"head {role}": tensor for role, tensor in adapter.head.tensors.items()})
    for branch in adapter.branches:
        _check_branch(branch)
        named.update({f"{branch.site} {role}": tensor for role, tensor in branch.tensors.items()})
    for place, tensor in named.items():
        _check_form(tensor, place)
        check_tensor(tensor, place)
    if adapter.head is not None and len(adapter.head.weight.shape) != 2:
        text = f"the head's weight has shape {list(adapter.head.weight.shape)}"
        raise CallError(text, Reason.BAD_CALL, hint="expected [classes, features]")


def _check_data(data: DataSettings) -> None:
    for name in _NUMBERS:
        values = getattr(data, name)
        _require(values, (tuple,), f"the adapter's {name}")
        for value in values:
            _require(value, (Real,), f"a number of the adapter's {name}")
    _require(data.crop_pct, (Real,), "the adapter's crop_pct")


def _check_branch(branch: Branch) -> None:
    _require(branch, (Branch,), "a branch")
    _require(branch.site, (Site,), "a site")
    _require(branch.method, (str,), f"the method at {branch.site}")
    _require(branch.params, (Mapping,), f"params at {branch.site}")
    for name in branch.params:
        _require(name, (str,), f"a setting's name at {branch.site}")
    _require(branch.tensors, (Mapping,), f"what {branch.site} holds")


def _require(value: object, kinds: tuple[type, ...], what: str) -> None:
    if not isinstance(value, kinds):
        text = f"{what} is of type {type(value).__name__}"
        raise CallError(text, Reason.BAD_CALL, hint=f"expected {kinds[0].__name__}")


def _check_form(tensor: Tensor, place: str) -> None:
    _require(tensor, (Dense, Quantized, Sparse), place)
    if _is_formed(tensor):
        return
    text = f"{place} is a {type(tensor).__name__} of arrays or sizes of other types than it should have"
    if isinstance(tensor, Dense):
        held = getattr(tensor.data, "dtype", type(tensor.data).__name__)
        text = f"{place} is a Dense of {tensor.dtype} and holds {held}"
    raise CallError(text, Reason.BAD_CALL, hint="convert it first: nothing is rounded here")


def _is_formed(tensor: Tensor) -> bool:
    """Whether a tensor's arrays are of the types that its form says."""
    if isinstance(tensor, Dense):
        return tensor.dtype in DENSE_DTYPES and _is_array(tensor.data, DENSE_DTYPES[tensor.dtype])
    if isinstance(tensor, Sparse):
        values = tensor.values
        flat = isinstance(values, (Dense, Quantized)) and _is_formed(values) and len(values.shape) == 1
        return flat and _is_row(tensor.positions, np.dtype(np.int64)) and _is_shape(tensor.shape)
    scales = [part for part in (tensor.scale, tensor.offset) if part is not None]
    alike = any(all(_is_row(part, dtype) for part in scales) for dtype in SCALE_DTYPES.values())
    sizes = _is_shape(tensor.shape) and _is_shape((tensor.bits, tensor.group))
    return alike and sizes and _is_row(tensor.packed, np.dtype(np.uint8))


def _is_array(value: object, dtype: np.dtype[Any]) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.newbyteorder("<") == dtype


def _is_row(value: object, dtype: np.dtype[Any]) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == 1 and _is_array(value, dtype)


def _is_shape(values: object) -> bool:
    return isinstance(values, tuple) and all(type(value) is int for value in values)
