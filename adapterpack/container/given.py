"""Segments that can be decoded only after segments of earlier tasks: the rules for `given`, and the order they imply.

A segment names tasks before its own in the file, so there are no circles; of each, the segment of the same number is
meant, and its tensors have the same shapes. Source: spec/README.md, "Given tasks".
"""

from __future__ import annotations

from collections.abc import Iterable

from adapterpack.container.index import FEATURE, Index, Segment, TaskEntry
from adapterpack.errors import CorruptFileError, Reason
from adapterpack.stacks import Shapes


def check_given(index: Index, features: Iterable[str]) -> None:
    """Refuse tasks that are not there, not before, or hold something else.

    Raises:
        CorruptFileError: `bad-field`, `segment-reference`, `bad-shape`.
    """
    if not any(segment.given for task in index.tasks for segment in task.segments):
        return
    if FEATURE not in features:
        raise CorruptFileError(
            f"segments are given tasks, but {FEATURE!r} is not required", Reason.BAD_FIELD, "index.requires"
        )
    before: dict[str, list[Shapes]] = {}
    for t, task in enumerate(index.tasks):
        shapes = task.shapes_by_segment()
        for number, segment in enumerate(task.segments):
            _check_segment(segment, number, shapes[number], before, f"index.tasks[{t}].segments[{number}].given")
        before[task.name] = shapes


def _check_segment(segment: Segment, number: int, shapes: Shapes, before: dict[str, list[Shapes]], where: str) -> None:
    if segment.given and segment.skip:
        raise CorruptFileError("a segment to be skipped is given tasks", Reason.SEGMENT_REFERENCE, where)
    for name in segment.given:
        if name not in before:
            raise CorruptFileError(f"no task before this one is called {name!r}", Reason.SEGMENT_REFERENCE, where)
        if number >= len(before[name]):
            message = f"the task {name!r} has no segment {number}"
            raise CorruptFileError(message, Reason.SEGMENT_REFERENCE, where)
        if before[name][number] != shapes:
            message = f"segment {number} of the task {name!r} has other shapes"
            raise CorruptFileError(message, Reason.BAD_SHAPE, where)


def given_names(task: TaskEntry) -> set[str]:
    """The tasks that decoding this one needs at first hand."""
    return {name for segment in task.segments for name in segment.given}


def chain(index: Index, number: int) -> list[int]:
    """The numbers of the tasks that decoding one needs, at first or second hand, and its own; in file order."""
    found, wanted = [number], given_names(index.tasks[number])
    for i in reversed(range(number)):
        if index.tasks[i].name in wanted:
            found.append(i)
            wanted |= given_names(index.tasks[i])
    return found[::-1]
