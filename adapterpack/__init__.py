"""adapterpack: many adapters on one frozen vision transformer, each one small, checked, self-describing file.

    >>> import adapterpack
    >>> adapterpack.open(b"")
    Traceback (most recent call last):
        ...
    adapterpack.CorruptFileError: the file is empty (at byte 0); fetch it again

Opening and inspecting need no torch; `load` imports it on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adapterpack.adapter import Adapter, Backbone, Branch, DataSettings, Head, Site
from adapterpack.api import Summary, bundle, open, split
from adapterpack.container.limits import Limits
from adapterpack.errors import (
    AdapterPackError,
    BackboneMismatchError,
    CallError,
    CorruptFileError,
    MissingFileError,
    Reason,
    UnsupportedAdapterError,
    UnsupportedVersionError,
)
from adapterpack.packing.bundle import Bundle
from adapterpack.tensors import Dense, Quantized, Sparse

if TYPE_CHECKING:
    from adapterpack.compare import diff
    from adapterpack.exchange import pack, unpack
    from adapterpack.runtime.deploy import load
    from adapterpack.runtime.load import Loaded
    from adapterpack.runtime.pool.pool import AdapterPool
    from adapterpack.transfer import pull, push

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "AdapterPackError",
    "AdapterPool",
    "Backbone",
    "BackboneMismatchError",
    "Branch",
    "Bundle",
    "CallError",
    "CorruptFileError",
    "DataSettings",
    "Dense",
    "Head",
    "Limits",
    "Loaded",
    "MissingFileError",
    "Quantized",
    "Reason",
    "Site",
    "Sparse",
    "Summary",
    "UnsupportedAdapterError",
    "UnsupportedVersionError",
    "bundle",
    "diff",
    "load",
    "open",
    "pack",
    "pull",
    "push",
    "split",
    "unpack",
]

# Resolved on first use: torch takes a second to import, converters some hundredths, and most commands need neither.
_LATE = {
    "AdapterPool": "adapterpack.runtime.pool.pool",
    "Loaded": "adapterpack.runtime.load",
    "diff": "adapterpack.compare",
    "load": "adapterpack.runtime.deploy",
    "pack": "adapterpack.exchange",
    "pull": "adapterpack.transfer",
    "push": "adapterpack.transfer",
    "unpack": "adapterpack.exchange",
}


def __getattr__(name: str) -> Any:
    if name in _LATE:
        import importlib

        try:
            value = getattr(importlib.import_module(_LATE[name]), name)
        except ModuleNotFoundError as error:
            hint = "pip install 'adapterpack[torch]'"
            raise CallError(f"adapterpack.{name} needs {error.name}", Reason.MISSING_EXTRA, hint=hint) from error
        _name(value)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'adapterpack' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


def _name(value: Any) -> None:
    """Tracebacks and help say `adapterpack.X`, not where X happens to live."""
    value.__module__ = "adapterpack"


for _public in __all__:
    if _public not in _LATE:
        _name(globals()[_public])
del _public
