"""A model with an adapter folded into it, as a safetensors file that timm loads, and the `.json` that describes it.

It knows timm's names and that timm's classifiers have a bias; it folds nothing itself.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from adapterpack._files import refuse_existing, write_all
from adapterpack.errors import AdapterPackError, CallError, Reason, UnsupportedAdapterError
from adapterpack.runtime.about import About, about_model, config_of
from adapterpack.runtime.attach import attached_sites
from adapterpack.runtime.backbone import require_fit, unwrap
from adapterpack.runtime.backbone_file import BackboneFile
from adapterpack.runtime.families import classifier_path, require_supported

FOLDED = "the adapter is part of the weights now: its codes, settings and metadata are gone"
Notes = tuple[str, ...]


def export_folded(
    model: nn.Module, path: str | os.PathLike[str], *, about: About | None = None, force: bool = False
) -> Notes:
    """Write the model's state dict, adapter and head included, and beside it a `.json` that says what model it is.

    The pair is what `--backbone` takes, and `timm.create_model(…, checkpoint_path=…)` loads the tensors. A head without
    a bias gets a bias of zeros, which gives the same logits, because timm's own head has one.

    Args:
        model: a timm `VisionTransformer`, usually with an adapter folded into it.
        path: of the `.safetensors` file; the `.json` has the same stem.
        about: description; by default the timm name that the model was made by. Without one there is no `.json`.
        force: replace files that are there.

    Returns:
        What was lost.

    Raises:
        UnsupportedAdapterError: `not-foldable`, naming a branch that runs beside the model and has no place in a state
            dict; `unsupported-model`, also where the description does not fit the model.
        CallError: `file-exists`, `io-error`; `bad-call` for a path that ends in `.json`.
    """
    inner, target = unwrap(model), Path(path)
    require_supported(inner)
    _require_folded(inner)
    for file in files_of(target):
        if file == target or about is not None:
            refuse_existing(file, force=force)
    tensors = _tensors(inner)
    fitting, notes = _fitting(about, inner, tensors, target)
    header = {"format": "pt", "num_classes": str(inner.num_classes)}
    if fitting is not None and fitting.architecture:
        header["architecture"] = fitting.architecture
    files = {target: save(tensors, metadata=header)}
    if fitting is not None:
        text = json.dumps(config_of(fitting, int(inner.num_classes)), indent=1, ensure_ascii=False)  # type: ignore[arg-type]
        files[target.with_suffix(".json")] = text.encode() + b"\n"
    write_all(files, force=force)
    bias = f"{classifier_path(inner)}.bias"
    zeros = bias in tensors and bias not in inner.state_dict()
    return (FOLDED, *notes, *["the head has no bias: zeros are written in its place"] * zeros)


def files_of(path: Path) -> tuple[Path, ...]:
    """What `export_folded` writes to.

    Raises:
        CallError: `bad-call`, the two would be one.
    """
    beside = path.with_suffix(".json")
    if beside == path:
        raise CallError(f"{path} is where the description goes", Reason.BAD_CALL, hint="name a .safetensors file")
    return path, beside


def _require_folded(model: nn.Module) -> None:
    beside = attached_sites(model)
    if beside:
        text = f"the branch at {beside[0]} runs beside the model" + (
            f", as {len(beside) - 1} others do" * (len(beside) > 1)
        )
        hint = 'load a method that folds, with fold="auto", or export to .onnx'
        raise UnsupportedAdapterError(text, Reason.NOT_FOLDABLE, beside[0], hint)


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    path = classifier_path(model)
    head = tensors.get(f"{path}.weight")
    if head is not None and f"{path}.bias" not in tensors:
        tensors[f"{path}.bias"] = torch.zeros(head.shape[0], dtype=head.dtype)
    return tensors


def _fitting(
    about: About | None, model: nn.Module, tensors: dict[str, torch.Tensor], path: Path
) -> tuple[About | None, Notes]:
    """The description, if a model made by it takes these tensors; what a model says of itself may be out of date."""
    said = about or about_model(model)
    if said.kwargs is None:
        return None, ("there is no .json: what makes such a model is not known, so --backbone needs one by hand",)
    head = tensors.get(f"{classifier_path(model)}.weight")
    classes = 0 if head is None else int(head.shape[0])
    kwargs = {name: value for name, value in said.kwargs.items() if name != "num_classes"}
    try:
        require_fit(BackboneFile(path, said.architecture, kwargs, classes, {}, tensors))
    except AdapterPackError as error:
        if about is not None:
            raise
        return None, (f"there is no .json: the model is no {said.architecture} any more ({error.message})",)
    return replace(said, kwargs=kwargs), ()
