"""An adapter as a description that JSON can hold and a flat table of arrays by name; and back, checked, to the bit.

Shared by the forms that keep named arrays (checkpoint, safetensors). A tensor is named `<site>.<method>.<role>`, with
`<method>.<n>` for a site's further branches of that method; a quantized one is `.packed`, `.scale` and `.offset`, a
sparse one `.positions` and its values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterpack.adapter import Adapter, Backbone, Branch, DataSettings, Head, Site
from adapterpack.container.limits import checked_size
from adapterpack.converters._check import check_adapter
from adapterpack.errors import CorruptFileError, Reason
from adapterpack.tensors import DENSE_DTYPES, SCALE_DTYPES, Dense, Quantized, Sparse, Tensor

Arrays = dict[str, NDArray[Any]]
Json = dict[str, Any]


def flatten(adapter: Adapter) -> tuple[Json, Arrays]:
    """The description, and the arrays by name (bfloat16 as uint16 patterns).

    Returns:
        What `unflatten` turns into the same adapter, to the bit.
    """
    arrays: Arrays = {}
    branches = []
    for branch, stem in zip(adapter.branches, stems(adapter.branches)):
        tensors = {role: _put(tensor, f"{stem}.{role}", arrays) for role, tensor in branch.tensors.items()}
        row = {"site": str(branch.site), "method": branch.method, "params": dict(branch.params), "tensors": tensors}
        branches.append(row)
    head = None
    if adapter.head is not None:
        head = {role: _put(tensor, f"head.{role}", arrays) for role, tensor in adapter.head.tensors.items()}
    return {
        "name": adapter.name,
        "method": adapter.method,
        "backbone": asdict(adapter.backbone),
        "labels": None if adapter.labels is None else list(adapter.labels),
        "data": None if adapter.data is None else _listed(asdict(adapter.data)),
        "metadata": dict(adapter.metadata),
        "branches": branches,
        "head": head,
    }, arrays


def stems(branches: Sequence[Branch]) -> Iterator[str]:
    """The name of each branch, unique among them."""
    seen: dict[tuple[str, str], int] = {}
    for branch in branches:
        key = (str(branch.site), branch.method)
        number = seen[key] = seen.get(key, -1) + 1
        yield ".".join((*key, str(number)) if number else key)


def _listed(settings: Json) -> Json:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}


def _put(tensor: Tensor, name: str, arrays: Arrays) -> Json:
    if isinstance(tensor, Dense):
        arrays[name] = tensor.data
        return {"form": "dense", "dtype": tensor.dtype}
    if isinstance(tensor, Quantized):
        arrays[f"{name}.packed"], arrays[f"{name}.scale"] = tensor.packed, tensor.scale
        if tensor.offset is not None:
            arrays[f"{name}.offset"] = tensor.offset
        return {"form": "quantized", "shape": list(tensor.shape), **tensor.form()}
    arrays[f"{name}.positions"] = tensor.positions
    return {"form": "sparse", "shape": list(tensor.shape), "values": _put(tensor.values, f"{name}.values", arrays)}


def unflatten(description: object, arrays: Mapping[str, NDArray[Any]]) -> Adapter:
    """The inverse of `flatten`; every array must be used, every field must make sense.

    Raises:
        CorruptFileError: `missing-field`, `unknown-field`, `bad-field`, `missing-tensor`, `unmapped-tensor`, and those
            of `check_adapter`.
    """
    fields = Fields(description, "task")
    left = dict(arrays)
    rows = [Fields(row, f"task.branches[{i}]") for i, row in enumerate(fields.take("branches", list))]
    bare = [_bare_branch(row) for row in rows]
    branches = [
        Branch(branch.site, branch.method, branch.params, _tensors(row, stem, left))
        for branch, row, stem in zip(bare, rows, stems(tuple(bare)))
    ]
    head = fields.take("head", dict, type(None))
    if head is not None:
        tensors = {role: _get(Fields(row, f"task.head.{role}"), f"head.{role}", left) for role, row in head.items()}
        head = _head(tensors)
    backbone = Fields(fields.take("backbone", dict), "task.backbone")
    adapter = Adapter(
        fields.take("name", str),
        fields.take("method", str),
        tuple(branches),
        head,
        _labels(fields.take("labels", list, type(None))),
        _data(fields.take("data", dict, type(None))),
        fields.take("metadata", dict),
        Backbone(backbone.take("name", str), backbone.take("fingerprint", str, type(None))),
    )
    backbone.end()
    fields.end()
    if left:
        raise CorruptFileError(f"nothing explains the tensor {sorted(left)[0]!r}", Reason.UNMAPPED_TENSOR)
    return check_adapter(adapter)


class Fields:
    """A JSON object whose fields are taken one by one; what is left at the end is an error."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise CorruptFileError(f"{where} is no object", Reason.BAD_FIELD, where)
        self._left = dict(value)
        self.where = where

    def take(self, name: str, *kinds: type) -> Any:
        """One field of one of the types, compared exactly (True is no int)."""
        if name not in self._left:
            raise CorruptFileError(f"the field {name} is missing", Reason.MISSING_FIELD, self.where)
        value = self._left.pop(name)
        if type(value) not in kinds:
            raise CorruptFileError(f"{name} is {str(value)[:80]!r}", Reason.BAD_FIELD, f"{self.where}.{name}")
        return value

    def end(self) -> None:
        """Refuse fields that nobody asked for."""
        if self._left:
            raise CorruptFileError(f"unknown field {str(next(iter(self._left)))!r}", Reason.UNKNOWN_FIELD, self.where)


def _bare_branch(row: Fields) -> Branch:
    return Branch(Site.parse(row.take("site", str)), row.take("method", str), row.take("params", dict), {})


def _tensors(row: Fields, stem: str, left: Arrays) -> dict[str, Tensor]:
    rows = row.take("tensors", dict)
    row.end()
    return {role: _get(Fields(item, f"{row.where}.{role}"), f"{stem}.{role}", left) for role, item in rows.items()}


def _head(tensors: dict[str, Tensor]) -> Head:
    if "weight" not in tensors or not tensors.keys() <= {"weight", "bias"}:
        raise CorruptFileError("the head is not a weight and a bias", Reason.BAD_FIELD, "task.head")
    return Head(**tensors)


def _labels(value: list[Any] | None) -> tuple[str, ...] | None:
    if value is not None and not all(type(item) is str for item in value):
        raise CorruptFileError("a label is no string", Reason.BAD_LABELS, "task.labels")
    return None if value is None else tuple(value)


def _data(value: Json | None) -> DataSettings | None:
    if value is None:
        return None
    row = Fields(value, "task.data")
    size, mean, std = (row.take(name, list) for name in ("input_size", "mean", "std"))
    whole, broken = ({type(item) for item in items} for items in (size, mean + std))
    if (whole, broken) != ({int}, {float}) or len(size) != 3 or not size[0] == len(mean) == len(std):
        raise CorruptFileError("input_size, mean and std do not fit together", Reason.BAD_FIELD, "task.data")
    words = row.take("interpolation", str), row.take("crop_pct", float), row.take("crop_mode", str)
    row.end()
    return DataSettings(tuple(size), tuple(mean), tuple(std), *words)


def _get(row: Fields, name: str, left: Arrays) -> Tensor:
    form = row.take("form", str)
    if form == "dense":
        dtype = row.take("dtype", str)
        row.end()
        return Dense(_array(left, name, DENSE_DTYPES.get(dtype)), dtype)
    if form == "quantized":
        return _get_quantized(row, name, left)
    if form != "sparse":
        raise CorruptFileError(f"unknown form {form!r}", Reason.BAD_FIELD, row.where)
    shape = _shape(row)
    values = _get(Fields(row.take("values", dict), f"{row.where}.values"), f"{name}.values", left)
    row.end()
    if isinstance(values, Sparse):
        raise CorruptFileError("sparse values that are sparse", Reason.BAD_FIELD, row.where)
    return Sparse(shape, _array(left, f"{name}.positions", np.dtype("<i8"), ndim=1), values)


def _get_quantized(row: Fields, name: str, left: Arrays) -> Quantized:
    shape, bits, group = _shape(row), row.take("bits", int), row.take("group", int)
    levels, offset, scale = row.take("levels", str), row.take("offset", bool), SCALE_DTYPES.get(row.take("scale", str))
    row.end()
    packed = _array(left, f"{name}.packed", np.dtype(np.uint8), ndim=1)
    scales = _array(left, f"{name}.scale", scale, ndim=1)
    offsets = _array(left, f"{name}.offset", scale, ndim=1) if offset else None
    return Quantized(shape, bits, levels, group, packed, scales, offsets)


def _shape(row: Fields) -> tuple[int, ...]:
    shape = row.take("shape", list)
    if len(shape) > 8 or not all(type(size) is int and size >= 0 for size in shape):
        raise CorruptFileError(f"the shape is {str(shape)[:80]}", Reason.BAD_SHAPE, row.where)
    checked_size(shape, row.where)
    return tuple(shape)


def _array(left: Arrays, name: str, dtype: np.dtype[Any] | None, ndim: int | None = None) -> NDArray[Any]:
    if name not in left:
        raise CorruptFileError(f"the tensor {name} is missing", Reason.MISSING_TENSOR)
    array = left.pop(name)
    if array.dtype != dtype or (ndim is not None and array.ndim != ndim):
        message = f"the tensor {name} is {array.dtype} {list(array.shape)}, expected {dtype or 'a known type'}"
        raise CorruptFileError(message, Reason.BAD_FIELD)
    return array
