"""What an exported model says of itself: task, class names, preprocessing, and how its architecture is made again.

It knows the words, not the files that they go into.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from adapterpack.adapter import DataSettings
from adapterpack.runtime.backbone import Created
from adapterpack.runtime.backbone_file import read_description
from adapterpack.runtime.load import Loaded

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class About:
    """A model's description.

    Attributes:
        task: the adapter's name, "" where none is in the model.
        labels: class names in the order of the logits.
        data: the preprocessing.
        backbone: timm's name of the backbone, or its file's stem.
        architecture: timm's name of the architecture, "" for a plain `VisionTransformer`.
        kwargs: arguments of its constructor besides the number of classes; None where they are not known.
    """

    task: str = ""
    labels: tuple[str, ...] | None = None
    data: DataSettings | None = None
    backbone: str = ""
    architecture: str = ""
    kwargs: Mapping[str, Any] | None = field(default=None)

    def plain(self) -> dict[str, str]:
        """Short texts by name, lists and settings as JSON; for formats whose metadata is text."""
        found = {
            "task": self.task,
            "backbone": self.backbone,
            "architecture": self.architecture,
            "labels": json.dumps(list(self.labels), ensure_ascii=False) if self.labels else "",
            "data": json.dumps(asdict(self.data), sort_keys=True) if self.data else "",
        }
        return {name: text for name, text in found.items() if text}


def about_model(model: nn.Module) -> About:
    """What a model says by itself: the timm name that it was made by, where it was."""
    config = getattr(model, "pretrained_cfg", None) or {}
    name = config.get("architecture") if isinstance(config, Mapping) else getattr(config, "architecture", None)
    return About(architecture=str(name), kwargs={}) if name else About()


def about_loaded(loaded: Loaded, made: Created, backbone: str) -> About:
    """What is known of an adapter in a backbone.

    Args:
        loaded: the adapter.
        made: the backbone.
        backbone: the timm name or the `.safetensors` file that it was made of.
    """
    own = about_model(made.model)
    name, architecture, kwargs = backbone, own.architecture, own.kwargs
    if backbone.endswith(".safetensors"):
        name = Path(backbone).stem
        architecture, kwargs = read_description(Path(backbone))
    return About(loaded.task, loaded.labels, loaded.data or made.data, name, architecture, kwargs)


def config_of(about: About, classes: int) -> Json:
    """The `.json` beside a backbone's tensors, in the fields of timm's own configurations."""
    config: Json = {"architecture": about.architecture} if about.architecture else {}
    config |= {"num_classes": classes, "timm_kwargs": dict(about.kwargs or {})}
    if about.data is not None:
        config["pretrained_cfg"] = asdict(about.data)
    if about.labels is not None:
        config["label_names"] = list(about.labels)
    return config
