"""One of the workers of a prediction run: a backbone with its tasks, and image files to rows.

A worker that cannot work says so in its first rows, because an error in an actor would come with a page of traceback.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]

from adapterpack.adapter import DataSettings
from adapterpack.errors import AdapterPackError
from adapterpack.packing.bundle import open_bundle
from adapterpack.runtime.backbone import create_backbone
from adapterpack.runtime.devices import choose_device
from adapterpack.runtime.images import decoded
from adapterpack.runtime.load import MissingFingerprintWarning
from adapterpack.runtime.pool.facts import Prediction
from adapterpack.runtime.pool.folded import predict_folded
from adapterpack.runtime.pool.pool import AdapterPool
from adapterpack.runtime.pool.predict import Picture
from adapterpack.serving.parts import ROW
from adapterpack.serving.settings import FORMATS

_THREADS = 8  # that read and decode images; Pillow lets others run meanwhile
_MOST_PIXELS = 89_000_000  # where Pillow itself would warn
FAILURE = "failure"
NOTE = "note"
OUT = ROW.append(pa.field(FAILURE, pa.list_(pa.string()))).append(pa.field(NOTE, pa.string()))


@dataclass(frozen=True, slots=True, eq=False)
class Orders:
    """What every worker does.

    Attributes:
        folder: of the images.
        adapter: bytes of the `.apk` file.
        backbone: timm name, or path of a `.safetensors` file.
        tasks: names in the file.
        top: how many classes to give.
        device: "auto", "cpu" or "cuda".
        check_fingerprint: False accepts any backbone of the right shape.
    """

    folder: str
    adapter: bytes
    backbone: str
    tasks: tuple[str, ...]
    top: int
    device: str
    check_fingerprint: bool


class Worker:
    """The class that Ray Data runs.

    Args:
        orders: what to do.
    """

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._failure: list[str] | None = None
        self._threads = ThreadPoolExecutor(_THREADS)
        warnings.simplefilter("ignore", MissingFingerprintWarning)
        try:
            self._make()
        except AdapterPackError as error:
            self._failure = _told(error)

    def _make(self) -> None:
        orders = self._orders
        device = choose_device(orders.device)
        made = create_backbone(orders.backbone)
        self._note, self._data = made.note, made.data
        self._pool = AdapterPool(
            made.model, device=device, check_fingerprint=orders.check_fingerprint and not made.note
        )
        self._pool.add(orders.adapter)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Rows of `OUT` for image files.

        Args:
            batch: path, size and mtime.
        """
        if self._failure is None:
            try:
                return _table([{**row, NOTE: self._note} for row in self._rows(batch.to_pylist())])
            except AdapterPackError as error:
                self._failure = _told(error)
        return _table([{FAILURE: self._failure}])

    def _rows(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The answers for some files.

        Raises:
            AdapterPackError: a task's preprocessing does not fit the backbone, or memory runs out.
        """
        opened = list(self._threads.map(self._opened, (row["path"] for row in rows)))
        out: list[dict[str, Any]] = [
            {**row, "error": found} for row, found in zip(rows, opened) if isinstance(found, str)
        ]
        good = [(row, found) for row, found in zip(rows, opened) if not isinstance(found, str)]
        for found in self._answers([image for _, image in good]):
            for (row, _), one in zip(good, found):
                labels, probabilities = list(one.labels), list(one.probabilities)
                out.append({**row, "task": one.task, "labels": labels, "probabilities": probabilities})
        return out

    def _opened(self, path: str) -> Picture | str:
        """The image, or why it cannot be read."""
        try:
            return decoded(Path(self._orders.folder, path).read_bytes(), FORMATS, _MOST_PIXELS)
        except AdapterPackError as error:
            return error.message
        except OSError as error:
            return error.strerror or str(error)

    def _answers(self, images: Sequence[Picture]) -> Iterator[Sequence[Prediction]]:
        """Every task's answers; a single task is folded, several share one backbone as it is."""
        if not images:
            return
        if len(self._orders.tasks) == 1:
            (task,) = self._orders.tasks
            yield predict_folded(self._pool, images, task, self._settings(task), self._orders.top)
            return
        for task in self._orders.tasks:
            yield self._pool.predict(images, [task] * len(images), self._orders.top)

    def _settings(self, task: str) -> DataSettings:
        entries = open_bundle(self._orders.adapter).index.tasks
        return next(entry.data for entry in entries if entry.name == task) or self._data


def _told(error: AdapterPackError) -> list[str]:
    return [type(error).__name__, error.message, error.reason, error.where, error.hint]


def _table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=OUT)
