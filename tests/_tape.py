"""What a CUDA graph does, on the CPU: operations recorded with the very tensors they read and wrote, and run again.

As on a GPU, a replay knows nothing of Python: what the recorded code computed from anything but fixed memory stays as
it was when it was recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only


class Tape:
    """A `Recorder` for the CPU. `recorded` counts, `running` is how many threads are inside now."""

    device_type = "cpu"

    def __init__(self) -> None:
        self.recorded = self.running = 0

    def record(self, run: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        self.recorded += 1
        operations = _Operations()
        with operations:
            out = run()
        for found in operations.found:  # a capture runs nothing: what comes out is rubbish until the first replay
            for tensor in found[-1]:
                if tensor.is_floating_point() and tensor.data_ptr() in operations.made:
                    tensor.fill_(float("nan"))
        return operations.replay, out

    @contextmanager
    def turn(self, device: torch.device) -> Iterator[None]:
        assert self.running == 0, "two threads in the memory of one graph"
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1


class _Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []
        self.made: set[int] = set()  # memory that came from the operations themselves

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        args, kwargs = tree_map_only(nn.Parameter, nn.Parameter.detach, (args, kwargs or {}))  # where it is now
        self.found.append((func, args, kwargs, _tensors(out)))
        self.made |= {t.data_ptr() for t in _tensors(out) if t.untyped_storage().data_ptr() not in given}
        return out

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, written in self.found:
                for new, old in zip(_tensors(func(*args, **kwargs)), written):
                    if new.data_ptr() != old.data_ptr():  # views, and what is written in place, are there already
                        old.copy_(new)


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
