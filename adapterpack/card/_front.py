"""The keys of the front matter: library, backbone, tags, and accuracies where the metadata have them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from adapterpack.card._words import Json, accuracies, quoted, title

_TAGS = ("adapterpack", "adapter", "image-classification", "timm")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TIMM_NAME = re.compile(r"[a-z0-9_]+\.[a-z0-9_]+")


def entries(files: Sequence[Json], folder: str, base_model: str) -> dict[str, list[str]]:
    """Lines of the front matter by key; a JSON text is YAML too."""
    bases = [base_model] if base_model else _bases(files)
    results = [(file, task, found) for file in files for task in file["tasks"] if (found := accuracies(task))]
    keys = {"library_name": ["library_name: adapterpack"], "tags": ["tags:", *(f"- {tag}" for tag in _TAGS)]}
    keys["pipeline_tag"] = ["pipeline_tag: image-classification"]
    if bases:
        keys["base_model"] = ["base_model:", *(f"- {quoted(name)}" for name in bases)]
        keys["base_model_relation"] = ["base_model_relation: adapter"]
    if results:
        keys["metrics"] = ["metrics:", "- accuracy"]
        keys["model-index"] = ["model-index:", f"- name: {quoted(title(folder))}", "  results:"]
        for _, task, found in results:
            keys["model-index"] += _result(task, found)
    return keys


def _result(task: Json, measured: Mapping[str, float]) -> list[str]:
    name = task["metadata"].get("dataset")
    dataset = name if isinstance(name, str) and name else task["name"]
    lines = [
        "  - task:",
        "      type: image-classification",
        "    dataset:",
        f"      name: {quoted(dataset)}",
        f"      type: {quoted(dataset)}",
        "    metrics:",
    ]
    for label, value in measured.items():
        lines += ["    - type: accuracy", f"      name: {quoted(label)}", f"      value: {value:g}"]
    return lines


def _bases(files: Sequence[Json]) -> list[str]:
    found = []
    for file in files:
        name = file["backbone"]["name"] or ""
        if _HUB_ID.fullmatch(name):
            found.append(name)
        elif _TIMM_NAME.fullmatch(name):  # timm's weights lie under this name
            found.append(f"timm/{name}")
    return list(dict.fromkeys(found))
