"""The vectors of the codec `predictive-codebook`: top bits coded and plain, low bits of every width, and what is wrong.

The streams themselves are those of `predictive-signs`, and `vectors_signs` shows their rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from vectors_adapters import BACKBONE, adapter, at, chosen, dense, numbers, written
from vectors_bad_payloads import floats
from vectors_build import Json, Row, Vector, one_segment, take_apart, varint, zstd_frame
from vectors_cross_bad import announced
from vectors_signs import DEFAULT, NAME, PAPER, SMALL, Bits, alike, drawn, pairs, tensor
from vectors_signs_bad import SCALES

from adapterpack import bits as bitstream
from adapterpack.adapter import Adapter, Head
from adapterpack.codecs import CODECS
from adapterpack.packing.encode import encode_task
from adapterpack.packing.join import join
from adapterpack.tensors import Quantized, groups_of

TOP = "predictive-codebook"
FORM: Json = {**PAPER, "levels": "normal-l1"}
TWO: Json = {**SMALL, "bits": 2, "levels": "normal-l1"}


def below(seed: str, count: int, bits: int) -> Bits:
    """Packed low bits that look random."""
    rows = drawn(f"low {seed}", bits - 1, count)
    codes = sum(row.astype(np.uint32) << n for n, row in enumerate(rows))
    return bitstream.pack(np.asarray(codes), bits - 1)


def quantized(top: Bits, bits: int, form: Json = FORM, low: Bits | None = None) -> Quantized:
    """The matrix with these top bits; scales 1/4, 2/4, …; offsets −1/8, −2/8, …."""
    packed = below(f"{top.shape}", top.size, bits) if low is None else low
    codes = (top.reshape(-1).astype(np.uint32) << (bits - 1)) | bitstream.unpack(packed, top.size, bits - 1)
    steps = np.arange(1, groups_of(top.size, form["group"]) + 1)
    offset = (-steps / 8).astype(form["scale"]) if form["offset"] else None
    scale = (steps / 4).astype(form["scale"])
    return Quantized(top.shape, bits, form["levels"], form["group"], bitstream.pack(codes, bits), scale, offset)


def lora(tops: Sequence[Bits], bits: int, form: Json = FORM) -> Adapter:
    """The pairs as LoRA on the query rows of one block after another."""
    rows = [quantized(top, bits, form) for top in tops]
    sites = [f"blocks.{n}.attn.qkv[q]" for n in range(len(rows) // 2)]
    return adapter(*(at(s, "lora", {"scale": 0.5}, down=rows[2 * n], up=rows[2 * n + 1]) for n, s in enumerate(sites)))


def stored(one: Adapter, **changes: Any) -> bytes:
    """The file with all its matrices in this codec."""
    return join([chosen(one, lambda planned: (TOP, {**DEFAULT, **planned.form, **changes}))], BACKBONE)


def small(one: Adapter) -> bytes:
    """What the package writes, which must be this codec."""
    data = written(one)
    if TOP not in [row["codec"] for row in take_apart(data).index["tasks"][0]["segments"]]:  # type: ignore[index]
        raise RuntimeError(f"the example is to be written as {TOP}")
    return data


def good_top() -> Iterator[Vector]:
    for name, data, why in (*_written(), *_stored()):
        yield Vector(f"top-{name}", data, why)


def _written() -> Iterator[tuple[str, bytes, str]]:
    """What the package writes by itself."""
    for bits in (2, 4):
        yield f"bits-{bits}", small(lora(pairs(8, 96, 2), bits)), f"Two pairs at {bits} bits, top bits of low rank."
    weight = quantized(alike("head 47", 47, 96, 16), 2)
    head = Head(weight, dense(numbers(47)))
    yield "head", small(adapter(head=head)), "A head of 47 classes at two bits."
    yield "dim3", small(lora(pairs(3, 256, 2, common=True), 2)), "Hidden dimension 3, the pairs joined."


def _stored() -> Iterator[tuple[str, bytes, str]]:
    for compression in ("none", "zstd"):
        for bits in (3, 5, 6, 7, 8):
            data = stored(lora(pairs(8, 48, 1), bits), compression=compression)
            yield f"bits-{bits}-{compression}", data, f"A pair at {bits} bits, {bits - 1} of them low, {compression}."
    wide = lora(pairs(8, 96, 1), 8, {**FORM, "levels": "normal-l1-500"})
    yield "normal-l1-500", stored(wide), "The other codebook of 8 bits."
    grouped = {"group": 32, "levels": "normal-l1", "offset": False, "scale": "float16"}
    for compression in ("none", "zstd"):
        data = stored(lora(pairs(8, 96, 1), 2, grouped), compression=compression)
        yield f"groups-{compression}", data, f"Groups of 32 weights, float16 scales, no offset, {compression}."
    random = [drawn("a", 8, 96), drawn("b", 96, 8)]
    for compression in ("none", "zstd"):
        data = stored(lora(random, 2), compression=compression)
        yield (
            f"plain-{compression}",
            data,
            f"Random top bits: coding would not shrink them, so they are plain, {compression}.",
        )
    tops = [alike("a", 8, 64), drawn("b", 7, 41), alike("c", 5, 80), drawn("d", 7, 41)]
    rows = [quantized(top, 4) for top in tops]
    mixed = adapter(*(at(f"site{i}", "replace", {}, value=row) for i, row in enumerate(rows)))
    yield "mixed", stored(mixed, join=0), "Coded streams, and a plain one whose top and low bits have pad bits."
    zero = adapter(at("site", "replace", {}, value=quantized(tops[0], 4, low=np.zeros(192, np.uint8))))
    yield "low-zstd", stored(zero, compression="zstd"), "Low bits all 0, a zstd frame of them."
    row = adapter(at("site", "replace", {}, value=quantized(alike("a", 1, 200), 2)))
    yield "one-row", stored(row), "One row: nothing predicts its top bits, they are plain."


# --- bad ----------------------------------------------------------------------------------------------------------


def bad_top() -> Iterator[Vector]:
    for rows in (_bad_parameters, _bad_shapes, _bad_planes, _bad_low, _bad_scales):
        for name, reason, data, why, source in rows():
            yield Vector(name if name.startswith("control-") else f"top-{name}", data, why, source, reason)


def _parts() -> tuple[bytes, bytes, bytes]:
    """Of 8 × 40 codes of 2 bits: the only stream with its size, the plain top bits, the low bits."""
    codes = alike("bad", 8, 40)
    coded = CODECS[NAME].encode([tensor(codes)], SMALL)[: -len(SCALES)]
    if coded[0] != len(coded) - 1:
        raise RuntimeError("the example is to have one coded stream of one byte of size")
    return coded, tensor(codes).packed.tobytes(), below("bad", 320, 2).tobytes()


def _file(payload: bytes, *shapes: Sequence[int], **changes: Any) -> bytes:
    return one_segment(TOP, {**TWO, **changes}, payload, *(shapes or [[8, 40]]))


def _bad_parameters() -> Iterator[Row]:
    coded, _, low = _parts()
    for name, change in (
        ("bits-1", {"bits": 1}),
        ("bits-1-unit", {"bits": 1, "levels": "unit"}),
        ("bits-9", {"bits": 9}),
        ("bits-float", {"bits": 2.0}),
        ("levels-unit", {"levels": "unit"}),
        ("levels-500", {"levels": "normal-l1-500"}),
        ("group", {"group": 7}),
        ("join-65", {"join": 65}),
        ("lam-0", {"lam": 0}),
        ("pooled-1", {"pooled": 1}),
        ("units", {"units": "columns"}),
        ("kinds", {"kinds": 1}),
    ):
        yield name, "bad-parameter", _file(coded + low + SCALES, **change), f"Codec {TOP}: {name}.", "item 22"
    for name in ("bits", "join", "lam", "pooled", "units"):
        data = one_segment(TOP, {k: v for k, v in TWO.items() if k != name}, coded + low + SCALES, [8, 40])
        yield f"no-{name}", "bad-parameter", data, f"Codec {TOP} without {name}.", "item 22"
    tasks = [replace(lora(pairs(8, 96, 1), 2), name=name) for name in ("a", "b")]
    data = announced(take_apart(join([encode_task(task, "small") for task in tasks], BACKBONE)), 0)
    yield "given", "bad-field", data, f"The codec {TOP} uses no given tasks.", ""


def _bad_shapes() -> Iterator[Row]:
    payload, i27 = b"\0" + bytes(16) + SCALES, "item 27"
    for name, shapes, why in (
        ("number", [[]], "A single number."),
        ("vector", [[64]], "A vector."),
        ("cube", [[4, 4, 4]], "Three dimensions."),
        ("second", [[4, 16], [64]], "A vector beside a matrix."),
        ("channels", [[4, 4097]], "More than 4,096 channels."),
    ):
        yield f"shape-{name}", "bad-shape", _file(payload, *shapes), why, i27
    data = _file(payload, [16_384, 4096], [1, 1])
    yield "weights-limit", "limit-exceeded", data, "One weight more than 2^26.", "item 25"


def _bad_planes() -> Iterator[Row]:
    control, i23, i25, i35 = "Nothing is wrong but the digest.", "item 23", "item 25", "item 35"
    coded, plain, low = _parts()
    rest, words = low + SCALES, coded[1:]
    yield "control-top", "digest-mismatch", _file(coded + rest), control, ""
    yield "control-top-plain", "digest-mismatch", _file(b"\0" + plain + rest), control, ""
    yield "empty", "payload-size", _file(b""), "No bytes at all.", i25
    yield "stream-cut", "payload-size", _file(coded[:-1]), "The words are cut short.", i25
    yield "plain-cut", "payload-size", _file(b"\0" + plain[:-1]), "Plain top bits are cut short.", i25
    longer = bytes([len(words) | 0x80, 0]) + words + rest
    yield "size-not-shortest", "payload-size", _file(longer), "A size in two bytes that fits one.", "item 7"
    why = "As many bytes of words as plain top bits take, though fewer than all bits do."
    yield "no-gain", "bad-stream", _file(varint(40) + plain + rest), why, i35
    huge = varint((1 << 35) - 1) + bytes(100)
    yield "size-huge", "bad-stream", _file(huge), "Words of 32 GiB for 40 bytes of top bits.", i35
    row = varint(8) + bytes(8) + bytes(12) + SCALES
    yield "one-unit", "bad-stream", _file(row, [1, 96]), "Words for a single unit, which nothing predicts.", i35
    for name, data, why in (
        ("words-few", words[:4], "Fewer words than any top bits of this shape take."),
        ("words-missing", words[:-4], "The last word is missing."),
        ("words-extra-zero", words + bytes(4), "A word of zeros too many."),
        ("words-3-bytes", words[:-1], "Three bytes of a word."),
    ):
        yield name, "bad-stream", _file(varint(len(data)) + data + rest), why, i35
    pad = b"\0\x80\x7f" + SCALES
    yield "padding-plain", "padding-bits", _file(pad, [1, 7]), "A bit after the seventh top bit.", i23


def _bad_low() -> Iterator[Row]:
    i23, i25, i28 = "item 23", "item 25", "item 28"
    coded, _, low = _parts()
    planes = b"".join(bytes([1, byte]) for value in (0x7F, 0) for byte in (value, 0, 0, 0))
    yield "low-missing", "payload-size", _file(coded + SCALES), "No low bits.", i25
    yield "low-short", "payload-size", _file(coded + low[:-1] + SCALES), "A byte of low bits too few.", i25
    yield "low-long", "payload-size", _file(coded + low + b"\0" + floats(0.5, 0.0)), "A byte of low bits too many.", i25
    control = _file(coded + varint(40) + low + planes, compression="zstd")
    yield "control-top-zstd", "digest-mismatch", control, "Nothing is wrong but the digest.", ""
    data = _file(coded + varint(41) + low + b"\0" + planes, compression="zstd")
    yield "low-stored-long", "payload-size", data, "A section stored in more bytes than it has.", i25
    for size in (39, 41):
        frame = zstd_frame([(1, size, b"\x55")], size=size)
        data = _file(coded + varint(len(frame)) + frame + planes, compression="zstd")
        yield f"low-frame-{size}", "zstd-frame", data, f"A frame of {size} bytes for 40 bytes of low bits.", i28
    seven = b"\0\x7f\x80" + SCALES
    yield "padding-low", "padding-bits", _file(seven, [1, 7]), "A bit after the seventh low bit.", i23
    two = b"\0\x01\0" + b"\x08\x01" + floats(1.0, 1.0, 0.0, 0.0)
    data = _file(two, [1, 1], [1, 1], join=0, bits=4)
    yield "padding-low-first", "padding-bits", data, "A bit after the only low bits of the first matrix of two.", i23


def _bad_scales() -> Iterator[Row]:
    coded, _, low = _parts()
    yield "no-offset", "payload-size", _file(coded + low + SCALES[:4]), "The offset is missing.", "item 25"
    yield "long", "payload-size", _file(coded + low + SCALES + b"\0"), "A byte after the offsets.", "item 25"
    for name, scale, offset, reason in (
        ("scale-nan", float("nan"), 0.0, "bad-scale"),
        ("scale-minus-0", -0.0, 0.0, "bad-scale"),
        ("offset-infinity", 1.0, float("inf"), "not-finite"),
        ("weight-overflow", 3.4028234663852886e38, 0.0, "not-finite"),
    ):
        yield name, reason, _file(coded + low + floats(scale, offset)), "As with codebook.", "item 24"
