"""Which sites each recipe trains, in a model of any depth. Names only; nothing is touched."""

from __future__ import annotations

from torch import nn

from adapterpack.errors import Reason, UnsupportedAdapterError

LINEARS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def depth_of(model: nn.Module) -> int:
    """How many blocks the model has.

    Raises:
        UnsupportedAdapterError: `unsupported-model`, for a model whose blocks are not numbered in a row.
    """
    blocks = model._modules.get("blocks")
    count = len(blocks._modules) if blocks is not None else 0
    if blocks is None or list(blocks._modules) != [str(i) for i in range(count)]:
        raise UnsupportedAdapterError("the model has no numbered blocks", Reason.UNSUPPORTED_MODEL)
    return count


def norm_sites(model: nn.Module) -> list[str]:
    """Every LayerNorm of the blocks and after them."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm) and module.elementwise_affine and not name.startswith(("head", "patch"))
    ]


def biased_sites(model: nn.Module) -> list[str]:
    """Every module with a bias, the classifier left out."""
    return [
        name
        for name, module in model.named_modules()
        if module._parameters.get("bias") is not None and not name.startswith("head")
    ]
