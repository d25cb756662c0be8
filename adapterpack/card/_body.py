"""The body of a card: what each file holds and costs, and how to load it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from adapterpack.card._words import Json, accuracies, cell, code, python

# what timm's names begin with, for models whose name has no tag of the weights
_FAMILIES = (
    "beit cait coat convit convmixer convnext crossvit davit deit edgenext efficientformer efficientvit eva fastvit"
    " flexivit focalnet gcvit gmixer gmlp hiera levit mambaout maxvit maxxvit mixer mobilevit mvitv2 naflexvit nest"
    " nextvit pit poolformer pvt resmlp sam2 samvit sequencer2d swin test tiny_vit tnt twins visformer vit volo xcit"
)
_TIMM = re.compile(
    rf"(?:timm/)?(?:[a-z0-9_]+\.[a-z0-9_]+|(?:{'|'.join(_FAMILIES.split())})[a-z0-9]*_[a-z0-9_]+)", re.ASCII
)


def body(files: Sequence[Json], folder: str) -> list[str]:
    lines = ["", "## Adapters", ""]
    lines += ["| file | task | method | bits | classes | bytes | adapter | head | as float32 | accuracy |"]
    lines += ["|---|---|---|--:|--:|--:|--:|--:|--:|--:|"]
    lines += [_row(file, task) for file in files for task in file["tasks"]]
    lines += ["", "| file | bytes | backbone | backbone's fingerprint | digest |", "|---|--:|---|---|---|"]
    lines += [_file_row(file) for file in files]
    return [*lines, "", *_how(files, folder), ""]


def _row(file: Json, task: Json) -> str:
    parts, measured = task["bytes_by_part"], accuracies(task)
    cells = [
        cell(file["path"]),
        cell(task["name"]),
        cell(task["method"]),
        "–" if task["bits"] is None else str(task["bits"]),
        "–" if task["classes"] is None else str(task["classes"]),
        *(f"{count:,}" for count in (task["bytes"], parts["adapter"], parts["head"], task["dense_bytes"])),
        ", ".join(f"{value:g} ({label})" for label, value in measured.items()) or "–",
    ]
    return f"| {' | '.join(cells)} |"


def _file_row(file: Json) -> str:
    backbone = file["backbone"]
    name, finger = cell(backbone["name"] or "not named"), backbone["fingerprint"]
    return f"| {cell(file['path'])} | {file['file_bytes']:,} | {name} | {code(finger)} | {code(file['digest'])} |"


def _how(files: Sequence[Json], folder: str) -> list[str]:
    """How to load the first file."""
    if not files:
        return []
    first = files[0]
    url, several = f"{folder}/{first['path']}", len(first["tasks"]) > 1
    task = f", task={python(first['tasks'][0]['name'])}" if several else ""
    return [
        "Load it with [adapterpack](https://pypi.org/project/adapterpack/), which fetches one task's bytes alone:",
        "",
        "```python",
        *_model(first["backbone"]["name"] or ""),
        f"loaded = adapterpack.load({python(url)}, model{task})",
        "logits = model(images)",
        "loaded.unload()  # the backbone is bit for bit what it was",
        "```",
    ]


def _model(name: str) -> list[str]:
    """How the backbone is made: by timm where the name is one of its, else of the file that only its owner has."""
    if _TIMM.fullmatch(name):
        made = f"timm.create_model({python(name.removeprefix('timm/'))}, pretrained=True)"
        return ["import adapterpack, timm", "", f"model = {made}"]
    file = f"{name}.safetensors" if re.fullmatch(r"\w[\w.-]{0,99}", name, re.ASCII) else "backbone.safetensors"
    told = f"the weights that it was trained on ({python(name)})" if name else "the weights that it was trained on"
    return [
        "import adapterpack",
        "from adapterpack.runtime.backbone import create_backbone",
        "",
        f"# {told}; {python(file.replace('.safetensors', '.json'))} beside them says the architecture",
        f"model = create_backbone({python(file)}).model",
    ]
