"""Which of the `adapters` library's vision models an adapter belongs to, and how that model names its layers.

The library has Hugging Face's ViT and CLIP's vision model. A file says which it came from in its metadata, else its
backbone's name tells; one that is known to be of neither has no model there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from adapterpack.adapter import Adapter
from adapterpack.converters.hf_names import NAMINGS, Names
from adapterpack.errors import CorruptFileError, Reason, UnsupportedAdapterError

FORMAT = "adapterhub"
ATTENTION, OUTPUT = "attention", "output"  # its two places for a bottleneck


@dataclass(frozen=True, slots=True)
class Model:
    """One model of the library.

    Attributes:
        word: one of `hf_names.NAMINGS`.
        type: its `model_type`.
        bare: its class without a classifier.
        classifier: its class with one, "" where it has none.
        layer: the name of a block, with `{}` for its number.
        stems: what the names of a bottleneck's tensors have after that, by place.
    """

    word: str
    type: str
    bare: str
    classifier: str
    layer: str
    stems: Mapping[str, str]

    @property
    def names(self) -> Names:
        """Its modules' names, as in a model with a classifier."""
        return NAMINGS[self.word][0]

    def of_class(self, *, head: bool) -> str:
        """The class that an adapter with or without a head is for.

        Raises:
            UnsupportedAdapterError: `not-expressible`.
        """
        if head and not self.classifier:
            text = f"a head for {self.bare}, which has no classifier"
            raise UnsupportedAdapterError(
                text, Reason.NOT_EXPRESSIBLE, hint="unpack to peft, checkpoint or safetensors"
            )
        return self.classifier if head else self.bare

    @property
    def metadata(self) -> dict[str, Any]:
        """What an adapter that came from there keeps of it; nothing for ViT, the usual one."""
        return {} if self is VIT else {"source": {"format": FORMAT, "names": self.word}}


VIT = Model(
    "vit", "vit", "ViTModel", "ViTForImageClassification", "vit.encoder.layer.{}",
    {ATTENTION: "attention_adapters", OUTPUT: "output.output_adapters"},
)  # fmt: skip
CLIP = Model(
    "clip", "clip_vision_model", "CLIPVisionModel", "", "vision_model.encoder.layers.{}",
    {ATTENTION: "attention_adapters", OUTPUT: "output_adapters"},
)  # fmt: skip
MODELS = {model.type: model for model in (VIT, CLIP)}
_WORDS = {"timm": VIT, "vit": VIT, "vit5": VIT, "clip": CLIP}
_OTHERS = re.compile(r"beit|dinov[23]|distilled|(?:^|[/_-])eva|siglip", re.IGNORECASE)
_CLIPS = re.compile(r"(?:^|[/_-])clip(?:[/_-]|$)", re.IGNORECASE)


def model_in(names: Iterable[str]) -> Model:
    """The model that a folder's tensors are named for: CLIP's alone has `encoder.layers`."""
    return CLIP if any("encoder.layers." in name for name in names) else VIT


def model_of(adapter: Adapter) -> Model:
    """The model that an adapter came from, else the one that its backbone's name tells, else ViT.

    Raises:
        UnsupportedAdapterError: `not-expressible` for a model that the library has not.
        CorruptFileError: `bad-field`, metadata that were edited.
    """
    source = adapter.metadata.get("source")
    said = source.get("names") if isinstance(source, Mapping) and source.get("format") in (FORMAT, "peft") else None
    if said is not None:
        return _by_word(said)
    name = adapter.backbone.name
    if _OTHERS.search(name):
        raise _none(f"{name[:80]!r}")
    return CLIP if _CLIPS.search(name) else VIT


def _by_word(said: Any) -> Model:
    if not isinstance(said, str) or said not in NAMINGS:
        message = f"there are no names {str(said)[:80]!r}"
        raise CorruptFileError(message, Reason.BAD_FIELD, "metadata.source", f"expected one of {', '.join(NAMINGS)}")
    if said not in _WORDS:
        raise _none(f"a model with the names of {said}")
    return _WORDS[said]


def _none(what: str) -> UnsupportedAdapterError:
    text = f"the adapters library has no model for {what}: it has {VIT.bare} and {CLIP.bare}"
    return UnsupportedAdapterError(text, Reason.NOT_EXPRESSIBLE, hint="unpack to peft, checkpoint or safetensors")
