"""The vectors of segments that are given earlier tasks: what may be given, what is made of it, each way to be wrong.

Their signs come from SHA-256, as those of `vectors_signs` do. Tasks are alike where they are to be given one another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from vectors_adapters import BACKBONE, dense, numbers
from vectors_build import Json, Vector, edited, take_apart
from vectors_signs import DEFAULT, NAME, PAPER, Bits, drawn, lora, tensor, values

from adapterpack.adapter import Adapter, Head
from adapterpack.codecs import CODECS
from adapterpack.container.index import Segment
from adapterpack.packing.cross import cross_coded
from adapterpack.packing.encode import EncodedTask, encode_task
from adapterpack.packing.join import join
from adapterpack.packing.plan import plan

FEATURE = "cross-task"
GROUPED: Json = {"group": 32, "levels": "normal-l1", "offset": False, "scale": "float16"}


def near(name: str, *shapes: Sequence[int], own: int = 20, first: str = "first") -> list[Bits]:
    """Signs that all tasks of one first have in common, but for so many in 256 of the task's own."""
    return [drawn(f"{first} {i}", *s) ^ drawn(f"{name} {i}", *s, chance=own) for i, s in enumerate(shapes)]


def pairs(units: int, channels: int, count: int) -> list[tuple[int, int]]:
    return [(units, channels), (channels, units)] * count


def tasks(make: Callable[[str], Adapter], names: str = "abc") -> list[Adapter]:
    return [replace(make(name), name=name) for name in names]


def alike_3(units: int = 8, channels: int = 64, count: int = 1) -> list[Adapter]:
    return tasks(lambda name: lora(near(name, *pairs(units, channels, count))))


def written(adapters: Sequence[Adapter]) -> bytes:
    """As `bundle --cross-task` writes them; some segment must be given a task."""
    plain = join([encode_task(one, "small") for one in adapters], BACKBONE)
    found = cross_coded(plain)
    if found == plain:
        raise RuntimeError("the example is to have given tasks")
    return found


Given = dict[str, tuple[str, ...]]
BASE: Given = {"b": ("a",), "c": ("a", "b")}


def given(adapters: Sequence[Adapter], names: Given, profile: str = "small", **changes: Any) -> bytes:
    """The file whose tasks are given others as it is said, in their first segments, with these parameters there."""
    by_name = {one.name: one for one in adapters}
    encoded = [encode_task(one, profile) for one in adapters]
    return join([_recoded(e, by_name, names.get(e.entry.name, ()), changes) for e in encoded], BACKBONE)


def _recoded(encoded: EncodedTask, by_name: dict[str, Adapter], names: tuple[str, ...], changes: Json) -> EncodedTask:
    if not names:
        return encoded
    own, *others = (plan(by_name[name]).segments[0] for name in (encoded.entry.name, *names))
    params = {**DEFAULT, **{k: v for k, v in own.form.items() if k != "bits"}, **changes}
    payload = CODECS[NAME].encode(own.tensors, params, [other.tensors for other in others])
    segments = (Segment(NAME, params, len(payload), given=names), *encoded.entry.segments[1:])
    return replace(encoded, entry=replace(encoded.entry, segments=segments), payloads=(payload, *encoded.payloads[1:]))


# --- good ---------------------------------------------------------------------------------------------------------


def good_cross() -> Iterator[Vector]:
    for rows in (_written, _chosen, _liberties):
        for name, data, why in rows():
            yield Vector(f"cross-{name}", data, why)


def _written() -> Iterator[tuple[str, bytes, str]]:
    yield "bundle-of-3", written(alike_3(8, 96, 2)), "Three tasks, the second given the first, the third both."
    row = tasks(lambda name: values(near(name, (1, 2000))), "ab")
    yield "one-row", written(row), "A single unit, which nothing predicts but the given task."
    dim1 = tasks(lambda name: lora(near(name, *pairs(1, 96, 8))))
    yield "dim1", written(dim1), "Hidden dimension 1, eight pairs joined."
    yield "some-segments", written(_with_heads()), "One task given others for its branches, another for its head only."
    wide = tasks(lambda name: replace(lora([]), head=Head(tensor(near(name, (131, 64))[0]))), "ab")
    yield "padding", written(wide), "A head of 131 classes, split in two with a unit of padding."


def _with_heads() -> list[Adapter]:
    def make(name: str) -> Adapter:
        branches = near(name, *pairs(8, 160, 1), first="own" if name == "c" else "first")
        head = near(name, (10, 160), first="own" if name == "b" else "first")[0]
        return replace(lora(branches), head=Head(tensor(head), dense(numbers(10))), labels=tuple("pqrstuvwxy"))

    return tasks(make)


def _chosen() -> Iterator[tuple[str, bytes, str]]:
    """Parameters and given tasks that the writer would not choose."""
    three = alike_3(10, 48, 3)
    chain = {"b": ("a",), "c": ("b",)}
    yield "chain", given(three, chain), "The third given the second, and that the first."
    both = {"c": ("b", "a")}
    data = given(of_four(), {"d": ("c", "a", "b")})
    yield "order", data, "Not in the order of the file: the third, which is alike in less, leads."
    yield "join-2", given(three, both, join=2, lam=90, compression="zstd"), "Two pairs joined and one left; zstd."
    yield "not-pooled", given(three, both, pooled=False, lam=255), "Pairs that do not learn from each other, λ 255."
    yield "fast", given(three, both, "fast"), "The given tasks are coded as plain signs."
    other = [replace(lora(near("a", *pairs(8, 96, 1)), GROUPED), name="a"), *alike_3(8, 96)[1:]]
    yield "other-form", given(other, {"b": ("a",)}), "The given task has other levels, groups and scales."
    far = tasks(lambda name: lora(near(name, *pairs(8, 96, 1), own=255 if name == "a" else 2)))
    yield "opposite", given(far, {"c": ("a", "b")}), "The leading task has the opposite of nearly every sign."
    for channels in (1, 3):
        tall = tasks(lambda name, c=channels: values(near(name, (100, c))), "ab")  # type: ignore[misc]
        data = given(tall, {"b": ("a",)}, units="rows", pooled=False)
        yield f"channels-{channels}", data, f"100 units, {channels} channel(s): learned from within the first block."
    split = tasks(lambda name: values(near(name, (16_257, 1), own=4)), "ab")
    data = given(split, {"b": ("a",)}, units="rows", pooled=False)
    yield "padding-127", data, "128 matrices of one channel and 128 units; the last has one unit and 127 of padding."
    mixed = tasks(lambda name: values([*near(name, (8, 64), (1, 64)), drawn(f"any {name}", 7, 40)]))
    yield "mixed", given(mixed, both), "Two coded streams, one of a single unit, and one that is plain."
    many = [f"{n}" for n in range(13)]
    votes = [replace(values(near(name, (6, 40), own=70)), name=name) for name in many]
    last = {"12": tuple(many[:12])}
    yield "13-tasks", given(votes, last), "Twelve given tasks, whose agreement exceeds its bound."
    yield "65-tasks", _of_65(), "64 given tasks, the most."


def of_four() -> list[Adapter]:
    return tasks(lambda name: lora(near(name, *pairs(8, 96, 1), own=60 if name == "c" else 20)), "abcd")


def _of_65() -> bytes:
    names = [f"{n}" for n in range(65)]
    form = {**PAPER, "offset": False, "scale": "float16"}
    small = [replace(values(near(name, (4, 16), own=3), form), name=name) for name in names]
    return given(small, {"64": tuple(names[:64])}, "fast")


def _liberties() -> Iterator[tuple[str, bytes, str]]:
    """What a reader must accept although this writer does not write it."""
    plain = join([encode_task(one, "small") for one in alike_3()], BACKBONE)
    data = edited(take_apart(plain), lambda index: index.update(requires=[FEATURE]))
    yield "required-by-nothing", data, "The feature is required, but no segment is given a task."
    twice = edited(take_apart(given(alike_3(), BASE)), lambda index: index.update(requires=[FEATURE, FEATURE]))
    yield "required-twice", twice, "The feature is required twice."
    rows = tasks(lambda name: lora([drawn(f"{name} {i}", *s) for i, s in enumerate(pairs(8, 64, 1))]), "ab")
    yield "all-plain", given(rows, {"b": ("a",)}), "A given task that helps nothing: the only stream is plain."
