"""What is known of timm's families: where the classifier is, which blocks take a branch on their residual stream, whose
q, k and v are thirds of one projection, and which layers are read without being called.

Blocks and attentions are known by the function that runs them, so a subclass with a forward pass of its own is not
taken for what it inherits from. Each row was read in timm, and `docs/backbones.md` is made by trying them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import chain
from typing import Any

from torch import nn

from adapterpack.errors import Reason, UnsupportedAdapterError

# Where a classifier may be; the fingerprint leaves out the weight and bias of exactly these (spec/README.md).
CLASSIFIERS = ("head", "head.fc", "head_dist", "classifier", "fc")
_CLASSIFIER_NAMES = [(path, path.split(".")) for path in ("head.fc", *CLASSIFIERS)]
_SECOND = ("head_dist", "aux_head", "heads")

# x + drop_path2(… mlp(norm2(x))): the branch reads the input of norm2, and adds to what drop_path2 gives
_PRENORM = {
    "timm.models.vision_transformer.Block.forward",
    "timm.models.beit.Block.forward",
    "timm.models.davit.ChannelBlock.forward",
    "timm.models.davit.SpatialBlock.forward",
    "timm.models.eva.EvaBlock.forward",
    "timm.models.gcvit.GlobalContextVitBlock.forward",
    "timm.models.hiera.HieraBlock.forward",
    "timm.models.hieradet_sam2.MultiScaleBlock.forward",
    "timm.models.maxxvit.PartitionAttentionCl.forward",
    "timm.models.nest.TransformerLayer.forward",
    "timm.models.pvt_v2.Block.forward",
    "timm.models.swin_transformer.SwinTransformerBlock.forward",
    "timm.models.twins.Block.forward",
    "timm.models.vision_transformer_relpos.RelPosBlock.forward",
    "timm.models.vision_transformer_sam.Block.forward",
    "timm.models.xcit.XCABlock.forward",
}
# the same, but one drop_path serves twice: the sum is added to what the block gives
_PRENORM_LAST = {
    "timm.models.cait.LayerScaleBlock.forward",
    "timm.models.convit.Block.forward",
}
# x + drop_path1(… attn(norm1(x))), which is the input of norm2
_PRENORM_ATTENTION = {
    "timm.models.vision_transformer.Block.forward",
    "timm.models.beit.Block.forward",
    "timm.models.eva.EvaBlock.forward",
    "timm.models.gcvit.GlobalContextVitBlock.forward",
    "timm.models.nest.TransformerLayer.forward",
    "timm.models.pvt_v2.Block.forward",
    "timm.models.swin_transformer.SwinTransformerBlock.forward",
    "timm.models.twins.Block.forward",
    "timm.models.vision_transformer_relpos.RelPosBlock.forward",
}
# x + drop_path(… mlp(norm(conv(x)))), channels first: the residual stream is what the block takes and gives
_CONVOLUTIONAL = {"timm.models.convnext.ConvNeXtBlock.forward"}

# The rows of qkv are all of q, then all of k, then all of v. Elsewhere they may be interleaved head by head.
_THIRDS = {
    "timm.layers.attention.Attention.forward",
    "timm.layers.attention.AttentionRope.forward",
    "timm.models.beit.Attention.forward",
    "timm.models.cait.TalkingHeadAttn.forward",
    "timm.models.davit.ChannelAttention.forward",
    "timm.models.davit.ChannelAttentionV2.forward",
    "timm.models.davit.WindowAttention.forward",
    "timm.models.eva.EvaAttention.forward",
    "timm.models.hiera.MaskUnitAttention.forward",
    "timm.models.hieradet_sam2.MultiScaleAttention.forward",
    "timm.models.mvitv2.MultiScaleAttention.forward",
    "timm.models.nest.Attention.forward",
    "timm.models.swin_transformer.WindowAttention.forward",
    "timm.models.swin_transformer_v2.WindowAttention.forward",
    "timm.models.swin_transformer_v2_cr.WindowMultiHeadAttention.forward",
    "timm.models.twins.LocallyGroupedAttn.forward",
    "timm.models.vision_transformer.Attention.forward",  # where timm < 1.0.20 has it
    "timm.models.vision_transformer_relpos.RelPosAttention.forward",
    "timm.models.vision_transformer_sam.Attention.forward",
    "timm.models.xcit.XCA.forward",
}


def require_supported(model: nn.Module) -> None:
    """Refuse a model that no adapter fits: not timm's, without one linear classifier, or without linear layers.

    Raises:
        UnsupportedAdapterError: `unsupported-model`.
    """
    kind = type(model).__name__
    if not _is_timm(model):
        inner = getattr(model, "module", None)
        hint = "pass model.module" if isinstance(inner, nn.Module) and _is_timm(inner) else "expected a timm model"
        raise _unsupported(f"the model is a {kind}", hint)
    for name in _SECOND:
        if model._modules.get(name) is not None:
            hint = "use the undistilled variant" if name == "head_dist" else "expected a model with one linear head"
            raise _unsupported(f"the model has two heads, head and {name}", hint)
    head = classifier(model)
    linear = any(isinstance(module, nn.Linear) and module is not head for module in _inside(model))
    if not linear and next(blocks_of(model), None) is None:
        raise _unsupported(f"a {kind} has no linear layer but its classifier", "expected a vision transformer")


def classifier_path(model: nn.Module) -> str:
    """Where the linear classifier is, or was before it was taken out: `head`, `head.fc`, ….

    Raises:
        UnsupportedAdapterError: `unsupported-model`, it is elsewhere, or of another kind.
    """
    return _classifier(model)[0]


def _classifier(model: nn.Module) -> tuple[str, nn.Module, str]:
    """Its path, its parent, and its name there."""
    for path, names in _CLASSIFIER_NAMES:
        found: Any = model
        for name in names:
            parent = found
            found = found._modules.get(name) if found is not None else None
        if isinstance(found, (nn.Linear, nn.Identity)) or _is_like_linear(found):
            return path, parent, name
    head = model._modules.get("head")
    what = f"head is a {type(head).__name__}" if head is not None else "it has no head"
    text = f"the model is a {type(model).__name__} without a linear classifier: {what}"
    raise _unsupported(text, f"expected one at {', '.join(CLASSIFIERS)}")


def first_parameter(model: nn.Module) -> nn.Parameter:
    """What `next(model.parameters())` gives, which makes up every name before it gives anything."""
    modules = chain((model,), _inside(model))
    return next(found for module in modules for found in module._parameters.values() if found is not None)


def classifier(model: nn.Module) -> nn.Module:
    """The classifier; an `Identity` where there is none."""
    _, parent, name = _classifier(model)
    return parent._modules[name]  # type: ignore[return-value]


def put_classifier(model: nn.Module, head: nn.Module, classes: Any) -> nn.Module:
    """Put another classifier in the place of the one that it gives back."""
    _, parent, name = _classifier(model)
    before: nn.Module = parent._modules[name]  # type: ignore[assignment]
    parent._modules[name] = head
    model.num_classes = classes
    return before


def features_of(model: nn.Module) -> int:
    """How many features the classifier reads."""
    head = classifier(model)
    if not isinstance(head, nn.Identity):
        return int(head.in_features)  # type: ignore[arg-type]
    width = getattr(model, "head_hidden_size", None) or model.num_features
    return int(width)  # type: ignore[arg-type]


def has_thirds(attention: nn.Module) -> bool:
    """Whether the rows of `attention.qkv` are q, k and v, each as a whole."""
    if vars(attention).get("use_global"):  # GCViT's global attention has rows of k and v only
        return False
    return _forward(attention) in _THIRDS


def reads_weight(parent: nn.Module, name: str) -> bool:
    """Whether a module multiplies what it is given by the weight of its child `name` itself, without calling that.

    BEiT, EVA and Swin V2 do so with `qkv` where their q and v have biases of their own.
    """
    own_biases = name == "qkv" and parent._parameters.get("q_bias") is not None
    return own_biases and not vars(parent).get("qkv_bias_separate")


def no_hook(parent: nn.Module, name: str) -> str:
    """Why a hook on the child `name` of `parent` cannot add to what goes by, "" where it can."""
    if reads_weight(parent, name):
        return "the model reads its weight without calling it"
    child = parent._modules.get(name)
    channels_first = isinstance(child, nn.GroupNorm) or type(child).__name__.endswith("2d")
    return "its channels come first" if channels_first else ""


def mlp_ends(block: nn.Module) -> tuple[nn.Module, nn.Module, bool] | None:
    """Where a branch beside a block's MLP reads (the input of the first) and adds (the output of the second), and
    whether channels come first there; None for a block that is not known to have such a residual connection."""
    known, children = _forward(block), block._modules
    if known in _CONVOLUTIONAL:
        return (block, block, True) if isinstance(children.get("shortcut"), nn.Identity) else None
    norm = children.get("norm2")
    if known in _PRENORM_LAST:
        return (norm, block, False) if norm is not None else None
    end = children.get("drop_path2")
    if known in _PRENORM and norm is not None and end is not None:
        return norm, end, False
    return None


def attention_ends(block: nn.Module) -> tuple[nn.Module, nn.Module, bool] | None:
    """The same for a branch beside a block's attention."""
    norm, end = block._modules.get("norm1"), block._modules.get("drop_path1")
    known = _forward(block) in _PRENORM_ATTENTION
    return (norm, end, False) if known and norm is not None and end is not None else None


def width_of(model: nn.Module, block: nn.Module) -> int:
    """How many features the residual stream has at a block."""
    for name in ("norm2", "norm"):
        norm = block._modules.get(name)
        weight = norm._parameters.get("weight") if norm is not None else None
        if weight is not None:
            return int(weight.shape[0])
    return int(model.embed_dim)  # type: ignore[arg-type]


def blocks_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every block with an MLP beside which a branch can run, by name, in the order of the forward pass."""
    for name, module in model.named_modules():
        if module._modules.get("mlp") is not None and mlp_ends(module) is not None:
            yield name, module


def _is_like_linear(module: Any) -> bool:
    """Whether it stands in for a linear layer, as a head in training does."""
    return isinstance(module, nn.Module) and hasattr(module, "in_features") and not module._modules


def _inside(module: nn.Module) -> Iterator[nn.Module]:
    """What `Module.modules` gives, without names and the set of those seen, which take longer than the search."""
    for child in module._modules.values():
        if child is not None:
            yield child
            yield from _inside(child)


def _forward(module: nn.Module) -> str:
    return _name(type(module).forward)


@lru_cache(maxsize=1024)
def _name(run: Callable[..., Any]) -> str:
    return f"{run.__module__}.{run.__qualname__}"


def _is_timm(model: nn.Module) -> bool:
    kind: type = type(model)
    return _of_timm(kind)


@lru_cache(maxsize=64)
def _of_timm(kind: type) -> bool:
    return any(base.__module__.startswith("timm.models.") for base in kind.__mro__)


def _unsupported(text: str, hint: str) -> UnsupportedAdapterError:
    return UnsupportedAdapterError(text, Reason.UNSUPPORTED_MODEL, hint=hint)
