"""The bad vectors of the codec `predictive-signs`: each parameter, each layout, each way that words can be wrong."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from vectors_bad_payloads import floats
from vectors_build import Row, Vector, one_segment, varint
from vectors_signs import NAME, SMALL, Bits, alike, drawn, tensor, with_zero_word

from adapterpack.codecs import CODECS
from adapterpack.codecs._sign_model import encode_signs

SCALES = floats(0.25, -0.125)


def _words(codes: Bits, **changes: Any) -> bytes:
    """The words of the only stream of one matrix."""
    payload = CODECS[NAME].encode([tensor(codes)], {**SMALL, **changes})
    if not 0 < payload[0] < 128:
        raise RuntimeError("the example is to have one coded stream of one byte of size")
    return payload[1 : 1 + payload[0]]


def _encoded(matrices: Sequence[Bits]) -> bytes:
    """The words of a stream of these matrices [units × channels], whether or not they are fewer bytes."""
    signs = np.ascontiguousarray(np.stack([codes.T for codes in matrices]))
    return encode_signs(signs, lam=SMALL["lam"], pooled=False, kinds=1)


def bad_signs() -> Iterator[Vector]:
    for rows in (_bad_parameters, _bad_shapes, _bad_payloads, _bad_words):
        for name, reason, data, why, source in rows():
            full = name if name.startswith("control-") else f"predictive-{name}"
            yield Vector(full, data, why, source, reason)


def _bad_parameters() -> Iterator[Row]:
    payload = varint(0) + bytes(8) + SCALES
    for name, change in (
        ("join-65", {"join": 65}),
        ("join-minus-1", {"join": -1}),
        ("join-true", {"join": True}),
        ("lam-0", {"lam": 0}),
        ("lam-256", {"lam": 256}),
        ("lam-float", {"lam": 40.0}),
        ("pooled-1", {"pooled": 1}),
        ("units", {"units": "columns"}),
        ("units-array", {"units": ["rows"]}),
        ("bits", {"bits": 1}),
        ("group", {"group": 7}),
        ("levels", {"levels": "normal-l1-500"}),
        ("compression", {"compression": "range"}),
        ("kinds", {"kinds": 1}),
    ):
        data = one_segment(NAME, {**SMALL, **change}, payload, [4, 16])
        yield name, "bad-parameter", data, f"Codec {NAME}: {name}.", "item 22"
    for name in ("join", "lam", "pooled", "units"):
        data = one_segment(NAME, {k: v for k, v in SMALL.items() if k != name}, payload, [4, 16])
        yield f"no-{name}", "bad-parameter", data, f"Codec {NAME} without {name}.", "item 22"


def _bad_shapes() -> Iterator[Row]:
    payload, i27 = varint(0) + bytes(8) + SCALES, "item 27"
    for name, shape, why in (
        ("number", [], "A single number."),
        ("vector", [64], "A vector."),
        ("cube", [4, 4, 4], "Three dimensions."),
        ("channels", [4, 4097], "More than 4,096 channels."),
        ("units", [16_385, 2], "More than 16,384 units."),
    ):
        yield f"shape-{name}", "bad-shape", one_segment(NAME, SMALL, payload, shape), why, i27
    second = one_segment(NAME, SMALL, payload, [4, 16], [64])
    yield "shape-second", "bad-shape", second, "A vector beside a matrix.", i27
    short = one_segment(NAME, {**SMALL, "units": "short"}, payload, [4097, 4096])
    yield "shape-short", "bad-shape", short, "More than 4,096 channels: the longer side.", i27
    full = [[16_384, 4096], [1, 1]]
    data = one_segment(NAME, SMALL, payload, *full)
    yield "signs-limit", "limit-exceeded", data, "One sign more than 2^26.", "item 25"


def _bad_payloads() -> Iterator[Row]:
    control, i23, i25, i35 = "Nothing is wrong but the digest.", "item 23", "item 25", "item 35"
    codes = alike("bad", 8, 40)
    words, plain = _words(codes), tensor(codes).packed.tobytes()

    def file(payload: bytes, *shapes: Sequence[int], **changes: Any) -> bytes:
        return one_segment(NAME, {**SMALL, **changes}, payload, *(shapes or [[8, 40]]))

    coded = varint(len(words)) + words
    yield "control-predictive", "digest-mismatch", file(coded + SCALES), control, ""
    yield "control-predictive-plain", "digest-mismatch", file(b"\0" + plain + SCALES), control, ""
    yield "empty", "payload-size", file(b""), "No bytes at all.", i25
    yield "cut", "payload-size", file(coded[:-1]), "The words are cut short.", i25
    yield "plain-cut", "payload-size", file(b"\0" + plain[:-1]), "Plain bits are cut short.", i25
    yield "no-offset", "payload-size", file(coded + SCALES[:4]), "The offset is missing.", i25
    yield "long", "payload-size", file(coded + SCALES + b"\0"), "A byte after the offsets.", i25
    longer = bytes([len(words) | 0x80, 0]) + words + SCALES
    yield "size-not-shortest", "payload-size", file(longer), "A size in two bytes that fits one.", "item 7"
    yield "size-endless", "payload-size", file(b"\xff" * 6), "A size that does not end.", "item 7"
    two, last = (b"\0" + bits + floats(1.0, 1.0, 0.0, 0.0) for bits in (b"\x80\0", b"\0\xfe"))
    yield "padding-plain", "padding-bits", file(two, [1, 7], [1, 7], join=0), "A bit after the seventh sign.", i23
    yield "padding-second", "padding-bits", file(last, [1, 1], [1, 1]), "Bits after the only sign of the second.", i23
    for name, scale, offset, reason in (
        ("scale-nan", float("nan"), 0.0, "bad-scale"),
        ("scale-minus-0", -0.0, 0.0, "bad-scale"),
        ("offset-infinity", 1.0, float("inf"), "not-finite"),
        ("weight-overflow", 3.4028234663852886e38, 3.4028234663852886e38, "not-finite"),
    ):
        yield name, reason, file(coded + floats(scale, offset)), "As with signs.", "item 24"
    gain = varint(40) + plain + SCALES
    yield "no-gain", "bad-stream", file(gain), "As many bytes of words as plain bits take.", i35
    huge = varint((1 << 35) - 1) + bytes(100)
    yield "size-huge", "bad-stream", file(huge), "Words of 32 GiB for 40 bytes of signs.", i35
    for name, noise, size in (("equal", 60, 40), ("more", 128, 44)):
        valid = _encoded([alike("gain", 8, 40, noise)])
        if len(valid) != size:
            raise RuntimeError(f"{len(valid)} bytes, the example is to have {size}")
        why = f"Proper words of {size} bytes for signs that take 40."
        yield f"words-{name}", "bad-stream", file(varint(size) + valid + SCALES), why, i35
    valid = _encoded([drawn(f"{n}", 1, 4) for n in range(16)])
    rows = varint(len(valid)) + valid + floats(*[0.25] * 16, *[0.0] * 16)
    why = "Proper words of 12 bytes for sixteen rows of four signs, which take 16: but nothing predicts a single unit."
    yield "rows-of-4", "bad-stream", file(rows, *[[1, 4]] * 16), why, i35
    row = varint(8) + bytes(8) + floats(1.0, 0.0)
    yield "one-unit", "bad-stream", file(row, [1, 96]), "Words for a single unit, which nothing predicts.", i35


def _bad_words() -> Iterator[Row]:
    i35, codes, zero = "item 35", alike("bad", 8, 40), with_zero_word()
    words = _words(codes)
    count = len(words) // 4
    last = struct.unpack("<I", words[-4:])[0]

    def file(data: bytes, shape: Sequence[int] = (8, 40)) -> bytes:
        return one_segment(NAME, SMALL, varint(len(data)) + data + SCALES, shape)

    for name, data, why in (
        ("words-3-bytes", words[:-1], "Three bytes of a word."),
        ("words-few", words[:4], "Fewer words than any signs of this shape take: 54 bits at least."),
        ("words-missing", words[:-4], "The last word is missing."),
        ("words-extra-zero", words + bytes(4), "A word of zeros too many."),
        ("words-extra", words + b"\xff\xff\xff\xff", "A word of ones too many."),
        ("words-last", words[:-4] + struct.pack("<I", last - 1), "Another last word, which gives the same signs."),
        ("words-first", b"\xff" * 8 + words[8:], "Words that lie beyond every sign."),
        ("words-swapped", words[:-8] + words[-4:] + words[-8:-4], "The last two words swapped."),
        ("words-big-endian", struct.pack(f">{count}I", *struct.unpack(f"<{count}I", words)), "Big-endian words."),
    ):
        yield name, "bad-stream", file(data), why, i35
    yield "words-no-zero", "bad-stream", file(_words(zero)[:-4], zero.shape), "The word of zeros is missing.", i35
