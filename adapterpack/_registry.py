"""A closed, read-only table of named things: codecs, methods, converters.

Registries are eager and cannot be extended at run time, because a file must mean the same thing everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Generic, Protocol, TypeVar


class Named(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


class Registry(Mapping[str, T], Generic[T]):
    """Rows by their `.name`, in the order given.

    Args:
        kind: what the rows are, for messages ("codec").
        rows: the instances.

    Raises:
        RuntimeError: two rows have one name, or a name is not lower-case; both are bugs of this package.
    """

    def __init__(self, kind: str, rows: Sequence[T]) -> None:
        self.kind = kind
        self._rows: dict[str, T] = {}
        for row in rows:
            if row.name in self._rows or row.name != row.name.lower():
                raise RuntimeError(f"bad or repeated {kind} name {row.name!r}")
            self._rows[row.name] = row

    def __getitem__(self, name: str) -> T:
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)
