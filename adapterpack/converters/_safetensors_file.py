"""safetensors files as bytes: the header read strictly, the tensors in their own dtypes, and a note in the metadata.

Knows the file format and nothing of what any name in it means.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from adapterpack.container import strict_json
from adapterpack.errors import CorruptFileError, Reason
from adapterpack.tensors import F32, Dense

HEADER_BYTES = 100_000_000  # safetensors' own limit
KEY = "adapterpack"
_DTYPES = {"F32": ("<f4", "float32"), "F16": ("<f2", "float16"), "BF16": ("<u2", "bfloat16"), "F64": ("<f8", "")}


def header_of(data: bytes, name: str) -> dict[str, Any]:
    """The header of a safetensors file; it is read here because the library accepts duplicate keys.

    Raises:
        CorruptFileError: `bad-source`.
    """
    length = int.from_bytes(data[:8], "little")
    if length > min(len(data) - 8, HEADER_BYTES):
        message = f"{name} has {len(data):,} bytes, its header alone {length:,}"
        raise CorruptFileError(message, Reason.BAD_SOURCE, hint="the file is cut short: fetch it again")
    try:
        header = json.loads(data[8 : 8 + length], object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{name}: {error}", Reason.BAD_SOURCE, hint="fetch the file again") from error
    return header if isinstance(header, dict) else {}


def note_in(header: Mapping[str, Any]) -> Any:
    """What this package wrote into a header's metadata, or None.

    Raises:
        CorruptFileError: it is no strict JSON.
    """
    metadata = header.get("__metadata__")
    text = metadata.get(KEY) if isinstance(metadata, dict) else None
    return strict_json.loads(text.encode("utf-8", "replace")) if isinstance(text, str) else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key is given twice in the header")
    return dict(pairs)


def dense_tensors(data: bytes, name: str) -> dict[str, Dense]:
    """Every tensor of a safetensors file in its own dtype; float64 where float32 holds the same values.

    Raises:
        CorruptFileError: `bad-source` for a damaged file, another dtype, or a float64 that float32 cannot hold.
    """
    try:
        rows: list[tuple[str, Any]] = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    except (SafetensorError, ValueError) as error:
        raise CorruptFileError(f"{name}: {error}", Reason.BAD_SOURCE, hint="fetch the file again") from error
    return {key: _dense(key, row) for key, row in rows}


def _dense(name: str, row: Mapping[str, Any]) -> Dense:
    if row["dtype"] not in _DTYPES:
        message = f"{name} is {row['dtype']}"
        raise CorruptFileError(message, Reason.BAD_SOURCE, hint=f"expected one of {', '.join(_DTYPES)}")
    kind, dtype = _DTYPES[row["dtype"]]
    values = np.frombuffer(bytes(row["data"]), kind).reshape(row["shape"])
    if dtype:
        return Dense(values, dtype)
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    if not np.array_equal(single, values):
        raise CorruptFileError(f"{name} is F64 and does not fit float32", Reason.BAD_SOURCE, hint="save it as float32")
    return Dense(single)


def tensor_bytes(tensors: Mapping[str, F32], note: Any) -> bytes:
    """A safetensors file with a note of this package in its metadata; the same input gives the same bytes."""
    plain = {name: np.asarray(tensors[name], "<f4", order="C") for name in sorted(tensors)}
    return safetensors_numpy.save(plain, {KEY: strict_json.dumps(note).decode()})
