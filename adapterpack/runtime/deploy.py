"""`adapterpack.load`: from a file to an adapter in a live model, in one call."""

from __future__ import annotations

import torch
from torch import nn

from adapterpack._files import SourceLike
from adapterpack.packing.bundle import Bundle, read_adapter
from adapterpack.runtime.load import Loaded, load_adapter
from adapterpack.runtime.plan import Fold


def load(
    source: SourceLike | Bundle,
    model: nn.Module,
    task: str | None = None,
    fold: Fold = "auto",
    device: str | torch.device | None = None,
    *,
    check_fingerprint: bool = True,
) -> Loaded:
    """Put a task of an `.apk` into a frozen timm ViT.

    Args:
        source: path, bytes, binary file object, URL, or an opened `Bundle`.
        model: a timm `VisionTransformer`.
        task: which task, where the file has several.
        fold: "auto" adds into the weights what can be added exactly and attaches the rest, "always" refuses what
            cannot be folded, "never" attaches everything.
        device: where to move the model first; None leaves it where it is.
        check_fingerprint: False accepts any backbone of the right shape.

    Returns:
        The handle whose `unload()` makes the backbone bit for bit what it was.

    Raises:
        CorruptFileError, UnsupportedVersionError: the file is damaged, or newer than this reader.
        BackboneMismatchError, UnsupportedAdapterError: it does not belong to this model; the model is untouched.
        CallError: no such file or task, or no memory.
    """
    adapter = source.read(task) if isinstance(source, Bundle) else read_adapter(source, task)
    return load_adapter(adapter, model, fold=fold, device=device, check_fingerprint=check_fingerprint)
