"""A model with an adapter in it as ONNX: one file, any batch size, labels and preprocessing in its metadata.

What runs beside the weights is exported too, because the graph is what the model computes. The only module that knows
of ONNX, which is needed for this alone.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adapterpack._files import refuse_output, write_atomic
from adapterpack.adapter import DataSettings
from adapterpack.errors import CallError, Reason, UnsupportedAdapterError
from adapterpack.runtime.about import About, about_model
from adapterpack.runtime.attach import attached_sites
from adapterpack.runtime.backbone import unwrap
from adapterpack.runtime.evaluating import evaluating
from adapterpack.runtime.families import require_supported

OPSET = 18
LARGEST = (1 << 31) - (1 << 20)  # bytes: protobuf holds less than 2 GiB; the graph itself takes the rest
Notes = tuple[str, ...]


def export_onnx(
    model: nn.Module, path: str | os.PathLike[str], *, about: About | None = None, force: bool = False
) -> Notes:
    """Write what the model computes: input `images` [batch, channels, height, width], output `logits` [batch, classes].

    The metadata has the description's texts under `adapterpack.task`, `adapterpack.labels`, ….

    Args:
        model: a timm model of a family that takes adapters; folded and attached branches are exported as they are.
        path: of the `.onnx` file; whole or not at all.
        about: description, see `About`.
        force: replace a file that is there.

    Returns:
        What was lost.

    Raises:
        UnsupportedAdapterError: `unsupported-model`; `not-expressible` for a model of 2 GiB or more, or with an
            operation that torch's exporter has no ONNX form for.
        CallError: `file-exists`, `io-error`; `missing-extra` without onnx and onnxscript.
    """
    inner = unwrap(model)
    require_supported(inner)
    require_packages()
    refuse_output(Path(path), force=force)
    size = sum(value.numel() * value.element_size() for value in inner.state_dict().values())
    if size > LARGEST:
        text = f"the model has {size:,} bytes, an ONNX file holds {LARGEST:,}"
        raise UnsupportedAdapterError(text, Reason.NOT_EXPRESSIBLE, hint="export to .safetensors, or load in half")
    write_atomic(path, _serialised(inner, about or about_model(inner)), force=force)
    beside = len(attached_sites(inner))
    what = "the graph" if beside else "the weights"
    return (f"the adapter is part of {what} now: its codes, settings and metadata are gone",)


def require_packages() -> None:
    """Refuse early where what writes ONNX is not installed.

    Raises:
        CallError: `missing-extra`.
    """
    for name in ("onnx", "onnxscript"):
        if find_spec(name) is None:
            raise CallError(
                f"exporting ONNX needs {name}", Reason.MISSING_EXTRA, hint="pip install 'adapterpack[export]'"
            )


def _serialised(model: nn.Module, about: About) -> bytes:
    like = next(model.parameters())
    # two images: a batch of one would be taken for a constant
    images = torch.zeros(2, *_input_size(model, about), device=like.device, dtype=like.dtype)
    with evaluating(model), _quiet():
        program = _program(model, images)
    if program is None:
        raise RuntimeError("torch gave no ONNX program; please report this")
    proto = program.model_proto
    _forget_the_machine(proto)
    for key, text in sorted(about.plain().items()):
        proto.metadata_props.add(key=f"adapterpack.{key}", value=text)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's own words: warnings of its imports, and what its optimizer leaves alone."""
    logger = logging.getLogger("onnxscript.optimizer")
    before = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _program(model: nn.Module, images: torch.Tensor) -> Any:
    try:
        return torch.onnx.export(
            model,
            (images,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        text = f"torch gives no ONNX for a {type(model).__name__}: {_first_line(error.__cause__ or error)}"
        hint = "another release of torch may; or export to .safetensors"
        raise UnsupportedAdapterError(text, Reason.NOT_EXPRESSIBLE, hint=hint) from error


def _first_line(error: BaseException) -> str:
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _input_size(model: nn.Module, about: About) -> tuple[int, int, int]:
    """What the model takes; where it takes any size, what the preprocessing gives."""
    said = about.data or DataSettings()
    height, width = getattr(getattr(model, "patch_embed", None), "img_size", None) or said.input_size[1:]
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return said.input_size[0] if first is None else first.in_channels, int(height), int(width)


def _forget_the_machine(proto: Any) -> None:
    """Drop the exporter's notes on every part: they quote source lines and paths of this machine."""
    graph = proto.graph
    parts: list[Iterable[Any]] = [[graph], graph.node, graph.input, graph.output, graph.value_info, graph.initializer]
    for part in parts:
        for item in part:
            item.ClearField("metadata_props")
            item.ClearField("doc_string")
