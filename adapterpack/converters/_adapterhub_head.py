"""The head that lies in an AdapterHub folder beside the adapter: one linear layer, and the names of its classes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from adapterpack.adapter import Head
from adapterpack.converters._folder import missing, unexplained
from adapterpack.converters._head import require_bias
from adapterpack.errors import CorruptFileError, Reason, UnsupportedAdapterError
from adapterpack.tensors import Dense


def head_of(
    tensors: Mapping[str, Dense], content: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[Head, tuple[str, ...] | None]:
    """The head and its class names, from a head's tensors, its `head_config.json` and the caller's settings.

    Raises:
        UnsupportedAdapterError: `not-expressible` for a head that is more than one linear layer on the class token.
        CorruptFileError: `unmapped-tensor`, `missing-tensor`, `bad-field`.
    """
    config, name = content.get("config"), content.get("name")
    stem = "classifier"
    if isinstance(config, dict):
        _check_head(config)
        stem = f"heads.{name}.1"
    for tensor in tensors:
        if tensor not in (f"{stem}.weight", f"{stem}.bias"):
            raise unexplained(tensor, f"expected {stem}.weight and {stem}.bias")
    if f"{stem}.weight" not in tensors:
        raise missing(f"{stem}.weight", "the head's file is incomplete")
    if not (isinstance(config, dict) and config.get("bias") is False):  # a head of its own may be made without
        roles = [name.rpartition(".")[2] for name in tensors]
        require_bias(roles, f"{stem}.bias", settings)
    head = Head(tensors[f"{stem}.weight"], tensors.get(f"{stem}.bias"))
    labels = config.get("label2id") if isinstance(config, dict) else content.get("label2id")
    return head, _labels(labels, head.weight.shape[0] if head.weight.shape else 0)


def _check_head(config: Mapping[str, Any]) -> None:
    expected = {"head_type": "image_classification", "layers": 1, "use_pooler": False}
    for key, value in expected.items():
        if config.get(key) != value:
            message = f"the head's {key} is {str(config.get(key))[:80]!r}"
            hint = f"a task's head is one linear layer on the class token ({key}={value!r})"
            raise UnsupportedAdapterError(message, Reason.NOT_EXPRESSIBLE, hint=hint)


def _labels(said: Any, classes: int) -> tuple[str, ...] | None:
    """Class names in order; None where the library made them up (LABEL_0, …)."""
    if not isinstance(said, dict) or not said:
        return None
    names = {number: label for label, number in said.items() if type(number) is int}
    if sorted(names) != list(range(classes)) or len(names) != len(said):
        raise CorruptFileError(f"label2id does not number {classes} classes", Reason.BAD_LABELS, "head_config.json")
    listed = tuple(str(names[i]) for i in range(classes))
    return None if all(re.fullmatch(r"LABEL_\d+", label) for label in listed) else listed
