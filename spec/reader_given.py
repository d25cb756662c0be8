"""Segments coded with the tensors of earlier tasks: spec/README.md, "Given tasks".

Part of the second reader; standard library only, imports nothing of the package. What a codec makes of the signs it is
given is known elsewhere.
"""

from __future__ import annotations

from typing import Any

from reader_base import Shape, Tensor, fail, numel, packed_bytes

FEATURE, GIVEN = "cross-task", 64
Json = dict[str, Any]
Key = tuple[str, int]  # a task's name and the number of one of its segments


def check_requires(top: Any) -> None:
    """The field `requires` of the index, which comes before all others."""
    features = top.get("requires") if type(top) is dict else None
    if type(features) is not list:
        return  # absent, or what the other checks refuse
    if not all(isinstance(name, str) for name in features):
        fail("bad-field", "a feature is a name", "index.requires")
    if set(features) - {FEATURE}:
        fail("unknown-feature", f"the file needs {', '.join(features)}", "index.requires")


def check_names(segment: Json, where: str) -> None:
    """The field `given` alone."""
    if "given" not in segment:
        return
    names = segment["given"]
    if len(names) > GIVEN:
        fail("limit-exceeded", f"{len(names)} given tasks", where)
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        fail("bad-field", "expected different names of tasks", where)


def check_given(tasks: list[Json], shapes: list[list[list[Shape]]], requires: list[str]) -> None:
    """What the index says of given tasks, all of it together; shapes by task and segment."""
    before: dict[str, list[list[Shape]]] = {}
    for t, task in enumerate(tasks):
        for number, segment in enumerate(task["segments"]):
            if "given" in segment and FEATURE not in requires:
                fail("bad-field", f"given tasks, but {FEATURE} is not required", "index.requires")
            if "given" in segment and segment.get("skip", False):
                fail("segment-reference", "a skipped segment is given tasks", f"index.tasks[{t}].segments[{number}]")
            for name in segment.get("given", ()):
                where = f"index.tasks[{t}].segments[{number}].given"
                if name not in before or number >= len(before[name]):
                    fail("segment-reference", f"no task before this one is {name} with a segment {number}", where)
                if before[name][number] != shapes[t][number]:
                    fail("bad-shape", f"segment {number} of {name} has other shapes", where)
        before[task["name"]] = shapes[t]


def last_uses(tasks: list[Json]) -> dict[Key, int]:
    """For each segment that is given to a later task, the number of the last such task."""
    return {
        (name, number): t
        for t, task in enumerate(tasks)
        for number, segment in enumerate(task["segments"])
        for name in segment.get("given", ())
    }


def signs_of(tensors: list[Tensor]) -> list[bytes] | None:
    """The packed signs of a segment's tensors; None where any is not of 1 bit, or there is none."""
    if not tensors or any(tensor.form.get("bits") != 1 for tensor in tensors):
        return None
    return [tensor.content[: packed_bytes(numel(tensor.shape), 1)] for tensor in tensors]
