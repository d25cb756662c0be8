"""An adapter as the settings and tensors of the `adapters` library, for one of its models. Nouns in, arrays out.

The library has one set of places for all layers, and for LoRA one rank and scale, so an adapter must be even in these
to be written; its bottlenecks may have a rank for each layer, and a scale for each place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from adapterpack.adapter import Adapter, Branch
from adapterpack.converters._adapterhub_models import ATTENTION, OUTPUT, Model
from adapterpack.converters._adapterhub_taps import settings_for
from adapterpack.errors import Reason, UnsupportedAdapterError
from adapterpack.methods import METHODS
from adapterpack.methods._base import Tap
from adapterpack.tensors import F32

VERSION = "adapters.1.3.0"
_ON_LAYERS = ("lora", "affine")
_LORA_FLAGS = {"mlp.fc1": "intermediate_lora", "mlp.fc2": "output_lora"}
_BOTTLENECKS = {
    ("output", "attn.proj"): ATTENTION,
    ("output", "mlp.fc2"): OUTPUT,
    **{(tap, "attn"): ATTENTION for tap in ("residual", "sum")},
    **{(tap, "mlp"): OUTPUT for tap in ("residual", "sum")},
}
_PLACES = {place: stem for (_, place), stem in _BOTTLENECKS.items()}
_ENDS = {"down": "adapter_down.0.weight", "up": "adapter_up.weight", "down_bias": "adapter_down.0.bias",
         "up_bias": "adapter_up.bias"}  # fmt: skip


def name_of(adapter: Adapter) -> str:
    """The adapter's name inside the library, which allows no dots."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", adapter.name) or "adapter"


def place_of(branch: Branch) -> str:
    """The site without its block.

    Raises:
        UnsupportedAdapterError: `not-expressible` for a site outside the blocks.
    """
    if branch.site.block is None:
        raise _refused(f"{branch.method} at {branch.site}", "the library adapts layers inside the blocks")
    return str(branch.site).split(".", 2)[2]


def require_even(adapter: Adapter) -> None:
    """Refuse what differs between layers, or has no form in the library.

    Raises:
        UnsupportedAdapterError: `not-expressible`, saying what.
    """
    kinds = {branch.method for branch in adapter.branches}
    if len(kinds) != 1 or not kinds <= {"lora", "adapter", "adaptformer", "affine"}:
        words = " and ".join(sorted(kinds)) or "no"
        raise _refused(f"{words} branches", "the library's folders hold one of LoRA, IA³ and bottleneck adapters")
    for branch in adapter.branches:
        _require_place(branch)
    _require_alike(adapter)
    blocks: dict[int | None, list[str]] = {}
    for branch in adapter.branches:
        blocks.setdefault(branch.site.block, []).append(place_of(branch))
    sets = {tuple(sorted(places)) for places in blocks.values()}
    if len(sets) > 1 or any(len(set(places)) < len(places) for places in sets):
        raise _refused("layers with branches at different places", "the library adapts every layer alike")


def _require_alike(adapter: Adapter) -> None:
    if adapter.branches[0].method in _ON_LAYERS:
        if len({(_rank(branch), branch.params.get("scale")) for branch in adapter.branches}) > 1:
            raise _refused("branches of several ranks or scales", "the library has one rank and scale for all layers")
        return
    if len({_bend(branch) for branch in adapter.branches}) > 1:
        raise _refused("branches of several nonlinearities or taps", "the library has one of each for all layers")
    if len({(branch.site.block, _rank(branch)) for branch in adapter.branches}) > len(_ranks(adapter)):
        raise _refused("branches of several ranks in one layer", "the library has one rank a layer")


def _require_place(branch: Branch) -> None:
    place = place_of(branch)
    if branch.method in _ON_LAYERS:
        known = place.startswith("attn.qkv") or place in _LORA_FLAGS
    else:
        known = (_bend(branch)[0], place) in _BOTTLENECKS
    if not known:
        raise _refused(f"{branch.method} at {branch.site}", "the library's models have no such place")
    if branch.method == "affine" and (branch.params["tap"] != "output" or set(branch.tensors) != {"factor"}):
        raise _refused(f"factors at {branch.site} that are not IA³'s", "the library scales what a layer gives, no more")


def _bend(branch: Branch) -> tuple[Tap, str]:
    """A bottleneck's tap and nonlinearity."""
    return METHODS[branch.method].tap(branch.params), branch.params.get("nonlinearity", "relu")


def _ranks(adapter: Adapter) -> dict[int, int]:
    """By block."""
    return {branch.site.block or 0: _rank(branch) for branch in adapter.branches}


def _scale(adapter: Adapter) -> float | None:
    """Of all bottlenecks; None where they have scales of their own."""
    found = {branch.params["scale"] for branch in adapter.branches}
    return float(found.pop()) if len(found) == 1 else None


def _rank(branch: Branch) -> int:
    if branch.method == "affine":
        return 1
    return branch.tensors["down"].shape[0]


def tensors_of(adapter: Adapter, model: Model) -> dict[str, F32]:
    """Every tensor of the adapter by the library's name, for an even adapter."""
    found: dict[str, F32] = {}
    for branch in adapter.branches:
        made = _layers(branch, adapter, model) if branch.method in _ON_LAYERS else _bottleneck(branch, adapter, model)
        found |= made
    return found


def modules_of(site: str, model: Model) -> list[str]:
    """The library's modules at a site: three for timm's fused projection."""
    fused = re.fullmatch(r"(blocks\.\d+\.attn\.qkv)", site)
    sites = [f"{site}[{part}]" for part in "qkv"] if fused else [site]
    return [module for each in sites if (module := model.names.module(each)) is not None]


def _layers(branch: Branch, adapter: Adapter, model: Model) -> dict[str, F32]:
    """LoRA's two matrices of each module, or IA³'s factors as a column."""
    modules = modules_of(str(branch.site), model)
    whole = branch.tensors["up" if branch.method == "lora" else "factor"].dense()
    found: dict[str, F32] = {}
    for module, rows in zip(modules, np.split(whole, len(modules))):
        stem = f"{module}.loras.{name_of(adapter)}"
        if branch.method == "lora":
            found[f"{stem}.lora_A"] = branch.tensors["down"].dense()
        found[f"{stem}.lora_B"] = np.ascontiguousarray(rows.reshape(len(rows), -1))
    return found


def stem_of(site: str, name: str, model: Model) -> str:
    """What the names of a bottleneck's tensors begin with."""
    _, block, place = site.split(".", 2)
    return f"{model.layer.format(block)}.{model.stems[_PLACES[place]]}.adapters.{name}"


def is_place(place: str) -> bool:
    """Whether the library has a bottleneck at a place."""
    return place in _PLACES


def _bottleneck(branch: Branch, adapter: Adapter, model: Model) -> dict[str, F32]:
    stem = stem_of(str(branch.site), name_of(adapter), model)
    hidden, width = branch.tensors["down"].shape
    zeros = {"down_bias": np.zeros(hidden, np.float32), "up_bias": np.zeros(width, np.float32)}
    given = {role: tensor.dense() for role, tensor in branch.tensors.items()}
    found = {f"{stem}.{end}": {**zeros, **given}[role] for role, end in _ENDS.items()}
    if _scale(adapter) is None:
        found[f"{stem}.scaling"] = np.array([branch.params["scale"]], np.float32)
    return found


def settings_of(adapter: Adapter, model: Model) -> dict[str, Any]:
    """`adapter_config.json` for an even adapter."""
    first = adapter.branches[0]
    rank = _rank(first)
    blocks = {branch.site.block or 0 for branch in adapter.branches}
    leave_out = [i for i in range(max(blocks)) if i not in blocks]
    places = [place_of(branch) for branch in adapter.branches if branch.site.block == first.site.block]
    made = _lora_config(places, rank, first) if first.method in _ON_LAYERS else _bottleneck_config(places, adapter)
    return {**_about(adapter, model), "config": {**made, "leave_out": leave_out}, "name": name_of(adapter)}


def _about(adapter: Adapter, model: Model) -> dict[str, Any]:
    width = width_of(adapter)
    return {
        **({"hidden_size": width} if width else {}),
        "model_class": model.of_class(head=adapter.head is not None),
        "model_name": adapter.backbone.name if "/" in adapter.backbone.name else "",
        "model_type": model.type,
        "version": VERSION,
    }


def width_of(adapter: Adapter) -> int:
    """The backbone's features; 0 where no tensor tells, because IA³ is at `fc1` alone."""
    first = adapter.branches[0]
    if first.method != "affine":
        role, axis = ("up", 0) if place_of(first).endswith("fc2") else ("down", 1)
        return first.tensors[role].shape[axis]
    sizes = {place_of(branch): branch.tensors["factor"].shape[0] for branch in adapter.branches}
    known = [size // 3 if place == "attn.qkv" else size for place, size in sizes.items() if place != "mlp.fc1"]
    return known[0] if known else 0 if adapter.head is None else adapter.head.weight.shape[1]


def _lora_config(places: list[str], rank: int, first: Branch) -> dict[str, Any]:
    parts = "".join("qkv" if place == "attn.qkv" else place[-2] for place in places if place.startswith("attn"))
    if len(set(parts)) < len(parts):
        raise _refused("two branches on the same rows", "the library has one on each matrix")
    flags = {flag: place in places for place, flag in _LORA_FLAGS.items()}
    scaled = first.method == "affine"
    alpha = first.params.get("scale", 1.0) * rank
    return {
        "architecture": "lora", "r": rank, "alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "attn_matrices": sorted(parts, key="qkv".index) or ["q", "v"], "selfattn_lora": bool(parts), **flags,
        "composition_mode": "scale" if scaled else "add", "dropout": 0.0,
        "init_weights": "ia3" if scaled else "lora", "init_weights_seed": None,
        "use_gating": False, "use_dora": False, "vera_b": None, "vera_d": None, "dtype": None,
    }  # fmt: skip


def _bottleneck_config(places: list[str], adapter: Adapter) -> dict[str, Any]:
    width, scale = width_of(adapter), _scale(adapter)
    factors = {str(block): _factor(width, rank) for block, rank in sorted(_ranks(adapter).items())}
    first = next(iter(factors.values()))  # also for layers of the model that have no tensors here
    return {
        "mh_adapter": any(_PLACES[place] == ATTENTION for place in places),
        "output_adapter": any(_PLACES[place] == OUTPUT for place in places),
        "reduction_factor": first if len(set(factors.values())) == 1 else {**factors, "default": first},
        **settings_for(*_bend(adapter.branches[0])), "scaling": "learned" if scale is None else scale,
        "adapter_residual_before_ln": False, "ln_before": False, "ln_after": False,
        "dropout": 0.0, "use_gating": False, "cross_adapter": False, "inv_adapter": None,
        "inv_adapter_reduction_factor": None, "phm_layer": False,
        "init_weights": "mam_adapter",  # so that a layer of the model that has no tensors here adds nothing
    }  # fmt: skip


def _factor(width: int, rank: int) -> float:
    """The reduction factor that gives a rank; the library rounds down."""
    return width / rank if width % rank == 0 else width / (rank + 0.5)


def head_settings(adapter: Adapter, model: Model, classes: int) -> dict[str, Any]:
    """`head_config.json`: a classifier of the model class itself."""
    labels = adapter.labels if adapter.labels is not None and len(set(adapter.labels)) == classes else None
    numbered = labels or [f"LABEL_{i}" for i in range(classes)]
    return {
        **_about(adapter, model),
        "config": None,
        "label2id": {label: i for i, label in enumerate(numbered)},
        "name": None,
        "num_labels": classes,
    }


def head_tensors(adapter: Adapter) -> dict[str, F32]:
    """The head's tensors; one without a bias gets one of zeros."""
    if adapter.head is None:
        return {}
    bias = adapter.head.bias
    zeros = np.zeros(adapter.head.classes, np.float32)
    return {
        "classifier.weight": adapter.head.weight.dense(),
        "classifier.bias": zeros if bias is None else bias.dense(),
    }


def end_of(role: str) -> str:
    """How the name of a bottleneck's tensor ends."""
    return _ENDS.get(role, role)


def _refused(what: str, hint: str) -> UnsupportedAdapterError:
    return UnsupportedAdapterError(what, Reason.NOT_EXPRESSIBLE, hint=hint)


def is_same(found: Mapping[str, Any], made: Mapping[str, Any]) -> bool:
    """Whether the settings that a folder has are those that were written."""
    return bool(found.get("config") == made["config"] and found.get("name") == made["name"])
