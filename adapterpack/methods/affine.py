"""Affine: what a module gives out, or takes in, multiplied by a vector; an output may be shifted as well.

y ← factor ⊙ y + shift, or x ← factor ⊙ x. It scales rows or columns of the weight, so it folds with the weight at hand.
Source: Lian et al. 2022 (SSF: scale and shift of outputs), Liu et al. 2022 (IA³: keys, values, and the input of fc2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adapterpack.methods._base import Array, Delta, Params, Roles, Setting, Shape, Tap, one_shape


@dataclass(frozen=True, slots=True)
class Affine:
    """factor [out], or [in] with tap "input"; optional shift [out]."""

    name: str = "affine"
    roles: Roles = Roles(("factor",), ("shift",))
    scaled: tuple[str, ...] = ()
    foldable: bool = True
    replaces: bool = False

    @property
    def settings(self) -> Mapping[str, Setting]:
        return {"tap": Setting(str, ("input", "output"))}

    def tap(self, params: Params) -> Tap:
        return "input" if params["tap"] == "input" else "output"

    def features(self, shapes: Mapping[str, Shape], params: Params) -> dict[str, Shape]:
        (size,) = one_shape(shapes, "factor", 1)
        if "shift" not in shapes:
            return {params["tap"]: (size,)}
        if params["tap"] == "input":
            raise ValueError("an input is not shifted")
        if shapes["shift"] != (size,):
            raise ValueError(f"shift has shape {list(shapes['shift'])}, expected [{size}]")
        return {"output": (size,), "bias": (size,)}

    def branch(self, x: Array, t: Mapping[str, Array], params: Params) -> Array:
        if params["tap"] == "input":
            raise NotImplementedError("another input is no gain of the output: see transform")
        gained = x * (t["factor"] - 1)
        return gained + t["shift"] if "shift" in t else gained

    def delta(self, t: Mapping[str, Array], params: Params) -> dict[str, Delta]:
        raise NotImplementedError("what a factor adds follows from the weight: see transform")

    def transform(self, own: Mapping[str, Array], t: Mapping[str, Array], params: Params) -> dict[str, Array]:
        weight, factor = own["weight"], t["factor"]
        if params["tap"] == "input":
            return {"weight": weight * factor.reshape(1, -1, *(1,) * (len(weight.shape) - 2))}
        new = {"weight": weight * factor.reshape(-1, *(1,) * (len(weight.shape) - 1))}
        if "bias" in own:
            new["bias"] = own["bias"] * factor + t["shift"] if "shift" in t else own["bias"] * factor
        return new
