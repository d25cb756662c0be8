"""An unfinished run on disk, beside the file it will become: `run.ckpt.part`, written whole after every epoch."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from adapterpack._files import write_atomic
from adapterpack.converters.checkpoint import load_file
from adapterpack.errors import CallError, CorruptFileError, Reason
from adapterpack.train.loop import State
from adapterpack.train.measure import Score

FORM = "training/1"


def part_of(out: Path) -> Path:
    """Where the unfinished run is."""
    return out.with_name(out.name + ".part")


def save_state(out: Path, key: Mapping[str, Any], state: State) -> None:
    """Write where a run stands.

    Args:
        out: the file that the run will become.
        key: settings and data of the run; another run cannot go on from it.
        state: after an epoch.

    Raises:
        CallError: `io-error`, the disk is full, for example.
    """
    content = {
        "adapterpack": FORM,
        "key": dict(key),
        "epoch": state.epoch,
        "tensors": dict(state.tensors),
        "optimizer": dict(state.optimizer),
        "best": dict(state.best),
        "best_epoch": state.best_epoch,
        "best_score": list(state.best_score),
        "history": state.history,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomic(part_of(out), buffer.getvalue(), force=True)


def load_state(out: Path, key: Mapping[str, Any]) -> State | None:
    """Where the run for `out` stood, or None where there is nothing to go on from.

    Raises:
        CallError: `conflicting-settings`, naming what is different.
        CorruptFileError: the file is damaged.
    """
    path = part_of(out)
    if not path.exists():
        return None
    content = load_file(path)
    if not isinstance(content, Mapping) or content.get("adapterpack") != FORM:
        raise CorruptFileError(f"{path} is no unfinished run", Reason.BAD_SOURCE, hint="remove it to start anew")
    _require_same(path, content["key"], key)
    return State(
        content["epoch"],
        content["tensors"],
        content["optimizer"],
        content["best"],
        content["best_epoch"],
        Score(*content["best_score"]),
        list(content["history"]),
    )


def stored_scale(out: Path) -> float | None:
    """The scale that an unfinished run has searched for already."""
    path = part_of(out)
    content = load_file(path) if path.exists() else {}
    found = content.get("key", {}).get("scale") if isinstance(content, Mapping) else None
    return float(found) if found is not None else None


def _require_same(path: Path, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name in sorted(was.keys() | now.keys()):
        if was.get(name) != now.get(name):
            text = f"{path} was begun with {name} {was.get(name)}, now it is {now.get(name)}"
            raise CallError(text, Reason.CONFLICTING_SETTINGS, hint="give the same options, or drop --resume")
