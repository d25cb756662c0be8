"""DoRA: the direction of a weight moved by a low-rank product, its rows brought to trained lengths.

W ← magnitude ⊙ (W + (s·up) @ down) / ‖W + (s·up) @ down‖, the norm of each row. Folds with the weight at hand.
Source: Liu et al. 2024 (arXiv 2402.09353), in the form of PEFT's linear layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adapterpack.methods._base import Array, Delta, Params, Roles, Setting, Shape, Tap, bottleneck

_SMALLEST = 1e-38  # a row of zeros stays one


@dataclass(frozen=True, slots=True)
class Dora:
    """down [hidden, in], up [out, hidden], magnitude [out]; `scale` multiplies `up`."""

    name: str = "dora"
    roles: Roles = Roles(("down", "up", "magnitude"))
    scaled: tuple[str, ...] = ("up",)
    foldable: bool = True
    replaces: bool = False

    @property
    def settings(self) -> Mapping[str, Setting]:
        return {"scale": Setting(float)}

    def tap(self, params: Params) -> Tap:
        return "input"

    def features(self, shapes: Mapping[str, Shape], params: Params) -> dict[str, Shape]:
        outward, _, inward = bottleneck(shapes)
        if shapes["magnitude"] != (outward,):
            raise ValueError(f"magnitude has shape {list(shapes['magnitude'])}, expected [{outward}]")
        return {"weight": (outward, inward)}

    def branch(self, x: Array, t: Mapping[str, Array], params: Params) -> Array:
        raise NotImplementedError("DoRA is no branch: it is another weight, see transform")

    def delta(self, t: Mapping[str, Array], params: Params) -> dict[str, Delta]:
        raise NotImplementedError("what a magnitude adds follows from the weight: see transform")

    def transform(self, own: Mapping[str, Array], t: Mapping[str, Array], params: Params) -> dict[str, Array]:
        moved = own["weight"] + t["up"] @ t["down"]
        length = ((moved * moved).sum(1) ** 0.5).clip(min=_SMALLEST)
        return {"weight": moved * (t["magnitude"] / length).reshape(-1, 1)}
