"""A model with an adapter folded into it, as a safetensors file that timm loads.

It knows timm's names and that timm's classifiers have a bias; it folds nothing itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from adapterpack._files import refuse_existing, write_atomic
from adapterpack.errors import Reason, UnsupportedAdapterError
from adapterpack.runtime.attach import attached_sites
from adapterpack.runtime.backbone import require_vit, unwrap


def export_folded(model: nn.Module, path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Write the model's state dict, adapter and head included.

    The header records the architecture's timm name where the model knows it, and the number of classes. A head without
    a bias gets a bias of zeros, which gives the same logits, because timm's own head has one.

    Args:
        model: a timm `VisionTransformer`, usually with an adapter folded into it.
        path: of the `.safetensors` file.
        force: replace a file that is there.

    Raises:
        UnsupportedAdapterError: `not-foldable`, naming a branch that runs beside the model and has no place in a state
            dict; `unsupported-model`.
        CallError: `file-exists`, `io-error`.
    """
    inner = unwrap(model)
    require_vit(inner)
    beside = attached_sites(inner)
    if beside:
        text = f"the branch at {beside[0]} runs beside the model" + (
            f", as {len(beside) - 1} others do" * (len(beside) > 1)
        )
        hint = 'load a method that folds, with fold="auto"'
        raise UnsupportedAdapterError(text, Reason.NOT_FOLDABLE, beside[0], hint)
    refuse_existing(Path(path), force=force)
    write_atomic(path, save(_tensors(inner), metadata=_metadata(inner)), force=force)


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    head = tensors.get("head.weight")
    if head is not None and "head.bias" not in tensors:
        tensors["head.bias"] = torch.zeros(head.shape[0], dtype=head.dtype)
    return tensors


def _metadata(model: nn.Module) -> dict[str, str]:
    config = getattr(model, "pretrained_cfg", None) or {}
    name = config.get("architecture") if isinstance(config, Mapping) else getattr(config, "architecture", None)
    known = {"architecture": str(name)} if name else {}
    return {"format": "pt", "num_classes": str(model.num_classes), **known}
