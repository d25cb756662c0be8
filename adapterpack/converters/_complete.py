"""Whether the branches of a state dict are whole: every role of every site, in every block, and no block too many.

What is missing or too many is named as the outside file names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from adapterpack.adapter import Site
from adapterpack.converters._trained import Sorted, by_site, need_every_block
from adapterpack.converters.schemes import Place, name_of
from adapterpack.errors import CorruptFileError, Reason

F32 = NDArray[np.float32]
_WHOLE = "save all that was trained"


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
