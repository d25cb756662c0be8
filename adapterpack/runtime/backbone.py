"""Frozen backbones: made from a timm name or from a file, and told apart from models that no adapter fits.

The only module that imports timm. It knows how a backbone comes to be, not what a site in it is (see `places`).
"""

from __future__ import annotations

import difflib
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub.constants as hub
import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.models import VisionTransformer, is_model, is_model_pretrained, list_models
from torch import nn

from adapterpack.adapter import DataSettings
from adapterpack.errors import CallError, CorruptFileError, Reason, UnsupportedAdapterError
from adapterpack.runtime.backbone_file import BackboneFile, read_backbone_file
from adapterpack.runtime.families import require_supported

# What timm 0.4 called a model and its ImageNet-21k weights, which today is a tag; the plain name now has other weights.
_OLD_NAMES = {
    "vit_base_patch16_224_in21k": "vit_base_patch16_224.orig_in21k",
    "vit_base_patch32_224_in21k": "vit_base_patch32_224.orig_in21k",
    "vit_large_patch32_224_in21k": "vit_large_patch32_224.orig_in21k",
    "vit_huge_patch14_224_in21k": "vit_huge_patch14_224.orig_in21k",
}
_PROBE_SECONDS = 5.0
# in these ways timm and torch refuse the arguments of a model
_CANNOT = (
    TypeError,
    ValueError,
    RuntimeError,
    AssertionError,
    ArithmeticError,
    LookupError,
    AttributeError,
    MemoryError,
)


class Created(NamedTuple):
    """A new backbone: the model in eval mode, its preprocessing, and a note for the user ("" where all is well)."""

    model: nn.Module
    data: DataSettings
    note: str


def create_backbone(name_or_file: str | Path, *, pretrained: bool = True, seed: int = 0) -> Created:
    """A frozen backbone by timm name, or from a `.safetensors` file with a `.json` beside it.

    Where the pretrained weights cannot be had (no network, none published, or not asked for), the weights are random
    numbers that depend on `seed` alone, and the note says so.

    Args:
        name_or_file: a timm model name, an old timm name of a published adapter, or a path that ends in `.safetensors`.
        pretrained: False for random weights.
        seed: of the random weights; the global random state is left alone.

    Raises:
        MissingFileError: `missing-file`, no such file, or no `.json` beside it.
        CorruptFileError: `bad-source` or `bad-field`, a file that cannot be read.
        CallError: `unknown-source`, no such timm name.
        UnsupportedAdapterError: `unsupported-model`, no vision transformer, or weights that do not fit it.
    """
    if str(name_or_file).endswith(".safetensors"):
        file = read_backbone_file(Path(name_or_file))
        model = _from_file(file)
        return Created(_frozen(model), _file_settings(model, file), "")
    name = _OLD_NAMES.get(str(name_or_file), str(name_or_file))
    _require_known(name)
    found, note = _pretrained(name) if pretrained else (None, f"{name} without its published weights")
    model = _random(name, seed) if found is None else found
    if found is None:
        note += f": it has random weights (seed {seed})"
    require_supported(model)
    return Created(_frozen(model), data_settings(_config_of(model)), note)


def unwrap(model: nn.Module) -> nn.Module:
    """The module under `torch.compile`, or the model itself."""
    inner = getattr(model, "_modules", {}).get("_orig_mod")  # asked of the module itself, torch would search long
    return model if inner is None else inner


def require_vit(model: nn.Module) -> None:
    """Refuse a model that is no timm `VisionTransformer` with one head.

    Raises:
        UnsupportedAdapterError: `unsupported-model`.
    """
    if not isinstance(model, VisionTransformer):
        inner = getattr(model, "module", None)
        hint = "pass model.module" if isinstance(inner, VisionTransformer) else "expected a timm VisionTransformer"
        raise UnsupportedAdapterError(f"the model is a {type(model).__name__}", Reason.UNSUPPORTED_MODEL, hint=hint)
    if getattr(model, "head_dist", None) is not None:
        raise UnsupportedAdapterError(
            "the model has two heads, head and head_dist", Reason.UNSUPPORTED_MODEL, hint="use the undistilled variant"
        )


def _require_known(name: str) -> None:
    base = name.split(".")[0]
    if is_model(name) and (base == name or is_model_pretrained(name)):
        return
    families = ["vit_*", "deit*", "flexivit*", "swin*", "convnext*", "eva*", "beit*", "cait*"]
    near = [*_OLD_NAMES, *list_models(families), *list_models(families, pretrained=True)]
    close = list(dict.fromkeys(difflib.get_close_matches(name, near, n=4, cutoff=0.5)))
    hint = f"nearest: {', '.join(close)}" if close else "see timm.list_models('vit*')"
    raise CallError(f"timm has no model {name!r}", Reason.UNKNOWN_SOURCE, hint=f"{hint}; a file ends in .safetensors")


def _pretrained(name: str) -> tuple[nn.Module | None, str]:
    """The model with its published weights, or None and why not."""
    if not is_model_pretrained(name):
        return None, f"no weights of {name} are published"
    unreachable = f"the weights of {name} cannot be downloaded"
    online = _hub_answers()
    if not online and not _in_cache(name):
        return None, unreachable
    with _hub_offline_unless(online), torch.random.fork_rng(devices=[]):
        try:
            return timm.create_model(name, pretrained=True), ""
        except OSError:  # what the hub client and urllib raise where neither network nor cache has the file
            return None, unreachable


def _in_cache(name: str) -> bool:
    """Whether trying without a network could succeed; saves making a model in vain."""
    config = timm.get_pretrained_cfg(name)
    hub_id = config.hf_hub_id if config is not None else None
    return not hub_id or (Path(hub.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}").is_dir()


def _hub_answers() -> bool:
    """One short request, because the hub client would retry for most of a minute before it gives up."""
    try:
        with urllib.request.urlopen(urllib.request.Request(hub.ENDPOINT, method="HEAD"), timeout=_PROBE_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


@contextmanager
def _hub_offline_unless(reachable: bool) -> Iterator[None]:
    """Without a network the hub client looks into its cache only, at once."""
    before = hub.HF_HUB_OFFLINE
    hub.HF_HUB_OFFLINE = before or not reachable
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before


def _random(name: str, seed: int) -> nn.Module:
    """Random weights in half the time that timm's own truncated normal takes."""
    model = _empty(lambda: timm.create_model(name))
    randomise(model, seed)
    return model


def _empty(make: Callable[[], nn.Module]) -> nn.Module:
    """A model whose parameters are memory not yet written, which saves drawing numbers that are then replaced."""
    with torch.device("meta"):
        model = make()
    if any(True for _ in model.buffers()):  # tables that only the constructor knows
        with torch.random.fork_rng(devices=[]):
            return make()
    return model.to_empty(device="cpu")


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> None:
    """Fill every parameter: matrices and embeddings normal with deviation 0.02, the rest as torch resets it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for module in model.modules():
            if not isinstance(module, (nn.Linear, nn.Conv2d)) and hasattr(module, "reset_parameters"):
                module.reset_parameters()  # type: ignore[operator]  # norms and layer scales: constants
                continue
            for key, value in module.named_parameters(recurse=False):
                if key == "bias":
                    value.zero_()
                else:
                    value.normal_(std=0.02)


def _from_file(found: BackboneFile) -> nn.Module:
    model = require_fit(found)
    model.load_state_dict(dict(found.tensors))
    return model


def require_fit(found: BackboneFile) -> nn.Module:
    """The model that a description makes, its parameters not yet written, if the tensors fit it.

    Raises:
        CorruptFileError: `bad-field` or `unknown-source`, timm cannot make it.
        UnsupportedAdapterError: `unsupported-model`, naming a tensor of another shape.
    """
    kwargs: dict[str, Any] = {**found.kwargs, "num_classes": found.classes}

    def make() -> nn.Module:
        if found.architecture:
            return timm.create_model(found.architecture, **kwargs)
        return VisionTransformer(**kwargs)

    try:
        if found.architecture:
            _require_known(found.architecture)
        model = _empty(make)
    except CallError as error:
        raise CorruptFileError(f"{found.path}: {error.message}", Reason.UNKNOWN_SOURCE, hint=error.hint) from error
    except _CANNOT as error:
        text = f"{found.path}: timm cannot make {found.architecture or 'VisionTransformer'}: {error}"
        hint = f"correct timm_kwargs or architecture in {found.path.with_suffix('.json').name}"
        raise CorruptFileError(text, Reason.BAD_FIELD, hint=hint) from error
    require_supported(model)
    _require_shapes(model, found)
    return model


def _require_shapes(model: nn.Module, found: BackboneFile) -> None:
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in found.tensors.items()}
    wrong = sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name))
    if wrong:
        name = wrong[0]
        text = f"{found.path}: {name} has shape {given.get(name)}, expected {expected.get(name)}"
        more = f", nor do {len(wrong) - 1} others" if len(wrong) > 1 else ""
        raise UnsupportedAdapterError(text, Reason.UNSUPPORTED_MODEL, hint=f"it does not fit the .json{more}")


def _frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False).eval()


def _file_settings(model: nn.Module, found: BackboneFile) -> DataSettings:
    """timm's settings of the architecture where it has one, then what the `.json` says."""
    base: dict[str, Any] = _config_of(model) if found.architecture else {}
    size = getattr(model._modules.get("patch_embed"), "img_size", None)
    if size is not None or not base:  # families without positions take images of any size: as timm's settings say
        base["input_size"] = (getattr(model, "in_chans", 3), *(size or (224, 224)))
    plain = {} if found.architecture else {"crop_pct": 1.0, "crop_mode": "squash"}
    return data_settings({**base, **plain, **found.data})


def _config_of(model: nn.Module) -> dict[str, Any]:
    return dict(resolve_model_data_config(model))  # type: ignore[no-untyped-call]


def settings_of(model: nn.Module) -> DataSettings:
    """The preprocessing that timm records for a model, at the size of input that the model takes."""
    size = getattr(model._modules.get("patch_embed"), "img_size", None)
    config = _config_of(model)
    return data_settings({**config, "input_size": (getattr(model, "in_chans", 3), *size)} if size else config)


def data_settings(config: Mapping[str, Any]) -> DataSettings:
    """timm's data configuration (`input_size`, `mean`, `std`, …) as our noun."""
    default = DataSettings()
    return DataSettings(
        input_size=tuple(config.get("input_size", default.input_size)),
        mean=tuple(map(float, config.get("mean", default.mean))),
        std=tuple(map(float, config.get("std", default.std))),
        interpolation=re.sub("random", "bicubic", str(config.get("interpolation", default.interpolation))),
        crop_pct=float(config.get("crop_pct") or default.crop_pct),
        crop_mode="squash" if config.get("crop_mode") == "squash" else "center",
    )
