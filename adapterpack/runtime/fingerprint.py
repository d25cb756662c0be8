"""The fingerprint of a backbone: one SHA-256 over every tensor but the classifier, whatever its container or dtype.

It does not change when tensors are reordered, moved to another device or widened without loss. It is remembered for
each live model until one of its tensors is written to or replaced.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Union
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from adapterpack.runtime.backbone import unwrap
from adapterpack.runtime.families import CLASSIFIERS

State = tuple[int, ...]

_TOPS = {path.partition(".")[0] for path in CLASSIFIERS}
_LEFT_OUT = {f"{path}.{role}" for path in CLASSIFIERS for role in ("weight", "bias")}

# A cache, not state: it holds nothing that cannot be computed again, and forgets a model when the model goes.
_KNOWN: WeakKeyDictionary[nn.Module, tuple[State, str]] = WeakKeyDictionary()


def fingerprint(source: Union[nn.Module, Mapping[str, torch.Tensor]]) -> str:
    """SHA-256 over the lines `name shape sha256(values)` of all tensors but the classifier's weight and bias.

    Lines are in ascending byte order of the name and end in a newline; the shape is written like `768x3x16x16`; values
    are float32, little-endian, row-major. See spec/README.md, "Fingerprint".

    Args:
        source: a model without an adapter in it, or a state dict with timm's names.

    Returns:
        "sha256:" and 64 hexadecimal digits.
    """
    if not isinstance(source, nn.Module):
        return _of_tensors(source)
    model = unwrap(source)
    now, known = state_of(model), _KNOWN.get(model)
    if now is not None and known is not None and known[0] == now:
        return known[1]
    found = _of_tensors(model.state_dict())
    if now is not None:
        _KNOWN[model] = (now, found)
    return found


def state_of(model: nn.Module) -> State | None:
    """What changes when a tensor of the backbone is written to or replaced; None where torch keeps no record of it."""
    marks: list[int] = []
    try:
        for tensor in _backbone_tensors(model):
            if tensor is not None:
                marks += (id(tensor), tensor.data_ptr(), tensor._version)
    except RuntimeError:  # inference tensors have no version
        return None
    return tuple(marks)


def _backbone_tensors(model: nn.Module) -> list[torch.Tensor | None]:
    """All parameters and buffers but the classifier's; most dicts are empty, and the walk is a good part of a load."""
    tensors: list[torch.Tensor | None] = [*model._parameters.values(), *model._buffers.values()]
    waiting = [module for name, module in model._modules.items() if name not in _TOPS]
    for name in _TOPS & model._modules.keys():
        inside = getattr(model._modules[name], "_modules", {})
        waiting += [module for child, module in inside.items() if f"{name}.{child}" not in CLASSIFIERS]
    for module in waiting:  # grows while it is walked
        if module is not None:
            if module._parameters:
                tensors += module._parameters.values()
            if module._buffers:
                tensors += module._buffers.values()
            if module._modules:
                waiting += module._modules.values()
    return tensors


def remember(model: nn.Module, found: str) -> None:
    """Record the fingerprint of a model that was just restored to the state it is known by."""
    now = state_of(model)
    if now is not None:
        _KNOWN[model] = (now, found)


def _of_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    names = sorted((name for name in tensors if name not in _LEFT_OUT), key=str.encode)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        lines = pool.map(lambda name: _line(name, tensors[name]), names)
        return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def _line(name: str, tensor: torch.Tensor) -> str:
    values = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    shape = "x".join(map(str, values.shape))
    raw = values.astype("<f4", copy=False).reshape(-1).view(np.uint8).data
    return f"{name} {shape} {hashlib.sha256(raw).hexdigest()}\n"
