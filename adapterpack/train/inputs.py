"""Which input values a run uses: the recipe's, or the backbone's own."""

from __future__ import annotations

from dataclasses import replace

from adapterpack.adapter import DataSettings
from adapterpack.errors import CallError, Reason
from adapterpack.train.recipe import INPUTS

CHOICES = ("auto", "recipe", "backbone")


def input_settings(method: str, own: DataSettings, backbone: str, choice: str) -> DataSettings:
    """How images become input; it is recorded in the checkpoint and in the `.apk`.

    The papers squash images to the input size; Jie et al. leave values in [0, 1], Consolidator and SPT use ImageNet's
    mean and deviation, whatever the backbone was trained with.

    Args:
        method: of the recipe.
        own: the backbone's preprocessing.
        backbone: its timm name, or a `.safetensors` file.
        choice: "recipe"; "backbone"; "auto" takes the backbone's own for a file, whose `.json` says what it was
            trained with, and the recipe's for a timm name.

    Raises:
        CallError: `bad-call`, the recipe's values are of three channels and the backbone takes another number.
    """
    if choice == "backbone" or (choice == "auto" and str(backbone).endswith(".safetensors")):
        return own
    if own.input_size[0] != len(INPUTS[method].mean):
        text = f"the recipe's input values are of 3 channels, the backbone takes {own.input_size[0]}"
        raise CallError(text, Reason.BAD_CALL, hint="use --input backbone")
    return replace(INPUTS[method], input_size=own.input_size, interpolation=own.interpolation)
