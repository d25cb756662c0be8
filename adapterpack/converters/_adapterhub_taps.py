"""What a bottleneck of the `adapters` library reads and between what it bends it: its words to ours, and back.

Inside its ViT and CLIP vision layers, which hand their bottlenecks no layer norm. With z what the attention or the MLP
gives, r the residual stream before it and A the bottleneck, scaling included:

| `is_parallel` | `original_ln_before` | `residual_before_ln` | `original_ln_after` | the stream behind | tap |
|---|---|---|---|---|---|
| no | no | any | yes | r + z + A(z) | output |
| no | yes | yes | yes | r + z + A(r + z) | sum |
| no | yes | no | no | r + z + A(r + z) | sum |
| yes | any | any | yes | r + z + A(r) | residual |

All else adds the stream twice, or not at all. Source: adapters 1.3, `Adapter`, `ParallelAdapter`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapterpack.errors import Reason, UnsupportedAdapterError
from adapterpack.methods._base import Tap

_LOST = "the residual stream would not be added, and no method here takes it away"
_TWICE = "the residual stream would be added twice, and no method here does that"
_TAPS: Mapping[tuple[bool, bool, bool], Tap] = {
    (False, True, True): "output",
    (False, False, True): "output",
    (True, True, True): "sum",
    (True, False, False): "sum",
}
_NONLINEARITIES = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "leakyrelu": "leaky_relu",
    "leaky_relu": "leaky_relu",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
_THEIRS = {"gelu_tanh": "gelu_pytorch_tanh", "leaky_relu": "leakyrelu", "silu": "swish"}
_BOOLEANS = ("is_parallel", "original_ln_before", "residual_before_ln", "original_ln_after")


def tap_of(values: Mapping[str, Any], folder: str) -> Tap:
    """Where a bottleneck with these settings reads.

    Raises:
        UnsupportedAdapterError: `not-expressible`, naming the setting.
    """
    for name in _BOOLEANS:
        if not isinstance(values[name], bool):
            raise refused(name, values[name], folder, "expected true or false")
    parallel, before, around, after = (values[name] for name in _BOOLEANS)
    if parallel and after:
        return "residual"
    tap = None if parallel else _TAPS.get((before, around, after))
    if tap is None and before and after and not parallel:
        raise refused("residual_before_ln", around, folder, _TWICE)
    if tap is None:
        raise refused("original_ln_after", after, folder, _LOST)
    return tap


def nonlinearity_of(values: Mapping[str, Any], folder: str) -> str:
    """Our name of a bottleneck's nonlinearity.

    Raises:
        UnsupportedAdapterError: `not-expressible`.
    """
    said = values["non_linearity"]
    found = _NONLINEARITIES.get(said.lower()) if isinstance(said, str) else None
    if found is None:
        raise refused("non_linearity", said, folder, f"known: {', '.join(_NONLINEARITIES)}")
    return found


def settings_for(tap: Tap, nonlinearity: str) -> dict[str, Any]:
    """The library's settings that say both."""
    return {
        "non_linearity": _THEIRS.get(nonlinearity, nonlinearity),
        "is_parallel": tap == "residual",
        "original_ln_before": tap == "sum",
        "residual_before_ln": True,
        "original_ln_after": True,
    }


def refused(key: str, value: Any, folder: str, why: str) -> UnsupportedAdapterError:
    """The error for a setting that has no place here."""
    return UnsupportedAdapterError(f"{key} is {str(value)[:80]!r}", Reason.NOT_EXPRESSIBLE, folder, why)
