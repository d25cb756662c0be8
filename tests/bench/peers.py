"""What users have without this package: a ViT with the adapter's own modules in it, which `load_state_dict` fills."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from adapterpack import Adapter


def in_the_model(adapter: Adapter, model: nn.Module) -> tuple[nn.Module, dict[str, np.ndarray]]:
    """A model ready for the adapter's numbers, and these, float32, by the names of its parameters.

    It has the backbone's own parameters, not copies of them: `load_state_dict(…, strict=False)` touches only the
    adapter's. For adapters with one branch of a method at a site, beside modules.
    """
    vit = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    tensors: dict[str, np.ndarray] = {}
    for branch in adapter.branches:
        name = f"{branch.method}_{branch.site.part}"
        inside = nn.Module()
        parent = vit.get_submodule(branch.site.path)
        if name in parent._modules:
            raise ValueError(f"{branch.site} has two branches of {branch.method}")
        parent.add_module(name, inside)
        for role, tensor in branch.tensors.items():
            inside.register_parameter(role, _empty(tensor.shape))
            tensors[f"{branch.site.path}.{name}.{role}"] = tensor.dense()
    if adapter.head is not None:
        vit.head = nn.Linear(adapter.head.weight.shape[1], adapter.head.classes, adapter.head.bias is not None)
        tensors |= {f"head.{role}": tensor.dense() for role, tensor in adapter.head.tensors.items()}
    return vit, tensors


def bare(tensors: dict[str, np.ndarray]) -> nn.Module:
    """A module with one parameter a tensor and nothing else: the least that `load_state_dict` can have to do."""
    holder = nn.Module()
    for name, values in tensors.items():
        holder.register_parameter(name.replace(".", "_"), _empty(values.shape))
    return holder


def _empty(shape: tuple[int, ...]) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape), requires_grad=False)
