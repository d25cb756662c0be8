"""What travels between a replica and the front door: answers and refusals as plain values, never as tracebacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from adapterpack.errors import (
    AdapterPackError,
    BackboneMismatchError,
    CallError,
    CorruptFileError,
    Reason,
    UnsupportedAdapterError,
    UnsupportedVersionError,
)

_STATUS = {
    Reason.UNKNOWN_TASK: 404,
    Reason.MISSING_FILE: 404,
    Reason.DUPLICATE_NAME: 409,
    Reason.ALREADY_LOADED: 409,
    Reason.LIMIT: 413,
    Reason.OUT_OF_MEMORY: 507,
    Reason.IO: 502,
    Reason.BAD_CALL: 400,
    Reason.BAD_SOURCE: 400,
}
_CLASSES = {
    kind.__name__: kind
    for kind in (
        BackboneMismatchError,
        CallError,
        CorruptFileError,
        UnsupportedAdapterError,
        UnsupportedVersionError,
    )
}


@dataclass(frozen=True, slots=True)
class Told:
    """An error of this package as it travels.

    Attributes:
        kind: name of its class.
        message, reason, where, hint: as the error has them.
    """

    kind: str
    message: str
    reason: str
    where: str = ""
    hint: str = ""

    @classmethod
    def of(cls, error: AdapterPackError) -> Told:
        return cls(type(error).__name__, error.message, error.reason, error.where, error.hint)

    def error(self) -> AdapterPackError:
        """The error again, to be raised."""
        kind = _CLASSES.get(self.kind, CallError)
        return kind(self.message, Reason(self.reason), self.where, self.hint)

    @property
    def status(self) -> int:
        """The HTTP status that says it."""
        return status_of(self.reason)


def status_of(reason: str) -> int:
    """400s for what the sender can mend; 422 for an adapter that is no good or does not fit."""
    return _STATUS.get(Reason(reason), 422)


@dataclass(frozen=True, slots=True)
class Answer:
    """One image's classes.

    Attributes:
        body: task and top classes, as they are sent.
        batch: images that were computed with it, told by the first of them only; 0 for the others.
    """

    body: Mapping[str, Any]
    batch: int = 0


def model_id(task: str) -> str:
    """A task's name for Ray Serve's multiplexing, whose metrics take ASCII alone."""
    return quote(task)
