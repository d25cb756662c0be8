"""Replacement: whole vectors trained in place (biases, LayerNorms, the class token) take the place of the backbone's.

Storing the new value rather than a difference keeps it exact. Source: SPT's tuned vectors, Consolidator's biases and
LayerNorms, bias tuning (BitFit).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapterpack.methods._base import Array, Delta, Params, Roles, Setting, Shape, Tap


@dataclass(frozen=True, slots=True)
class Replacement:
    """weight and bias of a module, or value of a bare parameter, in the parameter's own shape."""

    name: str = "replace"
    roles: Roles = Roles((), ("weight", "bias", "value"))
    scaled: tuple[str, ...] = ()
    foldable: bool = True
    replaces: bool = True

    @property
    def settings(self) -> Mapping[str, Setting]:
        return {}

    def tap(self, params: Params) -> Tap:
        return "input"

    def features(self, shapes: Mapping[str, Shape], params: Params) -> dict[str, Shape]:
        return dict(shapes)

    def branch(self, x: Array, t: Mapping[str, Array], params: Params) -> Array:
        raise NotImplementedError("a replacement is no branch: it is put into the parameters")

    def delta(self, t: Mapping[str, Any], params: Params) -> dict[str, Delta]:
        return dict(t)
