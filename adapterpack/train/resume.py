"""An unfinished run on disk, beside the file it will become: `run.ckpt.part`, written whole after every epoch."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from adapterpack._files import write_atomic
from adapterpack.converters.checkpoint import load_file
from adapterpack.errors import CallError, CorruptFileError, Reason
from adapterpack.train.loop import State
from adapterpack.train.measure import Score

FORM = "training/2"
_SHOWN = 40  # of a value in a message: a mask or a data set is a digest


@dataclass(slots=True, eq=False)
class Journal:
    """What has been done of a run: scales that were tried, and where the training of one stage stands.

    Attributes:
        out: the file that the run will become.
        key: settings and data of the run; another run cannot go on from it.
        tried: scales of a search, each with its best score.
        stage: "train", or a stage of the search.
        state: of the stage, after an epoch.
    """

    out: Path
    key: Mapping[str, Any]
    tried: dict[float, Score] = field(default_factory=dict)
    stage: str = ""
    state: State | None = None

    def at(self, stage: str) -> State | None:
        """Where a stage stands, None where it is to be begun."""
        return self.state if self.stage == stage else None

    def save(self, stage: str, state: State) -> None:
        """Write where the run stands.

        Args:
            stage: which is trained.
            state: after an epoch.

        Raises:
            CallError: `io-error`, the disk is full, for example.
        """
        content = {
            "adapterpack": FORM,
            "key": dict(self.key),
            "tried": {scale: list(score) for scale, score in self.tried.items()},
            "stage": stage,
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
        write_atomic(part_of(self.out), buffer.getvalue(), force=True)


def part_of(out: Path) -> Path:
    """Where the unfinished run is."""
    return out.with_name(out.name + ".part")


def read_journal(out: Path, key: Mapping[str, Any]) -> Journal:
    """What has been done of the run for `out`: nothing where there is no unfinished run.

    Raises:
        CallError: `conflicting-settings`, naming what is different.
        CorruptFileError: the file is damaged.
    """
    path = part_of(out)
    if not path.exists():
        return Journal(out, key)
    content = load_file(path)
    if not isinstance(content, Mapping) or content.get("adapterpack") != FORM:
        raise _damaged(path)
    try:
        _require_same(path, content["key"], key)
        tried = {scale: Score(*score) for scale, score in content["tried"].items()}
        state = State(
            content["epoch"],
            content["tensors"],
            content["optimizer"],
            content["best"],
            content["best_epoch"],
            Score(*content["best_score"]),
            list(content["history"]),
        )
        return Journal(out, key, tried, content["stage"], state)
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(path) from error


def _require_same(path: Path, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name in sorted(was.keys() | now.keys()):
        if was.get(name) != now.get(name):
            old, new = (str(values.get(name))[:_SHOWN] for values in (was, now))
            text = f"{path} was begun with {name} {old}, now it is {new}"
            raise CallError(text, Reason.CONFLICTING_SETTINGS, hint="give the same options, or drop --resume")


def _damaged(path: Path) -> CorruptFileError:
    return CorruptFileError(f"{path} is no unfinished run", Reason.BAD_SOURCE, hint="remove it to start anew")
