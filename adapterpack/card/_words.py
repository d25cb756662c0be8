"""How a text from a file is written into a card: without any effect in YAML, Markdown, HTML or Python."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from adapterpack.errors import printable

Json = Mapping[str, Any]

_STEERING = re.compile(r"([\\`*_{}\[\]()<>#!|~&-])")


def title(folder: str) -> str:
    return folder.rstrip("/").rpartition("/")[2].partition("@")[0] or "Adapters"


def quoted(text: str) -> str:
    return json.dumps(printable(text), ensure_ascii=True)


def python(text: str) -> str:
    """A literal of Python on one line that cannot end the block that it stands in."""
    return json.dumps(printable(text), ensure_ascii=True).replace("`", "\\u0060").replace("<", "\\u003c")


def code(text: str | None) -> str:
    return f"`{text}`" if text else "–"


def cell(text: str) -> str:
    """A text from a file, without any effect in Markdown or HTML."""
    return _STEERING.sub(r"\\\1", printable(text))


def accuracies(task: Json) -> dict[str, float]:
    """What the metadata say of accuracy: their own `accuracy`, and what the training run measured."""
    metadata, training = task["metadata"], task["metadata"].get("training")
    given = {"accuracy": metadata.get("accuracy"), "test accuracy": metadata.get("test_accuracy")}
    if isinstance(training, Mapping):
        given["validation accuracy"] = training.get("validation_accuracy")
    return {label: float(v) for label, v in given.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
