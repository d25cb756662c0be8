"""FacT's state dicts, both forms, as branches of three factors a site: two of them shared, the third a site's own.

TT keeps a small matrix a layer. TK keeps one core tensor and a matrix of slices, from which the layers' matrices are
computed here; the slices of block i are 12·i … 12·i + 11: q, k, v, proj, four for fc1, four for fc2.
Source: Jie & Deng 2023, `FacT/fact_tt.py` and `fact_tk.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterpack.adapter import Branch, Site
from adapterpack.converters._complete import in_every_block, missing, require_shape, whole_sites
from adapterpack.converters._trained import Sorted, by_site
from adapterpack.converters.schemes import Place
from adapterpack.converters.settings import require
from adapterpack.errors import CorruptFileError, Reason
from adapterpack.tensors import Dense

F32 = NDArray[np.float32]
SHARED = "FacT"
# layers of a block in the order of their slices: site, rows and columns of its core in units of the rank
LAYERS = (
    ("blocks.{}.attn.qkv[q]", 1, 1),
    ("blocks.{}.attn.qkv[k]", 1, 1),
    ("blocks.{}.attn.qkv[v]", 1, 1),
    ("blocks.{}.attn.proj", 1, 1),
    ("blocks.{}.mlp.fc1", 4, 1),
    ("blocks.{}.mlp.fc2", 1, 4),
)
_SLICES = sum(rows * columns for _, rows, columns in LAYERS)


def branches(found: Sorted, settings: Mapping[str, Any]) -> tuple[list[Branch], list[str]]:
    """A branch of method `fact` for each layer; with notes.

    Raises:
        UnsupportedAdapterError: `missing-field` without scale.
        CorruptFileError: `missing-tensor`, `unmapped-tensor`, `bad-shape`.
    """
    scale = float(require(settings, "scale"))
    down, up = _shared(found, "down"), _shared(found, "up")
    rank, width = down.shape if down.ndim == 2 else (0, 0)
    if not rank or up.shape != (width, rank):
        message = f"FacTu.weight and FacTv.weight have shapes {list(down.shape)} and {list(up.shape)}"
        raise CorruptFileError(message, Reason.BAD_SHAPE, hint="expected [rank, width] and [width, rank]")
    cores = _sliced(found, rank) if found.scheme == "fact-tk" else _own(found, rank)
    made = [
        Branch(Site.parse(site), "fact", {"scale": scale}, {"down": Dense(down), "core": Dense(core), "up": Dense(up)})
        for site, core in cores
    ]
    note = "FacTc and FacTp became a matrix a layer, which is more numbers"
    return made, [note] if found.scheme == "fact-tk" else []


def _shared(found: Sorted, role: str) -> F32:
    place = Place(SHARED, role, "branch", "fact")
    roles = by_site(found).get((SHARED, "fact"), {})
    if role not in roles:
        raise missing(found, place)
    return roles[role][1]


def _own(found: Sorted, rank: int) -> Iterator[tuple[str, F32]]:
    sites = {site: roles for site, roles in whole_sites(found, ()).items() if site != SHARED}
    in_every_block(sites, found, [site for site, _, _ in LAYERS], "fact", "core")
    sizes = {site.format(block): (j, k) for block in range(found.depth) for site, j, k in LAYERS}
    for site, roles in sites.items():
        j, k = sizes[site]
        place = Place(site, "core", "branch", "fact")
        yield site, require_shape(found, place, roles["core"], (j * rank, k * rank))


def _sliced(found: Sorted, rank: int) -> Iterator[tuple[str, F32]]:
    columns = _shared(found, "slices").shape[-1:]
    depth = found.depth or max(columns, default=0) // _SLICES  # nobody said, and the slices tell
    tensor, slices = (
        require_shape(found, Place(SHARED, role, "branch", "fact"), _shared(found, role), shape)
        for role, shape in (("core", (rank, rank, rank)), ("slices", (rank, _SLICES * depth)))
    )
    all_cores = tensor.astype(np.float64) @ slices.astype(np.float64)
    at = 0
    for block in range(depth):
        for site, j, k in LAYERS:
            core = all_cores[:, :, at : at + j * k].reshape(rank, j * k * rank)
            at += j * k
            yield site.format(block), np.ascontiguousarray(core if k > 1 else core.T, np.float32)
