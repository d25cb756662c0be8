"""The bad vectors whose fault lies in a codec's parameters or in a payload."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from vectors_adapters import adapter, dense, numbers, written
from vectors_build import Json, Parts, Row, edited, one_segment, take_apart, varint, with_frame, zstd_frame

from adapterpack.adapter import Head

RAW: Json = {"compression": "none", "dtype": "float32"}
SIGNS: Json = {"compression": "none", "group": 0, "levels": "unit", "offset": True, "scale": "float32"}
CODEBOOK: Json = {**SIGNS, "bits": 3, "levels": "normal-l1"}


def payloads() -> Iterator[Row]:
    for rows in (_controls, _codecs, _sizes, _codes, _numbers, _limits, _sections, _frames, _sparse, _labels):
        yield from rows()


def floats(*values: float, letter: str = "f") -> bytes:
    return struct.pack(f"<{len(values)}{letter}", *values)


def _controls() -> Iterator[Row]:
    """Files like those below without their fault: only the digest, which is zeros, is wrong."""
    why, source = (
        "Nothing is wrong but the digest: a neighbour that gives another reason gives it for its own fault.",
        "",
    )
    packed = {**RAW, "dtype": "float16", "compression": "zstd"}
    frame = zstd_frame([(1, 64, b"\x55")], size=64)
    wide = zstd_frame([(1, 64, b"\x55")], size=64, window=0x50)
    entries = {"compression": "none", "entries": 2, "values": {"codec": "raw", **RAW}}
    for name, codec, params, payload, shape in (
        ("raw", "raw", RAW, floats(1.0, -0.0), [2]),
        ("raw-zstd", "raw", packed, (bytes([3]) + b"\0\0\0") * 2, [3]),
        ("signs", "signs", SIGNS, bytes([0x1F]) + floats(1.0, 0.0), [5]),
        ("codebook", "codebook", CODEBOOK, bytes([0xFF, 0x7F]) + floats(1.0, 0.0), [5]),
        ("frame", "signs", {**SIGNS, "compression": "zstd", "offset": False}, _framed(frame), [512]),
        ("frame-window", "signs", {**SIGNS, "compression": "zstd", "offset": False}, _framed(wide), [512]),
        ("sparse", "sparse", entries, struct.pack("<I", 2) + b"\0\1\x0a" + floats(1.0, 2.0), [8]),
    ):
        yield f"control-{name}", "digest-mismatch", one_segment(codec, params, payload, shape), why, source


def _framed(frame: bytes) -> bytes:
    """512 signs in a frame and the scale 1.0 as four planes of one byte."""
    return varint(len(frame)) + frame + b"".join(bytes([1, byte]) for byte in (0x7F, 0, 0, 0))


def _codecs() -> Iterator[Row]:
    i22 = "item 22"
    good = bytes([0x55]) + floats(1.0, 0.0)
    yield "codec-unknown", "unknown-codec", one_segment("rans", {}, good, [8]), "A codec that is unknown.", i22
    for name, codec, params in (
        ("raw-float64", "raw", {**RAW, "dtype": "float64"}),
        ("raw-no-dtype", "raw", {"compression": "none"}),
        ("raw-unknown", "raw", {**RAW, "level": 19}),
        ("raw-gzip", "raw", {**RAW, "compression": "gzip"}),
        ("raw-chain", "raw", {**RAW, "compression": ["zstd", "zstd"]}),
        ("signs-group-7", "signs", {**SIGNS, "group": 7}),
        ("signs-group-text", "signs", {**SIGNS, "group": "128"}),
        ("signs-group-false", "signs", {**SIGNS, "group": False}),
        ("signs-group-131072", "signs", {**SIGNS, "group": 131_072}),
        ("signs-no-offset", "signs", {k: v for k, v in SIGNS.items() if k != "offset"}),
        ("signs-offset-1", "signs", {**SIGNS, "offset": 1}),
        ("signs-scale", "signs", {**SIGNS, "scale": "bfloat16"}),
        ("signs-levels", "signs", {**SIGNS, "levels": "nf4"}),
        ("signs-levels-array", "signs", {**SIGNS, "levels": ["unit"]}),
        ("signs-bits", "signs", {**SIGNS, "bits": 1}),
        ("codebook-bits-1", "codebook", {**CODEBOOK, "bits": 1}),
        ("codebook-bits-9", "codebook", {**CODEBOOK, "bits": 9}),
        ("codebook-bits-float", "codebook", {**CODEBOOK, "bits": 2.0}),
        ("codebook-levels", "codebook", {**CODEBOOK, "levels": "normal-l1-500"}),
        ("sparse-values", "sparse", {"compression": "none", "entries": 0, "values": {"codec": "rans"}}),
        ("sparse-values-array", "sparse", {"compression": "none", "entries": 0, "values": {"codec": ["raw"]}}),
        ("sparse-nested", "sparse", {"compression": "none", "entries": 0, "values": {"codec": "sparse"}}),
        ("sparse-entries", "sparse", {"compression": "none", "entries": -1, "values": {"codec": "raw", **RAW}}),
        ("sparse-entries-none", "sparse", {"compression": "none", "values": {"codec": "raw", **RAW}}),
    ):
        source = "item 32" if name in ("raw-chain", "sparse-nested") else i22
        yield f"param-{name}", "bad-parameter", one_segment(codec, params, good, [8]), f"Codec {codec}: {name}.", source


def _sizes() -> Iterator[Row]:
    i23, i25 = "item 23", "item 25: safetensors TensorInvalidInfo"
    for name, data in (("short", floats(1.0)), ("long", floats(1.0, 2.0, 3.0)), ("none", b"")):
        yield f"raw-{name}", "payload-size", one_segment("raw", RAW, data, [2]), "Not 2 × 4 bytes.", i25
    signs = bytes([0x55]) + floats(1.0, 0.0)
    for name, data in (("short", signs[:-1]), ("long", signs + b"\0"), ("no-offset", signs[:5])):
        yield f"signs-{name}", "payload-size", one_segment("signs", SIGNS, data, [8]), "Not 1 + 4 + 4 bytes.", i23
    grouped = {**SIGNS, "group": 8, "offset": False}
    one = one_segment("signs", grouped, bytes([0x55, 1]) + floats(1.0), [9])
    yield "signs-one-scale", "payload-size", one, "One scale for two groups.", "item 24"


def _codes() -> Iterator[Row]:
    i23 = "item 23"
    signs = one_segment("signs", SIGNS, bytes([0x20]) + floats(1.0, 0.0), [5])
    yield "padding-signs", "padding-bits", signs, "A bit set after the fifth of five signs.", i23
    codes = one_segment("codebook", CODEBOOK, bytes([0x00, 0x80]) + floats(1.0, 0.0), [5])
    yield "padding-codebook", "padding-bits", codes, "A bit set after the last of five 3-bit codes.", i23
    two = one_segment("signs", SIGNS, bytes([0x08, 0x55]) + floats(1.0, 1.0, 0.0, 0.0), [3], [8])
    yield "padding-between", "padding-bits", two, "A bit set after the first of two tensors.", i23


def _numbers() -> Iterator[Row]:
    i24 = "item 24: safetensors, BitDelta"
    nan, inf = float("nan"), float("inf")
    for name, scale in (("nan", nan), ("infinity", inf), ("negative", -1.0), ("minus-0", -0.0)):
        data = one_segment("signs", SIGNS, bytes([0x55]) + floats(scale, 0.0), [8])
        yield f"scale-{name}", "bad-scale", data, "A scale must be finite, its sign bit clear.", i24
        half = {**SIGNS, "scale": "float16", "offset": False}
        data = one_segment("signs", half, bytes([0x55]) + floats(scale, letter="e"), [8])
        yield f"scale-{name}-float16", "bad-scale", data, "A scale must be finite, its sign bit clear.", i24
    for name, offset in (("nan", nan), ("infinity", -inf)):
        data = one_segment("signs", SIGNS, bytes([0x55]) + floats(1.0, offset), [8])
        yield f"offset-{name}", "not-finite", data, "An offset must be finite.", i24
    largest = 3.4028234663852886e38
    wide = one_segment("codebook", CODEBOOK, bytes(3) + floats(largest, 0.0), [8])
    yield "weight-overflow", "not-finite", wide, "The outermost level times the scale is beyond float32.", i24
    shift = one_segment("signs", SIGNS, bytes([0x55]) + floats(largest, largest), [8])
    yield "weight-overflow-offset", "not-finite", shift, "Scale and offset together are beyond float32.", i24
    for name, dtype, word in (
        ("float32-nan", "float32", b"\x01\x00\x80\x7f"),
        ("float32-infinity", "float32", b"\x00\x00\x80\xff"),
        ("float16-nan", "float16", b"\x01\x7c"),
        ("float16-infinity", "float16", b"\x00\xfc"),
        ("bfloat16-nan", "bfloat16", b"\xc0\x7f"),
        ("bfloat16-infinity", "bfloat16", b"\x80\x7f"),
    ):
        data = one_segment("raw", {**RAW, "dtype": dtype}, bytes(len(word)) + word, [2])
        yield name, "not-finite", data, "A weight must be finite.", i24


def _limits() -> Iterator[Row]:
    i25 = "item 25"
    big = one_segment("raw", {**RAW, "compression": "zstd"}, b"\0", [1 << 20, 1 << 11])
    yield "decoded-8-gib", "limit-exceeded", big, "Weights of 8 GiB from one byte.", i25
    half = one_segment("raw", {**RAW, "compression": "zstd"}, b"\0", *[[1 << 20, 1 << 7]] * 9)
    yield "decoded-sum", "limit-exceeded", half, "Nine tensors of half a gibibyte each.", i25
    params = {"compression": "zstd", "entries": 1 << 40, "values": {"codec": "raw", **RAW, "compression": "zstd"}}
    entries = one_segment("sparse", params, b"\0", [1 << 40])
    yield "decoded-entries", "limit-exceeded", entries, "A million million entries.", i25


def _sections() -> Iterator[Row]:
    packed = {**RAW, "dtype": "float16", "compression": "zstd"}
    plane = bytes([3]) + b"\0\0\0"
    good = plane * 2
    i7 = "item 7"
    for name, data, why in (
        ("missing", plane, "The second byte plane is missing."),
        ("extra", good + b"\0", "A byte after the last section."),
        ("cut", good[:-1], "The last section is cut short."),
        ("too-long", plane + bytes([4]) + b"\0\0\0\0", "A section stored in more bytes than it has."),
        ("not-shortest", plane + b"\x83\x00" + b"\0\0\0", "A LEB128 number in two bytes that fits one."),
        ("six-bytes", plane + b"\x83\x80\x80\x80\x80\x00" + b"\0\0\0", "A LEB128 number of six bytes."),
        ("endless", plane + b"\xff" * 5, "A LEB128 number that does not end."),
    ):
        yield f"section-{name}", "payload-size", one_segment("raw", packed, data, [3]), why, i7


def _frames() -> Iterator[Row]:
    packed = {**SIGNS, "compression": "zstd", "offset": False}

    def signs(frame: bytes, size: int = 64) -> bytes:
        return one_segment("signs", packed, _framed(frame), [8 * size])

    run = [(1, 64, b"\x55")]
    good = zstd_frame(run, size=64)
    i28, i29, i30 = "item 28: python-zstandard, bun#28162", "item 29: RFC 9659, aspnetcore#67688", "item 30: numcodecs"
    rows: tuple[tuple[str, bytes, str, str], ...] = (
        ("no-size", zstd_frame(run, window=0x00), "No content size.", i28),
        ("other-size", zstd_frame(run, size=63), "Another content size than expected.", i28),
        ("bomb-declared", zstd_frame([(1, 100_000, b"\0")] * 1, size=200_000_000), "200,000,000 bytes declared.", i28),
        (
            "bomb",
            zstd_frame([(1, 131_072, b"\0")] * 9, size=64, window=0x50),
            "A megabyte where 64 bytes are declared.",
            i28,
        ),
        ("less", zstd_frame([(1, 60, b"\x55")], size=64), "Fewer bytes come out than declared.", i28),
        ("window", zstd_frame(run, size=64, window=0x58), "A window of 2 MiB.", i29),
        ("window-fraction", zstd_frame(run, size=64, window=0x51), "A window of 1.125 MiB.", i29),
        ("two", zstd_frame([(1, 32, b"\x55")], size=32) * 2, "Two frames.", i30),
        ("empty-after", good + zstd_frame([(0, 0, b"")], size=0), "An empty second frame.", i30),
        ("skippable-first", b"\x50\x2a\x4d\x18\0\0\0\0" + good, "A skippable frame before.", i30),
        ("skippable-after", good + b"\x50\x2a\x4d\x18\0\0\0\0", "A skippable frame after.", i30),
        ("dictionary", zstd_frame(run, size=64, flags=1, extra=b"\x07"), "A dictionary.", i30),
        ("dictionary-0", zstd_frame(run, size=64, flags=1, extra=b"\x00"), "The dictionary 0, which means none.", i30),
        ("checksum", zstd_frame(run, size=64, flags=4) + b"\0\0\0\0", "A checksum of its own.", i30),
        ("reserved", zstd_frame(run, size=64, flags=8), "The reserved bit.", i30),
        ("unused", zstd_frame(run, size=64, flags=16), "The unused bit.", i30),
        ("trailing", good + b"\0", "A byte after the frame.", i30),
        ("cut", good[:-1], "The frame is cut short.", i30),
        ("block-type", zstd_frame([(3, 64, b"\x55")], size=64), "A block of the reserved type.", i30),
        ("magic", b"\x1f\x8b\x08\x00" + good[4:], "The magic of gzip.", i30),
        ("tiny", b"\x28\xb5\x2f\xfd", "A magic and nothing more.", i30),
    )
    for name, frame, why, source in rows:
        yield f"zstd-{name}", "zstd-frame", signs(frame), why, source
    large = zstd_frame([(1, 131_072, b"\0")] * 9, size=9 * 131_072)
    yield "zstd-single-segment", "zstd-frame", signs(large, 9 * 131_072), "A single segment above 1 MiB.", i29


def _sparse() -> Iterator[Row]:
    values = {"codec": "raw", **RAW}
    where = "item 18"

    def file(
        counts: list[int], rice: bytes, low: bytes, high: bytes, count: int, shape: list[int], entries: Any = None
    ) -> bytes:
        head = struct.pack(f"<{len(counts)}I", *counts) + rice + low + varint(len(high)) + high
        params = {"compression": "none", "entries": sum(counts) if entries is None else entries, "values": values}
        return one_segment("sparse", params, head + bytes(4 * count), *[shape] * len(counts))

    # the entries 1 and 3 of eight: gaps 1 and 1, in unary 01 01
    one, long = bytes([0b1010]), bytes(63) + b"\x01"
    for name, data, why in (
        ("entries", file([2], b"\0", b"", one, 2, [8], 3), "Another sum than the index says."),
        ("count", file([9], b"\0", b"", b"\xff\x01", 9, [8]), "More entries than elements."),
        ("rice", file([2], b"\x20", bytes(8), b"\x03", 2, [8]), "A Rice parameter of 32."),
        ("position", file([2], b"\0", b"", bytes([0x81]), 2, [7]), "A position outside the tensor."),
        ("position-low", file([1], b"\3", b"\7", b"\1", 1, [7]), "A position outside, by its low bits."),
        ("unary-zero", file([4], b"\0", b"", b"\x0f\0", 4, [30]), "Unary parts that end in a zero byte."),
        ("unary-few", file([2], b"\0", b"", b"\x02", 2, [8]), "One unary part for two entries."),
        ("unary-many", file([2], b"\0", b"", b"\x2a", 2, [8]), "Three unary parts for two entries."),
        ("unary-long", file([1], b"\0", b"", long, 1, [512]), "A gap in so many bits that another parameter is due."),
    ):
        yield f"sparse-{name}", "bad-positions", data, why, where
    padded = file([2], b"\1", b"\x0f", b"\x03", 2, [8])
    yield "sparse-padding", "padding-bits", padded, "Bits set after the gaps' low bits.", "item 23"
    params = {"compression": "none", "entries": 2, "values": values}
    for name, tail in (("short", 7), ("long", 9)):
        payload = struct.pack("<I", 2) + b"\0" + b"\1" + one + bytes(tail)
        data = one_segment("sparse", params, payload, [8])
        yield f"sparse-values-{name}", "payload-size", data, "Values of another size.", "item 25"
    noted = {**params, "values": {"codec": "raw", **RAW, "dtype": "float16"}}
    payload = struct.pack("<I", 2) + b"\0" + b"\1" + one + b"\x00\x7c\x00\x00"
    yield "sparse-infinity", "not-finite", one_segment("sparse", noted, payload, [8]), "An infinite entry.", "item 24"
    bomb = varint(1) + b"\0" + varint(0) + varint(1 << 30)
    packed = {"compression": "zstd", "entries": 1, "values": values}
    payload = varint(4) + struct.pack("<I", 1) + bomb + varint(5) + bytes(9)
    data = one_segment("sparse", packed, payload, [1 << 40])
    yield "sparse-bomb", "bad-positions", data, "A gibibyte of unary parts for one entry.", "item 28"


def _labels() -> Iterator[Row]:
    parts = take_apart(written(adapter(head=Head(dense(numbers(2, 8))), labels=("cat", "dog")), "fast"))
    i27 = "item 27"

    def labels(text: bytes, said: int | None = None) -> bytes:
        return _payload(parts, varint(len(text) if said is None else said) + varint(len(text)) + text)

    for name, text, why in (
        ("one", b"cat", "One class name for two classes."),
        ("three", b"cat\ndog\n", "A line feed after the last name."),
        ("empty", b"cat\n", "An empty class name."),
        ("control", b"cat\nd\x1bg", "A control character."),
        ("bidi", "cat\nd\u202eg".encode(), "Right-to-left override."),
        ("latin-1", b"cat\nd\xf6g", "Latin-1."),
        ("surrogate", b"cat\n\xed\xa0\x80", "A surrogate."),
        ("crlf", b"cat\r\ndog", "A carriage return."),
    ):
        yield f"labels-{name}", "bad-labels", labels(text), why, i27
    three = take_apart(_payload(parts, varint(7) + varint(7) + b"a\nbb\ncc"))
    count = edited(three, lambda index: index["tasks"][0]["labels"].update(count=3))
    yield "labels-three-for-two-rows", "bad-labels", count, "Three class names, as said, for a head of two rows.", i27
    huge = _payload(parts, varint((1 << 20) + 1) + b"\0")
    yield "labels-huge", "bad-labels", huge, "More than 1 MiB of class names.", "item 25"
    yield "labels-cut", "payload-size", _payload(parts, b"\x07\x07cat\ndo"), "Cut short.", i27
    params = edited(parts, lambda index: index["tasks"][0]["segments"][1].update(params={"separator": ","}))
    yield "param-labels", "bad-parameter", params, "Class names have no parameters.", "item 22"


def _payload(parts: Parts, payload: bytes) -> bytes:
    """The file with another last payload."""
    assert isinstance(parts.index, dict)
    task = parts.index["tasks"][0]
    segments = [*task["segments"][:-1], {**task["segments"][-1], "bytes": len(payload)}]
    index = {**parts.index, "tasks": [{**task, "segments": segments}]}
    return with_frame(parts, index=index, payloads=[*parts.payloads[:-1], payload])
