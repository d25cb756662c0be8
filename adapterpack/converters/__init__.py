"""The registry of converters, one file each and a row here; and the choice of the one that reads a source."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from adapterpack._files import PathSource, list_folder, os_errors
from adapterpack._registry import Registry
from adapterpack.converters import _labels, adapterhub, peft
from adapterpack.converters._base import Converter, Exporter, Hints, Imported, prefix_of
from adapterpack.converters._fetch import fetched
from adapterpack.converters._signs import with_signs
from adapterpack.converters.adapterhub import AdapterHub
from adapterpack.converters.checkpoint import Checkpoint
from adapterpack.converters.gguf import Gguf
from adapterpack.converters.peft import Peft
from adapterpack.converters.petl_settings import yaml_places
from adapterpack.converters.petl_vit import PetlVit
from adapterpack.converters.safetensors import Safetensors
from adapterpack.errors import MissingFileError, Reason, UnsupportedAdapterError, printable

CONVERTERS: Registry[Converter] = Registry("converter", (PetlVit(), Checkpoint(), Safetensors(), Peft(), AdapterHub()))
# what `unpack` writes: every converter's form, and those that are written only
EXPORTERS: Registry[Exporter] = Registry("form", (*CONVERTERS.values(), Gguf()))

# forms that hold what was in codes as float32
_FLOATS_ONLY = ("safetensors", "peft", "adapterhub")

# first bytes of files that people hand in by mistake
_SEEN = (
    (b"GGUF", "a GGUF model"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x7fELF", "a program"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x80", "a Python pickle"),
    (b"", "a file"),
)
_ZIPS = ((b"AndroidManifest.xml", "an Android package"), (b".npy", "a NumPy archive"), (b"", "a zip archive"))


def recognise(source: Path, converters: Mapping[str, Converter] = CONVERTERS) -> Converter:
    """The one converter that reads a source.

    Raises:
        MissingFileError: there is no such path.
        UnsupportedAdapterError: `unknown-source`, listing the known forms; `ambiguous-source`.
    """
    _require_readable(source)
    found = [converter for converter in converters.values() if converter.recognise(source)]
    if len(found) == 1:
        return found[0]
    if found:
        names = " and ".join(converter.name for converter in found)
        raise UnsupportedAdapterError(
            f"{source} could be {names}", Reason.AMBIGUOUS_SOURCE, hint="rename it to fit one"
        )
    hint = f"known: {', '.join(converters)} (a PETL-ViT .bin has its .yaml beside it)"
    raise UnsupportedAdapterError(
        f"{source} is {seen(source)}, which no converter reads", Reason.UNKNOWN_SOURCE, hint=hint
    )


def read(source: str | os.PathLike[str], hints: Hints) -> Imported:
    """The adapter in a source of any known form: a path, or the URL of a trainer's folder.

    Raises:
        AdapterPackError: as `recognise`, `Converter.read` and `_fetch.fetched`.
    """
    if not isinstance(source, str) or "://" not in source:
        return _read(Path(source), hints)
    with fetched(source) as (folder, note):
        found = _read(folder, hints)
    return replace(found, notes=(note, *found.notes))


def _read(path: Path, hints: Hints) -> Imported:
    form = recognise(path)
    found = _labels.with_labels(form.read(path, hints), path)
    return with_signs(found) if form.name in _FLOATS_ONLY else found


def inputs_of(source: Path) -> list[Path]:
    """The paths at which a source's files may be: itself, and what belongs in or beside it."""
    if not source.name:  # the current folder, or the root
        return [source]
    with os_errors(str(source)):
        folder = source.is_dir()
    inside = [source / name for name in (*peft.FILES, *adapterhub.FILES, _labels.FILE)] if folder else []
    beside = [*yaml_places(source), source.with_suffix(".json"), *source.parent.glob("param_req_*.pth")]
    return [source, *inside, *beside]


def _require_readable(source: Path) -> None:
    """Refuse what is neither a file nor a folder; a name that could be the Hub's is never looked up there by itself.

    Raises:
        MissingFileError, CallError: as `PathSource`; `io-error`, it may not be read.
    """
    if source.is_dir():
        list_folder(source)
        return
    try:
        PathSource(source).read_at(0, 1)
    except MissingFileError as error:
        name, hint = source.as_posix(), error.hint
        if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
            hint = f"check the path, or write hf://{name} for a repository of the Hub"
        elif re.match(r"\w\w+:/[^/]", name):
            hint = "give a URL as text, a path loses one of its slashes"
        raise MissingFileError(error.message, Reason.MISSING_FILE, error.where, hint) from error


def seen(source: Path) -> str:
    """What a source looks like, in words."""
    if source.is_dir():
        return "a folder"
    head = prefix_of(source, 4096)
    if not head:
        return "an empty file"
    table = _ZIPS if head.startswith(b"PK\x03\x04") else _SEEN
    words = next(text for mark, text in table if (mark in head if table is _ZIPS else head.startswith(mark)))
    return f"{words} that begins {printable(head[:8].decode('latin-1'))!r}" if words == "a file" else words
