"""The work folder of a prediction run: finished parts beside the output, so that an interrupted run goes on.

A part is written whole or not at all. A row counts as long as its image has the size and time that it had.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from adapterpack import _files
from adapterpack.errors import CallError, CorruptFileError, Reason

Stat = tuple[int, int]  # bytes, and time of the last change in nanoseconds
_ABOUT = "run.json"

ROW = pa.schema(
    [
        ("path", pa.string()),
        ("size", pa.int64()),
        ("mtime", pa.int64()),
        ("task", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("probabilities", pa.list_(pa.float32())),
        ("error", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Finished:
    """What the parts hold of the images that are asked for now.

    Attributes:
        table: the rows, of `ROW`.
        images: those that are done: with a row of every task, or corrupt.
        corrupt: why an image could not be read, by its path.
    """

    table: pa.Table
    images: frozenset[str]
    corrupt: Mapping[str, str]


class Work:
    """The folder of one run.

    Args:
        out: the output; the folder is beside it.
        about: what the run is, as JSON; parts of another run are not used.
        force: delete those of another run.

    Raises:
        CallError: `file-exists`, the folder is of another run, or of something else; `io-error`.
    """

    def __init__(self, out: Path, about: Mapping[str, Any], *, force: bool) -> None:
        self.folder = out.with_name(f"{out.name}.parts")
        known = self._known()
        if known is None and self.folder.is_dir() and any(self.folder.iterdir()):
            text = f"{self.folder} holds something else than the parts of a run"
            raise CallError(text, Reason.FILE_EXISTS, hint="move it away, or give another -o")
        if known is not None and known != about and self._paths():
            if not force:
                text = f"{self.folder} holds the unfinished parts of another run"
                hint = "repeat that run, use --force to drop its parts, or give another -o"
                raise CallError(text, Reason.FILE_EXISTS, hint=hint)
            self.remove()
        _files.make_folder(self.folder)
        _files.write_atomic(self.folder / _ABOUT, json.dumps(about).encode(), force=True)
        self._next = 1 + max((int(path.stem) for path in self._paths()), default=-1)

    def _known(self) -> Any:
        """What the folder's run is; None where there is none of ours."""
        try:
            found = json.loads((self.folder / _ABOUT).read_bytes())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and "adapter" in found else None

    def _paths(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("*.parquet") if path.stem.isdecimal())

    def add(self, rows: Sequence[pa.Table]) -> None:
        """One more part.

        Raises:
            CallError: `io-error`; `file-exists`, another run writes or wrote to the folder.
        """
        if rows:
            path = self.folder / f"{self._next:06}.parquet"
            if path.exists() or not self.folder.is_dir():
                hint = "wait for it and repeat this one, or give another -o"
                raise CallError(f"another run uses {self.folder}", Reason.FILE_EXISTS, hint=hint)
            write(path, pa.concat_tables(rows), force=False)
            self._next += 1

    def finished(self, images: Mapping[str, Stat], tasks: int) -> Finished:
        """What need not be done again.

        Args:
            images: path and present state of each.
            tasks: how many rows an image has that is done.

        Raises:
            CorruptFileError: `bad-source`, a part cannot be read.
        """
        table = pa.concat_tables([ROW.empty_table(), *(_read(path) for path in self._paths())])
        stats = zip(table["size"].to_pylist(), table["mtime"].to_pylist())
        fresh = [images.get(path) == stat for path, stat in zip(table["path"].to_pylist(), stats)]
        table = table.filter(pa.array(fresh, pa.bool_()))
        last = {key: i for i, key in enumerate(zip(table["path"].to_pylist(), table["task"].to_pylist()))}
        table = table.take(pa.array(sorted(last.values()), pa.int64()))  # an image done again counts once
        paths, errors = table["path"].to_pylist(), table["error"].to_pylist()
        rows = Counter(path for path, error in zip(paths, errors) if error is None)
        done = {path for path, count in rows.items() if count >= tasks}
        corrupt = {path: error for path, error in zip(paths, errors) if error is not None and path not in done}
        return Finished(table, frozenset(done | corrupt.keys()), corrupt)

    def remove_if_empty(self) -> None:
        """Delete the folder where nothing was finished."""
        if not self._paths():
            self.remove()

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def write(path: Path, table: pa.Table, *, force: bool) -> None:
    """A Parquet file, whole or not at all.

    Raises:
        CallError: `file-exists`, `io-error`.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    _files.write_atomic(path, sink.getvalue().to_pybytes(), force=force)


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path, schema=ROW)
    except (pa.ArrowException, OSError) as error:
        text = f"{path} is no readable part: {str(error).splitlines()[0]}"
        raise CorruptFileError(text, Reason.BAD_SOURCE, hint="delete it; its images are done again") from error
