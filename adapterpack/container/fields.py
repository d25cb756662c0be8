"""Taking validated fields out of a parsed JSON object, with the path of each for messages."""

from __future__ import annotations

from typing import Any

from adapterpack.container import limits
from adapterpack.errors import CorruptFileError, Reason

IGNORABLE = "x-"  # a key with this prefix may be skipped by a reader that does not know it


class Fields:
    """One JSON object of the index; every key must be taken or be ignorable.

    Args:
        value: what the parser gave.
        where: its path, such as `index.tasks[0]`.

    Raises:
        CorruptFileError: `bad-field` when it is no object.
    """

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise CorruptFileError(f"expected an object, found {_kind(value)}", Reason.BAD_FIELD, where)
        self._left = dict(value)
        self.where = where

    def path(self, name: str) -> str:
        return f"{self.where}.{name}"

    def has(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, kind: type) -> Any:
        """A required field of exactly this type (a bool is no int).

        Raises:
            CorruptFileError: `missing-field` or `bad-field`.
        """
        if name not in self._left:
            raise CorruptFileError(f"the field {name} is missing", Reason.MISSING_FIELD, self.where)
        value = self._left.pop(name)
        if type(value) is not kind:
            raise CorruptFileError(f"expected {kind.__name__}, found {_kind(value)}", Reason.BAD_FIELD, self.path(name))
        return value

    def count(self, name: str, limit: int = limits.INTEGER, least: int = 0) -> int:
        """A required integer between `least` and `limit`."""
        value: int = self.take(name, int)
        if least <= value <= limit:
            return value
        if value < least:
            raise CorruptFileError(f"{value} is less than {least}", Reason.BAD_FIELD, self.path(name))
        return limits.require(value, limit, name, self.path(name))

    def name(self, name: str) -> str:
        """A required non-empty string of at most 255 bytes."""
        value: str = self.take(name, str)
        if not value or len(value.encode()) > limits.NAME_BYTES:
            raise CorruptFileError(f"a name of {len(value.encode())} bytes", Reason.BAD_NAME, self.path(name))
        return value

    def counts(self, name: str, least: int = 0) -> tuple[int, ...]:
        """A required list of integers."""
        values: list[Any] = self.take(name, list)
        for value in values:
            if type(value) is not int or value < least:
                raise CorruptFileError(f"{value!r} is no integer from {least}", Reason.BAD_FIELD, self.path(name))
        return tuple(values)

    def shape(self, name: str = "shape") -> tuple[int, ...]:
        """A required shape: at most 8 dimensions, none of them 0."""
        shape = self.counts(name, least=1)
        limits.require(len(shape), limits.DIMENSIONS, "dimensions", self.path(name))
        limits.checked_size(shape, self.path(name))
        return shape

    def done(self) -> None:
        """Refuse keys that nobody took, unless they are marked ignorable.

        Raises:
            CorruptFileError: `unknown-field`.
        """
        if not self._left:
            return
        unknown = sorted(name for name in self._left if not name.startswith(IGNORABLE))
        if unknown:
            hint = "a newer reader may know it; upgrade adapterpack"
            raise CorruptFileError(f"unknown field {unknown[0][:80]!r}", Reason.UNKNOWN_FIELD, self.where, hint)


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
