"""LoRA: a low-rank product added to a linear layer, W + (s·up) @ down.

Source: Hu et al. 2022, in the form of Jie et al. 2023 (q and v rows, plain factor s, no biases) and of SPT (s = 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adapterpack.methods._base import Array, Delta, Params, Roles, Setting, Shape, Tap, bottleneck


@dataclass(frozen=True, slots=True)
class Lora:
    """down [hidden, in], up [out, hidden]; `scale` multiplies `up`."""

    name: str = "lora"
    roles: Roles = Roles(("down", "up"))
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
        return {"weight": (outward, inward)}

    def branch(self, x: Array, t: Mapping[str, Array], params: Params) -> Array:
        return (x @ t["down"].T) @ t["up"].T

    def delta(self, t: Mapping[str, Array], params: Params) -> dict[str, Delta]:
        return {"weight": t["up"] @ t["down"]}
