"""A backbone on disk: a `.safetensors` file and the `.json` beside it that says what model the tensors belong to.

The `.json` gives timm's `architecture`, or the arguments of `VisionTransformer` as `timm_kwargs` (or both), and may
give `mean`, `std` and the other data settings, at the top or under `pretrained_cfg`. A file that `load --export` wrote
carries its architecture in its own header and needs no `.json`. This module makes no model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from adapterpack.errors import CorruptFileError, MissingFileError, Reason
from adapterpack.runtime.families import CLASSIFIERS

_DATA_KEYS = ("mean", "std", "interpolation", "crop_pct", "crop_mode")


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
    try:
        with safe_open(path, framework="pt") as source:
            tensors = {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118 - no mapping
            header = dict(source.metadata() or {})
    except SafetensorError as error:
        raise CorruptFileError(f"{path} is no readable safetensors file: {error}", Reason.BAD_SOURCE) from error
    about = _read_json(path.with_suffix(".json"), header)
    return _understood(path, about, tensors)


def read_description(path: Path) -> tuple[str, Mapping[str, Any]]:
    """timm's name and the constructor's arguments of a file that `read_backbone_file` reads, without its tensors.

    Raises:
        AdapterPackError: as there.
    """
    with safe_open(path, framework="pt") as source:
        header = dict(source.metadata() or {})
    found = _understood(path, _read_json(path.with_suffix(".json"), header), {})
    return found.architecture, found.kwargs


def _read_json(path: Path, header: Mapping[str, str]) -> dict[str, Any]:
    if not path.is_file():
        if "architecture" in header:
            return {"architecture": header["architecture"]}
        hint = 'write one with {"architecture": "vit_base_patch16_224"} or {"timm_kwargs": {…}}'
        raise MissingFileError(f"there is no {path} to say what model the file holds", Reason.MISSING_FILE, hint=hint)
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path} is not JSON: {error}", Reason.INDEX_SYNTAX) from error
    if not isinstance(found, dict):
        raise CorruptFileError(f"{path} holds no JSON object", Reason.BAD_FIELD)
    return found


def _understood(path: Path, about: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> BackboneFile:
    architecture = about.get("architecture", "")
    kwargs = about.get("timm_kwargs", about.get("model_args", {}))
    inner = about.get("pretrained_cfg", {})
    if not (isinstance(architecture, str) and isinstance(kwargs, dict) and isinstance(inner, dict)):
        raise CorruptFileError(f"{path.with_suffix('.json')} has a field of the wrong type", Reason.BAD_FIELD)
    if not architecture and "timm_kwargs" not in about:
        hint = "give architecture or timm_kwargs"
        raise CorruptFileError(f"{path.with_suffix('.json')} names no model", Reason.MISSING_FIELD, hint=hint)
    data = {key: value for key, value in {**inner, **about}.items() if key in _DATA_KEYS and value is not None}
    head = next((tensors[f"{at}.weight"] for at in CLASSIFIERS if f"{at}.weight" in tensors), None)
    classes = 0 if head is None else int(head.shape[0])
    return BackboneFile(path, architecture, _plain(kwargs), classes, _checked(path, data), tensors)


def _plain(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """JSON lists become tuples, which is what timm expects of sizes."""
    return {str(key): tuple(value) if isinstance(value, list) else value for key, value in kwargs.items()}


def _checked(path: Path, data: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in ("mean", "std"):
        values = data.get(key, [])
        numbers = isinstance(values, list) and all(isinstance(v, (int, float)) for v in values)
        if not numbers or (key == "std" and 0 in values):
            raise CorruptFileError(f"{path.with_suffix('.json')}: {key} is {values!r}", Reason.BAD_FIELD)
    return data
