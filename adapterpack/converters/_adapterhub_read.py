"""The tensors of an AdapterHub folder to branches and a head, every one of them explained or refused by name.

Arrays in, nouns out. What the settings mean is in `_adapterhub_config`, the modules' names are in `hf_names`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from adapterpack.adapter import Branch, Site
from adapterpack.converters._adapterhub_config import HubConfig
from adapterpack.converters._backbones import depth_of
from adapterpack.converters._folder import missing, unexplained
from adapterpack.converters.hf_names import HEAD, names_of
from adapterpack.errors import CorruptFileError, Reason
from adapterpack.tensors import F32, Dense, Tensor

Roles = dict[str, Dense]
_LORA = re.compile(r"(.+)\.loras\.([^.]+)\.(lora_A|lora_B)")
_BOTTLENECK = re.compile(
    r"(?:vit\.|vision_model\.)?encoder\.layers?\.(0|[1-9][0-9]{0,3})\.(?:output\.)?(attention_adapters|output_adapters)"
    r"\.adapters\.([^.]+)\.(adapter_down\.0\.weight|adapter_down\.0\.bias|adapter_up\.weight|adapter_up\.bias|scaling)"
)
_ROLES = {
    "adapter_down.0.weight": "down",
    "adapter_up.weight": "up",
    "adapter_down.0.bias": "down_bias",
    "adapter_up.bias": "up_bias",
    "scaling": "scaling",
}
_PARTS = {"lora": ("lora_A", "lora_B"), "ia3": ("lora_B",)}


def branches_of(
    tensors: Mapping[str, Dense], config: HubConfig, backbone: Mapping[str, F32] | None
) -> tuple[Branch, ...]:
    """The branches.

    Args:
        tensors: of the adapter's file.
        config: its settings.
        backbone: the frozen model's tensors by timm's names, or None.

    Raises:
        CorruptFileError: `unmapped-tensor`, `missing-tensor`, `conflicting-settings`, `bad-shape`, naming the tensor.
    """
    sites = _lora_sites(tensors, config) if config.kind in _PARTS else _bottleneck_sites(tensors, config)
    blocks = dict.fromkeys(sites)
    depth = depth_of(backbone) if backbone is not None else max(depth_of(blocks), *(i + 1 for i in config.leave_out), 0)
    wanted = {site for block in range(depth) for site in config.sites(block)}
    for site in sorted(wanted ^ sites.keys()):
        if site in wanted:
            raise missing(site, "the settings name this place")
        raise CorruptFileError(f"{site} has an adapter that the settings do not name", Reason.UNMAPPED_TENSOR)
    if config.kind == "lora":
        return tuple(_lora(site, roles, config) for site, roles in sites.items())
    if config.kind == "ia3":
        return tuple(_ia3(site, roles, config) for site, roles in sites.items())
    return tuple(_bottleneck(site, roles, config) for site, roles in sites.items())


def _lora_sites(tensors: Mapping[str, Dense], config: HubConfig) -> dict[str, Roles]:
    found: dict[str, Roles] = {}
    for name, tensor in tensors.items():
        match = _LORA.fullmatch(name) if len(name) <= 255 else None
        if match is None or match[3] not in _PARTS[config.kind]:
            raise unexplained(name, f"expected {' and '.join(_PARTS[config.kind])} of {config.name}")
        _require_name(match[2], config)
        found.setdefault(match[1], {})[match[3]] = tensor
    names = names_of(found, config.model_class)
    return {names.site(module) or HEAD: roles for module, roles in found.items()}


def _bottleneck_sites(tensors: Mapping[str, Dense], config: HubConfig) -> dict[str, Roles]:
    found: dict[str, Roles] = {}
    for name, tensor in tensors.items():
        match = _BOTTLENECK.fullmatch(name)
        if match is None:
            raise unexplained(name, "expected adapter_down.0 and adapter_up of attention_adapters or output_adapters")
        _require_name(match[3], config)
        site = f"blocks.{match[1]}.{config.places[match[2] == 'output_adapters']}"
        if _ROLES[match[4]] in found.setdefault(site, {}):
            raise CorruptFileError(f"{name} is there twice", Reason.DUPLICATE_NAME)
        found[site][_ROLES[match[4]]] = tensor
    return found


def _require_name(found: str, config: HubConfig) -> None:
    if found != config.name:
        message = f"the tensors are of {found[:80]!r}, the settings of {config.name[:80]!r}"
        raise CorruptFileError(message, Reason.CONFLICTING_SETTINGS, hint="save the adapter again")


def _lora(site: str, roles: Roles, config: HubConfig) -> Branch:
    _require(site, roles, ("lora_A", "lora_B"))
    down, up = roles["lora_A"], roles["lora_B"]
    if not down.shape or down.shape[0] != config.values["r"]:
        message = f"lora_A at {site} has shape {list(down.shape)}, and r is {config.values['r']}"
        raise CorruptFileError(message, Reason.CONFLICTING_SETTINGS, config.name)
    scale = float(config.values["alpha"]) / config.values["r"]
    return Branch(Site.parse(site), "lora", {"scale": scale}, {"down": down, "up": up})


def _ia3(site: str, roles: Roles, config: HubConfig) -> Branch:
    _require(site, roles, ("lora_B",))
    vector = roles["lora_B"].dense()
    if vector.ndim != 2 or vector.shape[1] != 1:
        raise CorruptFileError(f"lora_B at {site} has shape {list(vector.shape)}, expected [out, 1]", Reason.BAD_SHAPE)
    factor: Tensor = Dense(vector.reshape(-1) * np.float32(config.values["alpha"]))
    return Branch(Site.parse(site), "affine", {"tap": "output"}, {"factor": factor})


def _bottleneck(site: str, roles: Roles, config: HubConfig) -> Branch:
    learned = config.values["scaling"] in ("learned", "channel")
    _require(site, roles, ("down", "up", "down_bias", "up_bias", *(["scaling"] if learned else [])))
    if not learned and "scaling" in roles:
        raise CorruptFileError(f"there is a scaling at {site}, and scaling is a number", Reason.CONFLICTING_SETTINGS)
    block = Site.parse(site).block or 0
    down, up = roles["down"], roles["up"]
    hidden = config.hidden(block, down.shape[-1] if down.shape else 0)
    if not down.shape or down.shape[0] != hidden:
        message = f"adapter_down at {site} has shape {list(down.shape)}, and reduction_factor says {hidden} rows"
        raise CorruptFileError(message, Reason.CONFLICTING_SETTINGS, config.name)
    scale, tensors = _scaled(site, {**roles, "up": up}, config)
    if config.kind == "residual" and config.nonlinearity == "relu":
        return Branch(Site.parse(site), "adaptformer", {"scale": scale}, tensors)
    params = {"nonlinearity": config.nonlinearity, "scale": scale, "tap": config.kind}
    return Branch(Site.parse(site), "adapter", params, tensors)


def _scaled(site: str, roles: Roles, config: HubConfig) -> tuple[float, dict[str, Tensor]]:
    """The factor and the tensors; a factor a channel goes into `up` and its bias."""
    kept: dict[str, Tensor] = {role: tensor for role, tensor in roles.items() if role != "scaling"}
    if "scaling" not in roles:
        return float(config.values["scaling"]), kept
    factor, up, bias = roles["scaling"].dense(), roles["up"].dense(), roles["up_bias"].dense()
    if factor.shape == (1,):
        return float(factor[0]), kept
    if up.ndim != 2 or factor.shape != (len(up),) or bias.shape != factor.shape:
        message = f"scaling at {site} has shape {list(factor.shape)}, adapter_up {list(up.shape)}"
        raise CorruptFileError(message, Reason.BAD_SHAPE)
    return 1.0, {**kept, "up": Dense(factor[:, None] * up), "up_bias": Dense(factor * bias)}


def _require(site: str, roles: Roles, wanted: tuple[str, ...]) -> None:
    for role in wanted:
        if role not in roles:
            raise missing(f"{role} at {site}", "the file is incomplete")
