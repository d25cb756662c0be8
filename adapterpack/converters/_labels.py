"""Class names for a trainer's folder that has none of its own: `id2label` in a `config.json` of Hugging Face's.

It looks beside the settings only: what a machine knows of the base model may not change the bytes that are written.
Names count only where they are exactly as many as the head has classes, and what was found is always told.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapterpack._files import PathSource
from adapterpack.codecs.labels import MAX_BYTES
from adapterpack.converters._base import Imported, prefix_of
from adapterpack.errors import AdapterPackError, steering

FILE = "config.json"
BYTES = 1 << 24  # the names of 21,843 classes, twice, are 2 MB


def with_labels(imported: Imported, source: Path) -> Imported:
    """What was imported, with class names where a folder's head has none and a `config.json` has them.

    Args:
        imported: from any source.
        source: its path; a file is left alone.
    """
    adapter = imported.adapter
    if adapter.head is None or adapter.labels is not None or not source.is_dir():
        return imported
    names = _id2label(source / FILE)
    if names is None:
        return imported
    odd = ""
    if len(names) != adapter.head.classes:
        odd = f"{FILE} names {len(names):,} classes, the head has {adapter.head.classes:,}"
    elif (size := len("\n".join(names).encode())) > MAX_BYTES:
        odd = f"the class names of {FILE} take {size:,} bytes, at most {MAX_BYTES:,} are kept"
    if odd:
        return replace(imported, notes=(*imported.notes, f"{odd}: no class names were taken"))
    named, note = replace(adapter, labels=names), f"the class names are those of {FILE}"
    return replace(imported, adapter=named, notes=(*imported.notes, note))


def _id2label(path: Path) -> tuple[str, ...] | None:
    """The class names in order; None where there are none, or the library made them up (LABEL_0, …)."""
    said = _read(path).get("id2label")
    if not isinstance(said, dict) or not said or not all(isinstance(name, str) for name in said.values()):
        return None
    try:
        numbered = {int(number): name for number, name in said.items()}
    except ValueError:
        return None
    if sorted(numbered) != list(range(len(said))):
        return None
    names = tuple(numbered[i] for i in range(len(said)))
    made_up = all(re.fullmatch(r"LABEL_\d+", name) for name in names)
    return None if made_up or any(not name or steering(name) for name in names) else names


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one for anything else."""
    try:
        small = PathSource(path).size() <= BYTES
        found = json.loads(prefix_of(path, BYTES)) if small else None
    except (AdapterPackError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
