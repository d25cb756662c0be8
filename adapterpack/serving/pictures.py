"""The image files of a folder and of the folders in it, known by their suffixes."""

from __future__ import annotations

import os
from pathlib import Path

from adapterpack.errors import MissingFileError, Reason
from adapterpack.runtime.images import SUFFIXES
from adapterpack.serving.parts import Stat


def images_in(folder: Path) -> dict[str, Stat]:
    """Every image's path inside the folder, with its bytes and time, in order of the paths.

    Raises:
        MissingFileError: there is none.
    """
    if not folder.is_dir():
        raise MissingFileError(f"there is no folder {folder}", Reason.MISSING_FILE, hint="check the path")
    found: dict[str, Stat] = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            if path.suffix.lower() in SUFFIXES and path.is_file():
                facts = path.stat()
                found[path.relative_to(folder).as_posix()] = (facts.st_size, facts.st_mtime_ns)
    if not found:
        hint = f"known suffixes: {' '.join(sorted(SUFFIXES))}"
        raise MissingFileError(f"there is no image in {folder}", Reason.MISSING_FILE, hint=hint)
    return dict(sorted(found.items()))
