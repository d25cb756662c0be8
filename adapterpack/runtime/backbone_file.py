"""A backbone on disk: a `.safetensors` file and the `.json` beside it that says what model the tensors belong to.

The `.json` gives timm's `architecture`, or the arguments of `VisionTransformer` as `timm_kwargs` (or both), and may
give `mean`, `std` and the other data settings, at the top or under `pretrained_cfg`. A file that `load --export` wrote
carries its architecture in its own header and needs no `.json`. This module makes no model.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from adapterpack._files import os_errors
from adapterpack.errors import CorruptFileError, MissingFileError, Reason
from adapterpack.runtime.families import CLASSIFIERS

_FORM = 'expected {"architecture": "vit_base_patch16_224"} or {"timm_kwargs": {…}}'
_LARGEST = 1e30  # also of whole numbers, which JSON does not limit and no float may be able to hold


@dataclass(frozen=True, slots=True, eq=False)
class BackboneFile:
    """What the two files say.

    Attributes:
        path: of the tensors.
        architecture: timm's name, or "" for a plain `VisionTransformer`.
        kwargs: arguments for its constructor.
        classes: rows of the classifier's weight, 0 where there is none.
        data: the data settings that are given, under timm's names.
        tensors: by timm's names.
    """

    path: Path
    architecture: str
    kwargs: Mapping[str, Any]
    classes: int
    data: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]


def read_backbone_file(path: Path) -> BackboneFile:
    """Read `path` and the `.json` beside it.

    Raises:
        MissingFileError: `missing-file`.
        CorruptFileError: `bad-source` for tensors, `bad-field` for a `.json` that cannot be understood.
    """
    if not path.is_file():
        raise MissingFileError(
            f"there is no file {path}", Reason.MISSING_FILE, hint="give a timm name or an existing file"
        )
    with _opened(path) as source:
        tensors = {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118 - no mapping
        header = dict(source.metadata() or {})
    about = _read_json(path.with_suffix(".json"), header)
    return _understood(path, about, tensors)


def read_description(path: Path) -> tuple[str, Mapping[str, Any]]:
    """timm's name and the constructor's arguments of a file that `read_backbone_file` reads, without its tensors.

    Raises:
        AdapterPackError: as there.
    """
    with _opened(path) as source:
        header = dict(source.metadata() or {})
    found = _understood(path, _read_json(path.with_suffix(".json"), header), {})
    return found.architecture, found.kwargs


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    with os_errors(str(path)):
        path.open("rb").close()  # a file that may not be read is one that is not there, as safetensors says it
    try:
        with safe_open(path, framework="pt") as source:
            yield source
    except SafetensorError as error:
        text = f"{path} is no readable safetensors file: {error}"
        raise CorruptFileError(text, Reason.BAD_SOURCE, hint="fetch it again") from error


def _read_json(path: Path, header: Mapping[str, str]) -> dict[str, Any]:
    if not path.is_file():
        if "architecture" in header:
            return {"architecture": header["architecture"]}
        text = f"there is no {path} to say what model the file holds"
        raise MissingFileError(text, Reason.MISSING_FILE, hint=f"write one with {_FORM.removeprefix('expected ')}")
    with os_errors(str(path)):
        said = path.read_bytes()
    try:
        found = json.loads(said)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path} is not JSON: {error}", Reason.INDEX_SYNTAX, hint=_FORM) from error
    if not isinstance(found, dict):
        raise CorruptFileError(f"{path} holds no JSON object", Reason.BAD_FIELD, hint=_FORM)
    return found


def _understood(path: Path, about: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> BackboneFile:
    architecture = about.get("architecture", "")
    kwargs = about.get("timm_kwargs", about.get("model_args", {}))
    inner = about.get("pretrained_cfg", {})
    if not (isinstance(architecture, str) and isinstance(kwargs, dict) and isinstance(inner, dict)):
        raise CorruptFileError(
            f"{path.with_suffix('.json')} has a field of the wrong type", Reason.BAD_FIELD, hint=_FORM
        )
    if not architecture and "timm_kwargs" not in about:
        hint = "give architecture or timm_kwargs"
        raise CorruptFileError(f"{path.with_suffix('.json')} names no model", Reason.MISSING_FIELD, hint=hint)
    data = {key: value for key, value in {**inner, **about}.items() if key in _KINDS and value is not None}
    head = next((tensors[f"{at}.weight"] for at in CLASSIFIERS if f"{at}.weight" in tensors), None)
    classes = 0 if head is None else int(head.shape[0])
    return BackboneFile(path, architecture, _plain(kwargs), classes, _checked(path, data), tensors)


def _plain(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """JSON lists become tuples, which is what timm expects of sizes."""
    return {str(key): tuple(value) if isinstance(value, list) else value for key, value in kwargs.items()}


def _checked(path: Path, data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The data settings, if each is of its kind.

    Raises:
        CorruptFileError: `bad-field`.
    """
    for key, value in data.items():
        fits, wanted = _KINDS[key]
        if not fits(value):
            text = f"{path.with_suffix('.json')}: {key} is {value!r}"
            raise CorruptFileError(text, Reason.BAD_FIELD, hint=f"expected {wanted}")
    return data


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _LARGEST


def _numbers(value: object) -> bool:
    return isinstance(value, list) and all(map(_number, value))


_KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "mean": (_numbers, "a number a channel"),
    "std": (lambda value: _numbers(value) and 0 not in value, "a number a channel, none of them 0"),
    "crop_pct": (lambda value: _number(value) and value > 0, "a number above 0"),
    "interpolation": (lambda value: isinstance(value, str), "a name"),
    "crop_mode": (lambda value: isinstance(value, str), "a name"),
}
