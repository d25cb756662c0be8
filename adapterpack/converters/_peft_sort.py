"""The tensors of a PEFT folder told apart by their names: adapters' parts, the model's own parameters, copies.

Knows how PEFT ends its names, not what a module is; see `hf_names` for that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from adapterpack.converters._folder import unexplained
from adapterpack.converters._peft_branches import Roles
from adapterpack.converters.peft_config import PeftConfig
from adapterpack.tensors import Dense

ROOT = "base_model.model."
_NAME = 255
# a tensor's name ends in one of these; the rest is the module
_ENDS = (
    (r"lora_A\.weight", "A"),
    (r"lora_B\.weight", "B"),
    (r"lora_B\.bias", "B_bias"),
    (r"lora_magnitude_vector(?:\.weight)?", "magnitude"),
    (r"vera_lambda_b", "b"),
    (r"vera_lambda_d", "d"),
    (r"ia3_l", "ia3"),
)
WANTED = {"LORA": ("A", "B"), "VERA": ("b", "d"), "IA3": ("ia3",)}
CALLED = {"A": "lora_A.weight", "B": "lora_B.weight", "b": "vera_lambda_b", "d": "vera_lambda_d", "ia3": "ia3_l"}


@dataclass(frozen=True, slots=True, eq=False)
class Sorted:
    """A folder's tensors by what they are.

    Attributes:
        adapted: by module, then by part ("A", "B", "B_bias", "magnitude", "b", "d", "ia3").
        plain: parameters of the model itself: by module, then "weight" or "bias".
        copies: what PEFT saved a second time: by (module, role), the tensor and whether it is the untrained one.
        shared: VeRA's projections, "A" and "B".
    """

    adapted: dict[str, Roles] = field(default_factory=dict)
    plain: dict[str, Roles] = field(default_factory=dict)
    copies: dict[tuple[str, str], tuple[Dense, bool]] = field(default_factory=dict)
    shared: Roles = field(default_factory=dict)


def sort_tensors(tensors: Mapping[str, Dense], config: PeftConfig) -> Sorted:
    """Tell the tensors apart by their names.

    Raises:
        CorruptFileError: `unmapped-tensor` naming the first that is of no known kind, or of another than `peft_type`.
    """
    found = Sorted()
    for name, tensor in tensors.items():
        if name in ("base_model.vera_A", "base_model.vera_B") and config.type == "VERA":
            found.shared[name[-1]] = tensor
        elif not name.startswith(ROOT) or len(name) > _NAME:
            raise unexplained(name, f"expected names that begin {ROOT}")
        else:
            _sort_one(name, name.removeprefix(ROOT), tensor, config, found)
    return found


def _sort_one(name: str, path: str, tensor: Dense, config: PeftConfig, found: Sorted) -> None:
    for ending, part in _ENDS:
        match = re.fullmatch(rf"(.+)\.{ending}", path)
        if match is not None:
            _require_part(name, part, config)
            found.adapted.setdefault(match[1], {})[part] = tensor
            return
    within = re.fullmatch(r"(.+)\.(?:(original_module)|modules_to_save\.\w+)\.(.+)\.(weight|bias)", path)
    if within is not None and config.bias == "all":  # of a saved module's own modules
        found.copies[f"{within[1]}.{within[3]}", within[4]] = tensor, within[2] is not None
        return
    match = re.fullmatch(r"(.+?)(?:\.(base_layer|original_module|modules_to_save))?\.(weight|bias)", path)
    if match is None or re.search(r"\.(lora|vera|ia3|modules_to_save|original_module)(_|\.|$)", match[1]):
        raise unexplained(name, "save with save_pretrained, which leaves the adapter's own name out")
    if match[2] in ("original_module", "modules_to_save"):
        found.copies[match[1], match[3]] = tensor, match[2] == "original_module"
    else:
        found.plain.setdefault(match[1], {})[match[3]] = tensor


def _require_part(name: str, part: str, config: PeftConfig) -> None:
    if part in WANTED[config.type]:
        return
    switches = {"B_bias": ("lora_bias", config.lora_bias), "magnitude": ("use_dora", config.dora)}
    setting, on = switches.get(part, ("peft_type", False))
    if not on or config.type != "LORA":
        raise unexplained(name, f"{setting} is {config.values.get(setting)!r}")
