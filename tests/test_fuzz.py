"""Any bytes give a result or an AdapterPackError, in bounded memory: from noise to files with every checksum right."""

from __future__ import annotations

import copy
import random
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterpack.adapter import Adapter, Branch, Site
from adapterpack.container import framing
from adapterpack.container.limits import Limits
from adapterpack.errors import AdapterPackError
from adapterpack.packing.bundle import open_bundle
from adapterpack.packing.cross import cross_coded
from adapterpack.packing.sizes import describe_file, describe_tensors
from adapterpack.quantize import quantize_latent
from tests import factories

LIMITS = Limits(decoded_bytes=4 << 20)
ROOM = 60 << 20  # a small multiple of the limit: planes, index, messages
GOOD = {
    f"{method}-{profile}": factories.pack(factories.make(method), profile=profile)
    for method in factories.MAKERS
    for profile in ("small", "fast")
}
GOOD["forms"] = factories.pack(
    *(
        factories.make("lora", form, branches=factories.lora_branches(form), head=factories.head(form=form))
        for form in factories.FORMS
    )
)


def one_of_three(name: str, own: int) -> Adapter:
    """A task that began as the others did: their numbers, and some of its own."""
    shapes = {"down": (8, 96), "up": (96, 8)}
    tensors = {
        role: quantize_latent(factories.numbers(600 + i, shape) + factories.numbers(own + i, shape, 0.03), 1)
        for i, (role, shape) in enumerate(shapes.items())
    }
    branch = Branch(Site("blocks.0.mlp"), "adaptformer", {"scale": 0.1}, tensors)
    return factories.make("adaptformer", name, branches=[branch])


GOOD["cross-task"] = cross_coded(factories.pack(*(one_of_three(name, 10 * i) for i, name in enumerate("abc", 61))))
INDEXES = {name: factories.index_of(data) for name, data in GOOD.items()}
names = st.sampled_from(sorted(GOOD))


def read_all(data: bytes) -> list[Adapter] | None:
    """Everything that a reader does with a file; None where it was refused."""
    try:
        bundle = open_bundle(data, LIMITS)
    except AdapterPackError as error:
        assert str(error).isprintable()
        return None
    found = []
    describe_file(bundle)
    for entry in bundle.index.tasks:
        describe_tensors(entry)
    for task in bundle.tasks:
        try:
            found.append(bundle.read(task))
        except AdapterPackError as error:
            assert str(error).isprintable()
            return None
    return found


def read_measured(data: bytes) -> list[Adapter] | None:
    tracemalloc.start()
    try:
        return read_all(data)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < ROOM + 4 * len(data), f"{peak:,} bytes"


def test_the_good_files_are_good() -> None:
    assert [task["segments"][0].get("given") for task in INDEXES["cross-task"]["tasks"]][:2] == [None, ["a"]]
    for data in GOOD.values():
        assert read_measured(data)


@given(st.binary(max_size=2000))
def test_noise(data: bytes) -> None:
    assert read_all(data) is None


@given(st.binary(max_size=500), st.binary(max_size=60), st.binary(max_size=500))
def test_noise_in_a_good_frame(index: bytes, table: bytes, rest: bytes) -> None:
    assert read_all(factories.reframe(index, table) + rest) is None


@given(names, st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_bits_never_pass(name: str, flips: list[tuple[float, int]]) -> None:
    """Every byte is covered by a checksum."""
    data = bytearray(GOOD[name])
    for place, mask in flips:
        data[int(place * len(data))] ^= mask
    assert bytes(data) == GOOD[name] or read_all(bytes(data)) is None or data[9] != 0


@given(names, st.floats(0, 1, exclude_max=True))
def test_cut_files_never_pass(name: str, where: float) -> None:
    assert read_all(GOOD[name][: int(where * len(GOOD[name]))]) is None


@given(names, names, st.floats(0, 1), st.floats(0, 1))
def test_spliced_files_never_pass(one: str, other: str, a: float, b: float) -> None:
    data = GOOD[one][: int(a * len(GOOD[one]))] + GOOD[other][int(b * len(GOOD[other])) :]
    assert data in (GOOD[one], GOOD[other]) or read_all(data) is None


@settings(max_examples=250)
@given(names, st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=3))
def test_payloads_behind_right_checksums(name: str, flips: list[tuple[float, int]]) -> None:
    """The codecs meet the damage; what they accept, the digest refuses unless the content is the same."""
    head = int.from_bytes(GOOD[name][12:16], "little")
    data = bytearray(GOOD[name])
    for place, mask in flips:
        data[head + int(place * (len(data) - head))] ^= mask
    found = read_measured(factories.with_checksums(bytes(data)))
    if found is not None:
        assert all(a.same_as(b) for a, b in zip(found, read_all(GOOD[name]) or []))


@settings(max_examples=120)
@given(names, st.integers(0, 2**32))
def test_heads_behind_a_right_checksum(name: str, seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray(GOOD[name])
    head = int.from_bytes(data[12:16], "little")
    for _ in range(rng.randint(1, 3)):
        data[rng.choice([rng.randrange(8, 28), rng.randrange(28, head)])] = rng.randrange(256)
    if int.from_bytes(data[12:16], "little") > len(data):
        assert read_all(bytes(data)) is None
    else:
        read_measured(factories.with_head_checksum(bytes(data)))


PLAIN: list[Any] = [None, True, False, 0, 1, -1, 2, 8, 255, 2**31, 2**40, 2**53 - 1, 0.0, -0.5, 1e300]
WORDS = ["", "x", "a" * 300, "\u202e", "blocks.*.mlp", "raw", "signs", "codebook", "sparse", "labels",
         "predictive-signs", "zstd", "none", "normal-l1", "unit", "lora", "replace", "consolidator"]  # fmt: skip
LISTS: list[Any] = [
    [],
    [0],
    [1],
    [0, 3],
    [0, 9999],
    [2**20, 2**20],
    [1] * 8,
    [[]],
    ["x"],
    ["a"],
    ["b", "a"],
    ["cross-task"],
    {},
    {"x": 1},
    {"codec": "raw"},
]
ROWS = [{"codec": "raw"}, {"segment": 0, "shape": []}, {"segment": 1, "shape": [2**33, 2**7]}]
VALUES = [*PLAIN, *WORDS, *LISTS, *ROWS]


def mutate(value: Any, rng: random.Random) -> Any:
    """Somewhere in a JSON value: another value, a missing or doubled entry, or a number nearby."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.85:
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        if rng.random() < 0.1:
            del value[key]
        elif isinstance(value, list) and rng.random() < 0.1:
            value.insert(key, copy.deepcopy(rng.choice(value)))
        elif isinstance(value, dict) and rng.random() < 0.1:
            value[rng.choice(WORDS)] = copy.deepcopy(rng.choice(VALUES))
        else:
            value[key] = mutate(value[key], rng)
        return value
    if type(value) is int and rng.random() < 0.5:
        return value + rng.choice([-1, 1, 7, -value, 2**20])
    return copy.deepcopy(rng.choice(VALUES))


@settings(max_examples=600)
@given(names, st.integers(0, 2**32))
def test_indexes_behind_right_checksums(name: str, seed: int) -> None:
    """Whatever the index says, in well-formed JSON; table and payloads stay, so sizes usually still add up."""
    rng = random.Random(seed)
    index = copy.deepcopy(INDEXES[name])
    for _ in range(rng.randint(1, 3)):
        index = mutate(index, rng)
    try:
        data = factories.with_index(GOOD[name], index)
    except UnicodeEncodeError:
        return
    read_measured(data)


@settings(max_examples=300)
@given(names, st.integers(0, 2**32))
def test_segments_behind_right_checksums(name: str, seed: int) -> None:
    """The same, aimed at what the codecs get: parameters, shapes, sizes that still add up."""
    rng = random.Random(seed)
    index = copy.deepcopy(INDEXES[name])
    task = rng.choice(index["tasks"])
    segments = task["segments"]
    one = rng.choice(segments)
    other = rng.choice(segments)
    if rng.random() < 0.3 and one is not other:
        moved = rng.randint(0, one["bytes"])
        one["bytes"], other["bytes"] = one["bytes"] - moved, other["bytes"] + moved
    if rng.random() < 0.6:
        one["params"] = mutate(one["params"], rng)
    if rng.random() < 0.3:
        one["codec"], one["params"] = other["codec"], other["params"]
    if rng.random() < 0.5 and task["groups"]:
        group = rng.choice(task["groups"])
        group["tensors"] = mutate(group["tensors"], rng)
    read_measured(factories.with_checksums_of(GOOD[name], index))


@pytest.mark.parametrize("name", sorted(GOOD))
def test_every_byte_of_the_fixed_head(name: str) -> None:
    """All 256 values of all 28 bytes, the checksum put right."""
    data = GOOD[name]
    for place in range(framing.FIXED_BYTES - 4):
        for value in (*range(0, 256, 17), data[place] ^ 1):
            changed = data[:place] + bytes([value]) + data[place + 1 :]
            if int.from_bytes(changed[12:16], "little") <= len(changed):
                changed = factories.with_head_checksum(changed)
            found = read_all(changed)
            assert found is None or changed[9] != data[9] or changed == data
