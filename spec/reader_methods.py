"""The methods of spec/methods.md: their settings, roles and shapes, one row each.

Part of the second reader; standard library only, imports nothing of the package.
"""

from __future__ import annotations

from typing import Any

from reader_base import Shape, fail

Json = dict[str, Any]


def _pair(shapes: dict[str, Shape]) -> bool:
    """Whether down [hidden, in], up [out, hidden] and their biases belong together."""
    down, up = shapes["down"], shapes["up"]
    if len(down) != 2 or len(up) != 2 or up[1] != down[0]:
        return False
    return shapes.get("down_bias", down[:1]) == down[:1] and shapes.get("up_bias", up[:1]) == up[:1]


TAPS = {"adapter": ("input", "output", "residual", "sum"), "affine": ("input", "output")}
NONLINEARITIES = ("gelu", "gelu_tanh", "leaky_relu", "quick_gelu", "relu", "silu", "tanh")


def _square(shapes: dict[str, Shape], params: Json) -> bool:
    return _pair(shapes) and (params.get("tap") == "input" or shapes["down"][1] == shapes["up"][0])


def _grouped(shapes: dict[str, Shape], params: Json) -> bool:
    weight, groups = shapes["weight"], params["groups"]
    fits = len(weight) == 2 and groups >= 1 and weight[0] % groups == 0
    return fits and shapes.get("bias", weight[:1]) == weight[:1]


def _multiplied(shapes: dict[str, Shape], params: Json) -> bool:
    factor = shapes["factor"]
    return len(factor) == 1 and ("shift" not in shapes or (params["tap"] == "output" and shapes["shift"] == factor))


def _long(shapes: dict[str, Shape], params: Json) -> bool:
    return _pair(shapes) and shapes["magnitude"] == shapes["up"][:1]


def _convolved(shapes: dict[str, Shape], params: Json) -> bool:
    hidden = shapes["down"][:1]
    fits = shapes["conv"] == (*hidden, *hidden, 3, 3) and shapes.get("conv_bias", hidden) == hidden
    return _pair(shapes) and fits and params["prefix"] >= 0


def _three(shapes: dict[str, Shape], params: Json) -> bool:
    down, core, up = shapes["down"], shapes["core"], shapes["up"]
    return len(down) == len(core) == len(up) == 2 and core[0] % up[1] == 0 and core[1] % down[0] == 0


BIASES = {"down_bias", "up_bias"}
LARGEST = (2 - 2**-23) * 2.0**127  # that float32 holds
METHODS: dict[str, tuple[Json, set[str], set[str], Any]] = {  # settings, required roles, optional roles, shapes
    "lora": ({"scale": float}, {"down", "up"}, set(), lambda shapes, params: _pair(shapes)),
    "adaptformer": ({"scale": float}, {"down", "up"}, BIASES, _square),
    "adapter": ({"nonlinearity": str, "scale": float, "tap": str}, {"down", "up"}, BIASES, _square),
    "consolidator": ({"groups": int, "reorder": bool}, {"weight"}, {"bias"}, _grouped),
    "sparse": ({}, set(), {"weight", "bias", "value"}, lambda shapes, params: True),
    "replace": ({}, set(), {"weight", "bias", "value"}, lambda shapes, params: True),
    "affine": ({"tap": str}, {"factor"}, {"shift"}, _multiplied),
    "dora": ({"scale": float}, {"down", "up", "magnitude"}, set(), _long),
    "convpass": ({"scale": float, "prefix": int}, {"down", "conv", "up"}, {*BIASES, "conv_bias"}, _convolved),
    "fact": ({"scale": float}, {"down", "core", "up"}, set(), _three),
}


def check_group(group: Json, where: str) -> None:
    """Settings, roles and shapes of a group's method."""
    if group["method"] not in METHODS:
        fail("unknown-method", f"the method {group['method']} is unknown", where)
    settings, required, optional, fits = METHODS[group["method"]]
    params, shapes = group["params"], {role: tuple(row["shape"]) for role, row in group["tensors"].items()}
    right = set(params) == set(settings) and all(type(params[name]) is kind for name, kind in settings.items())
    right = right and all(abs(params[name]) <= LARGEST for name, kind in settings.items() if kind is float)
    named = params.get("tap") in TAPS.get(group["method"], (None,))
    if not right or not named or params.get("nonlinearity", "gelu") not in NONLINEARITIES:
        fail("bad-parameter", f"settings of {group['method']}", where)
    if required - set(shapes):
        fail("missing-field", f"{group['method']} lacks a role", where)
    if set(shapes) - required - optional:
        fail("unknown-field", f"{group['method']} has an unknown role", where)
    if not fits(shapes, params):
        fail("bad-shape", f"shapes of {group['method']} do not belong together", where)
