"""PEFT folders: `adapter_config.json` and `adapter_model.safetensors` (or `.bin`), of LoRA, DoRA, VeRA and IA³.

Read and written for Hugging Face's ViT, DeiT, DINOv2 and CLIP vision models and for timm's of any family, so that
`PeftModel.from_pretrained(model, folder)` gives the same logits. Source: peft 0.21.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from adapterpack.adapter import Adapter, Backbone
from adapterpack.converters import _folder, _peft_write
from adapterpack.converters import settings as sidecar
from adapterpack.converters._base import Hints, Imported, finish
from adapterpack.converters._check import check_adapter
from adapterpack.converters._described import Arrays, Row, changed, note_for, require_same, rows_in
from adapterpack.converters._flat import unflatten
from adapterpack.converters._peft_layers import part_of
from adapterpack.converters._peft_names import (
    FORMAT,
    PROJECTION,
    TIMMS,
    Naming,
    chosen,
    divided,
    naming_of,
    placed,
    read_naming,
)
from adapterpack.converters._peft_read import read_sorted
from adapterpack.converters._peft_sort import sort_tensors
from adapterpack.converters._safetensors_file import tensor_bytes
from adapterpack.converters.peft_config import PeftConfig, checked
from adapterpack.errors import CorruptFileError, Reason, UnsupportedAdapterError
from adapterpack.tensors import F32, Dense

FORM = "peft/1"
_NAMES = "names"  # in the note
SETTINGS = "adapter_config.json"
TENSORS = ("adapter_model.safetensors", "adapter_model.bin")
FILES = (SETTINGS, *TENSORS)
# what a change of would give other numbers than the note says
_TELLING = ("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "target_modules",
            "feedforward_modules", "modules_to_save", "bias", "lora_bias")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Peft:
    """A folder that PEFT's `save_pretrained` wrote.

    Attributes:
        names: whose module names are written, see `hf_names.NAMINGS`; "" for the source's, else timm's.
    """

    name: str = "peft"
    names: str = ""

    def recognise(self, source: Path) -> bool:
        if _folder.looks_like(source, SETTINGS, "peft_type"):
            return True
        beside = any((source / name).is_file() for name in TENSORS)  # then `read` says what is wrong with the settings
        return beside and (source / SETTINGS).is_file() and not _folder.looks_like(source, SETTINGS, "config")

    def read(self, source: Path, hints: Hints) -> Imported:
        """See `Converter.read`.

        Raises:
            UnsupportedAdapterError: `unknown-method`, `unknown-field`, `not-expressible`, naming the setting.
            CorruptFileError: `unmapped-tensor`, `missing-tensor`, `conflicting-settings`, `bad-shape`, naming the
                tensor; `bad-source`, `unsafe-source`, `bad-field`.
        """
        said = replace(hints, settings=sidecar.only(hints.settings, ("head_bias",), "a PEFT folder"))
        name = source.resolve().name
        config = checked(_settings(source / SETTINGS), name)
        tensors, note = _folder.read_tensors(_folder.tensor_file(source, TENSORS))
        if note is not None:
            sidecar.only(hints.settings, (), "a folder that describes itself")
            return Imported(finish(_described(note, tensors, config), said))
        listed = sort_tensors(tensors, config)
        found = read_sorted(listed, config, said)
        naming = read_naming(found.names, listed.plain)
        backbone, local = config.backbone
        kind = "dora" if config.dora else {"LORA": "lora", "VERA": "vera", "IA3": "ia3"}[config.type]
        told = {"revision": config.revision} if config.revision else {}
        metadata = {} if naming.is_usual and not told else {"source": {"format": FORMAT, **naming.described(), **told}}
        where = Backbone(backbone)
        adapter = Adapter(name, kind, found.branches, found.head, None, hints.data, metadata, where)
        if not adapter.branches:
            raise UnsupportedAdapterError("the folder holds no adapter", Reason.BAD_SOURCE, name)
        notes = (*found.notes, *(["left out the backbone's local path"] if local else []))
        return Imported(finish(check_adapter(adapter), said), notes)

    def write(self, adapter: Adapter, out: Path, *, force: bool) -> tuple[Path, ...]:
        """See `Converter.write`; `out` is the folder."""
        naming = chosen(adapter, self.names)
        apart = divided(adapter, naming)
        ready = _peft_write.prepared(placed(apart, naming))
        settings, tensors = _peft_write.settings_of(ready, naming), _peft_write.tensors_of(ready, naming.head)
        checked(settings, out.name)
        files = {
            SETTINGS: _folder.settings_bytes(settings),
            TENSORS[0]: tensor_bytes(tensors, _note(ready, apart, naming)),
            "README.md": _card(adapter, settings, naming).encode(),
        }
        return _folder.write_folder(out, files, force=force)

    def lost(self, adapter: Adapter) -> tuple[str, ...]:
        """See `Lossy.lost`."""
        return _peft_write.losses(adapter, chosen(adapter, self.names))


def _settings(path: Path) -> dict[str, Any]:
    """The settings, errors in their JSON told of this file."""
    try:
        return _folder.read_settings(path)
    except CorruptFileError as error:
        text, where = error.message.replace("the index", SETTINGS), path.parent.resolve().name
        hint = error.hint or "expected the JSON object, in UTF-8, that save_pretrained wrote; save the folder again"
        raise CorruptFileError(text.replace("the settings", SETTINGS), Reason(error.reason), where, hint) from error


def _note(ready: Adapter, apart: Adapter, naming: Naming) -> dict[str, Any]:
    """The note on an adapter: at its own sites, and whose names the tensors have where they are not timm's."""
    sites = (replace(branch, site=own.site) for branch, own in zip(ready.branches, apart.branches))
    note = note_for(replace(ready, branches=tuple(sites)), FORM)
    return note if naming.is_usual else {**note, _NAMES: naming.described()}


def _described(note: Any, tensors: Mapping[str, Dense], config: PeftConfig) -> Adapter:
    """The adapter that this package wrote into the folder, when the folder still holds it."""
    naming = TIMMS
    if isinstance(note, dict) and _NAMES in note:
        naming = naming_of(note[_NAMES], "note")
        note = {key: value for key, value in note.items() if key != _NAMES}
    task, rows = rows_in(note, FORM)
    try:
        there = [replace(row, site=naming.place(row.site)) for row in rows]
        adapter = unflatten(task, _arrays(there, task, tensors, naming.head, config))
        ready = _peft_write.prepared(placed(adapter, naming))
        require_same(tensors, _peft_write.tensors_of(ready, naming.head), config.name)
        settings = _peft_write.settings_of(ready, naming)
    except UnsupportedAdapterError as error:
        raise changed("the description", config.name) from error
    odd = [key for key in _TELLING if settings.get(key) != config.values.get(key)]
    if odd and (odd != ["bias"] or (settings["bias"], config.bias) != ("lora_only", "all")):  # as we wrote it once
        raise changed(f"the setting {odd[0]}", config.name)
    return adapter


def _arrays(
    rows: list[Row], task: Mapping[str, Any], tensors: Mapping[str, Dense], module: str, config: PeftConfig
) -> Arrays:
    """PEFT's tensors as the note's branches name theirs."""
    found: Arrays = {}
    starts: dict[str, int] = {}
    for row in rows:
        start = starts.get(row.site.path, 0)
        starts[row.site.path] = start + row.rank
        for role in row.roles:
            found[f"{row.stem}.{role}"] = _array(row, role, start, tensors, config)
    head = task.get("head")
    for role in head if isinstance(head, dict) else ():
        found[f"head.{role}"] = _folder.named(f"base_model.model.{module}.{role}", tensors)
    return found


def _array(row: Row, role: str, start: int, tensors: Mapping[str, Dense], config: PeftConfig) -> Any:
    root = f"base_model.model.{row.site.path}"
    if row.method == "replace":
        inner = f"{root}.base_layer.{role}"
        whole = _folder.named(inner if inner in tensors else f"{root}.{role}", tensors)
        return _rows_of(whole, row)
    if row.method == "sparse" and config.type == "LORA":
        added = _folder.named(f"{root}.lora_B.{role}", tensors)
        return _rows_of(added * np.float32(config.scale(row.site.path)), row)
    ends = {"down": "lora_A.weight", "up": "lora_B.weight", "magnitude": "lora_magnitude_vector", "factor": "ia3_l"}
    values = _folder.named(f"{root}.{ends.get(role, role)}", tensors)
    if role in ("down", "up") and values.ndim != 2:
        raise CorruptFileError(f"{root} has a {role} of shape {list(values.shape)}", Reason.BAD_SHAPE)
    if role == "magnitude":
        return values
    if role == "down":
        return values[start : start + row.rank]
    if role == "up":
        return values[part_of(values, row.site.part, start, row.rank)]
    return values.reshape(-1)[part_of(values.reshape(-1), row.site.part, 0, 0)[0]]


def _rows_of(values: F32, row: Row) -> F32:
    """The rows that a branch on query, key or value has of its layer's."""
    if not row.site.part:
        return values
    if not values.ndim:
        raise CorruptFileError(f"{row.site} is of a number, expected one a feature", Reason.BAD_SHAPE)
    return values[part_of(values, row.site.part, 0, 0)[0]]


def _card(adapter: Adapter, settings: Mapping[str, Any], naming: Naming) -> str:
    """The folder's README: how it is loaded, and what it does not keep."""
    lines = ["---", "library_name: peft"]
    if settings["base_model_name_or_path"]:
        lines.append(f"base_model: {settings['base_model_name_or_path']}")
    of = "a timm model" if naming.is_timm else f"the modules of {naming.names.family.name}"
    lines += ["---", "", f"An adapter for {of}, written by adapterpack.", ""]
    lines += ["```python", _made(adapter, naming), "model = peft.PeftModel.from_pretrained(model, folder)", "```", ""]
    lost = _peft_write.losses(adapter, naming)
    if lost:
        lines += ["Unlike in the file that it comes from:", "", *(f"- {text}" for text in lost)]
    return "\n".join(lines).rstrip() + "\n"


def _made(adapter: Adapter, naming: Naming) -> str:
    """The line that makes the model."""
    classes = adapter.head.classes if adapter.head is not None and naming.head != PROJECTION else 0
    if naming.is_timm:
        return f"model = timm.create_model(name, pretrained=True{f', num_classes={classes}' if classes else ''})"
    if naming.head == PROJECTION:
        return "model = transformers.CLIPVisionModelWithProjection.from_pretrained(name)"
    inside = naming.names.prefix != "" and naming.word != "clip"  # the names are those within a model with a classifier
    kind = "AutoModelForImageClassification" if classes or inside else "AutoModel"
    count = f", num_labels={classes}" if classes else ""
    return f"model = transformers.{kind}.from_pretrained(name{count})"
