"""One layer's tensors of a PEFT folder to branches: LoRA, DoRA, VeRA, IA³. Arrays in, nouns out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from adapterpack.adapter import Branch, Site
from adapterpack.converters.peft_config import PeftConfig
from adapterpack.errors import CorruptFileError, Reason
from adapterpack.tensors import Dense, Tensor

Roles = dict[str, Dense]


def branches_at(
    module: str, site: str, parts: Roles, adapted: Mapping[str, Roles], shared: Roles, config: PeftConfig
) -> list[Branch]:
    """The branches of one layer.

    Args:
        module: its name, for messages and for the settings' patterns.
        site: where it is in timm's model.
        parts: its tensors, see `_peft_read.Sorted`.
        adapted: those of all layers, by module.
        shared: VeRA's projections.
        config: the folder's settings.

    Raises:
        CorruptFileError: `conflicting-settings`, `bad-shape`, `missing-tensor`.
    """
    if config.type == "VERA":
        return [_vera(module, site, parts, _inward(site, adapted, shared), shared, config)]
    if config.type == "IA3":
        return [_ia3(module, site, parts["ia3"], config)]
    return _lora(module, site, parts, config)


def _lora(module: str, site: str, parts: Roles, config: PeftConfig) -> list[Branch]:
    down, up, scale = parts["A"], parts["B"], config.scale(module)
    if not down.shape or down.shape[0] != config.rank(module):
        message = f"{module}.lora_A has shape {list(down.shape)}, and the settings say rank {config.rank(module)}"
        raise CorruptFileError(message, Reason.CONFLICTING_SETTINGS, config.name, "check r and rank_pattern")
    if "B_bias" in parts and "magnitude" in parts:
        message = f"{module} has lora_B.bias beside DoRA, which PEFT does not allow"
        raise CorruptFileError(message, Reason.CONFLICTING_SETTINGS, config.name, "check lora_bias and use_dora")
    at = Site.parse(site)
    added: dict[str, Tensor] = {}
    if "B_bias" in parts:
        added["bias"] = Dense(np.float32(scale) * parts["B_bias"].dense())
    if len(down.shape) == 4 and "magnitude" not in parts:
        return [Branch(at, "sparse", {}, {"weight": _convolution(module, down, up, scale), **added})]
    tensors: dict[str, Tensor] = {"down": down, "up": up}
    if "magnitude" in parts:
        return [Branch(at, "dora", {"scale": scale}, {**tensors, "magnitude": parts["magnitude"]})]
    branches = [Branch(at, "lora", {"scale": scale}, tensors)]
    return [*branches, Branch(at, "sparse", {}, added)] if added else branches


def _convolution(module: str, down: Dense, up: Dense, scale: float) -> Dense:
    """What a LoRA on a convolution adds to its weight; there is no low-rank form of that here."""
    if len(up.shape) != 4 or up.shape[1:] != (down.shape[0], 1, 1):
        message = f"{module}.lora_B has shape {list(up.shape)}, expected [out, {down.shape[0]}, 1, 1]"
        raise CorruptFileError(message, Reason.BAD_SHAPE)
    flat = (np.float32(scale) * up.dense()[:, :, 0, 0]) @ down.dense().reshape(down.shape[0], -1)
    return Dense(flat.reshape(up.shape[0], *down.shape[1:]).astype(np.float32))


def _ia3(module: str, site: str, vector: Dense, config: PeftConfig) -> Branch:
    """A column multiplies the layer's output, a row its input."""
    before = config.feeds_forward(module)
    if len(vector.shape) != 2 or vector.shape[0 if before else 1] != 1:
        message = f"{module}.ia3_l has shape {list(vector.shape)}, expected {'[1, in]' if before else '[out, 1]'}"
        raise CorruptFileError(message, Reason.BAD_SHAPE, config.name, "check feedforward_modules")
    factor: dict[str, Tensor] = {"factor": Dense(vector.data.reshape(-1), vector.dtype)}
    return Branch(Site.parse(site), "affine", {"tap": "input" if before else "output"}, factor)


def _vera(module: str, site: str, parts: Roles, inward: int, shared: Roles, config: PeftConfig) -> Branch:
    """VeRA as a LoRA: down = d∘A[:, :in], up = b∘B[:out], scale 1."""
    for part in "AB":
        if part not in shared:
            hint = "train with save_projection=True; the random numbers differ between versions of torch"
            raise CorruptFileError(f"there is no base_model.vera_{part}", Reason.MISSING_TENSOR, config.name, hint)
    a, b = shared["A"].dense(), shared["B"].dense()
    rows, columns = parts["b"].dense(), parts["d"].dense()
    fits = a.ndim == b.ndim == 2 and rows.ndim == 1 and columns.shape == (a.shape[0],) == (b.shape[1],)
    if not fits or len(rows) > len(b) or inward > a.shape[1] or a.shape[0] != config.values["r"]:
        shapes = f"{list(a.shape)}, {list(b.shape)}, {list(rows.shape)} and {list(columns.shape)}"
        message = f"{module}: vera_A, vera_B, lambda_b and lambda_d of shape {shapes} do not fit"
        raise CorruptFileError(message, Reason.BAD_SHAPE, config.name, f"r is {config.values['r']}")
    down, up = columns[:, None] * a[:, :inward], rows[:, None] * b[: len(rows)]
    tensors: dict[str, Tensor] = {"down": Dense(np.ascontiguousarray(down)), "up": Dense(np.ascontiguousarray(up))}
    return Branch(Site.parse(site), "lora", {"scale": 1.0}, tensors)


def _inward(site: str, adapted: Mapping[str, Roles], shared: Roles) -> int:
    """How many features a layer reads: the MLP's second one the widest, every other one the model's width."""
    widest = shared["A"].shape[-1] if "A" in shared and shared["A"].shape else 0
    if site.endswith("mlp.fc2"):
        return widest
    for module, parts in adapted.items():
        size = parts["b"].entries if "b" in parts else 0
        if module.endswith(".qkv"):
            return size // 3
        if not module.endswith(("fc1", "intermediate.dense", "weights_in")):
            return size
    return widest
