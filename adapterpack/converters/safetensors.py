"""Plain safetensors: every tensor in float32 under `<site>.<method>.<role>`, and the description as JSON beside them.

Made for other tools to read. Values are equal on the way back, but how they were stored is not kept: a quantized or
sparse tensor comes back dense; `checkpoint` is the form that keeps everything. A file of others is read as a state dict
where its names are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
from adapterpack.converters._check import require_finite
from adapterpack.converters._content import without_prefix
from adapterpack.converters._flat import flatten, unflatten
from adapterpack.converters._lost import tensors_of, written_out
from adapterpack.converters._safetensors_file import HEADER_BYTES, KEY, dense_tensors, header_of, note_in
from adapterpack.converters.checkpoint import read_state
from adapterpack.converters.state_dict import explained
from adapterpack.errors import CorruptFileError, Reason, UnsupportedAdapterError
from adapterpack.tensors import Dense, Tensor

FORM = "dense/1"


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
            UnsupportedAdapterError: `unknown-source` for tensors that this package did not write and whose names are
                nobody's that it knows, listing some.
            CorruptFileError: `bad-source` when it is damaged; those of `adapter_from`.
        """
        data = read_bytes(source)
        note = _own_note(data, source.name)
        if note is None:
            return _state_dict(data, source, hints)
        said = sidecar.only(hints.settings, (), "a file that describes itself")
        try:
            arrays = safetensors_numpy.load(data)
        except (SafetensorError, KeyError, ValueError) as error:
            raise CorruptFileError(f"{source.name}: {error}", Reason.BAD_SOURCE, hint="fetch the file again") from error
        return Imported(finish(unflatten(note.get("task"), arrays), replace(hints, settings=said)))

    def write(self, adapter: Adapter, out: Path, *, force: bool) -> tuple[Path, ...]:
        """See `Converter.write`. The same adapter gives the same bytes each time."""
        description, arrays = flatten(densified(adapter))
        text = strict_json.dumps({"form": FORM, "task": description}).decode()
        plain = {name: np.asarray(array, "<f4", order="C") for name, array in sorted(arrays.items())}
        write_atomic(out, safetensors_numpy.save(plain, {KEY: text}), force=force)
        return (out,)

    def lost(self, adapter: Adapter) -> tuple[str, ...]:
        """See `Lossy.lost`."""
        return written_out(tensors_of(adapter))


def densified(adapter: Adapter) -> Adapter:
    """The adapter with every tensor written out in float32."""
    branches = tuple(Branch(b.site, b.method, b.params, _dense(b.tensors)) for b in adapter.branches)
    head = None if adapter.head is None else Head(**_dense(adapter.head.tensors))
    return replace(adapter, branches=branches, head=head)


def _dense(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {role: Dense(tensor.dense()) for role, tensor in tensors.items()}


def _own_note(data: bytes, name: str) -> dict[str, Any] | None:
    """What this package wrote into the header, None where it wrote nothing.

    Raises:
        CorruptFileError: `bad-source`.
        UnsupportedAdapterError: `unknown-source` for a description of another form.
    """
    header = header_of(data, name)
    try:
        found = note_in(header)
    except CorruptFileError as error:
        raise CorruptFileError(f"{name}: {error}", Reason.BAD_SOURCE, hint="fetch the file again") from error
    if found is not None and not (isinstance(found, dict) and found.get("form") == FORM):
        raise _unknown(header, name)
    return found


def _unknown(names: Iterable[str], file: str) -> UnsupportedAdapterError:
    keys = [key for key in names if key != "__metadata__"]
    message = f"{file} was not written by adapterpack; it holds {', '.join(keys[:4])}{', …' if len(keys) > 4 else ''}"
    hint = "give the folder of a PEFT or AdapterHub adapter, else the training checkpoint (torch) or the published .bin"
    return UnsupportedAdapterError(message, Reason.UNKNOWN_SOURCE, hint=hint)


def _state_dict(data: bytes, source: Path, hints: Hints) -> Imported:
    """A state dict whose names somebody else chose.

    Raises:
        UnsupportedAdapterError: `unknown-source` where none of the names is known.
        CorruptFileError: `not-finite`, naming the tensor; as `read_state`.
    """
    names = [key for key in header_of(data, source.name) if key != "__metadata__"]
    if not names or not explained(without_prefix(dict.fromkeys(names)), hints.backbone):
        raise _unknown(names, source.name)
    found = dense_tensors(data, source.name)  # in an order that changes from call to call
    tensors = without_prefix({name: found[name].dense() for name in names})
    for name, values in tensors.items():
        require_finite(values, name)
    return read_state(source, tensors, [], hints)
