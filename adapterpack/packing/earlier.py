"""Signs of tasks that later tasks of a file are given, kept while they are needed.

It knows which segment is needed until when; how a codec uses them, it does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from adapterpack.container.index import Index, Segment
from adapterpack.errors import CorruptFileError, Reason
from adapterpack.tensors import Quantized, Tensor

Key = tuple[str, int]  # a task's name, the number of its segment


class Earlier:
    """What was decoded and is still to be given to a later task.

    Args:
        index: the file's.
        numbers: the tasks that will be decoded, ascending.
    """

    def __init__(self, index: Index, numbers: Iterable[int]) -> None:
        self._last: dict[Key, int] = {}
        for n in numbers:
            for i, segment in enumerate(index.tasks[n].segments):
                self._last.update(((name, i), n) for name in segment.given)
        self._kept: dict[Key, list[Quantized]] = {}
        self._sizes: dict[Key, int] = {}

    def signs(self, segment: Segment, number: int, where: str) -> list[list[Quantized]]:
        """The tensors of each task that a segment is given.

        Raises:
            CorruptFileError: `segment-reference` where one holds no signs.
        """
        for name in segment.given:
            if (name, number) not in self._kept:
                message = f"segment {number} of the task {name!r} holds no signs"
                raise CorruptFileError(message, Reason.SEGMENT_REFERENCE, f"{where}.given")
        return [self._kept[name, number] for name in segment.given]

    def keep(self, number: int, name: str, segments: Sequence[Sequence[Tensor]]) -> None:
        """Take over what later tasks need of a decoded task, and let go of what none needs any more."""
        for i, tensors in enumerate(segments):
            rows = signs_of(tensors) if (name, i) in self._last else []
            if rows:
                self._kept[name, i] = rows
                self._sizes[name, i] = sum(map(_nbytes, rows))
        for key in [key for key in self._kept if self._last[key] <= number]:
            del self._kept[key], self._sizes[key]

    def nbytes(self) -> int:
        """Memory that is in use."""
        return sum(self._sizes.values())


def signs_of(tensors: Sequence[Tensor]) -> list[Quantized]:
    """The tensors, where all of them are of 1 bit; else none."""
    rows = [t for t in tensors if isinstance(t, Quantized) and t.bits == 1]
    return rows if len(rows) == len(tensors) else []


def _nbytes(tensor: Quantized) -> int:
    return sum(part.nbytes for part in (tensor.packed, tensor.scale, tensor.offset) if part is not None)
