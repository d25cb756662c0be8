"""AdapterHub folders: what the `adapters` library's `save_adapter` writes, with the head beside the adapter.

Read and written for Hugging Face's ViT and CLIP vision models: LoRA, IA³, and bottleneck adapters, sequential and
parallel. Source: adapters 1.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from adapterpack.adapter import Adapter, Backbone, Head
from adapterpack.converters import _adapterhub_write as out_form
from adapterpack.converters import _folder
from adapterpack.converters import settings as sidecar
from adapterpack.converters._adapterhub_config import HubConfig, checked
from adapterpack.converters._adapterhub_head import head_of
from adapterpack.converters._adapterhub_models import Model, model_in, model_of
from adapterpack.converters._adapterhub_read import branches_of
from adapterpack.converters._backbones import depth_of, guessed
from adapterpack.converters._base import Hints, Imported, finish
from adapterpack.converters._check import check_adapter
from adapterpack.converters._described import Arrays, Row, changed, note_for, require_same, rows_in
from adapterpack.converters._flat import unflatten
from adapterpack.converters._lost import left_out
from adapterpack.converters._safetensors_file import tensor_bytes
from adapterpack.errors import CorruptFileError, Reason, UnsupportedAdapterError
from adapterpack.tensors import Dense

FORM = "adapterhub/1"
SETTINGS, HEAD_SETTINGS = "adapter_config.json", "head_config.json"
TENSORS = ("adapter.safetensors", "pytorch_adapter.bin")
HEAD_TENSORS = ("model_head.safetensors", "pytorch_model_head.bin")
FILES = (SETTINGS, HEAD_SETTINGS, *TENSORS, *HEAD_TENSORS)


@dataclass(frozen=True, slots=True)
class AdapterHub:
    """A folder that `save_adapter` wrote."""

    name: str = "adapterhub"

    def recognise(self, source: Path) -> bool:
        settings = source / SETTINGS
        return _folder.looks_like(source, SETTINGS, "config") and not _folder.looks_like(
            source, settings.name, "peft_type"
        )

    def read(self, source: Path, hints: Hints) -> Imported:
        """See `Converter.read`.

        Raises:
            UnsupportedAdapterError: `unknown-method`, `unsupported-model`, `unknown-field`, `not-expressible`, naming
                the setting.
            CorruptFileError: `unmapped-tensor`, `missing-tensor`, `conflicting-settings`, `bad-shape`, naming the
                tensor; `bad-source`, `unsafe-source`, `bad-field`, `bad-labels`.
        """
        settings = sidecar.only(hints.settings, ("head_bias",), "an AdapterHub folder")
        said = replace(hints, settings=settings)
        folder = source.resolve().name
        content = _folder.read_settings(source / SETTINGS)
        config = checked(content, folder)
        tensors, note = _folder.read_tensors(_folder.tensor_file(source, TENSORS))
        head_tensors, head_content = _head_files(source)
        if note is not None:
            sidecar.only(hints.settings, (), "a folder that describes itself")
            found = _described(note, {**tensors, **head_tensors}, content, folder)
            return Imported(finish(found, said))
        head: Head | None = None
        labels: tuple[str, ...] | None = None
        if head_content is not None:
            head, labels = head_of(head_tensors, head_content, settings)
        branches = branches_of(tensors, config, hints.backbone)
        if not branches:
            raise UnsupportedAdapterError("the folder holds no adapter", Reason.BAD_SOURCE, folder)
        where = Backbone(config.backbone)
        about = model_in(tensors).metadata
        adapter = Adapter(config.name, branches[0].method, branches, head, labels, hints.data, about, where)
        depth = 0 if hints.backbone is not None else depth_of(dict.fromkeys(str(b.site) for b in branches))
        return Imported(finish(check_adapter(adapter), said), _notes(head, config, depth))

    def write(self, adapter: Adapter, out: Path, *, force: bool) -> tuple[Path, ...]:
        """See `Converter.write`; `out` is the folder."""
        out_form.require_even(adapter)
        model = model_of(adapter)
        settings, tensors = out_form.settings_of(adapter, model), out_form.tensors_of(adapter, model)
        files = {
            SETTINGS: _folder.settings_bytes(settings),
            TENSORS[0]: tensor_bytes(tensors, note_for(adapter, FORM)),
        }
        if adapter.head is not None:
            about = out_form.head_settings(adapter, model, adapter.head.classes)
            files[HEAD_SETTINGS] = _folder.settings_bytes(about)
            files[HEAD_TENSORS[0]] = tensor_bytes(out_form.head_tensors(adapter), {"form": FORM})
        return _folder.write_folder(out, files, force=force)

    def lost(self, adapter: Adapter) -> tuple[str, ...]:
        """See `Lossy.lost`."""
        made = model_of(adapter).of_class(head=adapter.head is not None)
        notes = [
            *left_out(adapter, ("head", "labels", "data", "fingerprint", "metadata")),
            f"written for {made}, whose load_adapter(folder, use_safetensors=True) reads it",
        ]
        if adapter.data is not None or adapter.backbone.fingerprint is not None:
            notes.append("preprocessing and fingerprint are in a note that adapterpack alone reads")
        return tuple(notes)


def _notes(head: Head | None, config: HubConfig, depth: int) -> tuple[str, ...]:
    """What there is to tell; `depth` counts the blocks of the folder where no backbone does."""
    notes = [] if head is not None else ["the folder has no head: the backbone's own stays"]
    if config.values.get("scaling") == "channel":
        notes.append("the scaling of each channel is multiplied into up and up_bias")
    if depth:
        notes.append(guessed(depth, "--backbone"))
    return tuple(notes)


def _head_files(source: Path) -> tuple[dict[str, Dense], dict[str, Any] | None]:
    """The head's tensors and settings; nothing and None where the folder has no head."""
    there = [name for name in (HEAD_SETTINGS, *HEAD_TENSORS) if (source / name).exists()]
    if not there:
        return {}, None
    content = _folder.read_settings(source / HEAD_SETTINGS)
    tensors, _ = _folder.read_tensors(_folder.tensor_file(source, HEAD_TENSORS))
    return tensors, content


def _described(note: Any, tensors: Mapping[str, Dense], content: Mapping[str, Any], folder: str) -> Adapter:
    """The adapter that this package wrote into the folder, when the folder still holds it."""
    task, rows = rows_in(note, FORM)
    name, model = content["name"], model_in(tensors)
    arrays: Arrays = {
        f"{row.stem}.{role}": _array(row, role, name, tensors, model) for row in rows for role in row.roles
    }
    head = task.get("head")
    for role in head if isinstance(head, dict) else ():
        arrays[f"head.{role}"] = _folder.named(f"classifier.{role}", tensors)
    adapter = unflatten(task, arrays)
    try:
        out_form.require_even(adapter)
        require_same(tensors, {**out_form.tensors_of(adapter, model), **out_form.head_tensors(adapter)}, folder)
        same = out_form.is_same(content, out_form.settings_of(adapter, model))
    except UnsupportedAdapterError as error:
        raise changed("the description", folder) from error
    if not same:
        raise changed("a setting", folder)
    return replace(adapter, metadata={**model.metadata, **adapter.metadata})


def _array(row: Row, role: str, name: str, tensors: Mapping[str, Dense], model: Model) -> Any:
    if row.method in ("lora", "affine"):
        end = {"down": "lora_A", "up": "lora_B", "factor": "lora_B"}.get(role, role)
        modules = out_form.modules_of(str(row.site), model)
        found = [_folder.named(f"{module}.loras.{name}.{end}", tensors) for module in modules]
        if not found or any(array.ndim != 2 for array in found):
            raise CorruptFileError(f"{role} at {row.site} is no matrix", Reason.BAD_SHAPE)
        whole = found[0] if role == "down" else np.concatenate(found)
        return whole.reshape(-1) if role == "factor" else whole
    parts = str(row.site).split(".", 2)
    if len(parts) != 3 or not out_form.is_place(parts[2]):
        raise CorruptFileError(f"there is no place for {row.method} at {row.site}", Reason.BAD_FIELD, "note")
    return _folder.named(f"{out_form.stem_of(str(row.site), name, model)}.{out_form.end_of(role)}", tensors)
