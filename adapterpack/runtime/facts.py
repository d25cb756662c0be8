"""What packing wants to know of a backbone: its public name, its fingerprint, its tensors, and what fits into it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from adapterpack.adapter import Adapter, DataSettings
from adapterpack.converters._base import Hints
from adapterpack.errors import CallError, Reason
from adapterpack.runtime.backbone import create_backbone
from adapterpack.runtime.families import features_of
from adapterpack.runtime.fingerprint import fingerprint
from adapterpack.runtime.plan import check_head, plan


@dataclass(frozen=True, slots=True, eq=False)
class BackboneFacts:
    """A backbone as a packer sees it.

    Attributes:
        name: timm's name, or the stem of the file's name; never a path.
        fingerprint: "sha256:…", None where the pretrained weights could not be had.
        tensors: float32 by timm's names, None likewise.
        data: its preprocessing.
        note: why there is no fingerprint, "" where there is one.
        model: its modules and shapes; on the meta device where its weights could not be had.
    """

    name: str
    fingerprint: str | None
    tensors: Mapping[str, NDArray[np.float32]] | None
    data: DataSettings
    note: str
    model: nn.Module

    def require_fit(self, adapter: Adapter) -> None:
        """Refuse an adapter that could not be loaded into this backbone, by name and shape; no value is looked at.

        Raises:
            UnsupportedAdapterError: as `plan` and `check_head`.
        """
        plan(adapter, self.model, "never")
        check_head(adapter, features_of(self.model))

    def added_to(self, hints: Hints) -> Hints:
        """What a caller said of a source, and what is known of its backbone.

        Raises:
            CallError: `bad-call`, a fine-tuned model is to be compared with weights that could not be had.
        """
        if "as" in hints.settings and self.tensors is None:
            why = self.note.rpartition(": ")[0]
            text = f"--as (the setting as) compares with the backbone's weights, and {why}"
            hint = "give them as a file: --backbone (backbone=) NAME.safetensors, its .json beside it"
            raise CallError(text, Reason.BAD_CALL, hint=hint)
        known = replace(hints, backbone_name=self.name, fingerprint=self.fingerprint)
        return replace(known, data=self.data, backbone=self.tensors)


def backbone_facts(name_or_file: str | os.PathLike[str]) -> BackboneFacts:
    """Look a backbone up by timm name, or read its `.safetensors` file.

    Raises:
        AdapterPackError: as `create_backbone`.
    """
    text = os.fspath(name_or_file)
    made = create_backbone(text)
    name = Path(text).stem if text.endswith(".safetensors") else text
    if made.note:  # random numbers stand in for the pretrained weights: nothing to compare with
        return BackboneFacts(name, None, None, made.data, made.note, made.model.to("meta"))
    state: dict[str, Any] = made.model.state_dict()
    tensors = {key: value.detach().float().numpy() for key, value in state.items()}
    return BackboneFacts(name, fingerprint(made.model), tensors, made.data, "", made.model)
