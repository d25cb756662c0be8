"""Convpass's state dicts as branches of method `convpass`: beside the attention, or beside attention and MLP.

Source: Jie & Deng 2022, `convpass/vtab/convpass.py`, whose ViT has one token before the grid of patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapterpack.adapter import Branch, Site
from adapterpack.converters._complete import in_every_block, whole_sites
from adapterpack.converters._trained import Sorted
from adapterpack.converters.settings import agree, require
from adapterpack.tensors import Dense

ROLES = ("down", "conv", "up", "down_bias", "conv_bias", "up_bias")
_PREFIX = 1
_ALWAYS = ("blocks.{}.attn",)  # with or without one beside the MLP, never the other way round


def branches(found: Sorted, settings: Mapping[str, Any]) -> tuple[list[Branch], list[str]]:
    """A branch for each module, and no notes.

    Raises:
        UnsupportedAdapterError: `missing-field` without scale.
        CorruptFileError: `missing-tensor`, `unmapped-tensor`, `conflicting-settings`.
    """
    params = {"scale": float(require(settings, "scale")), "prefix": _PREFIX}
    made = []
    sites = whole_sites(found, ROLES)
    in_every_block(sites, found, _ALWAYS, "convpass", ROLES[0])
    for site, roles in sites.items():
        agree(settings, "dim", int(roles["down_bias"].size))
        tensors = {role: Dense(roles[role]) for role in ROLES}
        made.append(Branch(Site.parse(site), "convpass", params, tensors))
    return made, []
