"""What torch.cuda allows around captures, after its sources, where there is no GPU: streams, memory and failures.

A capture runs nothing here. What it checks: memory is captured to by one graph at a time, and not again once all its
graphs are gone; a capture that fails leaves its stream set and its memory taken; a stream is of one device.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest
import torch


class Stream:
    def __init__(self, device: int) -> None:
        self.device = device

    def wait_event(self, event: object) -> None: ...

    def record_event(self) -> object:
        return object()


class Graph:
    def replay(self) -> None: ...


class Cuda:
    """Stands in for torch.cuda. `device` is the current one, `streams` are the current ones of each device."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.device, self.streams = 0, [Stream(0), Stream(1)]
        self.captured: list[tuple[int, Stream]] = []  # memory and stream of each capture
        self._default: Stream | None = None  # for captures that name none: of the device that was the first to need it
        self._graphs: dict[int, int] = {}
        self._taken: set[int] = set()
        handles = count()
        stand_ins = {
            "CUDAGraph": Graph,
            "graph_pool_handle": lambda: next(handles),
            "Stream": lambda: Stream(self.device),
            "current_stream": lambda: self.streams[self.device],
            "graph": self._graph,
            "stream": self._on,
            "device": self._at,
        }
        for name, stand_in in stand_ins.items():
            patch.setattr(torch.cuda, name, stand_in)

    @contextmanager
    def _at(self, device: torch.device) -> Iterator[None]:
        before, self.device = self.device, device.index
        yield
        self.device = before

    @contextmanager
    def _on(self, stream: Stream) -> Iterator[None]:
        device, before = self.device, self.streams[stream.device]
        self.device, self.streams[stream.device] = stream.device, stream
        try:
            yield
        finally:
            self.device, self.streams[stream.device] = device, before

    @contextmanager
    def _graph(self, graph: Graph, pool: int, stream: Stream | None = None, **rest: Any) -> Iterator[None]:
        self._default = self._default or Stream(self.device)
        stream = stream or self._default
        device, before = self.device, self.streams[stream.device]
        self.device, self.streams[stream.device] = stream.device, stream
        if pool in self._taken or self._graphs.get(pool) == 0:
            raise RuntimeError("INTERNAL ASSERT FAILED: already recording, or use_count is 0")
        self._taken.add(pool)
        self._graphs[pool] = self._graphs.get(pool, 0) + 1
        weakref.finalize(graph, self._gone, pool)
        try:
            yield
        except BaseException as error:  # and nothing is put back
            raise RuntimeError("operation failed due to a previous error during capture") from error
        self._taken.discard(pool)
        self.captured.append((pool, stream))
        self.device, self.streams[stream.device] = device, before

    def _gone(self, pool: int) -> None:
        self._graphs[pool] -= 1

    def shared(self) -> list[int]:
        """How many captures each memory was used for."""
        return [*Counter(pool for pool, _ in self.captured).values()]
