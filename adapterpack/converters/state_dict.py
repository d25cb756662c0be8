"""A state dict with foreign names to an adapter: every tensor is explained, dropped with a count, or refused by name.

Arrays in, nouns out; no file is touched here and no torch is needed. The names' meaning is in `schemes`, what a scheme
does with its tensors in `_trained`, what happens to the backbone's own parameters in `_in_place`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterpack.adapter import Adapter, Backbone, Branch, DataSettings, Head
from adapterpack.converters import convpass, fact, ssf
from adapterpack.converters._backbones import depth_and_width, depth_of, guessed, todays_name
from adapterpack.converters._base import Hints, Imported, finish
from adapterpack.converters._check import check_adapter
from adapterpack.converters._complete import need_trained
from adapterpack.converters._data import of_recipe
from adapterpack.converters._head import require_bias
from adapterpack.converters._in_place import Plain, trained_in_place
from adapterpack.converters._report import Extracted
from adapterpack.converters._trained import (
    Sorted,
    consolidator_branches,
    in_consolidator_recipe,
    latent,
    petl_branches,
    spt_branches,
)
from adapterpack.converters.finetune import extract, parse_how
from adapterpack.converters.schemes import Place, nearest, place_of, schemes_in
from adapterpack.converters.settings import agree
from adapterpack.converters.spt_mask import SptMask
from adapterpack.errors import CallError, CorruptFileError, Reason, UnsupportedAdapterError
from adapterpack.tensors import Dense

F32 = NDArray[np.float32]
_IMAGENET = DataSettings(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
# how each recipe feeds images; a plain state dict does not tell
_RECIPES = ("consolidator", "spt-lora", "spt-adapter", "fact-tt", "fact-tk", "convpass")
_DATA = {"petl-vit": DataSettings(), **dict.fromkeys(_RECIPES, _IMAGENET)}
# schemes whose branches have a file of their own, and which train nothing of the backbone in place
_BUILDERS = {"fact-tt": fact.branches, "fact-tk": fact.branches, "convpass": convpass.branches, "ssf": ssf.branches}


def adapter_from(
    tensors: Mapping[str, F32], settings: Mapping[str, Any], hints: Hints, name: str, mask: SptMask | None = None
) -> Imported:
    """The adapter that a state dict holds.

    Args:
        tensors: float32 arrays by outside name.
        settings: as `settings.combine` gives them.
        hints: what the caller said; its `backbone` decides what was trained.
        name: the task's name where neither the settings nor the caller give one.
        mask: SPT's, for its sparse entries.

    Raises:
        CorruptFileError: `unmapped-tensor`, `missing-tensor`, `bad-shape`, `not-finite`, `conflicting-settings`, …
        UnsupportedAdapterError: `ambiguous-source`, `missing-field`, …
        BackboneMismatchError: a frozen tensor is not the backbone's.
    """
    found, head, told = _sort(tensors, settings, hints)
    if "as" in settings:
        _check_whole(found.scheme, settings, hints)
    branches, plains, notes = _branches(found, settings, hints, mask)
    matrices: tuple[Extracted, ...] = ()
    if "as" in settings:
        replaced, matrices, dropped = extract(plains, hints.backbone or {}, parse_how(settings["as"]))
    else:
        replaced, dropped = _in_place(found.scheme, plains, settings, hints, mask)
        if found.scheme == "timm" and "trained" not in settings:
            need_trained(found, hints.backbone)
    adapter = Adapter(
        settings.get("dataset", name),
        "finetune" if matrices else _label(found.scheme, branches, replaced),
        (*branches, *replaced),
        _head(head, settings, found.scheme),
        data=of_recipe(_DATA.get(found.scheme), hints.data),
        backbone=Backbone(todays_name(settings.get("backbone", ""))),
    )
    if not adapter.branches and adapter.head is None:
        raise UnsupportedAdapterError("the state dict holds nothing that was trained", Reason.BAD_SOURCE)
    return Imported(
        check_adapter(finish(adapter, replace(hints, settings=settings))), (*told, *notes, *dropped), matrices
    )


def explained(names: Iterable[str], backbone: Mapping[str, Any] | None) -> bool:
    """Whether some of the names are those of a trainer, of timm's ViTs or of this backbone."""
    listed = list(names)
    known = any(place_of("timm", name) is not None or name in (backbone or ()) for name in listed)
    return known or bool(schemes_in(listed))


def scheme_of(tensors: Mapping[str, Any]) -> str:
    """Whose names a state dict uses: a key of `schemes.SCHEMES`.

    Raises:
        UnsupportedAdapterError: `ambiguous-source` when two trainers' names occur together.
    """
    schemes = schemes_in(tensors)
    if len(schemes) > 1:
        message = f"the state dict has names of {' and of '.join(schemes)}"
        raise UnsupportedAdapterError(message, Reason.AMBIGUOUS_SOURCE, hint="give one adapter at a time")
    return schemes[0] if schemes else "timm"


def _sort(
    tensors: Mapping[str, F32], settings: Mapping[str, Any], hints: Hints
) -> tuple[Sorted, dict[str, tuple[str, F32]], list[str]]:
    """Branches and plain parameters; the head's names and values by role; and notes."""
    scheme = scheme_of(tensors)
    branch: dict[str, tuple[Place, F32]] = {}
    plain: dict[str, Plain] = {}
    head: dict[str, tuple[str, F32]] = {}
    for name, raw in tensors.items():
        place = place_of(scheme, name) or _own_name(name, hints.backbone or {})
        if place is None:
            raise _unmapped(scheme, name, tensors)
        values = _as_matrix(raw) if scheme == "consolidator" else raw
        if place.kind == "head":
            _require_one(head.get(place.role), name)
            head[place.role] = name, raw
        elif place.kind == "branch":
            branch[name] = place, values
        else:
            plain[name] = Plain(name, place, values)
    depth, guess = _depth(tensors, settings, hints)
    notes = [] if head else ["the file has no head: the backbone's own stays"]
    if guess and depth:
        notes.append(guess)
    return Sorted(scheme, depth, branch, plain), head, notes


def _require_one(before: tuple[str, F32] | None, name: str) -> None:
    if before is not None:
        message = f"{before[0]} and {name} are both the head's"
        raise UnsupportedAdapterError(message, Reason.AMBIGUOUS_SOURCE, hint="a task has one head: leave one out")


def _check_whole(scheme: str, settings: Mapping[str, Any], hints: Hints) -> None:
    """Refuse the setting `as` where there is nothing to compare."""
    parse_how(settings["as"])
    if scheme != "timm" or "trained" in settings:
        what = "with the setting trained" if scheme == "timm" else f"of {scheme}"
        raise CallError(f"the setting as is for a whole model, not for a state dict {what}", Reason.BAD_CALL)
    if hints.backbone is None:
        hint = "give the model that it was fine-tuned from: --backbone (backbone=…)"
        raise CallError("the setting as compares with a backbone, and none is given", Reason.BAD_CALL, hint=hint)


def _in_place(
    scheme: str, plains: Sequence[Plain], settings: Mapping[str, Any], hints: Hints, mask: SptMask | None
) -> tuple[list[Branch], list[str]]:
    trained = settings.get("trained")
    if trained is None and mask is not None:
        trained = [*mask.vectors, "cls_token"]
    recipe = in_consolidator_recipe if scheme == "consolidator" else None
    recipe = _nothing if scheme in _BUILDERS else recipe
    return trained_in_place(plains, hints.backbone, trained, recipe)


def _nothing(plain: Plain) -> bool:
    return False


def _own_name(name: str, backbone: Mapping[str, F32]) -> Place | None:
    """A parameter that only this backbone has."""
    if name not in backbone:
        return None
    path, _, role = name.rpartition(".")
    return Place(path, role, "frozen") if role in ("weight", "bias") else Place(name, "value", "frozen")


def _depth(tensors: Mapping[str, F32], settings: Mapping[str, Any], hints: Hints) -> tuple[int, str]:
    """Blocks of the backbone, and a note where only the file tells."""
    name = hints.backbone_name or settings.get("backbone", "")
    known = settings.get("depth") or depth_of(hints.backbone or {})
    if known:
        return int(known), ""
    try:
        return depth_and_width(name, settings, hints.backbone)[0], ""
    except CallError:  # no size is known for the name: the state dict itself has to do
        depth = depth_of(tensors)
        return depth, guessed(depth)


def _as_matrix(values: F32) -> F32:
    """Consolidator's linear layers are convolutions of width 1."""
    return values[:, :, 0] if values.ndim == 3 and values.shape[2] == 1 and values.shape[0] > 1 else values


def _unmapped(scheme: str, name: str, tensors: Mapping[str, F32]) -> CorruptFileError:
    odd = sum(place_of(scheme, other) is None for other in tensors)
    like = nearest(scheme, name)
    hint = f"the nearest known names are {' and '.join(like)}" if like else f"no name of {scheme} is like it"
    more = f" (and {odd - 1} more tensors)" if odd > 1 else ""
    return CorruptFileError(f"no rule explains the tensor {name[:200]!r}{more}", Reason.UNMAPPED_TENSOR, hint=hint)


def _branches(
    found: Sorted, settings: Mapping[str, Any], hints: Hints, mask: SptMask | None
) -> tuple[list[Branch], list[Plain], list[str]]:
    plains = list(found.plain.values())
    if found.scheme == "petl-vit":
        return petl_branches(found, settings), plains, []
    agree(settings, "bit", 32)
    if found.scheme in _BUILDERS:
        branches, notes = _BUILDERS[found.scheme](found, settings)
        return branches, plains, notes
    if found.scheme == "consolidator":
        branches, plains = consolidator_branches(found, settings, hints.backbone)
        return branches, plains, []
    if found.scheme.startswith("spt-"):
        agree(settings, "scale", 1.0)
        branches, notes = spt_branches(found, mask)
        return branches, plains, notes
    return [], plains, []


def _label(scheme: str, branches: list[Branch], replaced: list[Branch]) -> str:
    """The method's name for people."""
    if scheme == "petl-vit":
        return "+".join(sorted({branch.method for branch in branches}))
    if scheme == "timm":
        only_biases = all(branch.tensors.keys() == {"bias"} for branch in replaced)
        return ("bitfit" if only_biases else "replace") if replaced else "linear"
    return scheme


def _head(roles: Mapping[str, tuple[str, F32]], settings: Mapping[str, Any], scheme: str) -> Head | None:
    if not roles:
        return None
    if "weight" not in roles:
        message = f"{roles['bias'][0].removesuffix('bias')}weight is missing beside the head's bias"
        raise CorruptFileError(message, Reason.MISSING_TENSOR, hint="save the head whole: weight and bias")
    name, weight = roles["weight"]
    if weight.ndim != 2:
        raise CorruptFileError(
            f"{name} has shape {list(weight.shape)}", Reason.BAD_SHAPE, hint="expected [classes, features]"
        )
    agree(settings, "num_class", len(weight))
    if scheme == "petl-vit" and _one_bit_head("bias" in roles, settings):
        return Head(latent(name, weight, 1))
    more = "; of PETL-ViT's 1-bit head: --set bihead=yes (settings={'bihead': True})" if scheme == "petl-vit" else ""
    require_bias(roles, f"{name.removesuffix('weight')}bias", settings, more)
    return Head(Dense(weight), Dense(roles["bias"][1]) if "bias" in roles else None)


def _one_bit_head(bias: bool, settings: Mapping[str, Any]) -> bool:
    """PETL-ViT's 1-bit head, which has no bias; it is what the settings say."""
    said = settings.get("bihead", str(settings.get("method", "")).endswith("-bihead"))
    if "method" in settings:
        agree(settings, "bihead", str(settings["method"]).endswith("-bihead"))
    if said and bias:
        agree({"bihead": True}, "bihead", False)
    return bool(said)
