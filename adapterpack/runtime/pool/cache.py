"""Inflated tasks within a budget of memory: those whose last use is longest ago are given up first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar, cast

from adapterpack.runtime.pool.store import Packed


class Inflated(Protocol):
    """A form in which a task can be used."""

    @property
    def nbytes(self) -> int: ...
    @property
    def labels(self) -> tuple[str, ...] | None: ...


T = TypeVar("T", bound=Inflated)


class Cache:
    """Inflated tasks, each in the forms that were asked for; what a caller holds lives on when it is given up here.

    Args:
        budget: bytes that may stay; None for no limit.
        alive: False for a task that was removed while it was made here, which then does not stay.
    """

    def __init__(self, budget: int | None, alive: Callable[[Packed], bool] = lambda task: True) -> None:
        self.budget = budget
        self._alive = alive
        self.hits = self.misses = self.evictions = 0
        self._nbytes = 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Packed, type], Inflated] = OrderedDict()

    def get(self, task: Packed, form: type[T], make: Callable[[Packed], T]) -> T:
        """The task in a form, made where it is not here."""
        return self.get_all([task], form, make)[0]

    def get_all(self, tasks: Sequence[Packed], form: type[T], make: Callable[[Packed], T]) -> list[T]:
        """Several tasks in a form; those that are here are taken before another's making can push them out.

        `make` runs outside the lock, so that one slow task does not keep others waiting.
        """
        here = [self._find(task, form) for task in tasks]
        return [self._put(task, form, make(task)) if found is None else found for task, found in zip(tasks, here)]

    def peek(self, task: Packed) -> Inflated | None:
        """The task in any form in which it is here; this is no use of it."""
        with self._lock:
            return next((found for (known, _), found in self._kept.items() if known is task), None)

    def sizes(self) -> dict[Packed, int]:
        """Bytes of each task that is inflated now."""
        sizes: dict[Packed, int] = {}
        with self._lock:
            for (task, _), found in self._kept.items():
                sizes[task] = sizes.get(task, 0) + found.nbytes
        return sizes

    def drop(self, task: Packed) -> None:
        with self._lock:
            for key in [key for key in self._kept if key[0] is task]:
                self._take(key)

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()
            self._nbytes = 0

    def _find(self, task: Packed, form: type[T]) -> T | None:
        with self._lock:
            found = self._kept.get((task, form))
            if found is None:
                self.misses += 1
                return None
            self.hits += 1
            self._kept.move_to_end((task, form))
            return cast(T, found)

    def _put(self, task: Packed, form: type[T], made: T) -> T:
        with self._lock:
            known = self._kept.get((task, form))
            if known is not None:  # another thread was faster
                return cast(T, known)
            if not self._alive(task):
                return made
            self._kept[task, form] = made
            self._nbytes += made.nbytes
            while self.budget is not None and self._nbytes > self.budget:
                self._take(next(iter(self._kept)))
                self.evictions += 1
        return made

    def _take(self, key: tuple[Packed, type]) -> None:
        self._nbytes -= self._kept.pop(key).nbytes
