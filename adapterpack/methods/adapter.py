"""Adapter: a bottleneck with a nonlinearity, which adds s·(up·f(down·t + a) + b) to a layer's output or to the stream.

With `tap` "output" t is the site's output, and with "input" its input, as in SPT at `attn.proj`; "residual" and "sum"
are the residual stream before and after the attention or the MLP, as parallel and Pfeiffer's adapters read it.
Source: Houlsby et al. 2019; He et al. 2023 (`BlockSPTSeq`: GELU, scale 1, both biases); Pfeiffer et al. 2020.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adapterpack.methods._base import Array, Delta, Params, Roles, Setting, Shape, Tap, bottleneck
from adapterpack.methods._nonlinear import NONLINEARITIES

_TAPS: tuple[Tap, ...] = ("input", "output", "residual", "sum")


@dataclass(frozen=True, slots=True)
class BottleneckAdapter:
    """down [hidden, read], up [out, hidden], down_bias [hidden], up_bias [out]; read = out but for tap "input"."""

    name: str = "adapter"
    roles: Roles = Roles(("down", "up"), ("down_bias", "up_bias"))
    scaled: tuple[str, ...] = ("up", "up_bias")
    foldable: bool = False
    replaces: bool = False

    @property
    def settings(self) -> Mapping[str, Setting]:
        return {
            "nonlinearity": Setting(str, tuple(NONLINEARITIES)),
            "scale": Setting(float),
            "tap": Setting(str, _TAPS),
        }

    def tap(self, params: Params) -> Tap:
        return next((tap for tap in _TAPS if tap == params["tap"]), "output")

    def features(self, shapes: Mapping[str, Shape], params: Params) -> dict[str, Shape]:
        outward, _, read = bottleneck(shapes)
        if params["nonlinearity"] not in NONLINEARITIES or params["tap"] not in _TAPS:
            raise ValueError(f"there is no nonlinearity {params['nonlinearity']!r} with tap {params['tap']!r}")
        if params["tap"] == "input":
            return {"weight": (outward, read)}
        if outward != read:
            raise ValueError(f"down reads {read} features but up writes {outward}")
        return {"bias" if params["tap"] == "output" else "residual": (outward,)}

    def branch(self, x: Array, t: Mapping[str, Array], params: Params) -> Array:
        hidden = x @ t["down"].T
        if "down_bias" in t:
            hidden = hidden + t["down_bias"]
        out = NONLINEARITIES[params["nonlinearity"]](hidden) @ t["up"].T
        return out + t["up_bias"] if "up_bias" in t else out

    def delta(self, t: Mapping[str, Array], params: Params) -> dict[str, Delta]:
        raise NotImplementedError("the nonlinearity between down and up cannot be folded")
