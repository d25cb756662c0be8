"""SSF's state dicts as branches of method `affine`: a scale and a shift after every layer, norm and embedding.

Source: Lian et al. 2022, `models/vision_transformer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapterpack.adapter import Branch, Site
from adapterpack.converters._complete import in_every_block, missing, whole_sites
from adapterpack.converters._trained import Sorted
from adapterpack.converters.schemes import Place
from adapterpack.converters.settings import agree
from adapterpack.tensors import Dense

ROLES = ("factor", "shift")
_ONCE = ("patch_embed.proj", "norm")
_BLOCK = tuple(f"blocks.{{}}.{name}" for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"))


def branches(found: Sorted, settings: Mapping[str, Any]) -> tuple[list[Branch], list[str]]:
    """A branch for each scale and shift, and no notes.

    Raises:
        CorruptFileError: `missing-tensor`, `unmapped-tensor`, `conflicting-settings`.
    """
    agree(settings, "scale", 1.0)
    sites = whole_sites(found, ROLES)
    in_every_block(sites, found, _BLOCK, "affine", "factor")
    for site in _ONCE:
        if site not in sites:
            raise missing(found, Place(site, "factor", "branch", "affine"))
    return [
        Branch(Site.parse(site), "affine", {"tap": "output"}, {role: Dense(roles[role]) for role in ROLES})
        for site, roles in sites.items()
    ], []
