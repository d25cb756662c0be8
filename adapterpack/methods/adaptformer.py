"""AdaptFormer: a ReLU bottleneck beside the MLP, x ← x + MLP(norm2(x)) + s·up·ReLU(down·x).

It reads the residual stream before `norm2` and adds to the residual stream, outside drop path and layer scale.
Source: Chen et al. 2022, in the form of Jie et al. 2023 (no biases, no LayerNorm of its own).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adapterpack.methods._base import Array, Delta, Params, Roles, Setting, Shape, Tap, bottleneck
from adapterpack.methods._nonlinear import relu


@dataclass(frozen=True, slots=True)
class AdaptFormer:
    """down [hidden, width], up [width, hidden], optional down_bias [hidden], up_bias [width]; site `blocks.N.mlp`."""

    name: str = "adaptformer"
    roles: Roles = Roles(("down", "up"), ("down_bias", "up_bias"))
    scaled: tuple[str, ...] = ("up", "up_bias")
    foldable: bool = False
    replaces: bool = False

    @property
    def settings(self) -> Mapping[str, Setting]:
        return {"scale": Setting(float)}

    def tap(self, params: Params) -> Tap:
        return "residual"

    def features(self, shapes: Mapping[str, Shape], params: Params) -> dict[str, Shape]:
        outward, _, inward = bottleneck(shapes)
        if outward != inward:
            raise ValueError(f"down reads {inward} features but up writes {outward}")
        return {"residual": (outward,)}

    def branch(self, x: Array, t: Mapping[str, Array], params: Params) -> Array:
        hidden = x @ t["down"].T
        if "down_bias" in t:
            hidden = hidden + t["down_bias"]
        out = relu(hidden) @ t["up"].T
        return out + t["up_bias"] if "up_bias" in t else out

    def delta(self, t: Mapping[str, Array], params: Params) -> dict[str, Delta]:
        raise NotImplementedError("the ReLU between down and up cannot be folded")
