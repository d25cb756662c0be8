"""How a run trains: one frozen set of settings, with what each paper used as the default of its method.

It knows numbers and their limits, not models or data. Source: docs/training.md, "Recipes".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from adapterpack.adapter import DataSettings
from adapterpack.errors import CallError, Reason

BITS = (1, 2, 4, 8, 32)
SCALES = (0.01, 0.1, 1.0, 10.0, 100.0)  # the grid of Jie et al. 2023
PIXELS = DataSettings()  # [0, 1], squashed to the input size: Jie et al. 2023
IMAGENET = DataSettings(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))  # Consolidator and SPT


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides a run, besides data, backbone and hardware.

    Attributes:
        method: a key of `RECIPES`.
        bits: of the trained matrices and sparse entries.
        head_bits: of the classifier; below 32 it has no bias, as in the paper.
        dim: hidden dimension, or rank.
        groups: Consolidator's group counts, one a branch; empty: half the width.
        reorder: whether Consolidator's branches read reordered channels.
        budget: SPT's, in millions of parameters; None: 0.5 % of the backbone.
        scale: of the branch; None: searched for among `SCALES` on the validation images.
        epochs, lr, weight_decay, batch_size: of AdamW.
        accumulate: parts that a batch is computed in.
        warmup: share of the epochs before the peak.
        schedule: "epoch" changes the rate between epochs as the papers do, "step" after each step; "auto" is "epoch"
            from 50 epochs on: in a short run the papers' first two epochs, at 1e-6, would be lost.
        dropout: on the hidden vector, or on what an SPT module reads.
        branch_drop: Consolidator's and SPT's drop path on a branch.
        drop_path: of the last block, growing linearly from 0 at the first.
        decay_vectors: whether weight decay also takes biases and norms.
        drop_last: whether a last, smaller batch is left out.
        head_start: "uniform" as `nn.Linear`, or "normal" (deviation 0.02, bias 0).
        up_start: standard deviation with which a quantized `up` of LoRA or AdaptFormer begins, where zeros could not.
        seed: of initialisation, order and dropout.
        precision: "auto", "float32" or "bf16".
        val_share: share of the training images that validates where there is no `val/`.
    """

    method: str
    bits: int = 32
    head_bits: int = 32
    dim: int = 8
    groups: tuple[int, ...] = ()
    reorder: bool = False
    budget: float | None = None
    scale: float | None = 1.0
    epochs: int = 100
    lr: float = 1e-3
    weight_decay: float = 1e-4
    batch_size: int = 64
    accumulate: int = 1
    warmup: float = 0.1
    schedule: str = "auto"
    dropout: float = 0.1
    branch_drop: float = 0.0
    drop_path: float = 0.1
    decay_vectors: bool = True
    drop_last: bool = True
    head_start: str = "uniform"
    up_start: float = 0.001
    seed: int = 0
    precision: str = "auto"
    val_share: float = 0.2

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a checkpoint or a report."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


RECIPES: Mapping[str, Recipe] = {
    "lora": Recipe("lora", bits=1, dim=32),
    "adaptformer": Recipe("adaptformer", bits=1, dim=32),
    "consolidator": Recipe(
        "consolidator", lr=2e-3, weight_decay=1e-2, branch_drop=0.2, decay_vectors=False, head_start="normal"
    ),
    "spt-lora": Recipe("spt-lora", branch_drop=0.1, decay_vectors=False, drop_last=False, head_start="normal"),
    "spt-adapter": Recipe("spt-adapter", branch_drop=0.1, decay_vectors=False, drop_last=False, head_start="normal"),
    "linear": Recipe("linear", drop_path=0.0, dropout=0.0),
    "bias": Recipe("bias", decay_vectors=False),
    "full": Recipe("full", lr=1e-4, weight_decay=0.05, decay_vectors=False),
}
INPUTS: Mapping[str, DataSettings] = {
    name: IMAGENET if name == "consolidator" or name.startswith("spt-") else PIXELS for name in RECIPES
}


def recipe_for(method: str, changes: Mapping[str, Any]) -> Recipe:
    """The recipe of a method with some settings changed.

    Raises:
        CallError: `bad-call`, naming the setting and what it may be.
    """
    if method not in RECIPES:
        raise CallError(f"there is no method {method!r}", Reason.BAD_CALL, hint=f"choose one of {', '.join(RECIPES)}")
    known = {field.name for field in fields(Recipe)}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise CallError(f"there is no setting {unknown[0]!r}", Reason.BAD_CALL, hint=f"known: {', '.join(known)}")
    base, scaled = RECIPES[method], method in ("lora", "adaptformer")
    if scaled and int(changes.get("bits", base.bits)) > 2 and "dim" not in changes:
        base = replace(base, dim=8)  # about the same bytes
    found = replace(base, **changes)
    if not scaled and found.scale is None:  # nothing to search for
        found = replace(found, scale=base.scale)
    _check(found)
    return found


_RULES: tuple[tuple[str, str, Any], ...] = (
    ("bits", f"one of {', '.join(map(str, BITS))}", lambda v: v in BITS),
    ("head_bits", f"one of {', '.join(map(str, BITS))}", lambda v: v in BITS),
    ("dim", "a whole number from 1 to 65,536", lambda v: 1 <= v <= 1 << 16),
    ("groups", "whole numbers from 1", lambda v: all(g >= 1 for g in v)),
    ("budget", "a number above 0", lambda v: v is None or v > 0),
    ("scale", "a number above 0, or auto", lambda v: v is None or 0 < v < float("inf")),
    ("epochs", "a whole number from 1", lambda v: v >= 1),
    ("lr", "a number above 0, at most 1000", lambda v: 0 < v <= 1000),
    ("weight_decay", "a number from 0 to 1000", lambda v: 0 <= v <= 1000),
    ("batch_size", "a whole number from 1", lambda v: v >= 1),
    ("accumulate", "a whole number from 1", lambda v: v >= 1),
    ("warmup", "a share from 0 to 1", lambda v: 0 <= v < 1),
    ("schedule", "auto, epoch or step", lambda v: v in ("auto", "epoch", "step")),
    ("dropout", "a probability below 1", lambda v: 0 <= v < 1),
    ("branch_drop", "a probability below 1", lambda v: 0 <= v < 1),
    ("drop_path", "a probability below 1", lambda v: 0 <= v < 1),
    ("head_start", "uniform or normal", lambda v: v in ("uniform", "normal")),
    ("up_start", "a number above 0", lambda v: 0 < v < float("inf")),
    ("seed", "a whole number from 0 to 4,294,967,295", lambda v: 0 <= v < 1 << 32),
    ("precision", "auto, float32 or bf16", lambda v: v in ("auto", "float32", "bf16")),
    ("val_share", "a share between 0 and 1", lambda v: 0 < v < 1),
)


def _check(recipe: Recipe) -> None:
    for name, wanted, holds in _RULES:
        if not holds(getattr(recipe, name)):
            option = name.replace("_", "-")
            raise CallError(f"{option} is {getattr(recipe, name)}", Reason.BAD_CALL, hint=f"expected {wanted}")
