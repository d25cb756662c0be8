"""Sparse update: a few entries added to a weight, a bias or a bare parameter, W[i, j] + δ.

Source: SPT's unstructured part (He et al. 2023, `sparse_weight`, `sparse_bias`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapterpack.methods._base import Array, Delta, Params, Roles, Setting, Shape, Tap


@dataclass(frozen=True, slots=True)
class SparseUpdate:
    """weight [out, in] and bias [out] of a module, or value of a bare parameter; usually sparse tensors."""

    name: str = "sparse"
    roles: Roles = Roles((), ("weight", "bias", "value"))
    scaled: tuple[str, ...] = ()
    foldable: bool = True
    replaces: bool = False

    @property
    def settings(self) -> Mapping[str, Setting]:
        return {}

    def tap(self, params: Params) -> Tap:
        return "input"

    def features(self, shapes: Mapping[str, Shape], params: Params) -> dict[str, Shape]:
        return dict(shapes)

    def branch(self, x: Array, t: Mapping[str, Array], params: Params) -> Array:
        out = x @ t["weight"].T if "weight" in t else 0
        return out + t["bias"] if "bias" in t else out

    def delta(self, t: Mapping[str, Any], params: Params) -> dict[str, Delta]:
        return dict(t)
