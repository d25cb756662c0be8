"""The functions between `down` and `up`, by the names that files give them; each takes numpy arrays and torch tensors.

They act element by element and leave what they are given as it is. Source: spec/methods.md, "Nonlinearities".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from math import e
from types import MappingProxyType

from adapterpack.methods._base import Array

_STEEPNESS = 1.702
_LOWEST = -80.0  # e**80 is within float32, and its reciprocal is 0 beside 1
_SLOPE = 0.01  # of a leaky ReLU below 0
_CUBE = 0.044715


def gelu(x: Array) -> Array:
    """x·Φ(x) with the exact normal distribution."""
    return x * 0.5 * (1 + _each(x * 0.7071067811865476, "erf"))


def gelu_tanh(x: Array) -> Array:
    """x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))/2, which lies near GELU."""
    return x * 0.5 * (1 + _each((x + _CUBE * x * x * x) * 0.7978845608028654, "tanh"))


def leaky_relu(x: Array) -> Array:
    """x above 0, x/100 below."""
    return x.clip(min=0) + _SLOPE * x.clip(max=0)


def quick_gelu(x: Array) -> Array:
    """x·σ(1.702·x)."""
    return x * _sigmoid(x * _STEEPNESS)


def relu(x: Array) -> Array:
    """x above 0, else 0."""
    return x.clip(min=0)


def silu(x: Array) -> Array:
    """x·σ(x), also called swish."""
    return x * _sigmoid(x)


def tanh(x: Array) -> Array:
    """The hyperbolic tangent."""
    return _each(x, "tanh")


def _sigmoid(x: Array) -> Array:
    return x.sigmoid() if hasattr(x, "sigmoid") else 1 / (1 + e ** -x.clip(min=_LOWEST))


def _each(x: Array, name: str) -> Array:
    """A function of `math` on every element; torch has it itself, numpy does not."""
    if hasattr(x, name):
        return getattr(x, name)()
    out, function = x.copy(), getattr(math, name)
    out.flat[:] = [function(value) for value in x.flat]
    return out


NONLINEARITIES: Mapping[str, Callable[[Array], Array]] = MappingProxyType(
    {
        "gelu": gelu,
        "gelu_tanh": gelu_tanh,
        "leaky_relu": leaky_relu,
        "quick_gelu": quick_gelu,
        "relu": relu,
        "silu": silu,
        "tanh": tanh,
    }
)
