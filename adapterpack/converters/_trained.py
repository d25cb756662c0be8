"""Branches from the tensors of a state dict, by scheme: PETL-ViT's latents, Consolidator's groups, SPT's three parts.

Each function takes what `state_dict` has sorted and gives branches; names are looked up in `schemes` and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterpack.adapter import Branch, Site
from adapterpack.converters._in_place import Plain, backbone_value
from adapterpack.converters.consolidate import consolidate
from adapterpack.converters.petl_settings import LEVELS, METHODS
from adapterpack.converters.schemes import Place, name_of
from adapterpack.converters.settings import agree, require
from adapterpack.converters.spt_mask import SptMask
from adapterpack.errors import CorruptFileError, Reason, UnsupportedAdapterError
from adapterpack.quantize import quantize_latent
from adapterpack.tensors import Dense, Sparse, Tensor

F32 = NDArray[np.float32]
_WHOLE = "save all that was trained"
_SPT_ROLES = ("down", "up", "down_bias", "up_bias")
_CONSOLIDATOR_NORMS = tuple(
    f"{norm}.{role}" for norm in ("blocks.{i}.norm1", "blocks.{i}.norm2", "norm") for role in ("weight", "bias")
)


@dataclass(frozen=True, slots=True, eq=False)
class Sorted:
    """A state dict by what its tensors are.

    Attributes:
        scheme: whose names they are.
        depth: blocks of the backbone.
        branch: tensors of branches, by outside name.
        plain: parameters of the backbone itself, by outside name.
    """

    scheme: str
    depth: int
    branch: Mapping[str, tuple[Place, F32]]
    plain: Mapping[str, Plain]


def by_site(found: Sorted) -> dict[tuple[str, str], dict[str, tuple[str, F32]]]:
    """Branch tensors as (site, method) → role → (outside name, values)."""
    sites: dict[tuple[str, str], dict[str, tuple[str, F32]]] = {}
    for name, (place, values) in found.branch.items():
        sites.setdefault((place.site, place.method), {})[place.role] = (name, values)
    return sites


def need_every_block(found: Sorted) -> None:
    """Refuse a state dict in which a block lacks what another block has.

    Raises:
        CorruptFileError: `missing-tensor`, by its outside name.
    """
    kinds = {replace(place, site=Site.parse(place.site).pattern) for place, _ in found.branch.values()}
    for place in sorted(kinds, key=lambda kind: (kind.site, kind.role, kind.number)):
        for block in range(found.depth):
            name = name_of(found.scheme, replace(place, site=place.site.replace("*", str(block), 1)))
            if name not in found.branch:
                message = f"the tensor {name} is missing; other blocks have theirs"
                raise CorruptFileError(message, Reason.MISSING_TENSOR, hint="save the whole model's state dict")


def _need_sites(found: Sorted, method: str, patterns: Iterable[str]) -> None:
    """Refuse a state dict without a site that the method always adapts; `{}` in a pattern is the block's number."""
    sites = by_site(found)
    for pattern in patterns:
        for block in range(found.depth):
            if (pattern.format(block), method) not in sites:
                name = name_of(found.scheme, Place(pattern.format(block), "down", "branch", method))
                raise CorruptFileError(f"the tensor {name} is missing", Reason.MISSING_TENSOR, hint=_WHOLE)


def need_plain(found: Sorted, names: Iterable[str], why: str) -> None:
    """Refuse a state dict that lacks what the recipe trains in place; `{i}` in a name stands for every block.

    Raises:
        CorruptFileError: `missing-tensor`.
    """
    for name in names:
        for block in range(found.depth if "{i}" in name else 1):
            key = name.replace("{i}", str(block))
            if key not in found.plain:
                hint = f"{why}: save the whole model's state dict"
                raise CorruptFileError(f"the tensor {key} is missing", Reason.MISSING_TENSOR, hint=hint)


def petl_branches(found: Sorted, settings: Mapping[str, Any]) -> list[Branch]:
    """AdaptFormer or LoRA: latents are quantized as their training forward did, 32 bits stay as they are.

    Raises:
        UnsupportedAdapterError: `missing-field` without scale or bit.
        CorruptFileError: `missing-tensor`, `conflicting-settings`, `bad-source` for values quantized already.
    """
    need_every_block(found)
    for method in sorted({place.method for place, _ in found.branch.values()}):
        _need_sites(found, method, METHODS[method])
        agree({name: str(said).removesuffix("-bihead") for name, said in settings.items()}, "method", method)
    scale = float(require(settings, "scale"))
    bit = require(settings, "bit", "it says whether the tensors are latents of quantized weights")
    if bit != 32 and bit not in LEVELS:
        raise UnsupportedAdapterError(f"bit is {bit}", Reason.BAD_PARAMETER, hint="PETL-ViT has 1, 2, 4, 8 and 32")
    branches = []
    for (site, method), roles in by_site(found).items():
        tensors = {role: latent(name, values, bit) for role, (name, values) in roles.items()}
        if "down" in tensors:
            agree(settings, "dim", tensors["down"].shape[0])
        branches.append(Branch(Site.parse(site), method, {"scale": scale}, tensors))
    return branches


def latent(name: str, values: F32, bit: int) -> Tensor:
    """One trained latent in the form that its forward used.

    Raises:
        CorruptFileError: `bad-source` when the values are quantized already: quantizing again would shrink them.
    """
    if bit == 32:
        return Dense(values)
    distinct = len(np.unique(values))
    if 1 < distinct <= min(2**bit, values.size - 1):
        message = f"{name} has only {distinct} different values: it was quantized already"
        hint = "give the latents that were trained, or bit: 32 to keep the values as they are"
        raise CorruptFileError(message, Reason.BAD_SOURCE, hint=hint)
    return quantize_latent(values, bit, LEVELS[bit])


def consolidator_branches(
    found: Sorted, settings: Mapping[str, Any], backbone: Mapping[str, F32] | None
) -> tuple[list[Branch], list[Plain]]:
    """Grouped branches, consolidated layer by layer, and the plain parameters with the branches' biases added in.

    Raises:
        UnsupportedAdapterError: `missing-field` without reorder.
        CorruptFileError: `missing-tensor`, `bad-shape`.
    """
    reorder = bool(require(settings, "reorder"))
    need_every_block(found)
    need_plain(found, _CONSOLIDATOR_NORMS, "Consolidator trains all LayerNorms")
    _need_groups(found)
    layers: dict[str, list[tuple[Place, F32]]] = {}
    for place, values in sorted(found.branch.values(), key=lambda item: item[0].number):
        layers.setdefault(place.site, []).append((place, values))
    plain = dict(found.plain)
    branches = []
    for site, parts in layers.items():
        whole = _original(found, site, "weight", backbone).values
        if whole.ndim != 2 or 0 in whole.shape:
            raise CorruptFileError(f"the layer's own weight has shape {list(whole.shape)}", Reason.BAD_SHAPE, site)
        inward = whole.shape[1]
        grouped = [(_groups(place, values, inward), values) for place, values in parts if place.role == "weight"]
        for groups, weight in consolidate(grouped, reorder=reorder):
            params = {"groups": groups, "reorder": reorder}
            branches.append(Branch(Site.parse(site), "consolidator", params, {"weight": Dense(weight)}))
        own = _original(found, site, "bias", backbone)
        total = own.values
        for place, values in parts:
            if place.role == "bias" and values.shape != total.shape:
                raise CorruptFileError(f"a branch's bias has shape {list(values.shape)}", Reason.BAD_SHAPE, site)
            total = total + values if place.role == "bias" else total
        plain[own.name] = replace(own, values=total)
    return branches, list(plain.values())


def _need_groups(found: Sorted) -> None:
    """Refuse a layer of Consolidator's own that lacks a branch, counted from 0, or a branch of it that lacks a tensor:
    all have a weight, and all have a bias or none."""
    roles = {"weight"} | {place.role for place, _ in found.branch.values()}
    last = {name.partition(".fc_origin.")[0]: 0 for name in found.plain if ".fc_origin." in name}
    for place, _ in found.branch.values():
        last[place.site] = max(last.get(place.site, 0), place.number)
    wanted = (
        Place(site, role, "branch", "consolidator", number)
        for site, count in last.items()
        for number in range(count + 1)
        for role in sorted(roles, reverse=True)
    )
    for name in (name_of(found.scheme, place) for place in wanted):
        if name not in found.branch:
            raise CorruptFileError(f"the tensor {name} is missing", Reason.MISSING_TENSOR, hint=_WHOLE)


def _original(found: Sorted, site: str, role: str, backbone: Mapping[str, F32] | None) -> Plain:
    """A layer's own parameter, from the state dict; a weight, which is frozen, else from the backbone."""
    place = Place(site, role, "frozen" if role == "weight" else "vector")
    name = str(name_of(found.scheme, place))
    if name in found.plain:
        return found.plain[name]
    if backbone is None or role == "bias":
        message = f"the tensor {name} is missing, without which the branches at {site} cannot be read"
        raise CorruptFileError(message, Reason.MISSING_TENSOR, hint="save the whole model's state dict")
    return Plain(name, place, backbone_value(backbone, place, name))


def _groups(place: Place, weight: F32, inward: int) -> int:
    outward, taps = weight.shape if weight.ndim == 2 else (0, 0)
    if not taps or inward % taps or outward % (inward // taps):
        message = f"branch {place.number} has shape {list(weight.shape)}, which divides no layer of {inward} inputs"
        raise CorruptFileError(message, Reason.BAD_SHAPE, place.site)
    return int(inward // taps)


def in_consolidator_recipe(plain: Plain) -> bool:
    """Consolidator trains the biases of the blocks' linear layers and all LayerNorms, nothing else of the backbone."""
    site = plain.place.site
    return plain.place.kind == "vector" and (site == "norm" or site.startswith("blocks."))


def spt_branches(found: Sorted, mask: SptMask | None) -> tuple[list[Branch], list[str]]:
    """LoRAs or adapters with scale 1, and sparse entries at the mask's positions; with notes.

    Raises:
        CorruptFileError: `missing-tensor` or `unmapped-tensor` where mask and state dict disagree.
    """
    sites = by_site(found)
    branches = []
    for (site, method), roles in sites.items():
        if method != "sparse":
            for role in _SPT_ROLES[: 2 if method == "lora" else 4]:
                if role not in roles:
                    name = name_of(found.scheme, Place(site, role, "branch", method))
                    raise CorruptFileError(f"the tensor {name} is missing", Reason.MISSING_TENSOR, hint=_WHOLE)
            more = {"nonlinearity": "gelu", "tap": "input" if site.endswith(".proj") else "output"}
            tensors = {role: Dense(values) for role, (_, values) in roles.items()}
            params = {"scale": 1.0, **(more if method == "adapter" else {})}
            branches.append(Branch(Site.parse(site), method, params, tensors))
    entries = {
        name: values for name, (place, values) in found.branch.items() if place.method == "sparse" and values.size
    }
    if mask is None:
        if entries:
            hint = "put the param_req_*.pth beside it, or give --set mask=… (settings={'mask': …})"
            raise CorruptFileError(f"{next(iter(entries))} needs SPT's mask file", Reason.MISSING_TENSOR, hint=hint)
        return branches, ["without SPT's mask it cannot be seen whether all modules are there: --set mask=…"]
    need_plain(found, (*mask.vectors, "cls_token"), "SPT trains it in place")
    _same_modules(found, mask)
    sparse, notes = _sparse_branches(found, entries, mask)
    return branches + sparse, notes


def _same_modules(found: Sorted, mask: SptMask) -> None:
    have = {name.split(".learnable.")[0].replace("structured_", "") for name in found.branch if ".learnable." in name}
    odd = sorted(have.symmetric_difference(mask.structured))
    if odd:
        reason = Reason.UNMAPPED_TENSOR if odd[0] in have else Reason.MISSING_TENSOR
        side = "the state dict has, the mask does not" if odd[0] in have else "the mask has, the state dict does not"
        raise CorruptFileError(
            f"{side}: a module at {odd[0]}", reason, hint="give the mask that the run was trained with"
        )


def _sparse_branches(found: Sorted, entries: Mapping[str, F32], mask: SptMask) -> tuple[list[Branch], list[str]]:
    chosen = mask.positions()
    untrained = [name for name in chosen if "norm" in name]
    wanted = {_entry_name(name): name for name in chosen if name not in untrained}
    odd = sorted(wanted.keys() ^ entries.keys())
    if odd:
        reason = Reason.UNMAPPED_TENSOR if odd[0] in entries else Reason.MISSING_TENSOR
        side = "the mask knows no entries for" if odd[0] in entries else "the state dict lacks"
        raise CorruptFileError(f"{side} {odd[0]}", reason, hint="give the mask that the run was trained with")
    sites: dict[str, dict[str, Tensor]] = {}
    for name, values in entries.items():
        where, shape = chosen[wanted[name]], mask.shapes[wanted[name]]
        if values.shape != where.shape:
            message = f"{name} has shape {list(values.shape)}, the mask {len(where)} positions"
            raise CorruptFileError(message, Reason.BAD_SHAPE, hint="give the mask that the run was trained with")
        place = found.branch[name][0]
        sites.setdefault(place.site, {})[place.role] = Sparse(shape, where, Dense(values))
    count = sum(len(chosen[name]) for name in untrained)
    notes = [f"{count} mask entries on LayerNorms: SPT counts but never trains them"] if count else []
    return [Branch(Site.parse(site), "sparse", {}, tensors) for site, tensors in sites.items()], notes


def _entry_name(name: str) -> str:
    module, _, role = name.rpartition(".")
    return f"{module}.sparse_{role}"
