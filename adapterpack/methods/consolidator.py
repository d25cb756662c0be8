"""Consolidator: a grouped linear branch, optionally on a reordered input; linear, so it folds.

Row r of the weight belongs to group j = r div (out/groups) and sees c = in/groups entries of the (reordered) input
from j·c on. Reordering is the ShuffleNet shuffle: (R x)[m] = x[(m mod groups)·c + m div groups].
Source: Hao et al. 2023, `ChannelReorder` and `get_actual_params`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from adapterpack.methods._base import Array, Delta, Entries, Params, Roles, Setting, Shape, Tap, one_shape


@lru_cache(maxsize=64)
def positions(out: int, taps: int, groups: int, reorder: bool) -> NDArray[np.int64]:
    """Where row r, tap t lands in the flattened dense matrix [out, taps·groups]: int64 [out·taps], read-only."""
    row = np.arange(out, dtype=np.int64)[:, None]
    m = row // (out // groups) * taps + np.arange(taps)
    column = (m % groups) * taps + m // groups if reorder else m
    flat = (row * (taps * groups) + column).reshape(-1)
    flat.flags.writeable = False
    return flat


@dataclass(frozen=True, slots=True)
class Consolidator:
    """weight [out, in/groups], optional bias [out] (added to the layer's own); no scale."""

    name: str = "consolidator"
    roles: Roles = Roles(("weight",), ("bias",))
    scaled: tuple[str, ...] = ()
    foldable: bool = True
    replaces: bool = False

    @property
    def settings(self) -> Mapping[str, Setting]:
        return {"groups": Setting(int), "reorder": Setting(bool)}

    def tap(self, params: Params) -> Tap:
        return "input"

    def features(self, shapes: Mapping[str, Shape], params: Params) -> dict[str, Shape]:
        outward, taps = one_shape(shapes, "weight", 2)
        groups = params["groups"]
        if groups < 1 or outward % groups:
            raise ValueError(f"{groups} groups do not divide {outward} rows")
        if shapes.get("bias", (outward,)) != (outward,):
            raise ValueError(f"bias has shape {list(shapes['bias'])}, expected [{outward}]")
        return {"weight": (outward, taps * groups)} | ({"bias": (outward,)} if "bias" in shapes else {})

    def branch(self, x: Array, t: Mapping[str, Array], params: Params) -> Array:
        groups, (outward, taps) = params["groups"], t["weight"].shape
        lanes = x.reshape(-1, groups, taps)
        if params["reorder"]:
            lanes = lanes.swapaxes(1, 2).reshape(-1, groups, taps)
        weight = t["weight"].reshape(groups, outward // groups, taps)
        out = (lanes.swapaxes(0, 1) @ weight.swapaxes(1, 2)).swapaxes(0, 1).reshape(*x.shape[:-1], outward)
        return out + t["bias"] if "bias" in t else out

    def delta(self, t: Mapping[str, Array], params: Params) -> dict[str, Delta]:
        outward, taps = t["weight"].shape
        where = positions(outward, taps, params["groups"], params["reorder"])
        return {"weight": Entries(where, t["weight"].reshape(-1)), **({"bias": t["bias"]} if "bias" in t else {})}
