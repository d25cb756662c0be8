"""Training checkpoints: files written by torch, read as plain data and never unpickled otherwise.

Two things are read: this package's own lossless form (`run/1`: a description and the tensors exactly as they are
stored), which is also what is written; and a state dict with foreign names, bare or under `model` or `state_dict`,
whose settings lie inside or beside it. torch is imported only where a file is read or written.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import re
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterpack._files import write_atomic
from adapterpack.adapter import Adapter
from adapterpack.converters import settings as sidecar
from adapterpack.converters._base import Hints, Imported, finish, prefix_of, read_bytes
from adapterpack.converters._content import require_averaged, state_of, without_prefix
from adapterpack.converters._flat import flatten, unflatten
from adapterpack.converters.spt_mask import SptMask, parse_mask
from adapterpack.converters.state_dict import adapter_from, scheme_of
from adapterpack.errors import CallError, CorruptFileError, Reason, UnsupportedAdapterError

FORM = "run/1"
OLDEST_SAFE = (2, 10)  # older releases have known ways around weights_only
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# what torch.load raises on damaged data, at this one call
_LOAD_ERRORS = (
    RuntimeError,
    OSError,
    EOFError,
    LookupError,
    AttributeError,
    TypeError,
    ValueError,
    AssertionError,
    struct.error,
)
_FLOATS = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`.ckpt`, `.pt`, `.pth`: whatever `torch.save` wrote."""

    name: str = "checkpoint"

    def recognise(self, source: Path) -> bool:
        head = prefix_of(source, 512)
        return head.startswith(_LEGACY) or (head.startswith(b"PK\x03\x04") and b"/data.pkl" in head)

    def read(self, source: Path, hints: Hints) -> Imported:
        """See `Converter.read`.

        Raises:
            CorruptFileError: `unsafe-source` for code inside, naming it; `bad-source`; those of `adapter_from`.
        """
        content = load_file(source)
        if not isinstance(content, Mapping):
            raise _bad(f"the file holds a {type(content).__name__}", "expected a state dict, or a dict that holds one")
        if "adapterpack" in content:
            said = sidecar.only(hints.settings, (), "a checkpoint that describes itself")
            return Imported(finish(_own(content), replace(hints, settings=said)))
        if content.keys() >= {"unstructured_indexes", "tuned_matrices"}:
            raise _bad(
                "the file is an SPT mask, without any trained value", "give the checkpoint; the mask goes beside it"
            )
        require_averaged(content, sidecar.checked(hints.settings))
        settings = sidecar.combine(sidecar.select_beside(source), hints.settings)
        found = state_of(content, settings.get("ema"))
        tensors = {name: float_array(value, name) for name, value in without_prefix(found.state).items()}
        said = {name: value for name, value in hints.settings.items() if name != "ema"}
        imported = read_state(source, tensors, found.settings, replace(hints, settings=said))
        return replace(imported, notes=(*found.notes, *imported.notes))

    def write(self, adapter: Adapter, out: Path, *, force: bool) -> tuple[Path, ...]:
        """See `Converter.write`; `read` gives the same adapter back, to the bit."""
        save_run(adapter, out, force=force)
        return (out,)


def read_state(
    source: Path,
    tensors: Mapping[str, NDArray[np.float32]],
    inside: Sequence[tuple[str, Mapping[str, Any]]],
    hints: Hints,
) -> Imported:
    """A state dict with foreign names, with the settings beside it.

    Args:
        source: its file.
        tensors: by outside name.
        inside: settings found in the file itself, by place.
        hints: what the caller said.
    """
    require_averaged({}, hints.settings)
    settings = sidecar.combine([*inside, *sidecar.select_beside(source)], hints.settings)
    mask = _mask_for(source, settings) if scheme_of(tensors).startswith("spt-") else None
    return adapter_from(tensors, settings, hints, source.stem, mask)


def save_run(adapter: Adapter, out: Path, *, training: Mapping[str, Any] | None = None, force: bool) -> None:
    """Write the own form.

    Args:
        adapter: what to keep.
        out: the file.
        training: optimizer state and the like, for resuming; `Checkpoint.read` passes over it.
        force: whether an existing file is replaced.
    """
    torch = _torch("writing")
    description, arrays = flatten(adapter)
    tensors = {name: _tensor(array) for name, array in arrays.items()}
    content = {"adapterpack": FORM, "task": description, "tensors": tensors}
    buffer = io.BytesIO()
    torch.save(content if training is None else {**content, "training": dict(training)}, buffer)
    write_atomic(out, buffer.getvalue(), force=force)


def load_run(source: Path) -> tuple[Adapter, Mapping[str, Any] | None]:
    """The inverse of `save_run`: the adapter, and the training state where there is one.

    Raises:
        CorruptFileError: see `Checkpoint.read`.
    """
    content = load_file(source)
    if not isinstance(content, Mapping) or "adapterpack" not in content:
        raise _bad("the file is no checkpoint of this package", "pack it first, or give an adapter's run.ckpt")
    return _own(content), content.get("training")


def read_spt_mask(path: Path) -> SptMask:
    """One of SPT's `param_req_*.pth`.

    Raises:
        CorruptFileError: `unsafe-source`, `bad-source`, `bad-positions`.
    """
    import torch

    # sizes were saved as numpy integers: one function, under the name it had then and the one it has today
    scalar: Any = np.int64(0).__reduce__()[0]
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    allowed = [*names, np.dtype, np.dtypes.Int64DType, torch.Size]
    raw = load_file(path, allowed)
    if isinstance(raw, Mapping):
        raw = {name: _plain_array(value, str(name)) if torch.is_tensor(value) else value for name, value in raw.items()}
    return parse_mask(raw, path.name)


def load_file(source: Path, allowed: list[Any] | None = None) -> Any:
    """What a torch file holds, on the CPU, tensors and plain values only.

    Args:
        source: the file.
        allowed: further types that may occur; by default argparse's Namespace, in which trainers keep their settings.

    Raises:
        CorruptFileError: `unsafe-source` naming what torch refused; `bad-source` for damaged files.
        CallError: `missing-extra` without torch, or with one whose safe loading is not safe.
    """
    import argparse

    data = read_bytes(source)
    torch = _torch("reading")
    if tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) < OLDEST_SAFE:
        message = f"torch {torch.__version__} cannot read files of others safely"
        raise CallError(message, Reason.MISSING_EXTRA, hint="upgrade torch to 2.10 or later")
    try:
        with torch.serialization.safe_globals([argparse.Namespace] if allowed is None else allowed), _quiet():
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused(source, str(error)) from error
    except _LOAD_ERRORS as error:
        first = (str(error).splitlines() or [""])[0][:200]
        raise CorruptFileError(
            f"{source.name} is damaged: {first}", Reason.BAD_SOURCE, hint="fetch or save it again"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch, while it describes damaged data, warns of its own deprecated classes; that helps nobody."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _refused(source: Path, text: str) -> CorruptFileError:
    """torch's refusal: code, named, or else a stream that is no pickle of plain data."""
    match = re.search(r"(?:GLOBAL|[Uu]nsupported class|function|class) ([\w.]+\.\w+)", text)
    if match is None:
        reason = " ".join(text.split("\n\n")[-2 if "\n\n" in text else 0].split())[:200]
        return CorruptFileError(
            f"{source.name} holds no plain data: {reason}", Reason.UNSAFE_SOURCE, hint="save a state dict"
        )
    hint = "it may run code; save tensors, numbers, strings, lists and dicts only"
    return CorruptFileError(
        f"{source.name} asks for {match[1]}, which is no plain data", Reason.UNSAFE_SOURCE, hint=hint
    )


def _own(content: Mapping[Any, Any]) -> Adapter:
    if content["adapterpack"] != FORM:
        raise UnsupportedAdapterError(f"checkpoint form {str(content['adapterpack'])[:40]!r}", Reason.NEWER_VERSION)
    if set(content) - {"adapterpack", "task", "tensors", "training"} or not isinstance(content.get("tensors"), Mapping):
        raise _bad(
            f"the file's entries are {sorted(map(str, content))}", "expected adapterpack, task, tensors, training"
        )
    arrays = {str(name): _plain_array(value, str(name)) for name, value in content["tensors"].items()}
    return unflatten(content.get("task"), arrays)


def float_array(value: Any, name: str) -> NDArray[np.float32]:
    """A trained tensor as float32, exactly.

    Raises:
        CorruptFileError: `bad-source` for what is no plain tensor of floats, `not-finite`.
    """
    array = _plain_array(value, name, _FLOATS)
    if array.dtype == np.uint16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        plain = np.asarray(array, np.float32, order="C")  # a single number keeps its shape
    if not np.isfinite(plain).all():
        raise CorruptFileError(
            "the tensor holds NaN or infinity", Reason.NOT_FINITE, name, "retrain or repair it first"
        )
    if not np.array_equal(plain, array):
        raise _bad(f"{name} is {array.dtype} and does not fit float32", "save it as float32")
    return plain


def _torch(doing: str) -> Any:
    try:
        import torch
    except ImportError as error:
        hint = "pip install 'adapterpack[torch]'"
        raise CallError(f"{doing} a checkpoint needs torch", Reason.MISSING_EXTRA, hint=hint) from error
    return torch


def _plain_array(value: Any, name: str, dtypes: tuple[str, ...] = ()) -> NDArray[Any]:
    """A dense CPU tensor as an array of its own (bfloat16 as uint16 patterns); a larger storage is left behind."""
    import torch

    if not torch.is_tensor(value):
        raise _bad(
            f"{name} is a {type(value).__name__}, no tensor", "save tensors in the state dict, settings beside it"
        )
    dtype = str(value.dtype).removeprefix("torch.")
    if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized or value.is_complex():
        kind = f"{value.layout} {dtype} on {value.device}".replace("torch.", "")
        raise _bad(f"{name} is no plain tensor ({kind})", "save a dense tensor with its values")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        stored = value.untyped_storage().nbytes()
        raise _bad(
            f"{name} says {value.numel():,} values but {stored:,} bytes are stored", "save it with .contiguous()"
        )
    if dtypes and dtype not in dtypes:
        raise _bad(f"{name} is {dtype}", f"expected {', '.join(dtypes)}")
    plain = value.detach().contiguous()
    try:
        array = plain.view(torch.int16).numpy().view(np.uint16) if dtype == "bfloat16" else plain.numpy()
    except (TypeError, RuntimeError) as error:
        raise _bad(f"{name} is {dtype}, which has no values here", "save it as float32") from error
    return np.array(array)


def _tensor(array: NDArray[Any]) -> Any:
    import torch

    if array.dtype == np.uint16:
        return torch.from_numpy(np.array(array).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def _mask_for(source: Path, settings: Mapping[str, Any]) -> SptMask | None:
    """SPT's mask: where the settings say, else the only `param_req_*.pth` beside the checkpoint."""
    if "mask" in settings:
        return read_spt_mask(source.parent / settings["mask"])
    found = sorted(source.parent.glob("param_req_*.pth"))
    if len(found) > 1:
        message = f"{len(found)} masks lie beside {source.name}: {found[0].name}, {found[1].name}"
        raise UnsupportedAdapterError(message, Reason.AMBIGUOUS_SOURCE, hint=f"say which: {sidecar.how('mask')}")
    return read_spt_mask(found[0]) if found else None


def _bad(message: str, hint: str) -> CorruptFileError:
    return CorruptFileError(message, Reason.BAD_SOURCE, hint=hint)
