"""Folders that a training library saves: one JSON of settings and a file of tensors, read strictly, written whole.

Knows file names and which reader each takes; nothing of any library's settings or names.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from adapterpack._files import make_folder, os_errors, write_all
from adapterpack.converters import settings as sidecar
from adapterpack.converters._base import prefix_of, read_bytes
from adapterpack.converters._safetensors_file import dense_tensors, header_of, note_in
from adapterpack.converters.checkpoint import float_array, load_file
from adapterpack.errors import CallError, CorruptFileError, MissingFileError, Reason, UnsupportedAdapterError
from adapterpack.tensors import F32, Dense


def looks_like(folder: Path, name: str, key: str) -> bool:
    """Whether a folder has a JSON object of settings with a certain key; never raises."""
    data = prefix_of(folder / name, sidecar.BYTES)
    try:
        found = json.loads(data) if data else None
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and key in found


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON object of settings.

    Raises:
        MissingFileError: it is not there.
        CorruptFileError: `bad-source` for anything that is no JSON object, or says one thing twice.
    """
    return sidecar.read_file(path)


def tensor_file(folder: Path, names: tuple[str, str]) -> Path:
    """Which of a library's two tensor files a folder has.

    Args:
        folder: what the library saved.
        names: its safetensors file, and its torch file.

    Raises:
        UnsupportedAdapterError: `ambiguous-source` for both.
        MissingFileError: `missing-file` for neither.
    """
    return folder / one_of(names, [name for name in names if (folder / name).is_file()], folder.name)


def one_of(names: tuple[str, str], there: Collection[str], where: str) -> str:
    """Which of a library's two tensor files is there, see `tensor_file`."""
    found = [name for name in names if name in there]
    if len(found) > 1:
        message = f"{where} has {names[0]} and {names[1]}"
        raise UnsupportedAdapterError(message, Reason.AMBIGUOUS_SOURCE, hint="delete the one that is not meant")
    if not found:
        hint = f"expected {names[0]} or {names[1]} beside the settings"
        raise MissingFileError(f"{where} has no tensors", Reason.MISSING_FILE, hint=hint)
    return found[0]


def read_tensors(path: Path) -> tuple[dict[str, Dense], Any]:
    """The tensors of a safetensors or torch file by name, and what this package wrote beside them, or None.

    Raises:
        CorruptFileError: `bad-source`, `unsafe-source`, `not-finite`.
    """
    if path.suffix == ".safetensors":
        data = read_bytes(path)
        return dense_tensors(data, path.name), note_in(header_of(data, path.name))
    content = load_file(path)
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        message = f"{path.name} holds a {type(content).__name__}"
        raise CorruptFileError(message, Reason.BAD_SOURCE, hint="expected tensors by name")
    return {name: Dense(float_array(value, name)) for name, value in content.items()}, None


def settings_bytes(settings: Mapping[str, Any]) -> bytes:
    """Settings as JSON for people and libraries."""
    return (json.dumps(dict(settings), indent=2, sort_keys=True) + "\n").encode()


def write_folder(out: Path, files: Mapping[str, bytes], *, force: bool) -> tuple[Path, ...]:
    """Write a folder's files, all or none; a folder that was made for them goes again when that fails.

    Raises:
        CallError: `file-exists` without `force`, `not-a-file` where `out` is a file, `io-error`.
    """
    with os_errors(str(out)):
        made, file = not out.exists(), out.is_file()
    if file:
        message = f"{out} is a file, and this form is a folder"
        raise CallError(message, Reason.NOT_A_FILE, hint="give the output another name")
    make_folder(out)
    paths = {out / name: data for name, data in files.items()}
    try:
        write_all(paths, force=force)
    except BaseException:
        if made:
            out.rmdir()
        raise
    return tuple(paths)


def unexplained(name: str, hint: str) -> CorruptFileError:
    """The error for a tensor that no rule explains."""
    return CorruptFileError(f"no rule explains the tensor {name[:200]!r}", Reason.UNMAPPED_TENSOR, hint=hint)


def missing(what: str, hint: str) -> CorruptFileError:
    """The error for tensors that should be there."""
    return CorruptFileError(f"the folder lacks {what}", Reason.MISSING_TENSOR, hint=hint)


def named(name: str, tensors: Mapping[str, Dense]) -> F32:
    """The numbers of a tensor that must be there, float32.

    Raises:
        CorruptFileError: `missing-tensor`.
    """
    if name not in tensors:
        raise missing(name, "the file is incomplete")
    return tensors[name].dense()
