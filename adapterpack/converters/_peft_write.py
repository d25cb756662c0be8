"""An adapter as PEFT's settings and tensors; what its layers get is in `_peft_layers`, their names in `_peft_names`.

Nouns in, arrays and settings out; no file is touched here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from adapterpack.adapter import Adapter, Branch, Head, Site
from adapterpack.converters._lost import left_out
from adapterpack.converters._peft_layers import Layer, before_scale, layers_of
from adapterpack.converters._peft_names import PROJECTION, Naming, has_fused, revision_of
from adapterpack.errors import Reason, UnsupportedAdapterError
from adapterpack.tensors import F32, Dense, Tensor

_ROOT = "base_model.model"


def prepared(adapter: Adapter) -> Adapter:
    """The adapter with one scale a layer: where a layer's branches differ, or no float32 times the scale gives what is
    added to the bias, the scale goes into `up`.

    Raises:
        UnsupportedAdapterError: `not-expressible` naming a branch that PEFT has no form for.
    """
    kinds = {branch.method for branch in adapter.branches} - {"replace"}
    loras = {branch.site.path for branch in adapter.branches if branch.method == "lora"}
    if all(_adds_to(branch, loras) for branch in adapter.branches if branch.method == "sparse"):
        kinds -= {"sparse"}
    if kinds not in ({"lora"}, {"dora"}, {"affine"}):
        odd = sorted(kinds - {"lora", "dora", "affine"})
        what = f"{odd[0]} branches" if odd else f"{' and '.join(sorted(kinds)) or 'no'} branches"
        hint = "PEFT's folders hold one of LoRA, DoRA and IA³, besides biases, norms and the head"
        raise UnsupportedAdapterError(f"the adapter has {what}", Reason.NOT_EXPRESSIBLE, hint=hint)
    odd_scales = {path for path in loras if not _has_one_scale([b for b in adapter.branches if b.site.path == path])}
    branches = (_unscaled(b) if b.method == "lora" and b.site.path in odd_scales else b for b in adapter.branches)
    return replace(adapter, branches=tuple(branches))


def _adds_to(branch: Branch, loras: Collection[str]) -> bool:
    """Whether a sparse branch is what PEFT calls the bias of a layer's B."""
    return branch.tensors.keys() == {"bias"} and branch.site.path in loras


def _has_one_scale(rows: Sequence[Branch]) -> bool:
    """Whether a layer's LoRAs have one scale, times which PEFT's bias of B gives what is added to the layer's."""
    scales = [branch.params["scale"] for branch in rows if branch.method == "lora"]
    rank = sum(branch.tensors["down"].shape[0] for branch in rows if branch.method == "lora")
    added = [branch.tensors["bias"].dense() for branch in rows if branch.method == "sparse"]
    asked = scales[0] * rank / max(rank, 1)  # as `layers_of` and PEFT come to it
    return len(set(scales)) == 1 and all(before_scale(values, asked) is not None for values in added)


def _unscaled(branch: Branch) -> Branch:
    up: Tensor = Dense(branch.tensors["up"].dense() * np.float32(branch.params["scale"]))
    return replace(branch, params={"scale": 1.0}, tensors={**branch.tensors, "up": up})


def plain_of(adapter: Adapter, layers: Mapping[str, Layer]) -> tuple[dict[str, F32], list[str], bool]:
    """Parameters of the model itself: tensors by PEFT's names, the modules to save whole, and whether biases are.

    Raises:
        UnsupportedAdapterError: `not-expressible` for what is neither a bias nor a whole norm.
    """
    tensors: dict[str, F32] = {}
    saved, biases = [], False
    for branch in _joined([branch for branch in adapter.branches if branch.method == "replace"]):
        module = branch.site.path
        if branch.site.part or "value" in branch.tensors or not _small(branch):
            hint = "PEFT saves biases, and norms whole; those of query, key and value only together"
            raise UnsupportedAdapterError(f"the replacement at {branch.site}", Reason.NOT_EXPRESSIBLE, hint=hint)
        if "weight" in branch.tensors:
            saved.append(module)
        biases |= "weight" not in branch.tensors
        inner = f"{module}.base_layer" if module in layers else module
        tensors |= {f"{_ROOT}.{inner}.{role}": tensor.dense() for role, tensor in branch.tensors.items()}
    return tensors, saved, biases


def _joined(branches: Sequence[Branch]) -> list[Branch]:
    """Replacements, the biases of query, key and value together as that of timm's layer where all three are there."""
    parts: dict[str, dict[str, Branch]] = {}
    for branch in branches:
        if branch.tensors.keys() == {"bias"}:
            parts.setdefault(branch.site.path, {})[branch.site.part] = branch
    found = {path: [rows[part] for part in "qkv"] for path, rows in parts.items() if rows.keys() == set("qkv")}
    fused = [
        replace(rows[0], site=Site(path), tensors={"bias": Dense(np.concatenate([_bias(row) for row in rows]))})
        for path, rows in found.items()
    ]
    return [*(branch for branch in branches if not (branch.site.part and branch.site.path in found)), *fused]


def _bias(branch: Branch) -> F32:
    return branch.tensors["bias"].dense()


def _small(branch: Branch) -> bool:
    """A bias, or weight and bias of a norm."""
    vectors = all(len(tensor.shape) == 1 for tensor in branch.tensors.values())
    return vectors and branch.tensors.keys() in ({"bias"}, {"weight", "bias"})


def tensors_of(adapter: Adapter, head: str) -> dict[str, F32]:
    """Every tensor by PEFT's name, for a `prepared` adapter; a head without a bias gets one of zeros, where the module
    has one.

    Args:
        adapter: its sites are the modules' names.
        head: the classifier's module.

    Raises:
        UnsupportedAdapterError: `not-expressible`.
    """
    layers = layers_of(adapter)
    found = {f"{_ROOT}.{module}.{end}": v for module, layer in layers.items() for end, v in layer.tensors.items()}
    found |= plain_of(adapter, layers)[0]
    return found if adapter.head is None else {**found, **_head_tensors(adapter.head, head)}


def _head_tensors(head: Head, module: str) -> dict[str, F32]:
    weight = {f"{_ROOT}.{module}.weight": head.weight.dense()}
    if module == PROJECTION:
        if head.bias is not None:
            text = f"a head with a bias as {PROJECTION}"
            raise UnsupportedAdapterError(text, Reason.NOT_EXPRESSIBLE, hint="CLIP's projection has none")
        return weight
    bias = np.zeros(head.classes, np.float32) if head.bias is None else head.bias.dense()
    return {**weight, f"{_ROOT}.{module}.bias": bias}


def settings_of(adapter: Adapter, naming: Naming) -> dict[str, Any]:
    """`adapter_config.json` for a `prepared` adapter.

    Raises:
        UnsupportedAdapterError: `not-expressible`.
    """
    layers = layers_of(adapter)
    _, saved, biases = plain_of(adapter, layers)
    head = [naming.head] if adapter.head is not None else []
    name = adapter.backbone.name
    hub = hub_name(name) if naming.is_timm or "/" in name else None
    revision = revision_of(adapter) if hub else ""
    common = {
        **({"revision": revision} if revision else {}),
        "base_model_name_or_path": hub,
        "inference_mode": True,
        "modules_to_save": sorted([*head, *saved]) or None,
        "target_modules": sorted(layers),
        "task_type": None,
    }
    if "affine" in {branch.method for branch in adapter.branches}:
        if biases:
            message = "biases beside IA³"
            raise UnsupportedAdapterError(message, Reason.NOT_EXPRESSIBLE, hint="IA³'s settings have none")
        before = sorted(module for module, layer in layers.items() if layer.before)
        return {**common, "peft_type": "IA3", "feedforward_modules": before}
    return {**common, **_lora_settings(layers), "bias": _bias_setting(adapter, layers) if biases else "none"}


def _bias_setting(adapter: Adapter, layers: Mapping[str, Layer]) -> str:
    alone = {b.site.path for b in adapter.branches if b.method == "replace" and b.tensors.keys() == {"bias"}}
    return "lora_only" if alone == layers.keys() else "all"


def hub_name(name: str) -> str | None:
    """A backbone's name on the Hub, where timm's stand under their own; None for a name of somebody's own."""
    if "/" in name:
        return name
    return f"timm/{name}" if re.fullmatch(r"[a-z0-9_]+\.\w+|(vit|deit)\w+", name) else None


def _lora_settings(layers: Mapping[str, Layer]) -> dict[str, Any]:
    """The commonest rank and alpha for all, and what differs by module."""
    (rank, alpha), _ = Counter(sorted((layer.rank, layer.alpha) for layer in layers.values())).most_common(1)[0]
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": _whole(alpha),
        "rank_pattern": {module: layer.rank for module, layer in layers.items() if layer.rank != rank},
        "alpha_pattern": {module: _whole(layer.alpha) for module, layer in layers.items() if layer.alpha != alpha},
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_dora": any("lora_magnitude_vector" in layer.tensors for layer in layers.values()),
        "use_rslora": False,
        **({"lora_bias": True} if any("lora_B.bias" in layer.tensors for layer in layers.values()) else {}),
    }


def _whole(value: float) -> float | int:
    return int(value) if value.is_integer() else value


def losses(adapter: Adapter, naming: Naming) -> tuple[str, ...]:
    """What PEFT's form does not hold as it was, in sentences."""
    notes = list(left_out(adapter, ("head", "labels", "data", "fingerprint", "metadata")))
    if naming.is_timm and any(branch.site.part for branch in adapter.branches):
        notes.append("branches on query, key and value rows share one pair of matrices a layer, padded with zeros")
    if not naming.is_timm:
        notes.append(f"the names are those of {naming.names.family.name}: its model must have the backbone's weights")
        if has_fused(adapter):
            notes.append("a branch on all of query, key and value is three, one on each")
    if adapter.head is not None and adapter.head.bias is None and naming.head != PROJECTION:
        notes.append("the head has a bias of zeros, which the model's needs")
    free = set(adapter.metadata) - {"source"} or None
    parts = {"class names": adapter.labels, "preprocessing": adapter.data, "metadata": free}
    told = [name for name, value in parts.items() if value is not None]
    if adapter.backbone.fingerprint is not None:
        told.append("the backbone's fingerprint")
    if told:
        notes.append(f"a note that adapterpack alone reads holds {', '.join(told)}")
    return tuple(notes)
