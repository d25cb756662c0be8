"""Whether a state dict is whole: of branches every role of every site, in every block, and no block too many; of the
backbone's own parameters every one that the training changed.

What is missing or too many is named as the outside file names it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from adapterpack.adapter import Site
from adapterpack.converters._trained import Sorted, by_site, need_every_block
from adapterpack.converters.schemes import Place, name_of, place_of
from adapterpack.errors import CorruptFileError, Reason

F32 = NDArray[np.float32]
_WHOLE = "save all that was trained"
_SHOW = "of a model that has none, show that with --backbone (backbone=…)"
_LISTED = f"{_WHOLE}; {_SHOW}, or list what was trained: --set trained=… (settings={{'trained': …}})"
# where a plain ViT has biases; of two names it has one: with the mean of the patches the last norm is another, and
# with a norm before the blocks the patch embedding has no bias
_BIASES = (
    *((f"blocks.{{i}}.{name}.bias",) for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")),
    ("norm.bias", "fc_norm.bias"),
    ("patch_embed.proj.bias", "norm_pre.bias"),
)
_BLOCK = re.compile(r"blocks\.\d+\.")


def whole_sites(found: Sorted, roles: Sequence[str]) -> dict[str, dict[str, F32]]:
    """Branch tensors as site → role → values, each site with all of `roles`, each site in every block.

    Raises:
        CorruptFileError: `missing-tensor`; `unmapped-tensor` for a block that the backbone does not have.
    """
    need_every_block(found)
    sites = by_site(found)
    for site, method in sites:
        for role in roles:
            if role not in sites[site, method]:
                raise missing(found, Place(site, role, "branch", method))
        block = Site.parse(site).block
        if block is not None and block >= found.depth:
            first = next(iter(sites[site, method].values()))[0]
            message = f"{first} belongs to block {block} of {found.depth}"
            raise CorruptFileError(message, Reason.UNMAPPED_TENSOR, hint="check --backbone")
    return {site: {role: values for role, (_, values) in named.items()} for (site, _), named in sites.items()}


def missing(found: Sorted, place: Place) -> CorruptFileError:
    """The error for a branch tensor that is not there."""
    name = name_of(found.scheme, place)
    return CorruptFileError(f"the tensor {name} is missing", Reason.MISSING_TENSOR, hint=_WHOLE)


def require_shape(found: Sorted, place: Place, values: F32, expected: Sequence[int]) -> F32:
    """The values, when they have the shape that the others imply.

    Raises:
        CorruptFileError: `bad-shape`.
    """
    if values.shape != tuple(expected):
        message = f"{name_of(found.scheme, place)} has shape {list(values.shape)}, expected {list(expected)}"
        raise CorruptFileError(message, Reason.BAD_SHAPE, hint="do all tensors come from one run?")
    return values


def in_every_block(sites: Mapping[str, object], found: Sorted, patterns: Sequence[str], method: str, role: str) -> None:
    """Refuse a state dict that lacks a site in some block; `{}` in a pattern stands for the block's number.

    Raises:
        CorruptFileError: `missing-tensor`.
    """
    for block in range(found.depth):
        for pattern in patterns:
            if pattern.format(block) not in sites:
                raise missing(found, Place(pattern.format(block), role, "branch", method))


def need_trained(found: Sorted, backbone: Mapping[str, F32] | None) -> None:
    """Refuse parameters of the backbone among which one is missing that was trained with the others.

    What one block has, all have. A file of biases alone is BitFit's, which trains them all: the backbone's, or without
    it those of a plain ViT. A file with frozen matrices is a whole model's, which lacks nothing that could be trained.

    Raises:
        CorruptFileError: `missing-tensor`.
    """
    if not found.plain:
        return
    kinds = dict.fromkeys(_BLOCK.sub("blocks.{i}.", name, count=1) for name in found.plain)
    wanted: list[tuple[tuple[str, ...], str]] = [((name,), "other blocks have theirs") for name in kinds]
    only_biases = all(plain.place.role == "bias" for plain in found.plain.values())
    whole = any(plain.place.kind == "frozen" for plain in found.plain.values())
    if backbone is not None and (only_biases or whole):
        why = "the backbone has one"
        wanted += [((name,), why) for name in _trainable(backbone) if whole or name.endswith(".bias")]
    elif only_biases:
        wanted += [(names, "a file of biases alone has all of a ViT's") for names in _BIASES]
    for names, why in wanted:
        for block in range(found.depth if "{i}" in names[0] else 1):
            either = [name.replace("{i}", str(block)) for name in names]
            if not any(name in found.plain for name in either):
                message = f"the tensor {' or '.join(either)} is missing; {why}"
                raise CorruptFileError(message, Reason.MISSING_TENSOR, hint=_LISTED)


def _trainable(backbone: Mapping[str, F32]) -> Iterator[str]:
    """The backbone's biases, norms and tokens; of its own parameters the biases."""
    for name in backbone:
        place = place_of("timm", name)
        if place.kind == "vector" if place is not None else name.endswith(".bias"):
            yield name
