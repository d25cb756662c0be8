"""The tensors of a PEFT folder to branches and a head, every one of them explained or refused by name.

Arrays in, nouns out. The names' meaning is in `hf_names`, the settings' in `peft_config`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from adapterpack.adapter import Branch, Head, Site
from adapterpack.converters._backbones import depth_of
from adapterpack.converters._base import Hints
from adapterpack.converters._folder import missing, unexplained
from adapterpack.converters._peft_branches import Roles, branches_at
from adapterpack.converters._peft_sort import CALLED, ROOT, WANTED, Sorted
from adapterpack.converters._peft_whole import Folder, check_targets, check_whole
from adapterpack.converters.hf_names import HEAD, OWN, Names, names_of
from adapterpack.converters.peft_config import PeftConfig
from adapterpack.errors import CorruptFileError, Reason, UnsupportedAdapterError


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """What the tensors came to."""

    branches: tuple[Branch, ...]
    head: Head | None
    names: Names
    notes: tuple[str, ...]


def read_sorted(found: Sorted, config: PeftConfig, hints: Hints) -> Read:
    """The branches and the head.

    Args:
        found: all tensors of the folder.
        config: its settings.
        hints: what the caller said; of use are `backbone` and the setting `head_bias`.

    Raises:
        CorruptFileError: `missing-tensor`, `unmapped-tensor`, `bad-shape`, `conflicting-settings`.
        UnsupportedAdapterError: `not-expressible`.
    """
    modules, backbone = [*found.adapted, *found.plain], hints.backbone
    names = names_of(modules, config.model_class, config.library)
    sites = {module: site for module in modules if (site := names.site(module)) is not None}
    depth = depth_of(backbone if backbone is not None else dict.fromkeys(sites.values()))
    _require_one_width(names, config, sites)
    folder = Folder(found, config, names, sites, depth, backbone, hints.settings)
    _check_targeted(found, config, sites)
    check_targets(folder)
    notes = [*_check_copies(found)]
    branches: list[Branch] = []
    for module, parts in found.adapted.items():
        _require_whole(module, parts, config)
        branches += branches_at(module, sites[module], parts, found.adapted, found.shared, config)
    replaced, head = _plain(found, config, sites)
    check_whole(folder)
    return Read((*branches, *replaced), head, names, (*notes, *_told(head, names, found, config)))


def _require_one_width(names: Names, config: PeftConfig, sites: Mapping[str, str]) -> None:
    """VeRA's folders do not say how many features a layer reads, which is known where all blocks have one width."""
    uneven = [site for site in sites.values() if re.match(r"\w*blocks\w*\.\d+\.\D|head|norm", site) is None]
    if config.type == "VERA" and names.family is OWN and uneven:
        message = f"VeRA at {uneven[0]}: how many features it reads is not in the folder"
        raise UnsupportedAdapterError(message, Reason.NOT_EXPRESSIBLE, config.name, "train a LoRA instead")


def _check_targeted(found: Sorted, config: PeftConfig, sites: Mapping[str, str]) -> None:
    """The tensors are those of modules that PEFT would adapt."""
    for module in found.adapted:
        if sites[module] == HEAD:
            message = f"{module} has an adapter, and the classifier's own weights are not in the folder"
            raise UnsupportedAdapterError(message, Reason.NOT_EXPRESSIBLE, hint="train it with modules_to_save")
        if not config.targets(module):
            raise unexplained(ROOT + module, "target_modules, exclude_modules or layers_to_transform leave it out")


def _require_whole(module: str, parts: Roles, config: PeftConfig) -> None:
    wanted = list(WANTED[config.type])
    if config.type == "LORA":
        wanted += ["magnitude"] * config.dora + ["B_bias"] * config.lora_bias
    for part in wanted:
        if part not in parts:
            called = {**CALLED, "magnitude": "lora_magnitude_vector", "B_bias": "lora_B.bias"}[part]
            raise missing(f"{called} of {module}", "the file is incomplete")


def _plain(found: Sorted, config: PeftConfig, sites: Mapping[str, str]) -> tuple[list[Branch], Head | None]:
    head: Roles = {}
    branches = []
    for module, roles in found.plain.items():
        for role in roles:
            _require_said(module, role, found, config)
        if sites[module] == HEAD:
            head |= roles
            continue
        for role, tensor in roles.items():
            if len(tensor.shape) != 1:
                message = f"{module}.{role} of shape {list(tensor.shape)} was trained whole, which is no adapter"
                hint = "biases, norms and the classifier can be; pack a full fine-tune from its own checkpoint"
                raise UnsupportedAdapterError(message, Reason.NOT_EXPRESSIBLE, config.name, hint)
        branches.append(Branch(Site.parse(sites[module]), "replace", {}, dict(roles)))
    _require_saved(found, config, bool(head))
    if head and "weight" not in head:
        hint = 'save it whole: modules_to_save=["head"]'
        raise CorruptFileError("the classifier has a bias and no weight", Reason.MISSING_TENSOR, config.name, hint)
    return branches, Head(head["weight"], head.get("bias")) if head else None


def _require_said(module: str, role: str, found: Sorted, config: PeftConfig) -> None:
    """A parameter of the model must be one that the settings say was trained."""
    if config.saves(module) or (role == "bias" and config.bias == "all"):
        return
    if role == "bias" and config.bias == "only" and module in found.adapted:
        return
    hint = f"modules_to_save is {list(config.saved)}, bias is {config.bias!r}"
    raise unexplained(f"{ROOT}{module}.{role}", hint)


def _require_saved(found: Sorted, config: PeftConfig, head: bool) -> None:
    for name in config.saved:
        added = name in ("classifier", "score") and head  # PEFT lists both for a classification task
        if not added and not any(f".{name}." in f".{module}." for module in found.plain):
            raise missing(f"weights of {name}", "modules_to_save names it")


def _check_copies(found: Sorted) -> list[str]:
    """With bias="all", PEFT saves the bias of a saved module three times: as it is, again, and as it was before."""
    for (module, role), (tensor, untrained) in found.copies.items():
        own = found.plain.get(module, {}).get(role)
        if own is None:
            raise unexplained(f"{ROOT}{module}.(…).{role}", "modules_to_save does not name it")
        if not untrained and not np.array_equal(own.dense(), tensor.dense()):
            message = f"{module}.{role} and {module}.modules_to_save.{role} differ"
            raise CorruptFileError(message, Reason.CONFLICTING_SETTINGS, hint="save the folder again")
    count = len(found.copies)
    return [f"dropped {count} second cop{'y' if count == 1 else 'ies'} of the saved modules' biases"] if count else []


def _told(head: Head | None, names: Names, found: Sorted, config: PeftConfig) -> list[str]:
    notes = []
    if found.shared:
        notes.append("VeRA's shared projections are written out: one LoRA for each layer")
    if any(len(parts["A"].shape) == 4 for parts in found.adapted.values() if "A" in parts):
        notes.append("the LoRA on the patch embedding is written out as a dense update")
    if head is None:
        notes.append("the folder has no classifier: the backbone's own stays")
    elif names.family.name == "Hugging Face CLIP" and config.saves("classifier"):
        notes.append(
            "the head reads the mean of the patches before the last norm: timm's global_pool='avg', final_norm=False"
        )
    return notes
