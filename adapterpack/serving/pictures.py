"""The image files of a folder and of the folders in it, known by their suffixes."""

from __future__ import annotations

from pathlib import Path

from adapterpack._walk import files_in
from adapterpack.errors import CallError, MissingFileError, Reason, printable
from adapterpack.runtime.images import SUFFIXES
from adapterpack.serving.parts import Stat


def images_in(folder: Path) -> dict[str, Stat]:
    """Every image's path inside the folder, with its bytes and time, in order of the paths.

    Raises:
        MissingFileError: there is none.
        CallError: `io-error`, a folder or a file cannot be read; `bad-call`, a name that is not UTF-8.
    """
    if not folder.is_dir():
        raise MissingFileError(f"there is no folder {folder}", Reason.MISSING_FILE, hint="check the path")
    found: dict[str, Stat] = {}
    for path in files_in(folder):
        if path.suffix.lower() in SUFFIXES:
            found |= _found(path, path.relative_to(folder).as_posix())
    if not found:
        hint = f"known suffixes: {' '.join(sorted(SUFFIXES))}"
        raise MissingFileError(f"there is no image in {folder}", Reason.MISSING_FILE, hint=hint)
    return dict(sorted(found.items()))


def _found(path: Path, name: str) -> dict[str, Stat]:
    try:
        name.encode()
        gone = path.is_symlink() and not path.exists()  # a link to nothing: an image that cannot be read, to be named
        facts = path.lstat() if gone else path.stat() if path.is_file() else None
    except UnicodeEncodeError as error:
        text = f"the name {printable(name)} is not UTF-8"
        raise CallError(text, Reason.BAD_CALL, hint="rename the file") from error
    except OSError as error:
        raise CallError(f"cannot read {path}: {error.strerror or error}", Reason.IO) from error
    return {} if facts is None else {name: (facts.st_size, facts.st_mtime_ns)}
