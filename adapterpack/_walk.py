"""Files in a folder and in the folders inside it, by links as well; what cannot be read is an error, never left out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from adapterpack.errors import CallError, Reason


def files_in(root: Path) -> Iterator[Path]:
    """Everything in a folder and in the folders inside it that is no folder itself, in no order.

    Raises:
        CallError: `io-error`, one of the folders cannot be read.
    """
    for place, folders, names in os.walk(root, onerror=unreadable, followlinks=True):
        folders[:] = [name for name in folders if not _leads_back(Path(place, name))]
        yield from (Path(place, name) for name in names)


def _leads_back(folder: Path) -> bool:
    """Whether it is a link to a folder that it lies in, which has no end."""
    try:
        return folder.is_symlink() and any(folder.samefile(above) for above in folder.absolute().parents)
    except OSError as error:
        unreadable(error)


def unreadable(error: OSError) -> NoReturn:
    """Raise what the system said of a folder as an error of ours.

    Raises:
        CallError: `io-error`.
    """
    text = f"cannot read {error.filename}: {error.strerror or error}"
    raise CallError(text, Reason.IO, hint="check its permissions") from error
