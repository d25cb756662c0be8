"""What a PEFT folder's `adapter_config.json` says: every setting is honoured, has no effect on the result, or refused.

Knows the settings of LoRA, VeRA and IA³ configurations, and how PEFT matches module names with them; no tensor.
Source: peft 0.21, `LoraConfig`, `VeraConfig`, `IA3Config`, `check_target_module_exists`, `get_pattern_key`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from adapterpack.converters._patterns import check_pattern
from adapterpack.errors import CorruptFileError, Reason, UnsupportedAdapterError

_LARGEST = 3.4e38  # that float32 holds
_TEXT = 255
TYPES = ("LORA", "VERA", "IA3")
# of no effect on what a trained adapter computes
_IDLE = frozenset(
    [
        "auto_mapping", "base_model_name_or_path", "inference_mode", "lora_dropout", "vera_dropout", "peft_type",
        "peft_version", "revision", "task_type", "megatron_core", "qalora_group_size", "loftq_config", "eva_config",
        "runtime_config", "d_initial", "projection_prng_key", "save_projection", "init_weights", "init_ia3_weights",
    ]
)  # fmt: skip
_HONOURED = frozenset(
    [
        "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "lora_bias", "bias", "modules_to_save",
        "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights", "use_dora",
        "feedforward_modules",
    ]
)  # fmt: skip
# refused unless they are off, and why; so is every setting that is listed nowhere
_REFUSED = {
    "fan_in_fan_out": "no layer of a vision transformer keeps its weight transposed",
    "megatron_config": "tensor-parallel layers are no timm model's",
    "layer_replication": "the backbone would need more blocks than it has",
    "trainable_token_indices": "a vision transformer has no tokens to look up",
    "target_parameters": "bare parameters have no site for a LoRA",
    "alora_invocation_tokens": "it switches the adapter on in the middle of a text",
    "use_qalora": "its inputs are pooled by group, which is no LoRA",
    "use_bdlora": "its matrices are block-diagonal in a form of their own",
}
# how LoRA's matrices may have been started without a change of the backbone's weights
_INITS = (True, None, False, "true", "gaussian", "orthogonal", "eva", "mica")


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """A checked configuration.

    Attributes:
        values: as the file has them.
        name: of the folder, for messages.
    """

    values: Mapping[str, Any]
    name: str

    @property
    def type(self) -> str:
        return str(self.values["peft_type"])

    @property
    def bias(self) -> str:
        """none, all, or only (of the adapted layers)."""
        said = self.values.get("bias") or "none"
        return "only" if said in ("lora_only", "vera_only") else str(said)

    @property
    def dora(self) -> bool:
        return bool(self.values.get("use_dora"))

    @property
    def lora_bias(self) -> bool:
        return bool(self.values.get("lora_bias"))

    @property
    def saved(self) -> tuple[str, ...]:
        """Modules that are saved whole."""
        return tuple(self.values.get("modules_to_save") or ())

    @property
    def model_class(self) -> str:
        """The class of the model that the adapter was made for, "" where it is not said."""
        mapping = self.values.get("auto_mapping")
        return str(mapping.get("base_model_class", "")) if isinstance(mapping, dict) else ""

    @property
    def library(self) -> str:
        """The module of Python that this class is from, "" likewise."""
        mapping = self.values.get("auto_mapping")
        return str(mapping.get("parent_library", "")) if isinstance(mapping, dict) else ""

    @property
    def revision(self) -> str:
        """Of the backbone on the Hub, "" for none."""
        return self.values.get("revision") or ""

    @property
    def backbone(self) -> tuple[str, bool]:
        """The backbone's hub name, "" for none; and whether a local path was left out."""
        said = self.values.get("base_model_name_or_path")
        if not isinstance(said, str) or not said:
            return "", False
        plain = len(PurePosixPath(said).parts) <= 2 and re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", said) is not None
        return (said.removeprefix("timm/"), False) if plain else ("", True)

    def rank(self, module: str) -> int:
        """The rank that the settings give a module."""
        return int(self._by_pattern("rank_pattern", module, self.values["r"]))

    def scale(self, module: str) -> float:
        """The factor of a module's LoRA."""
        alpha, rank = float(self._by_pattern("alpha_pattern", module, self.values["lora_alpha"])), self.rank(module)
        return alpha / math.sqrt(rank) if self.values.get("use_rslora") else alpha / rank

    def _by_pattern(self, name: str, module: str, default: Any) -> Any:
        table = self.values.get(name) or {}
        found = {key: value for key, value in table.items() if re.match(rf"(.*\.)?({key})$", module)}
        if len(set(found.values())) > 1:
            one, other = list(found.items())[:2]
            message = f"{name} gives {module} {one[1]} by {one[0]!r} and {other[1]} by {other[0]!r}"
            hint = "PEFT takes whichever comes first, and sorts them when it saves: leave one"
            raise CorruptFileError(message, Reason.CONFLICTING_SETTINGS, self.name, hint)
        return next(iter(found.values()), default)

    def targets(self, module: str) -> bool:
        """Whether PEFT puts an adapter on a module of this name."""
        if self._matches("exclude_modules", module) or self.saves(module):
            return False
        wanted = self.values.get("target_modules")
        if isinstance(wanted, str):
            return wanted == "all-linear" or re.fullmatch(wanted, module) is not None
        return self._matches("target_modules", module) and self._in_layers(module)

    def feeds_forward(self, module: str) -> bool:
        """Whether IA³ scales a module's input instead of its output."""
        wanted = self.values.get("feedforward_modules") or ()
        if isinstance(wanted, str):
            return re.fullmatch(wanted, module) is not None
        return any(module.endswith(name) for name in wanted)

    def saves(self, module: str) -> bool:
        """Whether a module is saved whole, by itself or within another."""
        return any(f".{name}." in f".{module}." for name in self.saved)

    def _matches(self, name: str, module: str) -> bool:
        wanted = self.values.get(name) or ()
        if isinstance(wanted, str):
            return re.fullmatch(wanted, module) is not None
        return any(f".{module}".endswith(f".{item}") for item in wanted)

    def _in_layers(self, module: str) -> bool:
        layers = self.values.get("layers_to_transform")
        if layers is None or layers == []:
            return True
        names = self.values.get("layers_pattern") or ()
        patterns = [names] if isinstance(names, str) else list(names)
        tries = [rf"(?:^|.*?\.){pattern}\.(\d+)\." for pattern in patterns] or [r".*?\.[^.]*\.(\d+)\."]
        match = next((found for found in (re.match(text, module) for text in tries) if found), None)
        return match is not None and int(match[1]) in ([layers] if isinstance(layers, int) else layers)


def checked(values: Mapping[str, Any], name: str) -> PeftConfig:
    """A configuration, when every setting in it is understood.

    Args:
        values: the file's JSON object.
        name: of the folder, for messages.

    Raises:
        UnsupportedAdapterError: `unknown-method` for another kind of adapter; `not-expressible` naming a setting that
            changes the result and has no place here.
        CorruptFileError: `unknown-field`, `missing-field`, `bad-field` naming the setting.
    """
    kind = values.get("peft_type")
    if kind not in TYPES:
        message = f"peft_type is {str(kind)[:80]!r}"
        raise UnsupportedAdapterError(message, Reason.UNKNOWN_METHOD, name, f"known: {', '.join(TYPES)}")
    for key, value in values.items():
        _check_known(key, value, name)
    if kind == "LORA":
        _check_init(values.get("init_lora_weights", True), name)
    _check_types(values, str(kind), name)
    return PeftConfig(dict(values), name)


def _check_known(key: str, value: Any, name: str) -> None:
    if key in _IDLE or key in _HONOURED or value in (None, False, "", [], {}):
        return
    if key in _REFUSED:
        message = f"{key} is {str(value)[:80]!r}"
        raise UnsupportedAdapterError(message, Reason.NOT_EXPRESSIBLE, name, _REFUSED[key])
    message = f"the setting {key} is {str(value)[:80]!r}, and what it changes is not known here"
    raise UnsupportedAdapterError(message, Reason.UNKNOWN_FIELD, name, "train without it, or update adapterpack")


def _check_init(said: Any, name: str) -> None:
    if (said.lower() if isinstance(said, str) else said) in _INITS:
        return
    message = f"init_lora_weights is {str(said)[:80]!r}, which changes the backbone's own weights before training"
    hint = "save with path_initial_model_for_weight_conversion, so that the adapter fits the published backbone"
    raise UnsupportedAdapterError(message, Reason.NOT_EXPRESSIBLE, name, hint)


def _check_types(values: Mapping[str, Any], kind: str, name: str) -> None:
    if kind != "IA3":
        _check_number(values, "r", name)
    if kind == "LORA":
        _check_number(values, "lora_alpha", name)
    for key in ("use_rslora", "use_dora", "lora_bias"):
        _check(values.get(key) in (None, True, False), key, values.get(key), name, "true or false")
    biases = (None, "none", "all", "lora_only", "vera_only")
    _check(values.get("bias") in biases, "bias", values.get("bias"), name, "none, all, lora_only or vera_only")
    for key in ("rank_pattern", "alpha_pattern"):
        table = values.get(key) or {}
        _check(isinstance(table, dict), key, table, name, "numbers by module")
        for pattern in table:
            _check_number(table, pattern, f"{name} {key}", whole=key == "rank_pattern")
            check_pattern(pattern, f"{name} {key}")
    for key in ("target_modules", "exclude_modules", "feedforward_modules", "modules_to_save", "layers_pattern"):
        _check_names(values.get(key), key, name)
    _check(values.get("target_modules") is not None, "target_modules", None, name, "a list of modules")
    revision = values.get("revision")
    _check(isinstance(revision, str | None) and len(revision or "") <= _TEXT, "revision", revision, name, "a name")
    layers = values.get("layers_to_transform")
    whole = [layers] if type(layers) is int else (layers or [])
    fine = isinstance(whole, list) and all(type(i) is int for i in whole)
    _check(fine, "layers_to_transform", layers, name, "whole numbers")


def _check_names(value: Any, key: str, name: str) -> None:
    if isinstance(value, str) and key != "modules_to_save":
        check_pattern(value, f"{name} {key}")
        return
    fine = value is None or (isinstance(value, list) and all(isinstance(item, str) and item for item in value))
    _check(fine, key, value, name, "a list of names")
    if key == "layers_pattern":
        for item in value or ():
            check_pattern(item, f"{name} {key}")


def _check_number(values: Mapping[str, Any], key: str, name: str, *, whole: bool = False) -> None:
    value = values.get(key)
    if key == "r" or whole:
        _check(type(value) is int and 0 < value < 1 << 20, key, value, name, "a whole number above 0")
    else:
        fine = type(value) in (int, float) and abs(value or 0) <= _LARGEST
        _check(fine, key, value, name, "a number that float32 can hold")


def _check(fine: bool, key: str, value: Any, name: str, expected: str) -> None:
    if not fine:
        reason = Reason.MISSING_FIELD if value is None else Reason.BAD_FIELD
        raise CorruptFileError(f"{key} is {str(value)[:80]!r}", reason, name, f"expected {expected}")
