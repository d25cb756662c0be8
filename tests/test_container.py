"""The frame and the index: framing, DEFLATE, strict JSON, fields, limits; references are zlib and struct."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterpack.container import deflate, digest, framing, limits, parse, strict_json
from adapterpack.container.fields import Fields
from adapterpack.container.index import Group, to_json
from adapterpack.errors import AdapterPackError, CorruptFileError, UnsupportedVersionError
from adapterpack.packing.bundle import open_bundle
from tests import factories

ROOT = Path(__file__).resolve().parent.parent
GOOD = factories.pack(factories.make("lora"))


def reason_of(call: Any, *arguments: Any) -> str:
    with pytest.raises(AdapterPackError) as error:
        call(*arguments)
    return str(error.value.reason)


# --- DEFLATE


def inflate(data: bytes) -> bytes:
    inflater = zlib.decompressobj(wbits=-15, zdict=deflate.DICTIONARY)
    out = inflater.decompress(data) + inflater.flush()
    assert inflater.eof and not inflater.unused_data
    return out


@given(st.one_of(st.binary(max_size=600), st.text(alphabet='{}[]":,0129abcs', max_size=600).map(str.encode)))
def test_zlib_reads_what_we_deflate(data: bytes) -> None:
    packed = deflate.compress(data)
    assert inflate(packed) == data
    assert deflate.decompress(packed, len(data)) == data


@pytest.mark.parametrize(
    "length", [1, 2, 3, 4, 10, 11, 12, 18, 19, 66, 67, 130, 131, 226, 227, 257, 258, 259, 260, 600]
)
@pytest.mark.parametrize("gap", [0, 1, 5, 300, 2000, 9000, 33_000])
def test_every_length_and_distance_class(length: int, gap: int) -> None:
    filler = b"".join(struct.pack(">I", 0xA0000000 + 7919 * i) for i in range(gap // 4))
    data = bytes(range(200, 256)) * 11
    text = data[:length] + filler + data[:length] + b"\x00" * length
    assert inflate(deflate.compress(text)) == text


def test_a_real_index_is_small() -> None:
    text = strict_json.dumps(factories.index_of(GOOD))
    assert len(deflate.compress(text)) < 0.6 * len(text)


def test_deflate_is_refused_when_sizes_disagree() -> None:
    packed = deflate.compress(b"abc" * 50)
    for data, size in (
        (packed, 149),
        (packed, 151),
        (packed[:-1], 150),
        (packed + b"\x00", 150),
        (b"\x07", 1),
        (b"", 0),
    ):
        assert reason_of(deflate.decompress, data, size) == "index-compression"


def test_a_deflate_bomb_stops_at_the_declared_size() -> None:
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = squeezer.compress(bytes(50 << 20)) + squeezer.flush()
    assert reason_of(deflate.decompress, bomb, 1000) == "index-compression"


# --- JSON

json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-limits.INTEGER, limits.INTEGER),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), max_size=9),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text("abcdé", max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(json_values)
def test_json_round_trip(value: Any) -> None:
    text = strict_json.dumps(value)
    assert strict_json.loads(text) == value == json.loads(text)
    assert strict_json.dumps(strict_json.loads(text)) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"a":1,"a":1}', "duplicate-key"),
        (b'{"b":{"a":1,"a":2}}', "duplicate-key"),
        (b'{"a":1,"\\u0061":2}', "duplicate-key"),
        (b"[NaN]", "bad-number"),
        (b"[Infinity]", "bad-number"),
        (b"[-Infinity]", "bad-number"),
        (b"[1e999]", "bad-number"),
        (b"[-0]", "bad-number"),
        (b"[9007199254740992]", "bad-number"),
        (b"[-9007199254740992]", "bad-number"),
        (b"[" + b"1" * 5000 + b"]", "bad-number"),
        (b"\xff{}", "index-encoding"),
        (b'"\xed\xa0\x80"', "index-encoding"),
        ("\ufeff{}".encode(), "index-encoding"),
        ("{}".encode("utf-16"), "index-encoding"),
        (b'"\\ud800"', "bad-name"),
        (b'"\\u0000"', "bad-name"),
        (b'"\\u001b[2J"', "bad-name"),
        ('"\u202e"'.encode(), "bad-name"),
        ('{"\u2066":1}'.encode(), "bad-name"),
        (b"[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]", "too-deep"),
        (b"[" * 100_000 + b"]" * 100_000, "too-deep"),
        (b'{"a":' * 17 + b"1" + b"}" * 17, "too-deep"),
        (b"{", "index-syntax"),
        (b"", "index-syntax"),
        (b"{}x", "index-syntax"),
        (b"[1,]", "index-syntax"),
        (b"[01]", "index-syntax"),
        (b"['a']", "index-syntax"),
        (b'["\n"]', "index-syntax"),
        (b'"' + b"a" * 65_537 + b'"', "limit-exceeded"),
    ],
)
def test_json_traps(text: bytes, reason: str) -> None:
    assert reason_of(strict_json.loads, text) == reason


def test_what_is_just_inside() -> None:
    assert strict_json.loads(b"[" * 16 + b'"a",1' + b"]" * 16)
    assert strict_json.loads(b"[9007199254740991,-9007199254740991,1e308,-0.0]")
    assert strict_json.loads(b'"' + b"a" * 65_536 + b'"')
    assert strict_json.loads('"ç 猫 😀 é"'.encode()) == "ç 猫 😀 é"


def test_many_keys_take_linear_time() -> None:
    """A duplicate at the end of a full index: a quadratic search would take minutes."""
    keys = b",".join(b'"%x":1' % i for i in range(90_000))
    assert reason_of(strict_json.loads, b"{" + keys + b',"zz":1,"zz":1}') == "duplicate-key"


def test_dumps_has_one_spelling() -> None:
    assert (
        strict_json.dumps({"b": [1.0, 1e22, -0.0], "a": "é", "A": None})
        == '{"A":null,"a":"é","b":[1.0,1e+22,-0.0]}'.encode()
    )


# --- fields


def test_fields() -> None:
    f = Fields({"n": 3, "name": "x", "shape": [2, 3], "x-new": 1, "flag": True}, "index")
    assert f.count("n") == 3 and f.name("name") == "x" and f.shape() == (2, 3) and f.take("flag", bool) is True
    f.done()  # x-new may be skipped
    assert f.path("y") == "index.y"


@pytest.mark.parametrize(
    ("value", "call", "reason"),
    [
        ({}, lambda f: f.take("a", int), "missing-field"),
        ({"a": True}, lambda f: f.count("a"), "bad-field"),
        ({"a": 1.0}, lambda f: f.count("a"), "bad-field"),
        ({"a": None}, lambda f: f.take("a", dict), "bad-field"),
        ({"a": -1}, lambda f: f.count("a"), "bad-field"),
        ({"a": 8}, lambda f: f.count("a", 7), "limit-exceeded"),
        ({"a": ""}, lambda f: f.name("a"), "bad-name"),
        ({"a": "é" * 128}, lambda f: f.name("a"), "bad-name"),
        ({"a": [0]}, lambda f: f.shape("a"), "bad-field"),
        ({"a": [True]}, lambda f: f.shape("a"), "bad-field"),
        ({"a": ["1"]}, lambda f: f.shape("a"), "bad-field"),
        ({"a": [1] * 9}, lambda f: f.shape("a"), "limit-exceeded"),
        ({"a": [1 << 30, 1 << 30]}, lambda f: f.shape("a"), "limit-exceeded"),
        ({"a": [1 << 32, 1 << 32]}, lambda f: f.shape("a"), "limit-exceeded"),
        ({"b": 1}, lambda f: f.done(), "unknown-field"),
        ([], lambda f: f, "bad-field"),
        (None, lambda f: f, "bad-field"),
    ],
)
def test_fields_refuse(value: Any, call: Any, reason: str) -> None:
    assert reason_of(lambda: call(Fields(value, "index"))) == reason


def test_places_are_named() -> None:
    with pytest.raises(CorruptFileError) as error:
        Fields({"a": "x"}, "index.tasks[3]").count("a")
    assert error.value.where == "index.tasks[3].a"


# --- the frame


def changed(at: int, value: bytes, *, checksum: bool = True) -> bytes:
    data = GOOD[:at] + value + GOOD[at + len(value) :]
    return factories.with_head_checksum(data) if checksum else data


@pytest.mark.parametrize("without", [False, True])
@given(payload=st.binary(max_size=300))
def test_checksums_are_the_same_with_and_without_zlib_ng(without: bool, payload: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if without:
            patch.setitem(sys.modules, "zlib_ng.zlib_ng", None)
        digest._crc32.cache_clear()
        found = digest._crc32()
    digest._crc32.cache_clear()
    if without or importlib.util.find_spec("zlib_ng") is None:
        assert found is zlib.crc32
    else:
        assert found.__module__ != "zlib"
    assert found(payload) == found(memoryview(payload)) == zlib.crc32(payload) == digest.checksum(payload)


def test_the_frame_by_hand() -> None:
    magic, major, minor, flags, head, stored, index, checksum = struct.unpack("<8sBBHIIII", GOOD[:28])
    assert magic == b"\x89APK\r\n\x1a\n" and (major, minor, flags) == (1, 0, 0)
    assert checksum == zlib.crc32(GOOD[:24] + GOOD[28:head])
    text = inflate(GOOD[28 : 28 + stored])
    assert len(text) == index
    tasks = json.loads(text)["tasks"]
    segments = tasks[0]["segments"]
    table = GOOD[28 + stored : head]
    assert len(table) == 4 * len(segments) + 32
    at = head
    for i, segment in enumerate(segments):
        payload = GOOD[at : at + segment["bytes"]]
        assert zlib.crc32(payload) == int.from_bytes(table[4 * i : 4 * i + 4], "little")
        at += segment["bytes"]
    assert at == len(GOOD)
    assert open_bundle(GOOD).digest == "sha256:" + table[-32:].hex()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated"),
        (b"\x89", "truncated"),
        (GOOD[:8], "truncated"),
        (GOOD[:27], "truncated"),
        (GOOD[:60], "truncated"),
        (GOOD[:-1], "truncated"),
        (GOOD + b"\x00", "trailing-bytes"),
        (b"hello world, this is text", "bad-magic"),
        (GOOD.replace(b"\r\n", b"\n"), "mangled-magic"),
        (GOOD.replace(b"\n", b"\r\n"), "mangled-magic"),
        (GOOD.replace(b"\x89", b"\xc2\x89", 1), "mangled-magic"),
        (GOOD.decode("utf-8", "replace").encode(), "mangled-magic"),
        (b"\x09" + GOOD[1:], "mangled-magic"),
        (b"PK\x03\x04" + bytes(40), "other-format"),
        (b"GGUF" + bytes(40), "other-format"),
        (b"\x80\x04\x95" + bytes(40), "other-format"),
        (b"<!DOCTYPE html>" + bytes(40), "other-format"),
        (b"version https://git-lfs.github.com/spec/v1\n", "other-format"),
        (struct.pack("<Q", 12) + b'{"a":{}}    ', "other-format"),
        (changed(8, b"\x00"), "bad-version"),
        (changed(8, b"\x02"), "newer-version"),
        (changed(8, b"\x00\x01"), "bad-version"),
        (changed(10, b"\x01"), "reserved-bits"),
        (changed(12, b"\xff\xff\xff\xff", checksum=False), "limit-exceeded"),
        (changed(12, struct.pack("<I", 2 << 20), checksum=False), "truncated"),
        (changed(12, struct.pack("<I", 28), checksum=False), "head-size"),
        (changed(16, b"\xff\xff\xff\xff"), "head-size"),
        (changed(20, b"\xff\xff\xff\xff"), "limit-exceeded"),
        (changed(20, b"\x01\x00\x00\x00"), "index-compression"),
        (changed(24, b"\x00\x00\x00\x00", checksum=False), "checksum-mismatch"),
        (changed(40, b"\xff\xff\xff\xff", checksum=False), "checksum-mismatch"),
    ],
)
def test_bad_frames(data: bytes, reason: str) -> None:
    assert reason_of(open_bundle, data) == reason


def test_a_newer_minor_version_is_read() -> None:
    data = changed(9, b"\x07")
    assert open_bundle(data).format_version == "1.7"
    assert open_bundle(data).read().same_as(open_bundle(GOOD).read())


def test_an_android_package_is_named() -> None:
    with pytest.raises(CorruptFileError, match="Android package"):
        open_bundle(b"PK\x03\x04" + bytes(60))


@pytest.mark.parametrize("size", range(len(framing.MAGIC) + 1))
def test_every_beginning_of_the_magic_is_a_cut_file(size: int) -> None:
    assert reason_of(open_bundle, framing.MAGIC[:size]) == "truncated"


def test_the_table_must_fit_the_index() -> None:
    fixed = framing.parse_fixed(GOOD, len(GOOD))
    text = strict_json.dumps(factories.index_of(GOOD))
    table = GOOD[28 + fixed.stored_bytes : fixed.head_bytes]
    for other in (table[4:], table + bytes(4), b""):
        assert reason_of(open_bundle, factories.reframe(text, other) + GOOD[fixed.head_bytes :]) == "head-size"


# --- the index

Task = dict[str, Any]


def test_index_round_trip() -> None:
    for method in factories.MAKERS:
        text = strict_json.dumps(factories.index_of(factories.pack(factories.make(method))))
        assert strict_json.dumps(to_json(parse.parse_index(text))) == text


def edited(**changes: Any) -> bytes:
    """The good file with some fields of its only task replaced (None: removed)."""
    index = factories.index_of(GOOD)
    for name, value in changes.items():
        if value is None:
            index["tasks"][0].pop(name)
        else:
            index["tasks"][0][name] = value
    return factories.with_index(GOOD, index)


def group(**changes: Any) -> list[Any]:
    return [{**factories.index_of(GOOD)["tasks"][0]["groups"][0], **changes}]


ROW = {"segment": 0, "shape": [4, 16]}
SEGMENTS = factories.index_of(GOOD)["tasks"][0]["segments"]
DATA = factories.index_of(GOOD)["tasks"][0]["data"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (edited(name=None), "missing-field"),
        (edited(name=""), "bad-name"),
        (edited(name="../x"), "bad-name"),
        (edited(name="a\\b"), "bad-name"),
        (edited(name=".hidden"), "bad-name"),
        (edited(name="a" * 256), "bad-name"),
        (edited(name=7), "bad-field"),
        (edited(colour="red"), "unknown-field"),
        (edited(groups={}), "bad-field"),
        (edited(groups=None), "missing-field"),
        (edited(groups=[1]), "bad-field"),
        (edited(groups=group(blocks=[3, 0])), "bad-field"),
        (edited(groups=group(blocks=[0, 3, 3])), "bad-field"),
        (edited(groups=group(blocks=[0])), "bad-field"),
        (edited(groups=group(blocks=[])), "bad-field"),
        (edited(groups=group(blocks=[0, True])), "bad-field"),
        (edited(groups=group(blocks=[0, 20_000])), "limit-exceeded"),
        (edited(groups=group(sites=[])), "bad-field"),
        (edited(groups=group(sites=["blocks.*.b", "blocks.*.a"])), "bad-field"),
        (edited(groups=group(sites=["blocks.*.a", "blocks.*.a"])), "bad-field"),
        (edited(groups=group(sites=["norm"])), "bad-field"),
        (edited(groups=group(sites=["blocks.*.a.*"])), "bad-field"),
        (edited(groups=group(sites=["blocks.*.a b"])), "bad-name"),
        (edited(groups=group(sites=["blocks.*.a[z]"])), "bad-name"),
        (edited(groups=group(sites=[1])), "bad-field"),
        (edited(groups=group() * 2), "duplicate-name"),
        (edited(groups=group(tensors={})), "bad-field"),
        (edited(groups=group(tensors={"down": {**ROW, "segment": 9}})), "segment-reference"),
        (edited(groups=group(tensors={"down": {**ROW, "shape": [0, 1]}})), "bad-field"),
        (edited(segments=[]), "segment-reference"),
        (edited(segments=[*SEGMENTS, {"bytes": 0, "codec": "raw", "params": {}}]), "segment-reference"),
        (edited(segments=[{**SEGMENTS[0], "skip": True}, *SEGMENTS[1:]]), "segment-reference"),
        (edited(segments=[{**SEGMENTS[0], "bytes": -1}, *SEGMENTS[1:]]), "bad-field"),
        (edited(segments=[{**SEGMENTS[0], "bytes": 1 << 50}, *SEGMENTS[1:]]), "truncated"),
        (edited(segments=[{**SEGMENTS[0], "bytes": SEGMENTS[0]["bytes"] - 1}, *SEGMENTS[1:]]), "trailing-bytes"),
        (edited(segments=[{**SEGMENTS[0], "codec": "labels"}, *SEGMENTS[1:]]), "segment-reference"),
        (edited(head={"weight": {"segment": 1, "shape": [5]}}), "bad-shape"),
        (edited(head={"bias": {"segment": 1, "shape": [5]}}), "bad-shape"),
        (edited(head={"weight": {"segment": 0, "shape": [5, 16]}}), "segment-reference"),
        (edited(head=None), "bad-labels"),
        (edited(labels={"count": 4, "segment": 2}), "bad-labels"),
        (edited(labels={"count": 0, "segment": 2}), "bad-field"),
        (edited(labels={"count": 5, "segment": 1}), "segment-reference"),
        (edited(data={**DATA, "mean": [0.0]}), "bad-field"),
        (edited(data={**DATA, "std": [0.0, 1.0, 1.0]}), "bad-field"),
        (edited(data={**DATA, "crop_pct": 1}), "bad-field"),
        (edited(data={**DATA, "crop_pct": 1.5}), "bad-field"),
        (edited(data={**DATA, "input_size": [3, 224]}), "bad-field"),
        (edited(metadata=[]), "bad-field"),
    ],
)
def test_bad_indexes(data: bytes, reason: str) -> None:
    assert reason_of(open_bundle, data) == reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tasks": []}, "bad-field"),
        ({"tasks": None}, "bad-field"),
        ({"requires": ["quantum"]}, "unknown-feature"),
        ({"requires": [[]]}, "bad-field"),
        ({"requires": "x"}, "bad-field"),
        ({"extra": 1}, "unknown-field"),
        ({"backbone": {"fingerprint": "sha256:12"}}, "bad-field"),
        ({"backbone": {"fingerprint": "md5:" + "0" * 32}}, "bad-field"),
        ({"backbone": {"fingerprint": "sha256:" + "G" * 64}}, "bad-field"),
        ({"backbone": {"name": ""}}, "bad-name"),
        ({"backbone": {"colour": 1}}, "unknown-field"),
    ],
)
def test_bad_tops(change: Any, reason: str) -> None:
    assert reason_of(open_bundle, factories.with_index(GOOD, {**factories.index_of(GOOD), **change})) == reason


def test_ignorable_fields_are_skipped() -> None:
    index = factories.index_of(GOOD)
    index["x-note"] = index["tasks"][0]["x-note"] = index["backbone"]["x-note"] = {"any": ["thing"]}
    index["tasks"][0]["segments"][0]["x-note"] = 1
    assert open_bundle(factories.with_index(GOOD, index)).read().same_as(open_bundle(GOOD).read())


def test_an_unknown_feature_is_an_unsupported_version() -> None:
    with pytest.raises(UnsupportedVersionError, match="quantum"):
        open_bundle(factories.with_index(GOOD, {**factories.index_of(GOOD), "requires": ["quantum"]}))


def many_sites(groups: int) -> bytes:
    """Few bytes that stand for millions of sites."""
    index = factories.index_of(GOOD)
    rows = {"weight": {"segment": 0, "shape": [1]}}
    index["tasks"][0]["groups"] = [
        {
            "blocks": [0, 10_000],
            "method": "m",
            "params": {"n": i},
            "sites": [f"blocks.*.s{k}" for k in range(6)],
            "tensors": rows,
        }
        for i in range(groups)
    ]
    return factories.with_index(GOOD, index)


def test_sites_are_counted_before_they_are_expanded() -> None:
    assert reason_of(open_bundle, many_sites(2000)) == "limit-exceeded"


def test_patterns_expand_block_by_block() -> None:
    found = Group("lora", {}, ("blocks.*.attn.qkv[q]", "blocks.*.mlp"), (0, 1, 3, 5), {}).expand()
    assert [str(site) for site in found] == [f"blocks.{n}.{tail}" for n in (0, 3, 4) for tail in ("attn.qkv[q]", "mlp")]
    assert [str(site) for site in Group("replace", {}, ("cls_token", "norm"), (), {}).expand()] == ["cls_token", "norm"]


# --- limits hold for both sides


@pytest.mark.parametrize(("value", "limit"), [(10, 10), (0, 10)])
def test_require_passes_at_the_limit(value: int, limit: int) -> None:
    assert limits.require(value, limit, "things") == value
    with pytest.raises(CorruptFileError) as error:
        limits.require(limit + 1, limit, "things", "somewhere")
    assert error.value.reason == "limit-exceeded" and error.value.where == "somewhere"


def test_index_size_is_limited_both_ways() -> None:
    assert framing.build_head(b" " * limits.INDEX_BYTES, b"")
    assert reason_of(framing.build_head, b" " * (limits.INDEX_BYTES + 1), b"") == "limit-exceeded"
    fields = struct.pack("<8sBBHIIII", framing.MAGIC, 1, 0, 0, 28 + 4, 4, limits.INDEX_BYTES, 0)
    assert framing.parse_fixed(fields, 1 << 20).index_bytes == limits.INDEX_BYTES
    fields = struct.pack("<8sBBHIIII", framing.MAGIC, 1, 0, 0, 28 + 4, 4, limits.INDEX_BYTES + 1, 0)
    assert reason_of(framing.parse_fixed, fields, 1 << 20) == "limit-exceeded"


def test_head_size_is_limited_both_ways() -> None:
    fits = limits.HEAD_BYTES - framing.FIXED_BYTES - len(deflate.compress(b"{}"))
    fits -= fits % 4
    assert len(framing.build_head(b"{}", bytes(fits))) <= limits.HEAD_BYTES
    assert reason_of(framing.build_head, b"{}", bytes(fits + 4)) == "limit-exceeded"
    fields = struct.pack("<8sBBHIIII", framing.MAGIC, 1, 0, 0, limits.HEAD_BYTES + 4, 4, 4, 0)
    assert reason_of(framing.parse_fixed, fields, 1 << 30) == "limit-exceeded"


def index_with(tasks: list[Task]) -> bytes:
    return strict_json.dumps({"backbone": {}, "tasks": tasks})


def linear_task(name: str, segments: int = 1, blocks: int = 0) -> Task:
    """A task of a head, or of one branch in each of `blocks` blocks and patterns."""
    task: Task = {"groups": [], "method": "m", "name": name}
    task["segments"] = [
        {"bytes": 0, "codec": "c", "params": {}, **({"skip": True} if i else {})} for i in range(segments)
    ]
    if blocks:
        task["groups"] = [
            {
                "blocks": [0, blocks],
                "method": "m",
                "params": {},
                "sites": ["blocks.*.a"],
                "tensors": {"w": {"segment": 0, "shape": [1]}},
            }
        ]
    else:
        task["head"] = {"weight": {"segment": 0, "shape": [1, 1]}}
    return task


def test_tasks_are_limited() -> None:
    tasks = [linear_task(str(i)) for i in range(limits.TASKS + 1)]
    assert len(parse.parse_index(index_with(tasks[:-1])).tasks) == limits.TASKS
    assert reason_of(parse.parse_index, index_with(tasks)) == "limit-exceeded"


def test_tensors_are_limited() -> None:
    full = [linear_task(str(i), blocks=9362) for i in range(7)]  # 65,534
    assert parse.parse_index(index_with([*full, linear_task("x", blocks=1)]))
    assert reason_of(parse.parse_index, index_with([*full, linear_task("x", blocks=2)])) == "limit-exceeded"


def test_segments_are_limited() -> None:
    full = [linear_task(str(i), segments=13_107) for i in range(5)]  # 65,535
    assert parse.parse_index(index_with(full))
    assert reason_of(parse.parse_index, index_with([*full, linear_task("x")])) == "limit-exceeded"


def test_dimensions_names_and_elements_are_limited() -> None:
    def head(shape: list[int], name: str = "n") -> bytes:
        task = linear_task(name)
        task["groups"] = [
            {"method": "m", "params": {}, "sites": ["a"], "tensors": {"w": {"segment": 0, "shape": shape}}}
        ]
        del task["head"]
        return index_with([task])

    assert parse.parse_index(head([1] * 8))
    assert reason_of(parse.parse_index, head([1] * 9)) == "limit-exceeded"
    assert parse.parse_index(head([limits.ELEMENTS]))
    assert reason_of(parse.parse_index, head([limits.ELEMENTS + 1])) == "limit-exceeded"
    assert parse.parse_index(head([1], "n" * 255))
    assert reason_of(parse.parse_index, head([1], "n" * 256)) == "bad-name"


# --- digest


def test_digest_by_hand() -> None:
    import hashlib

    expected = hashlib.sha256(b"adapterpack digest 1\n" + b'{"a":1}' + b"\n" + b"xyz").digest()
    assert digest.digest(b'{"a":1}', [memoryview(b"x"), memoryview(b"yz")]) == expected
    assert digest.file_digest([expected]) == expected
    assert digest.file_digest([expected, b"1" * 32]) == hashlib.sha256(expected + b"1" * 32).digest()


# --- the same bytes everywhere

SCRIPT = """
import hashlib
from adapterpack.container import deflate, strict_json
from tests import factories
for method in factories.MAKERS:
    for profile in ("small", "fast"):
        data = factories.pack(factories.make(method), factories.make("lora", "other"), profile=profile)
        print(method, profile, hashlib.sha256(data).hexdigest())
print(hashlib.sha256(deflate.compress(b"abcabcabc" * 99 + deflate.DICTIONARY[::-1])).hexdigest())
"""


def run_script(seed: str) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'cli'}"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_two_processes_write_the_same_bytes() -> None:
    first = run_script("1")
    assert first.count("\n") == 2 * len(factories.MAKERS) + 1
    assert run_script("4242") == first
