"""Adapters to files and back: canonical layout, digests, bundles, sizes, reads, limits."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import adapterpack
from adapterpack import _files
from adapterpack.adapter import Adapter, Backbone, Branch, Head, Site
from adapterpack.container import limits, strict_json
from adapterpack.container.limits import Limits
from adapterpack.errors import (
    AdapterPackError,
    CallError,
    CorruptFileError,
    MissingFileError,
    Reason,
    UnsupportedAdapterError,
)
from adapterpack.packing.bundle import Bundle, open_bundle
from adapterpack.packing.join import common_backbone
from adapterpack.packing.options import Options
from adapterpack.packing.plan import plan
from adapterpack.packing.requantize import requantize
from adapterpack.packing.sizes import describe_file, describe_tensors
from adapterpack.quantize import relative_error
from adapterpack.tensors import Dense, Quantized, Sparse
from tests import factories
from tests.factories import make, numbers, pack

PROFILES = ("small", "fast")
METHODS = list(factories.MAKERS)


def reason_of(call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(AdapterPackError) as error:
        call(*arguments, **options)
    return str(error.value.reason)


def digest_of(adapter: Adapter, profile: str = "small") -> str:
    return open_bundle(pack(adapter, profile=profile)).digest


# --- round trips


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("method", METHODS)
def test_what_goes_in_comes_out(method: str, profile: str) -> None:
    adapter = make(method)
    opened = open_bundle(pack(adapter, profile=profile))
    assert opened.tasks == ("cifar",)
    found = opened.read()
    assert found.same_as(adapter) and opened.read("cifar").same_as(adapter)
    assert pack(found, profile=profile) == pack(adapter, profile=profile)


@pytest.mark.parametrize("form", factories.FORMS)
@pytest.mark.parametrize("profile", PROFILES)
def test_every_form_of_tensor(form: str, profile: str) -> None:
    adapter = make("lora", branches=factories.lora_branches(form), head=factories.head(form=form))
    assert open_bundle(pack(adapter, profile=profile)).read().same_as(adapter)


def test_a_head_alone_and_branches_alone() -> None:
    head_only = make("linear", branches=[])
    assert open_bundle(pack(head_only)).read().same_as(head_only)
    no_bias = make("linear", branches=[], head=Head(Dense(numbers(1, (5, 16)))))
    assert open_bundle(pack(no_bias)).read().same_as(no_bias)
    bare = make("lora", head=None, labels=False, data=None, metadata={}, backbone=Backbone())
    assert open_bundle(pack(bare, backbone=Backbone())).read().same_as(bare)


@st.composite
def adapters(draw: st.DrawFn) -> Adapter:
    """Any subset of any method's branches, each in a form of its own."""
    forms = st.sampled_from(factories.FORMS)
    rank = draw(st.sampled_from([1, 2, 4]))
    rows = [
        *factories.lora_branches(draw(forms), rank=rank),
        *factories.adaptformer_branches(draw(forms)),
        *factories.adapter_branches(draw(forms)),
        *factories.consolidator_branches(draw(forms)),
        *factories.sparse_branches(),
        *factories.replace_branches(),
    ]
    chosen = draw(st.lists(st.sampled_from(rows), unique_by=id, max_size=8))
    names = st.text(st.characters(categories=("L", "N"), include_characters=" -_"), min_size=1, max_size=12)
    return make(
        "mixed",
        draw(names),
        branches=chosen,
        metadata=draw(st.dictionaries(names, st.floats(-9, 9) | names | st.none())),
    )


@given(adapters(), st.sampled_from(PROFILES))
def test_any_adapter_comes_out_as_it_went_in(adapter: Adapter, profile: str) -> None:
    assert open_bundle(pack(adapter, profile=profile)).read().same_as(adapter)


def test_special_values_are_exact() -> None:
    values = np.array([0.0, -0.0, 1e-45, -1e-45, 3.4028235e38, -3.4028235e38, 1.1754944e-38, 1.0], np.float32)
    adapter = make("linear", branches=[], head=Head(Dense(np.tile(values, (5, 2)))))
    for profile in PROFILES:
        weight = open_bundle(pack(adapter, profile=profile)).read().head
        assert weight is not None and weight.weight.dense().tobytes() == np.tile(values, (5, 2)).tobytes()


# --- the canonical layout


@given(st.integers(0, 2**32), st.sampled_from(METHODS))
def test_the_order_given_does_not_matter(seed: int, method: str) -> None:
    adapter = make(method)
    rng = random.Random(seed)
    shuffled = list(adapter.branches)
    rng.shuffle(shuffled)
    turned = [
        dataclasses.replace(b, tensors=dict(rng.sample(list(b.tensors.items()), len(b.tensors)))) for b in shuffled
    ]
    assert pack(dataclasses.replace(adapter, branches=tuple(turned))) == pack(adapter)


def test_groups_are_patterns() -> None:
    groups = plan(make("lora")).groups
    assert [(g.sites, g.blocks) for g in groups] == [(("blocks.*.attn.qkv[q]", "blocks.*.attn.qkv[v]"), (0, 3))]


def test_blocks_that_are_missing_make_ranges() -> None:
    rows = [b for b in factories.lora_branches() if b.site.block != 1]
    assert [g.blocks for g in plan(make("lora", branches=rows)).groups] == [(0, 1, 2, 3)]


def test_another_shape_or_setting_is_another_group() -> None:
    rows = factories.lora_branches()
    other = factories.lora_branches(rank=2)
    assert len(plan(make(branches=[*rows[:-1], other[-1]])).groups) == 3
    scaled = dataclasses.replace(rows[-1], params={"scale": 1.0})
    assert len(plan(make(branches=[*rows[:-1], scaled])).groups) == 3


def test_one_segment_a_form() -> None:
    layout = plan(make("spt"))
    assert len({(s.part, repr(s.form)) for s in layout.segments}) == len(layout.segments)
    assert sum(len(s.tensors) for s in layout.segments) == len(layout.tensors)
    adapter = [s.part for s in layout.segments]
    assert adapter == sorted(adapter)  # the adapter's before the head's


# --- the digest


@pytest.mark.parametrize("method", METHODS)
def test_the_digest_is_of_the_content_alone(method: str) -> None:
    adapter = make(method)
    renamed = make(method, "another name", metadata={"note": 1}, backbone=Backbone("other"))
    assert digest_of(adapter) == digest_of(adapter, "fast") == digest_of(renamed)
    bundled = open_bundle(pack(make("linear", "first", branches=[]), adapter))
    assert bundled.task_digest("cifar") == digest_of(adapter)
    assert bundled.digest != digest_of(adapter)


def changed_number(tensor: Any) -> Any:
    if isinstance(tensor, Dense):
        data = tensor.data.copy()
        raw = data.reshape(-1).view(np.uint8)
        raw[0] ^= 1
        return dataclasses.replace(tensor, data=data)
    if isinstance(tensor, Quantized):
        packed = tensor.packed.copy()
        packed[0] ^= 1
        return dataclasses.replace(tensor, packed=packed)
    return dataclasses.replace(tensor, values=changed_number(tensor.values))


@pytest.mark.parametrize("method", METHODS)
def test_any_number_changes_the_digest(method: str) -> None:
    adapter = make(method)
    seen = {digest_of(adapter)}
    for i, branch in enumerate(adapter.branches):
        for role, tensor in branch.tensors.items():
            other = dataclasses.replace(branch, tensors={**branch.tensors, role: changed_number(tensor)})
            rows = (*adapter.branches[:i], other, *adapter.branches[i + 1 :])
            seen.add(digest_of(dataclasses.replace(adapter, branches=rows)))
    assert len(seen) == 1 + sum(len(b.tensors) for b in adapter.branches)


def test_any_setting_or_label_changes_the_digest() -> None:
    adapter = make("lora")
    assert adapter.head is not None and adapter.labels is not None and adapter.data is not None
    rows = list(adapter.branches)
    tensor = rows[0].tensors["down"]
    assert isinstance(tensor, Quantized) and tensor.offset is not None
    moved = Sparse((4, 16), np.array([1]), Dense(np.ones(1, np.float32)))
    further = Sparse((4, 16), np.array([2]), Dense(np.ones(1, np.float32)))

    def with_first(**changes: Any) -> Adapter:
        return dataclasses.replace(adapter, branches=(dataclasses.replace(rows[0], **changes), *rows[1:]))

    variants = [
        adapter,
        with_first(params={"scale": 9.0}),
        with_first(site=Site.parse("blocks.7.attn.qkv[q]")),
        with_first(site=Site.parse("blocks.0.attn.qkv[k]")),
        with_first(tensors={**rows[0].tensors, "down": dataclasses.replace(tensor, scale=tensor.scale * 2)}),
        with_first(tensors={**rows[0].tensors, "down": dataclasses.replace(tensor, offset=tensor.offset * 2)}),
        with_first(tensors={**rows[0].tensors, "down": Dense(tensor.dense())}),
        with_first(tensors={**rows[0].tensors, "down": moved}),
        with_first(tensors={**rows[0].tensors, "down": further}),
        dataclasses.replace(adapter, branches=tuple(rows[:-1])),
        dataclasses.replace(adapter, labels=("a", *adapter.labels[1:])),
        dataclasses.replace(adapter, labels=None),
        dataclasses.replace(adapter, data=dataclasses.replace(adapter.data, crop_pct=0.9)),
        dataclasses.replace(adapter, data=None),
        dataclasses.replace(adapter, head=Head(adapter.head.weight)),
        dataclasses.replace(adapter, head=factories.head(seed=7)),
    ]
    assert len({digest_of(variant) for variant in variants}) == len(variants)


def test_a_digest_that_is_wrong_is_seen() -> None:
    data = pack(make("lora"))
    fixed_head = int.from_bytes(data[12:16], "little")
    wrong = data[: fixed_head - 1] + bytes([data[fixed_head - 1] ^ 1]) + data[fixed_head:]
    opened = open_bundle(factories.with_head_checksum(wrong))
    assert reason_of(opened.read) == "digest-mismatch"


# --- what may not be written


def branch_with(**changes: Any) -> Adapter:
    rows = factories.lora_branches()
    return make("lora", branches=[dataclasses.replace(rows[0], **changes), *rows[1:]])


DOWN, UP = Dense(numbers(1, (4, 16))), Dense(numbers(2, (16, 4)))
REFUSED: list[tuple[Adapter, str]] = [
    (make("lora", branches=factories.lora_branches() * 2), "duplicate-name"),
    (make("lora", branches=[], head=None, labels=False), "not-expressible"),
    (make("lora", labels=False, head=None, branches=[]), "not-expressible"),
    (dataclasses.replace(make("lora"), labels=("one",)), "bad-labels"),
    (dataclasses.replace(make("lora"), labels=("a", "b", "c", "d", "")), "bad-labels"),
    (dataclasses.replace(make("lora"), labels=("a", "b", "c", "d", "e\nf")), "bad-labels"),
    (branch_with(method="magic"), "unknown-method"),
    (branch_with(params={}), "bad-parameter"),
    (branch_with(params={"scale": 1}), "bad-parameter"),
    (branch_with(params={"scale": float("nan")}), "bad-parameter"),
    (branch_with(params={"scale": -1e39}), "bad-parameter"),  # infinite in float32
    (branch_with(params={"scale": 1.0, "more": 2}), "bad-parameter"),
    (branch_with(tensors={"down": DOWN}), "missing-field"),
    (branch_with(tensors={"down": DOWN, "up": UP, "side": UP}), "unknown-field"),
    (branch_with(tensors={"down": DOWN, "up": Dense(numbers(2, (16, 5)))}), "bad-shape"),
    (branch_with(tensors={"down": DOWN, "up": Dense(np.full((16, 4), np.nan, np.float32))}), "not-finite"),
    (branch_with(site=Site("blocks.0.a b")), "bad-name"),
    (make("lora", "a/b"), "bad-name"),
    (make("lora", ""), "bad-name"),
    (make("lora", "x" * 256), "bad-name"),
    (make("lora", "x\x1b[2J"), "bad-name"),
    (make("lora", "\udcff"), "not-expressible"),
    (make("lora", metadata={"a": float("nan")}), "not-expressible"),
    (make("lora", metadata={"a": b"bytes"}), "not-expressible"),
    (make("lora", metadata={"a": (1, 2)}), "not-expressible"),
    (make("lora", metadata={1: "a"}), "not-expressible"),
    (make("lora", metadata={"a": 2**60}), "bad-number"),
    (make("lora", metadata={"a": "\u202e"}), "bad-name"),
]


@pytest.mark.parametrize(("adapter", "reason"), REFUSED, ids=[f"{i}-{r}" for i, (_, r) in enumerate(REFUSED)])
def test_the_writer_refuses_what_the_reader_would(adapter: Adapter, reason: str) -> None:
    assert reason_of(pack, adapter) == reason


def test_odd_metadata_are_told_as_such() -> None:
    with pytest.raises(UnsupportedAdapterError, match=r"^name or metadata: the number 1152921504606846976 is out"):
        pack(make("lora", metadata={"a": 2**60}))


def test_two_tasks_of_one_name() -> None:
    assert reason_of(pack, make("lora"), make("adaptformer")) == "duplicate-name"
    assert reason_of(pack, make("lora", "caf\u00e9"), make("lora", "cafe\u0301")) == "duplicate-name"


# --- bundles


def test_bundle_and_split(tmp_path: Path) -> None:
    names = {"cifar": "lora", "dtd": "adaptformer", "räder 2": "spt"}
    paths = []
    for name, method in names.items():
        paths.append(tmp_path / f"{name}.apk")
        paths[-1].write_bytes(pack(make(method, name)))
    summary = adapterpack.bundle(paths, tmp_path / "all.apk")
    opened = adapterpack.open(tmp_path / "all.apk")
    assert opened.tasks == tuple(names) and summary.sizes["digest"] == opened.digest
    for path, name in zip(paths, names):
        assert opened.read(name).same_as(adapterpack.open(path).read())
        assert opened.task_digest(name) == adapterpack.open(path).digest
    parts = adapterpack.split(tmp_path / "all.apk", tmp_path / "parts")
    assert [Path(part.path).name for part in parts] == [f"{name}.apk" for name in names]
    for path in paths:
        assert (tmp_path / "parts" / path.name).read_bytes() == path.read_bytes()
    assert reason_of(opened.read) == "unknown-task"
    assert reason_of(opened.read, "none") == "unknown-task"


def test_bundling_does_not_decode(tmp_path: Path) -> None:
    """A task whose codec is unknown here moves all the same."""
    index = factories.index_of(pack(make("lora")))
    index["tasks"][0]["segments"][0]["codec"] = "from-the-future"
    (tmp_path / "a.apk").write_bytes(factories.with_index(pack(make("lora")), index))
    (tmp_path / "b.apk").write_bytes(pack(make("lora", "b")))
    adapterpack.bundle([tmp_path / "a.apk", tmp_path / "b.apk"], tmp_path / "all.apk")
    opened = adapterpack.open(tmp_path / "all.apk")
    assert opened.read("b").name == "b"
    assert reason_of(opened.read, "cifar") == "unknown-codec"


def test_bundling_checks_checksums(tmp_path: Path) -> None:
    data = pack(make("lora"))
    (tmp_path / "a.apk").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert reason_of(adapterpack.bundle, [tmp_path / "a.apk"], tmp_path / "all.apk") == "checksum-mismatch"
    assert not (tmp_path / "all.apk").exists()


def test_bundle_and_split_want_the_right_types(tmp_path: Path) -> None:
    wrong: Any
    for wrong in ("x.apk", b"x", tmp_path, None, 5, []):  # one path is no list of them
        assert reason_of(adapterpack.bundle, wrong, tmp_path / "all.apk") == "bad-call"
    for wrong in (None, 5, b"all.apk"):
        assert reason_of(adapterpack.bundle, [pack(make("lora"))], wrong) == "bad-call"
        assert reason_of(adapterpack.split, pack(make("lora")), wrong) == "bad-call"
    adapterpack.bundle((data for data in [pack(make("lora"))]), tmp_path / "all.apk")  # type: ignore[arg-type]


def test_opening_and_verifying_want_the_right_types() -> None:
    data: Any = pack(make("lora"))
    assert reason_of(lambda: adapterpack.open(data, limits=5)) == "bad-call"  # type: ignore[arg-type]
    assert reason_of(lambda: list(adapterpack.open(data).verify("task"))) == "bad-call"


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.apk").write_bytes(pack(make("lora")))
    (tmp_path / "out.apk").write_bytes(b"old")
    assert reason_of(adapterpack.bundle, [tmp_path / "a.apk"], tmp_path / "out.apk") == "file-exists"
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "cifar.apk").write_bytes(b"old")
    assert reason_of(adapterpack.split, tmp_path / "a.apk", tmp_path / "parts") == "file-exists"
    assert (tmp_path / "out.apk").read_bytes() == (tmp_path / "parts" / "cifar.apk").read_bytes() == b"old"
    adapterpack.bundle([tmp_path / "a.apk"], tmp_path / "out.apk", force=True)
    assert adapterpack.open(tmp_path / "out.apk").tasks == ("cifar",)


A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64


@pytest.mark.parametrize(
    ("backbones", "expected"),
    [
        ([Backbone("vit", A), Backbone("vit", A)], Backbone("vit", A)),
        ([Backbone("vit"), Backbone("", A)], Backbone("vit", A)),
        ([Backbone(), Backbone(), Backbone("vit", A)], Backbone("vit", A)),
        ([Backbone("vit", A), Backbone("vit", B)], None),
        ([Backbone("vit", A), Backbone("swin", A)], None),
        ([Backbone("vit", A), Backbone("swin")], None),
        ([Backbone("vit"), Backbone(), Backbone("swin")], None),
        ([Backbone("", A), Backbone("vit"), Backbone("", B)], None),
    ],
)
def test_common_backbone(backbones: list[Backbone], expected: Backbone | None) -> None:
    named = [(f"{i}.apk", backbone) for i, backbone in enumerate(backbones)]
    if expected is not None:
        assert common_backbone(named) == expected
        return
    with pytest.raises(adapterpack.BackboneMismatchError) as error:
        common_backbone(named)
    assert error.value.reason == "backbones-differ"
    assert f"{len(named) - 1}.apk" in str(error.value)


# --- where a bundle is read from, and how much of it


class Counting:
    """A source that notes what is asked of it."""

    name = "counted"

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reads: list[tuple[int, int]] = []

    def size(self) -> int:
        return len(self.data)

    def read_at(self, offset: int, length: int) -> bytes:
        self.reads.append((offset, length))
        return self.data[offset : offset + length]


def big_bundle() -> bytes:
    return pack(*(make("lora", f"task {i}", branches=factories.lora_branches("float32", rank=64)) for i in range(6)))


def test_what_is_read_at_once() -> None:
    """A file of that size with one read; of a larger one the head, and what is asked for."""
    data = big_bundle()
    for at_once, first, reads in ((len(data) - 1, 4096, 2), (len(data), len(data), 1)):
        source = Counting(data)
        assert Bundle(source, at_once=at_once).read("task 0").name == "task 0"
        assert source.reads[0] == (0, first) and len(source.reads) == reads


def test_opening_is_one_read_and_each_task_one_more() -> None:
    source = Counting(big_bundle())
    opened = Bundle(source)
    assert source.reads == [(0, 4096)]
    assert opened.digest and describe_file(opened) and opened.tasks
    assert len(source.reads) == 1
    for number, task in enumerate(opened.tasks):
        opened.read(task)
        offset, length = source.reads[1 + number]
        assert len(source.reads) == 2 + number
        assert length == opened.index.tasks[number].payload_bytes()
        assert offset == len(source.data) - sum(t.payload_bytes() for t in opened.index.tasks[number:])


def test_a_large_head_takes_a_second_read() -> None:
    many = [make("lora", f"task {i}", metadata={"note": hashlib.sha256(b"%d" % i).hexdigest() * 2}) for i in range(40)]
    source = Counting(pack(*many))
    opened = Bundle(source)
    head = int.from_bytes(source.data[12:16], "little")
    assert head > 4096
    assert source.reads == [(0, 4096), (4096, head - 4096)]
    assert len(opened.tasks) == 40


@pytest.mark.parametrize("kind", ["bytes", "path", "string", "file", "stream", "url"])
def test_everything_that_can_be_opened(tmp_path: Path, kind: str) -> None:
    data = pack(make("lora"))
    path = tmp_path / "x.adapterpack"
    path.write_bytes(data)
    if kind == "url":
        fsspec = pytest.importorskip("fsspec")
        fsspec.filesystem("memory").pipe("/packing/x.apk", data)
    with path.open("rb") as file:
        sources = {
            "bytes": data,
            "path": path,
            "string": str(path),
            "file": file,
            "stream": io.BytesIO(data),
            "url": "memory://packing/x.apk",
        }
        opened = adapterpack.open(sources[kind])
        assert opened.read().same_as(make("lora"))
        assert list(opened.verify()) == ["cifar"]


def test_a_file_that_is_cut_while_open(tmp_path: Path) -> None:
    path = tmp_path / "x.apk"
    path.write_bytes(pack(make("lora")))
    opened = adapterpack.open(path)
    path.write_bytes(path.read_bytes()[:-10])
    assert reason_of(opened.read) == "truncated"


def test_a_file_that_is_cut_while_it_is_read_at_once() -> None:
    """Its size was asked before: what did not come is said to be missing, and not called damaged."""

    class Cut(_files.BytesSource):
        def read_at(self, offset: int, length: int) -> bytes:
            return self._data[: self.size() - 10][offset : offset + length]

    source = Cut(pack(make("lora")))
    assert reason_of(Bundle(source, at_once=source.size()).read) == "truncated"


def test_payload_checksums() -> None:
    data = bytearray(pack(make("lora")))
    data[-1] ^= 0x10
    opened = open_bundle(bytes(data))  # the head is fine
    assert reason_of(opened.read) == "checksum-mismatch"


def test_decoded_size_is_limited_before_anything_is_decoded() -> None:
    data = pack(make("lora"))
    assert adapterpack.open(data, limits=Limits(1 << 20)).read()
    assert reason_of(adapterpack.open(data, limits=Limits(100)).read) == "limit-exceeded"
    assert Limits().decoded_bytes == limits.DECODED_BYTES == 4 << 30


def test_an_unknown_codec_is_listed_but_not_read() -> None:
    index = factories.index_of(pack(make("lora")))
    index["tasks"][0]["segments"][0]["codec"] = "from-the-future"
    opened = open_bundle(factories.with_index(pack(make("lora")), index))
    description = describe_file(opened)
    assert description["tasks"][0]["parameters"] == 2 * 6 * 4 * 16
    assert describe_tensors(opened.index.tasks[0])[0]["codec"] == "from-the-future"
    with pytest.raises(adapterpack.UnsupportedVersionError, match="from-the-future"):
        opened.read()


def test_a_skipped_segment() -> None:
    """A newer writer may add a segment that this reader leaves alone; its checksum still counts."""
    import zlib

    data = pack(make("lora"))
    index = factories.index_of(data)
    index["tasks"][0]["segments"].append({"bytes": 3, "codec": "from-the-future", "params": {"any": 1}, "skip": True})
    stored, head = int.from_bytes(data[16:20], "little"), int.from_bytes(data[12:16], "little")
    table = data[28 + stored : head]
    text = strict_json.dumps(index)
    grown = factories.reframe(text, table[:-32] + zlib.crc32(b"new").to_bytes(4, "little") + table[-32:])
    opened = open_bundle(grown + data[head:] + b"new")
    assert opened.read().same_as(make("lora"))
    assert reason_of(open_bundle(grown + data[head:] + b"old").read) == "checksum-mismatch"


# --- sizes


@pytest.mark.parametrize("profile", PROFILES)
def test_sums_always_agree(profile: str) -> None:
    data = pack(*(make(method, method) for method in METHODS), profile=profile)
    found = describe_file(open_bundle(data))
    assert found["file_bytes"] == len(data)
    assert found["container_bytes"] + sum(task["bytes"] for task in found["tasks"]) == len(data)
    for task, method in zip(found["tasks"], METHODS, strict=True):
        adapter = make(method)
        assert sum(task["bytes_by_part"].values()) == task["bytes"]
        parameters = sum(t.entries for b in adapter.branches for t in b.tensors.values())
        assert task["parameters"] == parameters
        assert adapter.head is not None
        head = sum(t.entries for t in adapter.head.tensors.values())
        assert task["dense_bytes"] == 4 * (parameters + head)
        assert task["bits_per_weight"] == round(8 * task["bytes_by_part"]["adapter"] / parameters, 4)
        assert task["classes"] == factories.CLASSES


@pytest.mark.parametrize(
    ("form", "bits"), [("bits1", 1), ("bits4", 4), ("float16", 16), ("float32", 32), ("sparse", 32)]
)
def test_bits(form: str, bits: int) -> None:
    data = pack(make("lora", branches=factories.lora_branches(form)))
    assert describe_file(open_bundle(data))["tasks"][0]["bits"] == bits


def test_settings_and_tensors_are_described() -> None:
    entry = open_bundle(pack(make("lora"))).index.tasks[0]
    rows = describe_tensors(entry)
    assert [(row["part"], row["role"], row["tensors"]) for row in rows] == [
        ("adapter", "down", 6), ("adapter", "up", 6), ("head", "bias", 1), ("head", "weight", 1)
    ]  # fmt: skip
    assert [row["bits"] for row in rows] == [1, 1, 32, 32]
    assert all(row.keys() == rows[0].keys() and row["codec"] for row in rows)
    assert describe_file(open_bundle(pack(make("lora"))))["tasks"][0]["settings"] == {"scale": 10.0, "dim": 4}


def test_preprocessing_is_described() -> None:
    found = describe_file(open_bundle(pack(make("lora"), make("spt", "none", data=None))))["tasks"]
    assert found[0]["data"] == {
        "input_size": [3, 224, 224], "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0],
        "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "squash",
    }  # fmt: skip
    assert found[1]["data"] is None
    json.dumps(found, allow_nan=False)


def test_an_unknown_codec_has_no_width() -> None:
    data = pack(make("lora"))
    index = factories.index_of(data)
    index["tasks"][0]["segments"][0]["codec"] = "from-the-future"
    entry = open_bundle(factories.with_index(data, index)).index.tasks[0]
    assert describe_tensors(entry)[0]["bits"] is None


def test_errors_begin_with_the_name_of_the_file(tmp_path: Path) -> None:
    data = pack(make("lora"), make("spt", "dtd"))
    path = tmp_path / "x.apk"
    for damaged in (data[:10], data[:-1], data[:-1] + bytes([data[-1] ^ 1])):
        path.write_bytes(damaged)
        for source, prefix in ((path, f"{path}: "), (damaged, "")):
            with pytest.raises(CorruptFileError) as error:
                list(open_bundle(source).verify())
            assert error.value.message.startswith(prefix) and error.value.message.count(str(path)) == bool(prefix)
            assert "<bytes>" not in str(error.value)
    for read in ("read", "content", "encoded"):
        opened = open_bundle(path)
        with pytest.raises(CorruptFileError) as error:
            getattr(opened, read)("dtd")
        assert error.value.message.startswith(f"{path}: segment")
        path.unlink()
        with pytest.raises(MissingFileError) as gone:  # names it already
            getattr(opened, read)("cifar")
        assert gone.value.message.count(str(path)) == 1
        path.write_bytes(damaged)


def test_some_tasks_can_be_verified() -> None:
    data = pack(make("lora", "a"), make("lora", "b"), make("lora", "c"))
    opened = open_bundle(data[:-1] + bytes([data[-1] ^ 1]))
    assert list(opened.verify(["b", "a"])) == ["a", "b"] and list(opened.verify([])) == []
    assert reason_of(lambda: list(opened.verify(["c"]))) == "checksum-mismatch"
    assert reason_of(lambda: list(opened.verify(["d"]))) == "unknown-task"


def test_overhead_is_small() -> None:
    """Everything that is not payload: at most 320 bytes for one task with short metadata."""
    adapter = make(
        "lora",
        labels=False,
        metadata={"source": {"format": "petl-vit"}},
        backbone=Backbone("vit_base_patch16_224.orig_in21k"),
    )
    found = describe_file(open_bundle(pack(adapter, backbone=adapter.backbone)))
    assert found["container_bytes"] <= 320


def test_a_summary_is_linear_in_tensors_and_segments() -> None:
    """Thousands of segments for thousands of tensors, which a product of the two would not survive."""
    index = factories.index_of(pack(make("linear", branches=[], labels=False)))
    groups = [
        {
            "blocks": [0, 10],
            "method": "m",
            "params": {},
            "sites": [f"blocks.*.s{i:05}"],
            "tensors": {"w": {"segment": i, "shape": [1]}},
        }
        for i in range(6000)
    ]
    index["tasks"][0].update(groups=groups, segments=[{"bytes": 0, "codec": "c", "params": {}} for _ in range(6000)])
    del index["tasks"][0]["head"]
    text = strict_json.dumps(index)
    opened = open_bundle(factories.reframe(text, bytes(4 * 6000 + 32)))
    assert describe_file(opened)["tasks"][0]["parameters"] == 60_000


# --- post-training quantization


def test_requantize_keeps_vectors_and_reports_costs() -> None:
    adapter = make("adapter")
    found, costs = requantize(adapter, Options(bits=2, head_bits=8))
    for before, after in zip(adapter.branches, found.branches):
        for role in before.tensors:
            if role.endswith("bias"):
                assert after.tensors[role] is before.tensors[role]
            else:
                assert after.tensors[role].form()["bits"] == 2
    assert found.head is not None and adapter.head is not None
    assert found.head.weight.form()["bits"] == 8 and found.head.bias is adapter.head.bias
    named = {cost.tensor: cost.relative_error for cost in costs}
    assert named["head.weight"] == relative_error(adapter.head.weight.dense(), found.head.weight.dense())
    assert len(costs) == 2 * 3 + 1
    assert requantize(adapter, Options()) == (dataclasses.replace(adapter), ()) or not requantize(adapter, Options())[1]


def test_16_bits_is_float16_where_it_reaches() -> None:
    wide = numbers(1, (4, 16)).copy()
    wide[0, 0] = 1e6
    rows = [Branch(Site.parse("blocks.0.mlp.fc1"), "lora", {"scale": 1.0}, {"down": Dense(wide), "up": UP})]
    found, _ = requantize(make("lora", branches=rows), Options(bits=16))
    assert found.branches[0].tensors["down"].form() == {"dtype": "bfloat16"}
    assert found.branches[0].tensors["up"].form() == {"dtype": "float16"}
    back, _ = requantize(found, Options(bits=32))
    assert back.branches[0].tensors["up"].form() == {"dtype": "float32"}


def test_sparse_values_are_quantized() -> None:
    found, costs = requantize(make("sparse"), Options(bits=4))
    form = found.branches[0].tensors["weight"].form()
    assert form["sparse"]["bits"] == 4 and len(costs) == 3
    assert open_bundle(pack(found)).read().same_as(found)


@pytest.mark.parametrize("options", [{"bits": 3}, {"profile": "tiny"}, {"group": 7}, {"head_bits": 0}, {"bits": "1"}])
def test_bad_options(options: dict[str, Any]) -> None:
    assert reason_of(Options, **options) == "bad-call"


def test_a_source_is_only_a_protocol() -> None:
    source: _files.Source = Counting(pack(make("lora")))
    assert Bundle(source).read().same_as(make("lora"))


def test_split_writes_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = tmp_path / "both.apk"
    both.write_bytes(pack(make("lora", "a"), make("lora", "b")))
    write, done = _files.write_atomic, []

    def failing(path: Any, data: bytes, *, force: bool) -> None:
        if done:
            raise CallError("No space left on device", Reason.IO)
        done.append(path)
        write(path, data, force=force)

    monkeypatch.setattr(_files, "write_atomic", failing)
    with pytest.raises(CallError, match="No space"):
        adapterpack.split(both, tmp_path / "out")
    assert done and list((tmp_path / "out").iterdir()) == []
