"""What packing wants to know of a backbone: its public name, its fingerprint, and its tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterpack.adapter import DataSettings
from adapterpack.runtime.backbone import create_backbone
from adapterpack.runtime.fingerprint import fingerprint


@dataclass(frozen=True, slots=True, eq=False)
class BackboneFacts:
    """A backbone as a packer sees it.

    Attributes:
        name: timm's name, or the stem of the file's name; never a path.
        fingerprint: "sha256:…", None where the pretrained weights could not be had.
        tensors: float32 by timm's names, None likewise.
        data: its preprocessing.
        note: why there is no fingerprint, "" where there is one.
    """

    name: str
    fingerprint: str | None
    tensors: Mapping[str, NDArray[np.float32]] | None
    data: DataSettings
    note: str


def backbone_facts(name_or_file: str | os.PathLike[str]) -> BackboneFacts:
    """Look a backbone up by timm name, or read its `.safetensors` file.

    Raises:
        AdapterPackError: as `create_backbone`.
    """
    text = os.fspath(name_or_file)
    made = create_backbone(text)
    name = Path(text).stem if text.endswith(".safetensors") else text
    if made.note:  # random numbers stand in for the pretrained weights: nothing to compare with
        return BackboneFacts(name, None, None, made.data, made.note)
    state: dict[str, Any] = made.model.state_dict()
    tensors = {key: value.detach().float().numpy() for key, value in state.items()}
    return BackboneFacts(name, fingerprint(made.model), tensors, made.data, "")
