"""Where a result may not go: into the place of what it is made of. It knows paths, not what lies there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from adapterpack.errors import CallError, Reason


def refuse_inputs(out: Path, inputs: Iterable[Path], backbone: str | os.PathLike[str] | None = None) -> None:
    """Refuse an output that is an input, or no file, before any work is done.

    Args:
        out: the file or folder to write.
        inputs: what is read, as far as it is there.
        backbone: what is read as well: a `.safetensors` with a `.json` beside it, or a timm name, which is no file.

    Raises:
        CallError: `bad-call`.
    """
    if str(out) == "-":
        raise CallError("standard output is no place for a file", Reason.BAD_CALL, hint="name a file")
    frozen = [] if backbone is None else [Path(backbone)]
    beside = [path.with_suffix(".json") for path in frozen if path.suffix == ".safetensors"]
    for path in (*inputs, *frozen, *beside):
        with contextlib.suppress(OSError, ValueError):  # one of them is not there, or is no path at all
            if out.samefile(path):
                message = f"{out} is read, so it cannot be written"
                raise CallError(message, Reason.BAD_CALL, hint="give the output another name")
