"""Adapter: a GELU bottleneck on a linear layer's output, z ← z + s·(up·GELU(down·z + a) + b).

With `tap` "input" it reads the layer's input instead and runs beside it, as SPT does at `attn.proj`.
Source: Houlsby et al. 2019, in the form of SPT (He et al. 2023, `BlockSPTSeq`: scale 1, both biases).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import erf

from adapterpack.methods._base import Array, Delta, Params, Roles, Setting, Shape, Tap, bottleneck


def gelu(x: Array) -> Array:
    """x·Φ(x) with the exact normal distribution; torch has erf itself, numpy does not."""
    unit = x * 0.7071067811865476
    if hasattr(unit, "erf"):
        return x * 0.5 * (1 + unit.erf())
    unit.flat[:] = [erf(value) for value in unit.flat]
    return x * 0.5 * (1 + unit)


@dataclass(frozen=True, slots=True)
class BottleneckAdapter:
    """down [hidden, read], up [out, hidden], down_bias [hidden], up_bias [out]; read = out for tap "output"."""

    name: str = "adapter"
    roles: Roles = Roles(("down", "up"), ("down_bias", "up_bias"))
    scaled: tuple[str, ...] = ("up", "up_bias")
    foldable: bool = False
    replaces: bool = False

    @property
    def settings(self) -> Mapping[str, Setting]:
        return {"scale": Setting(float), "tap": Setting(str, ("input", "output"))}

    def tap(self, params: Params) -> Tap:
        return "input" if params["tap"] == "input" else "output"

    def features(self, shapes: Mapping[str, Shape], params: Params) -> dict[str, Shape]:
        outward, _, read = bottleneck(shapes)
        if params["tap"] == "input":
            return {"weight": (outward, read)}
        if outward != read:
            raise ValueError(f"down reads {read} features of the output but up writes {outward}")
        return {"bias": (outward,)}

    def branch(self, x: Array, t: Mapping[str, Array], params: Params) -> Array:
        hidden = x @ t["down"].T
        if "down_bias" in t:
            hidden = hidden + t["down_bias"]
        out = gelu(hidden) @ t["up"].T
        return out + t["up_bias"] if "up_bias" in t else out

    def delta(self, t: Mapping[str, Array], params: Params) -> dict[str, Delta]:
        raise NotImplementedError("the GELU between down and up cannot be folded")
