"""Who may use a model when: any number of readers, or one writer, who may enter again.

It knows threads and nothing else. A waiting writer goes before new readers, so that a busy service can still swap.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ModelLock:
    """Readers run the model, a writer changes its weights; inside `writing`, the same thread may enter either."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._readers = 0
        self._writers_waiting = 0
        self._owner: int | None = None
        self._depth = 0

    @contextmanager
    def reading(self) -> Iterator[None]:
        if self._owner == threading.get_ident():
            yield
            return
        with self._free:
            self._free.wait_for(lambda: self._owner is None and not self._writers_waiting)
            self._readers += 1
        try:
            yield
        finally:
            with self._free:
                self._readers -= 1
                self._free.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        self._enter()
        try:
            yield
        finally:
            with self._free:
                self._depth -= 1
                if not self._depth:
                    self._owner = None
                    self._free.notify_all()

    def _enter(self) -> None:
        me = threading.get_ident()
        with self._free:
            if self._owner != me:
                self._writers_waiting += 1
                try:
                    self._free.wait_for(lambda: self._owner is None and not self._readers)
                finally:
                    self._writers_waiting -= 1
                    self._free.notify_all()
                self._owner = me
            self._depth += 1
