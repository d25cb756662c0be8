"""FacT: a product of three factors, of which the outer two are usually shared by all sites and the middle one is small.

Block (j, k) of the weight gains (s·up) @ core[j, k] @ down, core [j, k] being the block of `core` of that place; most
layers have one block, an MLP's four. Shared factors are stored at each site: equal bytes compress to almost nothing.
Source: Jie & Deng 2023 (FacT, both its forms).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adapterpack.methods._base import Array, Delta, Params, Roles, Setting, Shape, Tap, one_shape


@dataclass(frozen=True, slots=True)
class Fact:
    """down [r, in/k], core [j·q, k·r], up [out/j, q]; `scale` multiplies `up`."""

    name: str = "fact"
    roles: Roles = Roles(("down", "core", "up"))
    scaled: tuple[str, ...] = ("up",)
    foldable: bool = True
    replaces: bool = False

    @property
    def settings(self) -> Mapping[str, Setting]:
        return {"scale": Setting(float)}

    def tap(self, params: Params) -> Tap:
        return "input"

    def features(self, shapes: Mapping[str, Shape], params: Params) -> dict[str, Shape]:
        (inner, narrow), (wide, outer) = one_shape(shapes, "down", 2), one_shape(shapes, "up", 2)
        rows, columns = one_shape(shapes, "core", 2)
        if rows % outer or columns % inner:
            raise ValueError(f"core has shape {[rows, columns]}, which blocks of {[outer, inner]} do not fill")
        return {"weight": (rows // outer * wide, columns // inner * narrow)}

    def branch(self, x: Array, t: Mapping[str, Array], params: Params) -> Array:
        (rows, columns), (wide, outer), (inner, narrow) = t["core"].shape, t["up"].shape, t["down"].shape
        hidden = x.reshape(*x.shape[:-1], columns // inner, narrow) @ t["down"].T
        mixed = hidden.reshape(*x.shape[:-1], columns) @ t["core"].T
        out = mixed.reshape(*x.shape[:-1], rows // outer, outer) @ t["up"].T
        return out.reshape(*x.shape[:-1], rows // outer * wide)

    def delta(self, t: Mapping[str, Array], params: Params) -> dict[str, Delta]:
        (rows, columns), (wide, outer), (inner, narrow) = t["core"].shape, t["up"].shape, t["down"].shape
        left = (t["up"] @ t["core"].reshape(rows // outer, outer, columns)).reshape(-1, inner)
        return {"weight": (left @ t["down"]).reshape(rows // outer * wide, columns // inner * narrow)}
