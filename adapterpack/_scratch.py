"""Files from elsewhere on this disk, for as long as they are read. It knows neither forms nor stores."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapterpack._files import Source, os_errors, read_exactly

_PART = 8 << 20  # bytes of one read


@contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """An empty folder of a certain name that is gone afterwards, with all that is in it.

    Raises:
        CallError: `io-error`.
    """
    with os_errors("a folder for temporary files"):
        outer = Path(tempfile.mkdtemp(prefix="adapterpack-"))
    try:
        with os_errors(name):
            (outer / name).mkdir()
        yield outer / name
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def copy(source: Source, path: Path) -> None:
    """Write a whole source into a new file, part by part, so that only a part of it is in memory.

    Raises:
        CorruptFileError: `truncated`.
        CallError: `io-error`.
    """
    size = source.size()
    with os_errors(str(path)):
        path.touch(exist_ok=False)
    for start in range(0, size, _PART):
        data = read_exactly(source, start, min(_PART, size - start), source.name)
        with os_errors(str(path)), path.open("ab") as file:
            file.write(data)
