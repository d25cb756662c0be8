"""Plain safetensors: every tensor in float32 under `<site>.<method>.<role>`, and the description as JSON beside them.

Made for other tools to read. Values are equal on the way back, but how they were stored is not kept: a quantized or
sparse tensor comes back dense. `checkpoint` is the form that keeps everything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from adapterpack._files import write_atomic
from adapterpack.adapter import Adapter, Branch, Head
from adapterpack.container import strict_json
from adapterpack.converters import settings as sidecar
from adapterpack.converters._base import Hints, Imported, finish, prefix_of, read_bytes
from adapterpack.converters._flat import flatten, unflatten
from adapterpack.errors import CorruptFileError, Reason, UnsupportedAdapterError
from adapterpack.tensors import Dense, Tensor

FORM = "dense/1"
KEY = "adapterpack"
HEADER_BYTES = 100_000_000  # safetensors' own limit


@dataclass(frozen=True, slots=True)
class Safetensors:
    """`.safetensors` as this package writes it."""

    name: str = "safetensors"

    def recognise(self, source: Path) -> bool:
        head = prefix_of(source)
        return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= HEADER_BYTES

    def read(self, source: Path, hints: Hints) -> Imported:
        """See `Converter.read`.

        Raises:
            UnsupportedAdapterError: `unknown-source` for tensors that this package did not write, listing some.
            CorruptFileError: `bad-source` when it is damaged.
        """
        said = sidecar.only(hints.settings, (), "a file that describes itself")
        data = read_bytes(source)
        description = _description(data, source.name)
        try:
            arrays = safetensors_numpy.load(data)
        except (SafetensorError, KeyError, ValueError) as error:
            raise CorruptFileError(f"{source.name}: {error}", Reason.BAD_SOURCE, hint="fetch the file again") from error
        return Imported(finish(unflatten(description, arrays), replace(hints, settings=said)))

    def write(self, adapter: Adapter, out: Path, *, force: bool) -> tuple[Path, ...]:
        """See `Converter.write`. The same adapter gives the same bytes each time."""
        description, arrays = flatten(densified(adapter))
        text = strict_json.dumps({"form": FORM, "task": description}).decode()
        plain = {name: np.ascontiguousarray(array, "<f4") for name, array in sorted(arrays.items())}
        write_atomic(out, safetensors_numpy.save(plain, {KEY: text}), force=force)
        return (out,)


def densified(adapter: Adapter) -> Adapter:
    """The adapter with every tensor written out in float32."""
    branches = tuple(Branch(b.site, b.method, b.params, _dense(b.tensors)) for b in adapter.branches)
    head = None if adapter.head is None else Head(**_dense(adapter.head.tensors))
    return replace(adapter, branches=branches, head=head)


def _dense(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {role: Dense(tensor.dense()) for role, tensor in tensors.items()}


def _description(data: bytes, name: str) -> Any:
    """The description in the header; the header is read here because the library accepts duplicate keys."""
    length = int.from_bytes(data[:8], "little")
    if length > min(len(data) - 8, HEADER_BYTES):
        message = f"{name} has {len(data):,} bytes, its header alone {length:,}"
        raise CorruptFileError(message, Reason.BAD_SOURCE, hint="the file is cut short: fetch it again")
    try:
        header = json.loads(data[8 : 8 + length], object_pairs_hook=_unique)
        metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else {}
        text = metadata.get(KEY) if isinstance(metadata, dict) else None
        found = strict_json.loads(text.encode("utf-8", "replace")) if isinstance(text, str) else None
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{name}: {error}", Reason.BAD_SOURCE, hint="fetch the file again") from error
    if isinstance(found, dict) and found.get("form") == FORM:
        return found.get("task")
    keys = list(header) if isinstance(header, dict) else []
    message = f"{name} was not written by adapterpack; it holds {', '.join(keys[:4])}{', …' if len(keys) > 4 else ''}"
    hint = "pack the training checkpoint (torch) or the published .bin instead"
    raise UnsupportedAdapterError(message, Reason.UNKNOWN_SOURCE, hint=hint)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key is given twice in the header")
    return dict(pairs)
