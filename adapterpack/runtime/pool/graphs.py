"""Mixed batches as captured CUDA graphs: the whole forward pass is one launch, whichever tasks the rows belong to.

A graph reads fixed addresses. So each batch's images and its rows' low-rank factors are written to where the graph
reads them, and the graph knows no task. That goes for batches whose tasks are low-rank products of one form and a head;
heads run after the graph, as each task has a form of its own.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol
from weakref import WeakSet

import torch

from adapterpack.errors import CallError, Reason, UnsupportedAdapterError
from adapterpack.runtime.pool.batch import Run
from adapterpack.runtime.pool.gather import Stack, at_stations, spread
from adapterpack.runtime.pool.parts import Product, Segment
from adapterpack.runtime.pool.station import Batch, Station
from adapterpack.runtime.pool.twin import Twin

_MOST = 4  # forms of tasks for which graphs are kept; the least recently used goes first

Recorded = tuple[Callable[[], None], torch.Tensor]  # runs a recording again, and where it leaves what it computed


class Recorder(Protocol):
    """Records forward passes.

    Attributes:
        device_type: of the devices on which it can.
    """

    device_type: str

    def record(self, run: Callable[[], torch.Tensor]) -> Recorded:
        """Record what `run` does to the tensors that it finds."""
        ...

    def turn(self, device: torch.device) -> AbstractContextManager[None]:
        """Around everything that touches what recordings read and write."""
        ...


class CudaRecorder:
    """Records CUDA graphs, which share the memory of their intermediate results: they never run at the same time."""

    device_type = "cuda"
    _one = threading.Lock()  # torch allows one capture at a time, of all pools
    _memory: Any
    _stream: torch.cuda.Stream

    def __init__(self) -> None:
        self._alive: WeakSet[torch.cuda.CUDAGraph] = WeakSet()  # those that share the memory now
        self._done: torch.cuda.Event | None = None

    def record(self, run: Callable[[], torch.Tensor]) -> Recorded:
        """Capture on the current device.

        Raises:
            UnsupportedAdapterError: `unsupported-model`, the forward pass does what no graph can hold.
        """
        run()  # libraries take memory at their first call, which may not be within a capture
        try:
            graph, out = self._captured(run)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._alive.clear()  # torch goes on as if the memory was captured to, and refuses another capture there
            text = f"the forward pass cannot be captured: {str(error).strip().partition(chr(10))[0]}"
            hint = "make the pool without cuda_graphs"
            raise UnsupportedAdapterError(text, Reason.UNSUPPORTED_MODEL, hint=hint) from error
        self._alive.add(graph)
        return graph.replay, out

    def _captured(self, run: Callable[[], torch.Tensor]) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        """In a stream of the current device; where it fails, torch alone would leave the caller in that stream."""
        if not self._alive:  # memory whose last graph is gone cannot be captured to again
            self._memory = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        graph, stream = torch.cuda.CUDAGraph(), self._stream
        capture = torch.cuda.graph(graph, pool=self._memory, stream=stream, capture_error_mode="thread_local")
        with self._one, torch.cuda.stream(stream), capture:
            out = run()
        return graph, out

    @contextmanager
    def turn(self, device: torch.device) -> Iterator[None]:
        """The device, too, waits until the one before is done, which may be in another thread's stream."""
        with torch.cuda.device(device):
            stream = torch.cuda.current_stream()
            if self._done is not None:
                stream.wait_event(self._done)
            try:
                yield
            finally:
                self._done = stream.record_event()


class Graphs:
    """Recorded forward passes by the tasks' form and the size of the batch.

    Args:
        sizes: of batches that are recorded; a batch is filled up to the next of them.
        recorder: makes the recordings.
    """

    def __init__(self, sizes: Sequence[int], recorder: Recorder) -> None:
        self._sizes, self._recorder = sorted(sizes), recorder
        self._lock = threading.Lock()
        self._rooms: OrderedDict[tuple[object, ...], _Room] = OrderedDict()
        self._made_for: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        """Memory that batches are written to; what a graph needs inside is torch's to know."""
        return sum(room.nbytes for room in list(self._rooms.values()))

    def clear(self) -> None:
        """Forget all of them, because the model was moved or cast."""
        with self._lock:
            self._rooms.clear()

    def _follow(self, twin: Twin) -> None:
        """Forget all where the parameters are elsewhere in memory: a graph reads them where they were."""
        now = twin.addresses()
        if now != self._made_for:
            self._rooms.clear()
            self._made_for = now

    def features(self, twin: Twin, images: torch.Tensor, runs: Sequence[Run]) -> torch.Tensor | None:
        """What the heads read, [n, features]; None for a batch that no recording can be made of.

        Args:
            twin: runs the batch.
            images: sorted by task, on the twin's device and in its dtype.
            runs: each task's rows.

        Raises:
            UnsupportedAdapterError: `unsupported-model`, see `CudaRecorder.record`.
        """
        size = next((size for size in self._sizes if size >= len(images)), None)
        forms = {tuple(stack.form for stack in task.stacks) for _, _, task in runs}
        kind = images.device.type
        if size is None or kind != self._recorder.device_type or torch.is_autocast_enabled(kind):
            return None
        if len(forms) > 1 or not all(task.only_stacks for _, _, task in runs):
            return None
        with self._lock, self._recorder.turn(images.device):
            self._follow(twin)
            room = self._room((*forms, images.shape[1:]), images, runs[0][2].stacks)
            room.fill(size, images, runs)
            if size not in room.recorded:
                room.recorded[size] = self._recorder.record(room.run(twin, size))
            replay, out = room.recorded[size]
            replay()
            return out[: len(images)].clone()

    def _room(self, key: tuple[object, ...], images: torch.Tensor, stacks: Sequence[Stack]) -> _Room:
        room = self._rooms.get(key)
        if room is None:
            room = self._rooms[key] = _Room(self._sizes[-1], images, stacks)
            if len(self._rooms) > _MOST:
                self._rooms.popitem(last=False)
        self._rooms.move_to_end(key)
        return room


class _Room:
    """Where batches of one form are written: the images, and the factors of every row.

    Args:
        rows: of the largest batch.
        images, stacks: like those of the batches.
    """

    def __init__(self, rows: int, images: torch.Tensor, stacks: Sequence[Stack]) -> None:
        self.recorded: dict[int, Recorded] = {}
        self._images = images.new_zeros(rows, *images.shape[1:])
        self._stacks = [
            Stack(s.form, s.down.new_empty(rows, *s.down.shape), tuple(up.new_empty(rows, *up.shape) for up in s.ups))
            for s in stacks
        ]

    @property
    def nbytes(self) -> int:
        factors = [tensor for stack in self._stacks for tensor in (stack.down, *stack.ups)]
        return sum(tensor.nbytes for tensor in (self._images, *factors))

    def fill(self, size: int, images: torch.Tensor, runs: Sequence[Run]) -> None:
        """Write a batch; rows beyond it go on as rows of its last task, and nobody reads what becomes of them."""
        self._images[: len(images)].copy_(images)
        for number, room in enumerate(self._stacks):
            segments = [(start, stop, task.stacks[number]) for start, stop, task in runs]
            start, _, last = segments[-1]
            spread([*segments[:-1], (start, size, last)], _first(room, size))

    def run(self, twin: Twin, size: int) -> Callable[[], torch.Tensor]:
        """The forward pass of what is written here."""
        products: dict[Station, list[Product]] = {}
        for room in self._stacks:
            for station, product in at_stations(0, size, _first(room, size)):
                products.setdefault(station, []).append(product)
        batch = Batch([Segment(0, size, {})], products)
        return lambda: twin.features(self._images[:size], batch)


def _first(stack: Stack, rows: int) -> Stack:
    return Stack(stack.form, stack.down[:rows], tuple(up[:rows] for up in stack.ups))


def graphs_for(sizes: Sequence[int], device: torch.device) -> Graphs | None:
    """None where no sizes are given.

    Raises:
        CallError: `bad-call`, sizes that are none, or a device without CUDA graphs.
    """
    if not isinstance(sizes, (list, tuple)) or not all(type(size) is int and size > 0 for size in sizes):
        hint = "give sizes of batches, like (1, 8, 32)"
        raise CallError(f"cuda_graphs is {sizes!r}", Reason.BAD_CALL, hint=hint)
    if not sizes:
        return None
    if device.type != "cuda":
        text = f"cuda_graphs needs a model on a GPU, this one is on {device.type}"
        raise CallError(text, Reason.BAD_CALL, hint='give device="cuda", or leave cuda_graphs out')
    return Graphs(sizes, CudaRecorder())
