"""What an AdapterHub folder's settings say: each is honoured, has no effect on the result, or is refused by name.

Knows the settings of LoRA, IA³ and bottleneck adapters of the `adapters` library, and what they do inside its ViT and
CLIP vision layers; no tensor. Source: adapters 1.3, `LoRAConfig`, `BnConfig`, `Adapter`, `ParallelAdapter`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapterpack.converters._adapterhub_models import MODELS
from adapterpack.converters._adapterhub_taps import nonlinearity_of, refused, tap_of
from adapterpack.errors import CorruptFileError, Reason, UnsupportedAdapterError

_LAYERS = 10_000  # no encoder has so many, and a file must not make reading it long
_IDLE = frozenset(
    [
        "architecture", "dropout", "init_weights", "init_weights_seed", "dtype", "stochastic_depth", "phm_dim",
        "phm_c_init", "phm_init_range", "learn_phm", "hypercomplex_nonlinearity", "phm_rank", "phm_bias",
        "factorized_phm_W", "shared_W_phm", "shared_phm_rule", "factorized_phm_rule", "inv_adapter_reduction_factor",
        "adapter_residual_before_ln",
    ]
)  # fmt: skip
_HONOURED = {
    "lora": ("selfattn_lora", "intermediate_lora", "output_lora", "leave_out", "r", "alpha", "attn_matrices",
             "composition_mode"),
    "bottleneck": ("mh_adapter", "output_adapter", "reduction_factor", "non_linearity", "original_ln_before",
                   "original_ln_after", "is_parallel", "scaling", "residual_before_ln", "leave_out"),
}  # fmt: skip
# refused unless they are off, and why
_REFUSED = {
    "use_gating": "a gate depends on the image, so it is no fixed factor",
    "use_dora": "its weights are normalised in a form of this library's own",
    "vera_d": "its projections are random numbers outside the file",
    "vera_b": "its projections are random numbers outside the file",
    "phm_layer": "hypercomplex layers are no plain matrices",
    "ln_before": "no method here has a norm inside its branch",
    "ln_after": "no method here has a norm inside its branch",
    "inv_adapter": "invertible layers act on embeddings",
    "cross_adapter": "a vision transformer has no cross-attention",
}


@dataclass(frozen=True, slots=True)
class HubConfig:
    """A checked configuration.

    Attributes:
        values: of the adapter, as the file has them.
        name: of the adapter, which its tensors' names contain.
        kind: "lora", "ia3", or the tap of a bottleneck: "output", "sum" or "residual".
        nonlinearity: of a bottleneck, by our name; else "".
        model_class: of the model it was made for.
        backbone: its hub name, "" where none is said.
    """

    values: Mapping[str, Any]
    name: str
    kind: str
    nonlinearity: str
    model_class: str
    backbone: str

    @property
    def leave_out(self) -> tuple[int, ...]:
        return tuple(self.values.get("leave_out") or ())

    def sites(self, block: int) -> list[str]:
        """Where a block has an adapter."""
        if block in self.leave_out:
            return []
        at = f"blocks.{block}"
        if self.kind not in ("lora", "ia3"):
            attention, mlp = self.places
            return [f"{at}.{attention}"] * self._on("mh_adapter") + [f"{at}.{mlp}"] * self._on("output_adapter")
        rows = [f"{at}.attn.qkv[{part}]" for part in self.values["attn_matrices"]] * self._on("selfattn_lora")
        return rows + [f"{at}.mlp.fc1"] * self._on("intermediate_lora") + [f"{at}.mlp.fc2"] * self._on("output_lora")

    @property
    def places(self) -> tuple[str, str]:
        """Where a bottleneck at the attention is in a block, and one at the MLP."""
        return ("attn.proj", "mlp.fc2") if self.kind == "output" else ("attn", "mlp")

    def _on(self, name: str) -> int:
        return int(bool(self.values.get(name)))

    def hidden(self, block: int, width: int) -> int:
        """The hidden dimension of a bottleneck.

        Raises:
            CorruptFileError: `bad-field`.
        """
        factor = self.values["reduction_factor"]
        if isinstance(factor, Mapping):
            factor = factor.get(str(block), factor.get("default"))
        _number(factor, "reduction_factor", self.name)
        if not 1e-6 <= factor <= 1e6:
            hint = "expected one from 1e-6 to 1e6"
            raise CorruptFileError(f"reduction_factor is {factor}", Reason.BAD_FIELD, self.name, hint)
        return max(1, int(width // factor))


def checked(content: Mapping[str, Any], folder: str) -> HubConfig:
    """A folder's `adapter_config.json`, when every setting in it is understood.

    Raises:
        UnsupportedAdapterError: `unknown-method`, `unsupported-model`, `unknown-field`, or `not-expressible` naming a
            setting that changes the result and has no place here.
        CorruptFileError: `bad-field`, `missing-field`.
    """
    values, name = content.get("config"), content.get("name")
    if not isinstance(values, dict) or not isinstance(name, str):
        raise CorruptFileError(
            "config is no object, or name no text", Reason.BAD_FIELD, folder, "save the adapter again"
        )
    model = content.get("model_type")
    if model is not None and not (isinstance(model, str) and model in MODELS):
        message = f"the adapter is for a model of the type {str(model)[:80]!r}"
        raise UnsupportedAdapterError(message, Reason.UNSUPPORTED_MODEL, folder, f"known: {', '.join(MODELS)}")
    architecture = values.get("architecture")
    if architecture not in (None, "lora"):
        message = f"the architecture is {str(architecture)[:80]!r}"
        raise UnsupportedAdapterError(message, Reason.UNKNOWN_METHOD, folder, "known: lora, and bottleneck adapters")
    table = "lora" if architecture == "lora" else "bottleneck"
    for key, value in values.items():
        _check_known(key, value, _HONOURED[table], folder)
    missing = [key for key in _HONOURED[table] if key not in values]
    if missing:
        raise CorruptFileError(f"{missing[0]} is missing", Reason.MISSING_FIELD, folder, "save the adapter again")
    _check_layers(values, folder)
    kind, nonlinearity = (_lora_kind(values, folder), "") if table == "lora" else _bottleneck(values, folder)
    said = content.get("model_name")
    plain = isinstance(said, str) and said.count("/") <= 1 and said[:1] not in ("/", ".", "~") and "\\" not in said
    backbone = str(said) if plain else ""
    return HubConfig(dict(values), name, kind, nonlinearity, str(content.get("model_class", "")), backbone)


def _check_known(key: str, value: Any, honoured: tuple[str, ...], folder: str) -> None:
    if key in _IDLE or key in honoured or value in (None, False, "", [], {}):
        return
    if key in _REFUSED:
        raise refused(key, value, folder, _REFUSED[key])
    message = f"the setting {key} is {str(value)[:80]!r}, and what it changes is not known here"
    raise UnsupportedAdapterError(message, Reason.UNKNOWN_FIELD, folder, "train without it, or update adapterpack")


def _check_layers(values: Mapping[str, Any], folder: str) -> None:
    layers = values["leave_out"] or []
    if not isinstance(layers, list) or not all(type(i) is int and 0 <= i < _LAYERS for i in layers):
        raise CorruptFileError(f"leave_out is {str(layers)[:80]!r}", Reason.BAD_FIELD, folder, "expected layer numbers")


def _lora_kind(values: Mapping[str, Any], folder: str) -> str:
    rank, parts = values["r"], values["attn_matrices"]
    _number(values["alpha"], "alpha", folder)
    if type(rank) is not int or not 0 < rank < 1 << 20:
        raise CorruptFileError(f"r is {str(rank)[:80]!r}", Reason.BAD_FIELD, folder, "expected a whole number above 0")
    if not isinstance(parts, list) or any(part not in ("q", "k", "v") for part in parts):
        raise refused("attn_matrices", parts, folder, "expected some of q, k, v")
    mode = values["composition_mode"]
    if mode not in ("add", "scale") or (mode == "scale" and rank != 1):
        raise refused("composition_mode", mode, folder, "expected add, or scale with r 1")
    return "lora" if mode == "add" else "ia3"


def _bottleneck(values: Mapping[str, Any], folder: str) -> tuple[str, str]:
    """Where a bottleneck reads, and its nonlinearity."""
    if values["scaling"] not in ("learned", "channel"):
        _number(values["scaling"], "scaling", folder)
    return tap_of(values, folder), nonlinearity_of(values, folder)


def _number(value: Any, key: str, folder: str) -> None:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise CorruptFileError(f"{key} is {str(value)[:80]!r}", Reason.BAD_FIELD, folder, "expected a number")
