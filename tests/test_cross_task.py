"""Tasks coded given the earlier tasks of their bundle: exact, smaller or left alone, and apart again."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import adapterpack
from adapterpack.adapter import Adapter, Branch, Head, Site
from adapterpack.codecs import CODECS
from adapterpack.codecs import _sign_model as model
from adapterpack.codecs._sign_given import given_of
from adapterpack.codecs._sign_stream import Stream
from adapterpack.container import limits, strict_json
from adapterpack.container.given import chain
from adapterpack.container.index import Index, TensorRow
from adapterpack.container.limits import Limits
from adapterpack.container.parse import parse_index
from adapterpack.errors import AdapterPackError, CallError, CorruptFileError
from adapterpack.packing.bundle import open_bundle
from adapterpack.packing.cross import agreement, cross_coded
from adapterpack.packing.earlier import Earlier
from adapterpack.packing.encode import encode_task
from adapterpack.packing.join import join
from adapterpack.quantize import quantize, quantize_latent
from adapterpack.tensors import Dense, Quantized
from adapterpack_cli.main import cli
from tests import factories
from tests.factories import make, numbers, pack

U8 = NDArray[np.uint8]
ROOT = Path(__file__).resolve().parent.parent
TASKS = (
    "cifar",
    "clevr_count",
    "dmlab",
    "dsprites_loc",
    "dtd",
    "eurosat",
    "kitti",
    "oxford_iiit_pet",
    "sun397",
    "svhn",
)


def second_reader() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sign_reader", ROOT / "spec" / "sign_reader.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault("sign_reader", module)
    spec.loader.exec_module(module)
    return module


READER = second_reader()


def reason_of(call: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    with pytest.raises(AdapterPackError) as error:
        call(*arguments, **options)
    return str(error.value.reason)


# --- tasks that began alike: the numbers of one seed, and each task's own on top


WIDTH = 160


def task(name: str, own: int, share: float = 0.5, *, rank: int = 8, head: int = 0, first: int = 7000) -> Adapter:
    rows = []
    for block in range(3):
        tensors = {}
        for i, (role, shape) in enumerate({"down": (rank, WIDTH), "up": (WIDTH, rank)}.items()):
            place = 10 * block + i
            values = numbers(first + place, shape) + share * numbers(own * 100 + place, shape)
            tensors[role] = quantize_latent(values.astype(np.float32), 1)
        rows.append(Branch(Site.parse(f"blocks.{block}.mlp"), "adaptformer", {"scale": 0.1}, tensors))
    weight = quantize_latent(numbers(first, (head, WIDTH)) + share * numbers(own, (head, WIDTH)), 1) if head else None
    return make("adaptformer", name, branches=rows, labels=False, head=None if weight is None else Head(weight))


A, B, C = task("a", 1), task("b", 2), task("c", 3)
PLAIN = pack(A, B, C)
CROSS = cross_coded(PLAIN)
INDEX = factories.index_of(CROSS)


def segments(data: bytes) -> list[list[dict[str, Any]]]:
    return [found["segments"] for found in factories.index_of(data)["tasks"]]


def test_what_goes_in_comes_out_and_is_smaller() -> None:
    opened = open_bundle(CROSS)
    assert len(CROSS) < 0.9 * len(PLAIN)
    assert [opened.read(name).same_as(one) for name, one in zip("abc", (A, B, C))] == [True] * 3
    assert list(opened.verify()) == ["a", "b", "c"]
    assert INDEX["requires"] == ["cross-task"]
    first, second, third = segments(CROSS)
    assert "given" not in first[0] and second[0]["given"] == ["a"] and sorted(third[0]["given"]) == ["a", "b"]
    assert cross_coded(PLAIN) == CROSS


def test_digests_stay() -> None:
    plain, cross = open_bundle(PLAIN), open_bundle(CROSS)
    assert plain.digests == cross.digests and plain.digest == cross.digest


def test_bundle_and_split(tmp_path: Path) -> None:
    for one in (A, B, C):
        (tmp_path / f"{one.name}.apk").write_bytes(pack(one))
    files = [tmp_path / f"{name}.apk" for name in "abc"]
    summary = adapterpack.bundle(files, tmp_path / "all.apk", cross_task=True)
    assert (tmp_path / "all.apk").read_bytes() == CROSS
    assert summary.sizes["cross_task"] == {"bytes_before": len(PLAIN), "bytes_after": len(CROSS)}
    assert "cross_task" not in adapterpack.bundle(files, tmp_path / "plain.apk").sizes
    adapterpack.split(tmp_path / "all.apk", tmp_path / "parts")
    for path in files:
        assert (tmp_path / "parts" / path.name).read_bytes() == path.read_bytes()


def test_a_bundle_of_bundles(tmp_path: Path) -> None:
    """Payloads move unread, with the names that they need; coded anew, they are no larger."""
    (tmp_path / "abc.apk").write_bytes(CROSS)
    (tmp_path / "d.apk").write_bytes(pack(task("d", 4)))
    both = [tmp_path / "d.apk", tmp_path / "abc.apk"]
    adapterpack.bundle(both, tmp_path / "plain.apk")
    adapterpack.bundle(both, tmp_path / "cross.apk", cross_task=True)
    for name in ("plain", "cross"):
        opened = adapterpack.open(tmp_path / f"{name}.apk")
        assert opened.read("c").same_as(C) and list(opened.verify()) == ["d", "a", "b", "c"]
    assert (tmp_path / "cross.apk").stat().st_size < (tmp_path / "plain.apk").stat().st_size


def test_other_segments_move_unread() -> None:
    """A head of floats, class names and a fast profile: only signs are coded anew, and only they on the way back."""
    adapters = [dataclasses.replace(one, head=factories.head(), labels=tuple("vwxyz")) for one in (A, B)]
    for profile in ("small", "fast"):
        data = pack(*adapters, profile=profile)
        found = cross_coded(data)
        assert open_bundle(found).read("b").same_as(adapters[1])
        before, after = (open_bundle(each).encoded("b") for each in (data, found))
        changed = [old != new for old, new in zip(before.payloads, after.payloads, strict=True)]
        assert changed == [True, False, False] and before.digest == after.digest


def test_heads_of_signs_and_shapes_that_differ() -> None:
    heads = pack(task("a", 1, 0.1, head=40), task("b", 2, 0.1, head=40), task("c", 3, 0.1, head=41))
    _, b, c = segments(cross_coded(heads))
    assert b[1]["given"] == ["a"] and "given" in c[0] and "given" not in c[1]
    assert "given" not in segments(cross_coded(pack(A, task("b", 2, rank=9))))[1][0]
    mixed = pack(make("lora", "a"), B, make("spt", "c"))
    assert cross_coded(mixed) == mixed


def test_other_seeds_gain_nothing_and_cost_nothing() -> None:
    data = pack(*(task(name, i, first=1000 * i) for i, name in enumerate("abcd", 1)))
    assert cross_coded(data) == data
    assert cross_coded(pack(A)) == pack(A)


def test_names_are_paid_for() -> None:
    """What the index grows by counts as well."""
    few = {name: pack(task(name, 1, 0.3, rank=4), task("b", 2, 0.3, rank=4)) for name in ("a", "a" * 250)}
    given_names = [segments(cross_coded(data))[1][0].get("given") for data in few.values()]
    assert given_names == [["a"], None]


def test_the_same_task_again_costs_almost_nothing() -> None:
    data = pack(A, dataclasses.replace(A, name="again"))
    sizes = [segment["bytes"] for (segment,) in segments(cross_coded(data))]
    scales = 6 * 8
    assert sizes[1] - scales < 0.1 * (sizes[0] - scales)


@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from([0.0, 0.3, 1.0, 3.0])), min_size=2, max_size=5))
def test_any_bundle(tasks: list[tuple[int, float]]) -> None:
    adapters = [task(f"t{i}", own, share, rank=2) for i, (own, share) in enumerate(tasks)]
    data = pack(*adapters)
    found = cross_coded(data)
    opened = open_bundle(found)
    assert len(found) <= len(data)
    assert all(opened.read(one.name).same_as(one) for one in adapters)


def test_agreement() -> None:
    a, b = np.array([[1.0, -1, 1], [1, 1, 1]], np.float32), np.array([[1.0, 1, -1], [1, 1, 1]], np.float32)
    assert agreement([quantize(a, 1)], [quantize(a, 1)]) == 6
    assert agreement([quantize(a, 1)], [quantize(-a, 1)]) == -6
    assert agreement([quantize(a, 1)] * 2, [quantize(b, 1)] * 2) == 4


# --- reading only what is needed


def test_one_task_reads_those_that_it_needs() -> None:
    reads: list[int | None] = []

    class Counting(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            reads.append(size)
            return super().read(size)

    opened = open_bundle(Counting(CROSS))
    reads.clear()
    assert opened.read("a").same_as(A) and len(reads) == 1
    assert opened.read("b").same_as(B) and len(reads) == 3
    assert [chain(opened.index, n) for n in range(3)] == [[0], [0, 1], [0, 1, 2]]


def test_a_damaged_given_task_is_noticed() -> None:
    data = bytearray(CROSS)
    at = len(CROSS) - sum(segment["bytes"] for (segment,) in segments(CROSS))
    data[at] ^= 1
    assert reason_of(open_bundle(bytes(data)).read, "b") == "checksum-mismatch"
    assert reason_of(open_bundle(factories.with_checksums(bytes(data))).read, "b") in ("bad-stream", "digest-mismatch")


def test_chains() -> None:
    """Each task given the one before it: all are needed, without recursion, and let go of as soon as possible."""
    coded, count = open_bundle(CROSS).encoded("b").entry, 1500
    entries = [
        dataclasses.replace(
            coded, name=f"t{i}", segments=(dataclasses.replace(coded.segments[0], given=(f"t{i - 1}",) if i else ()),)
        )
        for i in range(count)
    ]
    index = Index(tuple(entries), factories.BACKBONE)
    assert chain(index, count - 1) == list(range(count))
    far = dataclasses.replace(entries[-1], segments=(dataclasses.replace(coded.segments[0], given=("t0",)),))
    assert chain(Index((*entries[:-1], far), factories.BACKBONE), count - 1) == [0, count - 1]
    earlier = Earlier(index, range(count))
    rows = [tensor for branch in A.branches for tensor in branch.tensors.values()]
    sizes = []
    for i, entry in enumerate(entries):
        earlier.keep(i, entry.name, [rows])
        sizes.append(earlier.nbytes())
    packed = sum(tensor.packed.nbytes + 8 for tensor in rows if isinstance(tensor, Quantized))
    assert sizes == [packed] * (count - 1) + [0]


def test_the_limit_counts_what_is_kept() -> None:
    entry = open_bundle(CROSS).index.tasks[2]
    shapes = entry.shapes_by_segment()
    need = CODECS["predictive-signs"].decoded_bytes(shapes[0], entry.segments[0].params)
    assert open_bundle(CROSS, Limits(need)).read("a").same_as(A)
    assert reason_of(open_bundle(CROSS, Limits(need)).read, "c") == "limit-exceeded"
    assert open_bundle(CROSS, Limits(need + 4000)).read("c").same_as(C)


# --- hostile files


def changed(edit: Callable[[dict[str, Any]], Any]) -> bytes:
    index = copy.deepcopy(INDEX)
    edit(index)
    return factories.with_index(CROSS, index)


def give(task_number: int, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda index: index["tasks"][task_number]["segments"][0].update(given=value)


WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "itself": (give(1, ["b"]), "segment-reference"),
    "a later one": (give(1, ["c"]), "segment-reference"),
    "nobody": (give(1, ["nobody"]), "segment-reference"),
    "the first itself": (give(0, ["a"]), "segment-reference"),
    "twice": (give(2, ["a", "a"]), "bad-field"),
    "none": (give(2, []), "bad-field"),
    "a number": (give(2, [0]), "bad-field"),
    "no list": (give(2, "a"), "bad-field"),
    "an object": (give(2, {"a": 1}), "bad-field"),
    "too many": (give(2, [f"t{i}" for i in range(65)]), "limit-exceeded"),
    "not required": (lambda index: index.pop("requires"), "bad-field"),
    "nothing required": (lambda index: index.update(requires=[]), "bad-field"),
    "more required": (lambda index: index.update(requires=["cross-task", "more"]), "unknown-feature"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_references(what: str) -> None:
    edit, reason = WRONG[what]
    assert reason_of(open_bundle, changed(edit)) == reason


def test_a_reader_that_lacks_the_feature_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapterpack.container.parse.FEATURES", frozenset())
    assert reason_of(open_bundle, CROSS) == "unknown-feature"


def test_other_given_tasks_give_no_wrong_numbers() -> None:
    for value in (["b"], ["b", "a"], ["a", "b"]):
        data = changed(give(2, value))
        if value != INDEX["tasks"][2]["segments"][0]["given"]:
            assert reason_of(open_bundle(data).read, "c") in ("bad-stream", "digest-mismatch")
    without = changed(lambda index: index["tasks"][2]["segments"][0].pop("given"))
    assert reason_of(open_bundle(without).read, "c") in ("bad-stream", "digest-mismatch")


def test_given_tasks_without_signs_of_these_shapes() -> None:
    coded = open_bundle(CROSS).encoded("b")
    other_shapes = encode_task(task("a", 1, rank=9), "small")
    assert reason_of(join, [other_shapes, coded], factories.BACKBONE) == "bad-shape"
    no_segment = make("linear", "a", branches=[], labels=False)
    assert reason_of(join, [encode_task(no_segment, "small"), coded], factories.BACKBONE) == "bad-shape"
    second = dataclasses.replace(coded.entry.segments[0], given=())
    segments = (second, dataclasses.replace(second, given=("a",)))
    row = {"head": {"weight": TensorRow((1, 1), 1)}}
    two = dataclasses.replace(coded, entry=dataclasses.replace(coded.entry, segments=segments, **row))
    assert reason_of(join, [encode_task(A, "small"), two], factories.BACKBONE) == "segment-reference"
    floats = make("adaptformer", "a", branches=float_branches(), labels=False, head=None)
    data = join([encode_task(floats, "small"), coded], factories.BACKBONE)
    assert reason_of(open_bundle(data).read, "b") == "segment-reference"

    bits2 = [
        dataclasses.replace(branch, tensors={role: quantize(t.dense(), 2) for role, t in branch.tensors.items()})
        for branch in A.branches
    ]
    data = join([encode_task(dataclasses.replace(A, branches=tuple(bits2)), "small"), coded], factories.BACKBONE)
    assert reason_of(open_bundle(data).read, "b") == "segment-reference"


def test_a_skipped_segment_is_given_nothing() -> None:
    index = factories.index_of(CROSS)
    skipped = {"bytes": 1, "codec": "new", "params": {}, "skip": True}
    for found in index["tasks"][:2]:
        found["segments"].append(dict(skipped))
    parse_index(strict_json.dumps(index))
    index["tasks"][1]["segments"][1]["given"] = ["a"]
    assert reason_of(parse_index, strict_json.dumps(index)) == "segment-reference"


def float_branches() -> list[Branch]:
    return [
        dataclasses.replace(branch, tensors={role: Dense(t.dense()) for role, t in branch.tensors.items()})
        for branch in A.branches
    ]


def test_codecs_that_use_no_given_tasks_refuse_them() -> None:
    data = pack(A, B, profile="fast")
    index = factories.index_of(data)
    index["requires"] = ["cross-task"]
    index["tasks"][1]["segments"][0]["given"] = ["a"]
    assert index["tasks"][1]["segments"][0]["codec"] == "signs"
    assert reason_of(open_bundle(factories.with_index(data, index)).read, "b") == "bad-field"


def test_every_changed_byte_of_a_payload_is_noticed() -> None:
    sizes = [segment["bytes"] for (segment,) in segments(CROSS)]
    start = len(CROSS) - sizes[2]
    for at in (*range(start, start + 12), *range(start + 12, len(CROSS), 17)):
        for flipped in (1, 0x80):
            data = CROSS[:at] + bytes([CROSS[at] ^ flipped]) + CROSS[at + 1 :]
            assert reason_of(open_bundle(data).read, "c") == "checksum-mismatch"
            assert reason_of(open_bundle(factories.with_checksums(data)).read, "c")


def test_the_codec_checks_what_it_is_given() -> None:
    rows = [tensor for branch in A.branches for _, tensor in sorted(branch.tensors.items())]
    codec, params = CODECS["predictive-signs"], segments(CROSS)[1][0]["params"]
    shapes = [tensor.shape for tensor in rows]
    payload = memoryview(codec.encode(rows, params, [rows]))
    assert codec.decode(payload, shapes, params, [rows])[0].content()
    for bad in ([rows[:-1]], [rows[::-1]], [[]], [[Dense(t.dense()) for t in rows]], [rows, rows[:1]]):
        assert reason_of(codec.decode, payload, shapes, params, bad) == "bad-shape"
    assert reason_of(codec.decode, payload, shapes, params, [rows] * 65) == "limit-exceeded"
    assert reason_of(codec.decode, payload, shapes, params) == "bad-stream"


# --- streams


def signs(seed: int, *shape: int, flip: float | None = None, of: U8 | None = None) -> U8:
    rng = np.random.default_rng(seed)
    if of is not None:
        return np.where(rng.random(of.shape) < (flip or 0), 1 - of, of).astype(np.uint8)
    return rng.integers(0, 2, shape, np.uint8)


STREAMS = [
    # M, C, U, λ, pooled, kinds, padding, flips of each given task
    (2, 12, 3, 40, False, 2, 0, [0.2]),
    (2, 40, 9, 40, True, 2, 0, [0.1, 0.3]),
    (3, 25, 5, 1, False, 1, 2, [0.0, 0.5, 0.2]),
    (1, 30, 1, 120, False, 1, 0, [0.05]),
    (4, 17, 17, 255, True, 2, 0, [0.4] * 12),
    (2, 1, 20, 40, True, 2, 0, [0.1]),
    (2, 9, 10, 40, False, 1, 9, [0.1, 0.1]),
]


@pytest.mark.parametrize("case", STREAMS, ids=lambda case: "x".join(map(str, case[:3])))
def test_the_second_reader_agrees(case: Any) -> None:
    m, c, u, lam, pooled, kinds, padding, flips = case
    coded = signs(5, m, c, u)
    earlier = [signs(6 + i, of=coded, flip=flip) for i, flip in enumerate(flips)]
    for each in (coded, *earlier):
        each[-1, :, u - padding :] = 0
    more = {"lam": lam, "pooled": pooled, "kinds": kinds, "padding": padding}
    stream = Stream(m, c, u, **more)
    data = model.encode_signs(coded, **more, given=given_of(stream, earlier))
    assert np.array_equal(model.decode_signs(data, m, c, u, **more, given=given_of(stream, earlier)), coded)
    lists = tuple(each.tolist() for each in earlier)
    assert np.array_equal(READER.decode(data, m, c, u, **more, given=lists), coded)
    assert len(data) >= stream.least_bytes(is_given=True)
    if u > 1:
        assert data != model.encode_signs(coded, **more)
    assert model.encode_signs(coded, **more, given=None) == model.encode_signs(coded, **more)


@given(st.data())
def test_streams_of_any_shape(data: st.DataObject) -> None:
    m, c, u = (data.draw(st.integers(1, most)) for most in (3, 24, 12))
    padding = data.draw(st.integers(0, u - 1)) if m == 1 else 0
    coded = signs(data.draw(st.integers(0, 99)), m, c, u)
    earlier = [
        signs(i, of=coded, flip=data.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])))
        for i in range(data.draw(st.integers(1, 4)))
    ]
    for each in (coded, *earlier):
        each[-1, :, u - padding :] = 0
    more = {"lam": data.draw(st.integers(1, 255)), "pooled": m == 2, "kinds": 1, "padding": padding}
    what = given_of(Stream(m, c, u, **more), earlier)
    stream = model.encode_signs(coded, **more, given=what)
    assert np.array_equal(model.decode_signs(stream, m, c, u, **more, given=what), coded)
    assert np.array_equal(READER.decode(stream, m, c, u, **more, given=tuple(e.tolist() for e in earlier)), coded)


def test_numba_or_not_gives_the_same_bytes() -> None:
    if importlib.util.find_spec("numba") is None:
        pytest.skip("numba is not installed")
    coded = signs(1, 2, 40, 9)
    what = given_of(Stream(2, 40, 9, 40, True, 2), [signs(2, of=coded, flip=0.2)])
    settings: dict[str, Any] = {"lam": 40, "pooled": True, "kinds": 2, "given": what}
    data = model.encode_signs(coded, **settings, using="numba")
    assert data == model.encode_signs(coded, **settings)
    assert np.array_equal(model.decode_signs(data, 2, 40, 9, **settings, using="numba"), coded)


def test_what_is_given_is_checked() -> None:
    stream, good = Stream(2, 12, 3, 40, False, 2), signs(1, 2, 12, 3)
    assert given_of(stream, []) is None
    for bad in ([signs(1, 2, 12, 4)], [good] * 65, [good, good + 1]):
        with pytest.raises(CallError):
            given_of(stream, bad)
    what = given_of(stream, [good] * 64)
    assert what is not None and int(what.agreement.min()) == 16


def test_a_short_stream_is_refused_before_any_work() -> None:
    stream = Stream(128, 4096, 128, 40, False, 1)
    what = given_of(Stream(128, 4096, 1, 40, False, 1), [np.zeros((128, 4096, 1), np.uint8)])
    assert stream.least_bytes(is_given=True) == 2 * 128 * 8 // 8
    with pytest.raises(CorruptFileError, match="expected at least 256"):
        model.decode_signs(bytes(252), 128, 4096, 128, lam=40, pooled=False, kinds=1, given=what)


def test_decoding_stays_within_its_bound() -> None:
    rows: list[Quantized] = [quantize_latent(numbers(i, (16, 512) if i % 2 == 0 else (512, 16)), 1) for i in range(8)]
    codec, shapes = CODECS["predictive-signs"], [tensor.shape for tensor in rows]
    params = {**segments(CROSS)[1][0]["params"], "join": 1, "pooled": True}
    payload = memoryview(codec.encode(rows, params, [rows] * 9))
    codec.decode(payload, shapes, params, [rows] * 9)
    tracemalloc.start()
    try:
        codec.decode(payload, shapes, params, [rows] * 9)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= codec.decoded_bytes(shapes, params)


# --- the same bytes everywhere


def test_independent_of_hash_seeds() -> None:
    code = (
        "import hashlib; from tests.test_cross_task import PLAIN, cross_coded;"
        "print(hashlib.sha256(cross_coded(PLAIN)).hexdigest())"
    )
    found = set()
    for seed in ("0", "1234"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'cli'}"}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        found.add(done.stdout.strip())
    assert found == {hashlib.sha256(CROSS).hexdigest()}


# --- the command


def invoke(*words: str) -> Any:
    return CliRunner().invoke(cli, list(words), catch_exceptions=False)


def test_the_command(tmp_path: Path) -> None:
    for one in (A, B, C):
        (tmp_path / f"{one.name}.apk").write_bytes(pack(one))
    files = [str(tmp_path / f"{name}.apk") for name in "abc"]
    out = str(tmp_path / "all.apk")
    done = invoke("bundle", *files, "-o", out, "--cross-task")
    assert done.exit_code == 0 and f"{len(PLAIN):,} to {len(CROSS):,} bytes" in done.output
    done = invoke("bundle", *files, "-o", out, "--cross-task", "--force", "--json")
    found = json.loads(done.stdout)
    assert found["cross_task"] == {"bytes_before": len(PLAIN), "bytes_after": len(CROSS)}
    assert found["file_bytes"] == len(CROSS)
    done = invoke("bundle", files[0], "-o", out, "--cross-task", "--force")
    assert "saves nothing" in done.output
    assert invoke("verify", str(tmp_path / "all.apk")).exit_code == 0


# --- published files: ten tasks of one seed, and second runs of the same tasks


def published(folder: Path, method: str, dim: int, tasks: Sequence[str], out: Path, tail: str = "") -> list[Path]:
    files = []
    for name in tasks:
        files.append(out / f"{method}-{name}{tail}.apk")
        adapterpack.pack(folder / method / f"{name}-bit1-dim{dim}.bin", files[-1], task=name + tail)
    return files


def adapter_bytes(summary: Any) -> int:
    return sum(found["bytes_by_part"]["adapter"] for found in summary.sizes["tasks"])


def test_ten_published_tasks(petl_vit: Path, tmp_path: Path) -> None:
    files = published(petl_vit, "adaptformer", 32, TASKS, tmp_path)
    plain = adapterpack.bundle(files, tmp_path / "plain.apk")
    cross = adapterpack.bundle(files, tmp_path / "cross.apk", cross_task=True)
    assert adapter_bytes(cross) < 0.967 * adapter_bytes(plain)  # 3.6 % measured
    assert [t["digest"] for t in cross.sizes["tasks"]] == [t["digest"] for t in plain.sizes["tasks"]]
    adapterpack.split(tmp_path / "cross.apk", tmp_path / "parts")
    for name, path in zip(TASKS, files, strict=True):
        assert (tmp_path / "parts" / f"{name}.apk").read_bytes() == path.read_bytes()


def test_second_runs(petl_vit: Path, tmp_path: Path) -> None:
    tasks = ("clevr_count", "eurosat")
    files = published(petl_vit, "adaptformer", 32, tasks, tmp_path)
    files += published(petl_vit, "adaptformer-bihead", 32, tasks, tmp_path, "-2")
    plain = adapterpack.bundle(files, tmp_path / "plain.apk").sizes["tasks"]
    cross = adapterpack.bundle(files, tmp_path / "cross.apk", cross_task=True).sizes["tasks"]
    for before, after in zip(plain[2:], cross[2:], strict=True):
        assert after["bytes_by_part"]["adapter"] < 0.86 * before["bytes_by_part"]["adapter"]  # 15 to 18 % measured


def test_joined_dim_1(petl_vit: Path, tmp_path: Path) -> None:
    files = published(petl_vit, "lora", 1, ["cifar"], tmp_path)
    files += published(petl_vit, "lora-bihead", 1, ["cifar"], tmp_path, "-2")
    plain = adapterpack.bundle(files, tmp_path / "plain.apk").sizes["tasks"]
    cross = adapterpack.bundle(files, tmp_path / "cross.apk", cross_task=True).sizes["tasks"]
    assert cross[1]["bytes_by_part"]["adapter"] < 0.7 * plain[1]["bytes_by_part"]["adapter"]  # 32 % measured


def test_limits_are_one() -> None:
    from adapterpack.codecs import _sign_given

    assert limits.GIVEN == _sign_given.MAX_GIVEN
