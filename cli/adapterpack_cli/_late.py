"""Importing what needs torch, only in the commands that need it."""

from __future__ import annotations

import importlib
import os
from typing import Any

from adapterpack.errors import CallError, Reason


def late(module: str, extra: str = "torch") -> Any:
    """Import a module, or say what to install: the extra that has all it needs.

    Raises:
        CallError: `missing-extra`.
    """
    # torch's threads would spin while they wait; beside another busy program that makes training ten times slower
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        hint = f"pip install 'adapterpack[{extra}]'"
        raise CallError(f"this command needs {error.name}", Reason.MISSING_EXTRA, hint=hint) from error
