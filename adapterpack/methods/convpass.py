"""Convpass: a convolutional bottleneck beside the attention or the MLP of a block.

z ← z + s·(up · QuickGELU(conv(QuickGELU(down · x + a)) + c) + b), the 3×3 convolution over the square grid of patches;
each token before the grid (class, registers) is convolved alone. Source: Jie & Deng 2022 (arXiv 2207.07039).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt

from adapterpack.errors import Reason, UnsupportedAdapterError
from adapterpack.methods._base import Array, Delta, Params, Roles, Setting, Shape, Tap, bottleneck, one_shape
from adapterpack.methods._nonlinear import quick_gelu


@dataclass(frozen=True, slots=True)
class Convpass:
    """down [hidden, width], conv [hidden, hidden, 3, 3], up [width, hidden], optional biases; sites `blocks.N.attn` and
    `blocks.N.mlp`."""

    name: str = "convpass"
    roles: Roles = Roles(("down", "conv", "up"), ("down_bias", "conv_bias", "up_bias"))
    scaled: tuple[str, ...] = ("up", "up_bias")
    foldable: bool = False
    replaces: bool = False

    @property
    def settings(self) -> Mapping[str, Setting]:
        return {"scale": Setting(float), "prefix": Setting(int)}

    def tap(self, params: Params) -> Tap:
        return "input"

    def features(self, shapes: Mapping[str, Shape], params: Params) -> dict[str, Shape]:
        outward, hidden, inward = bottleneck(shapes)
        if one_shape(shapes, "conv", 4) != (hidden, hidden, 3, 3):
            raise ValueError(f"conv has shape {list(shapes['conv'])}, expected {[hidden, hidden, 3, 3]}")
        if shapes.get("conv_bias", (hidden,)) != (hidden,):
            raise ValueError(f"conv_bias has shape {list(shapes['conv_bias'])}, expected [{hidden}]")
        if params["prefix"] < 0:
            raise ValueError(f"{params['prefix']} tokens before the grid")
        return {"input": (inward,), "output": (outward,)}

    def branch(self, x: Array, t: Mapping[str, Array], params: Params) -> Array:
        hidden = quick_gelu(_biased(x @ t["down"].T, t, "down_bias"))
        mixed = quick_gelu(_biased(_convolved(hidden, t["conv"], params["prefix"]), t, "conv_bias"))
        return _biased(mixed @ t["up"].T, t, "up_bias")

    def delta(self, t: Mapping[str, Array], params: Params) -> dict[str, Delta]:
        raise NotImplementedError("the activations and the convolution cannot be folded")


def _biased(x: Array, t: Mapping[str, Array], role: str) -> Array:
    return x + t[role] if role in t else x


def _convolved(x: Array, kernel: Array, prefix: int) -> Array:
    """x [..., tokens, hidden] through the kernel [hidden, hidden, 3, 3], zeros around the grid."""
    count = x.shape[-2] - prefix
    side = isqrt(max(count, 0))
    if side < 1 or side * side != count:
        text = f"{x.shape[-2]} tokens are no {prefix} and a square grid, which convpass works on"
        raise UnsupportedAdapterError(text, Reason.UNSUPPORTED_MODEL, hint="use square images")
    out = x @ kernel[:, :, 1, 1].T
    grid = x[..., prefix:, :].reshape(*x.shape[:-2], side, side, x.shape[-1])
    sums = (grid @ kernel[:, :, 1, 1].T).reshape(grid.shape)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            if (down, right) != (0, 0):
                (to_row, from_row), (to_column, from_column) = _overlap(down, side), _overlap(right, side)
                sums[..., to_row, to_column, :] += (
                    grid[..., from_row, from_column, :] @ kernel[:, :, down + 1, right + 1].T
                )
    out[..., prefix:, :] = sums.reshape(*x.shape[:-2], count, x.shape[-1])
    return out


def _overlap(step: int, side: int) -> tuple[slice, slice]:
    """Where a row has a neighbour `step` further on, and where that neighbour is."""
    return slice(max(-step, 0), side - max(step, 0)), slice(max(step, 0), side - max(-step, 0))
