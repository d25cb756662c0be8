"""Which sites each recipe trains, in a model of any depth. Names only; nothing is touched."""

from __future__ import annotations

from torch import nn

from adapterpack.errors import Reason, UnsupportedAdapterError
from adapterpack.runtime.families import blocks_of, has_thirds

LINEARS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def depth_of(model: nn.Module) -> int:
    """How many blocks the model has.

    Raises:
        UnsupportedAdapterError: `unsupported-model`, for a model whose blocks are not numbered in a row.
    """
    blocks = model._modules.get("blocks")
    count = len(blocks._modules) if blocks is not None else 0
    if blocks is None or list(blocks._modules) != [str(i) for i in range(count)]:
        hint = "Consolidator and SPT train plain VisionTransformers; train lora or adaptformer"
        raise UnsupportedAdapterError("the model has no numbered blocks", Reason.UNSUPPORTED_MODEL, hint=hint)
    return count


def lora_sites(model: nn.Module) -> list[str]:
    """q and v of every attention; of a family without such attentions, the two layers of every MLP.

    Raises:
        UnsupportedAdapterError: `unsupported-model`, neither is there.
    """
    if _in_a_row(model, "attn"):
        return [f"blocks.{block}.attn.qkv[{part}]" for block in range(depth_of(model)) for part in "qv"]
    fused = [
        f"{name}.qkv[{part}]"
        for name, module in model.named_modules()
        if isinstance(module._modules.get("qkv"), nn.Linear) and has_thirds(module)
        for part in "qv"
    ]
    found = fused or [
        f"{name}.mlp.{layer}"
        for name, block in blocks_of(model)
        for layer in ("fc1", "fc2")
        if isinstance(block.mlp._modules.get(layer), nn.Linear)  # type: ignore[union-attr]
    ]
    if not found:
        text = f"a {type(model).__name__} has neither attentions nor MLPs that LoRA is trained on"
        raise UnsupportedAdapterError(text, Reason.UNSUPPORTED_MODEL, hint="expected a family of docs/backbones.md")
    return found


def mlp_sites(model: nn.Module) -> list[str]:
    """The MLP of every block.

    Raises:
        UnsupportedAdapterError: `unsupported-model`, for blocks that no branch can run beside.
    """
    if _in_a_row(model, "mlp"):
        return [f"blocks.{block}.mlp" for block in range(depth_of(model))]
    found = [f"{name}.mlp" for name, _ in blocks_of(model)]
    if not found:
        text = f"a {type(model).__name__} has no pre-norm MLP that a branch can run beside"
        raise UnsupportedAdapterError(text, Reason.UNSUPPORTED_MODEL, hint="expected a family of docs/backbones.md")
    return found


def _in_a_row(model: nn.Module, child: str) -> bool:
    """Whether the model has `blocks`, and every one of them has a child of that name."""
    blocks = model._modules.get("blocks")
    return blocks is not None and all(block._modules.get(child) is not None for block in blocks.children())


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
