"""What a task may be called: one rule for files, calls and requests, each of which refuses in its own words.

Whether two tasks of a file have one name is `parse`'s affair.
"""

from __future__ import annotations

from adapterpack.container.limits import NAME_BYTES
from adapterpack.errors import steering

TASK_NAMES = f"a name has 1 to {NAME_BYTES} bytes, no / \\ or control character, and no dot at its start"


def fits_task(name: str) -> bool:
    """Whether a task may have this name, as `TASK_NAMES` says it: none that could be a path, none that hides itself.

    Source: spec/README.md, "The index".
    """
    if not name or steering(name) or "/" in name or "\\" in name or name.startswith("."):
        return False
    return len(name.encode()) <= NAME_BYTES
