"""The bad vectors of segments that are given earlier tasks: what may not be given, and words that are wrong."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from vectors_adapters import BACKBONE, coded, dense, numbers
from vectors_build import Json, Parts, Vector, edited, take_apart, varint
from vectors_cross import BASE, FEATURE, alike_3, given, near, of_four, tasks, written
from vectors_signs import tensor, values

from adapterpack.adapter import Adapter, Head
from adapterpack.packing.encode import encode_task
from adapterpack.packing.join import join
from adapterpack.tensors import Sparse


def bad_cross() -> Iterator[Vector]:
    for rows in (_bad_fields, _bad_tasks, _bad_segments, _bad_words):
        for name, reason, data, why in rows():
            full = name if name.startswith("control-") else f"cross-{name}"
            yield Vector(full, data, why, "" if full == name else "item 36", reason)


Bad = tuple[str, str, bytes, str]


def _segment(index: Json, task: int, number: int = 0) -> Json:
    found: Json = index["tasks"][task]["segments"][number]
    return found


def _give(value: Any, task: int = 2) -> Callable[[Json], object]:
    return lambda index: _segment(index, task).update(given=value)


def _bad_fields() -> Iterator[Bad]:
    base = take_apart(given(alike_3(), BASE))
    for name, value in (
        ("given-text", "a"),
        ("given-object", {"a": 1}),
        ("given-null", None),
        ("given-number", [0]),
        ("given-nested", [["a"]]),
        ("given-nothing", []),
        ("given-twice", ["a", "b", "a"]),
    ):
        yield name, "bad-field", edited(base, _give(value)), f"The field given is {json.dumps(value)}."
    many = [f"t{n}" for n in range(65)]
    yield "given-65", "limit-exceeded", edited(base, _give(many)), "65 names."
    for name, reason, value in (
        ("required-no-list", "bad-field", FEATURE),
        ("required-nothing", "bad-field", []),
        ("required-number", "bad-field", [FEATURE, 1]),
        ("required-more", "unknown-feature", [FEATURE, "more"]),
        ("required-other-case", "unknown-feature", ["Cross-Task"]),
    ):
        data = edited(base, lambda index, v=value: index.update(requires=v))  # type: ignore[misc]
        yield name, reason, data, f"The field requires is {json.dumps(value)}."
    missing = edited(base, lambda index: index.pop("requires"))
    yield "not-required", "bad-field", missing, "Segments are given tasks, and nothing says so."


def _bad_tasks() -> Iterator[Bad]:
    base, reason = take_apart(given(alike_3(), BASE)), "segment-reference"
    yield "itself", reason, edited(base, _give(["b"], 1)), "A task given itself."
    yield "first-itself", reason, edited(base, _give(["a"], 0)), "The first task given itself."
    yield "later", reason, edited(base, _give(["c"], 1)), "A task given a later one, and that the first."
    yield "circle", reason, edited(base, _give(["b"], 0)), "Two tasks given each other."
    yield "nobody", reason, edited(base, _give(["a", "nobody"])), "There is no such task."
    yield "other-case", reason, edited(base, _give(["A"])), "There is no such task, but one in lower case."

    def accented(index: Json) -> None:
        index["tasks"][0]["name"] = "é"
        for task in (1, 2):
            _segment(index, task)["given"] = ["e\u0301"]

    yield "not-composed", reason, edited(base, accented), "The name is spelled with a combining accent, the task's not."


def _bad_segments() -> Iterator[Bad]:
    base = take_apart(given(alike_3(), BASE))

    def rows(index: Json, task: int = 0) -> Json:
        found: Json = index["tasks"][task]["groups"][0]["tensors"]
        return found

    def shapes(index: Json) -> None:
        for row in rows(index).values():
            row["shape"] = row["shape"][::-1]

    yield "shapes", "bad-shape", edited(base, shapes), "The given tensors have rows and columns swapped."
    fewer = edited(base, lambda index: rows(index).pop("up"))
    yield "fewer-tensors", "bad-shape", fewer, "The given segment has fewer tensors."
    one, two = alike_3()[:2]
    heads = [replace(task, head=Head(tensor(near(task.name, (5, 64))[0]))) for task in (one, two)]
    parts = take_apart(given(heads, {"b": ("a",)}))
    lonely = take_apart(join([encode_task(one, "small"), encode_task(heads[1], "small")], BACKBONE))
    data = edited(lonely, lambda index: (index.update(requires=[FEATURE]), _segment(index, 1, 1).update(given=["a"])))
    yield "no-segment", "segment-reference", data, "The given task has no segment of this number."
    skipped = _skipped(parts)
    yield "skipped", "segment-reference", skipped, "A skipped segment is given a task."
    yield from _not_signs(one, two)
    plain = take_apart(join([encode_task(task, "fast") for task in (one, two)], BACKBONE))
    yield "codec-signs", "bad-field", announced(plain, 0), "The codec signs uses no given tasks."
    named = [encode_task(replace(task, labels=tuple("vwxyz")), "small") for task in heads]
    yield "codec-labels", "bad-field", announced(take_apart(join(named, BACKBONE)), 2), "Class names are given a task."
    floats = [encode_task(replace(task, head=Head(dense(numbers(5, 64)))), "small") for task in (one, two)]
    data = announced(take_apart(join(floats, BACKBONE)), 1)
    yield "codec-raw", "bad-field", data, "The codec raw uses no given tasks."


def announced(parts: Parts, number: int) -> bytes:
    """The second task's segment of this number is given the first task."""

    def change(index: Json) -> None:
        index["requires"] = [FEATURE]
        _segment(index, 1, number)["given"] = ["a"]

    return edited(parts, change)


def _skipped(parts: Parts) -> bytes:
    changed = copy.deepcopy(parts)
    assert isinstance(changed.index, dict)
    row: Json = {"bytes": 1, "codec": "of-the-future", "params": {}, "skip": True}
    last = len(changed.index["tasks"][0]["segments"])
    changed.payloads.insert(last, b"1")
    changed.payloads.append(b"2")
    changed.index["tasks"][0]["segments"].append(row)
    changed.index["tasks"][1]["segments"].append({**row, "given": ["a"]})
    return changed.build()


def _not_signs(one: Adapter, two: Adapter) -> Iterator[Bad]:
    """The second task as it is coded given the first, behind one of the same shapes and other contents."""
    second = take_apart(given([one, two], {"b": ("a",)}))

    def sparse(shape: tuple[int, ...]) -> Sparse:
        return Sparse(shape, np.arange(9), coded((9,), 1, "unit", 0, True, "float32"))

    contents: dict[str, Callable[[tuple[int, ...]], Any]] = {
        "floats": lambda shape: dense(numbers(*shape), "float16"),
        "2-bits": lambda shape: coded(shape, 2, "normal-l1", 0, True, "float32"),
        "sparse-signs": sparse,
    }
    for name, content in contents.items():
        branches = tuple(
            replace(branch, tensors={role: content(t.shape) for role, t in branch.tensors.items()})
            for branch in one.branches
        )
        first = take_apart(join([encode_task(replace(one, branches=branches), "fast")], BACKBONE))
        assert isinstance(first.index, dict) and isinstance(second.index, dict)
        both = {**second.index, "tasks": [first.index["tasks"][0], second.index["tasks"][1]]}
        payloads, digests = [*first.payloads, second.payloads[1]], [first.digests[0], second.digests[1]]
        yield name, "segment-reference", Parts(both, payloads, digests).build(), f"The given segment holds {name}."


def _bad_words() -> Iterator[Bad]:
    base = take_apart(given(alike_3(), BASE))
    yield (
        "control-cross",
        "digest-mismatch",
        replace(base, digests=[*base.digests[:2], bytes(32)]).build(),
        ("Nothing is wrong but the digest of the third task."),
    )
    four = take_apart(given(of_four(), {"d": ("c", "a", "b")}))
    swapped, fewer = edited(four, _give(["a", "c", "b"], 3)), edited(base, _give(["a"]))
    yield "other-leads", "bad-stream", swapped, "The given tasks in another order than they were coded with."
    yield "fewer-given", "bad-stream", fewer, "One given task fewer than it was coded with."
    alone = edited(base, lambda index: _segment(index, 2).pop("given"))
    yield "none-given", "bad-stream", alone, "No given task for words that were coded with two."
    row = take_apart(written(tasks(lambda name: values(near(name, (1, 2000))), "ab")))
    data = edited(row, lambda index: _segment(index, 1).pop("given"))
    yield "one-row-none-given", "bad-stream", data, "Words for a single unit that is given no task."
    payload = base.payloads[2]
    words, rest = payload[1 : 1 + payload[0]], payload[1 + payload[0] :]
    if len(words) % 4 or len(words) > 123:
        raise RuntimeError(f"{len(words)} bytes: the example is to have one stream, its size in one byte")
    last = struct.unpack("<I", words[-4:])[0]
    for name, found, why in (
        ("words-few", words[:4], "Fewer words than any signs of this shape take."),
        ("words-missing", words[:-4], "The last word is missing."),
        ("words-extra-zero", words + bytes(4), "A word of zeros too many."),
        ("words-last", words[:-4] + struct.pack("<I", last - 1), "Another last word, which gives the same signs."),
        ("words-swapped", words[4:8] + words[:4] + words[8:], "The first two words swapped."),
        ("words-beyond", b"\xff" * 8 + words[8:], "Words that lie beyond every sign."),
        ("no-gain", words + bytes(128 - len(words)), "As many bytes of words as plain bits take."),
    ):
        yield name, "bad-stream", _with_last(base, varint(len(found)) + found + rest), why
    cut = _with_last(base, payload[: len(words) // 2])
    yield "cut", "payload-size", cut, "The words are cut short."


def _with_last(parts: Parts, payload: bytes) -> bytes:
    """The file with another payload of the last segment."""
    changed = replace(parts, payloads=[*parts.payloads[:-1], payload])
    return edited(changed, lambda index: _segment(index, -1, -1).update(bytes=len(payload)))
