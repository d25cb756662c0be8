"""The codecs of spec/codecs.md, decoded with the standard library alone: one row of `CODECS` each.

Part of the second reader: written from the specification, importing nothing of the package. It is meant to be read and
compared with, and makes no attempt at speed.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import reader_signs
from reader_base import (
    STEERING,
    Codec,
    Given,
    Params,
    Sections,
    Shape,
    Tensor,
    choose,
    codes,
    elements,
    fail,
    numel,
    only,
    packed_bytes,
)

CODEBOOKS: dict[str, dict[str, str]] = json.loads(Path(__file__).with_name("codebooks.json").read_text("ascii"))
DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2}
FLOATS = {"float32": "f", "float16": "e"}
GROUPS = (0, *(1 << k for k in range(3, 17)))
LABEL_BYTES = 1 << 20

# --- raw ----------------------------------------------------------------------------------------------------------


def raw_form(params: Params) -> Params:
    only(params, "dtype", "compression")
    return {"dtype": choose(params, "dtype", tuple(DTYPES))}


def raw_bytes(shapes: list[Shape], params: Params) -> int | None:
    return None if params["compression"] == "zstd" else elements(shapes) * DTYPES[params["dtype"]]


def floats(data: bytes, dtype: str) -> list[float]:
    """Exact values of little-endian numbers."""
    if dtype == "bfloat16":
        data = b"".join(b"\0\0" + data[i : i + 2] for i in range(0, len(data), 2))
    letter = FLOATS.get(dtype, "f")
    return list(struct.unpack(f"<{len(data) // struct.calcsize(letter)}{letter}", data))


def raw_decode(payload: bytes, shapes: list[Shape], params: Params) -> list[Tensor]:
    dtype = params["dtype"]
    sections, width = Sections(payload, params["compression"]), DTYPES[dtype]
    data = sections.numbers(elements(shapes), width)
    sections.done()
    out, at = [], 0
    for shape in shapes:
        part = data[at : at + numel(shape) * width]
        values = floats(part, dtype)
        if not all(map(math.isfinite, values)):
            fail("not-finite", "a tensor holds NaN or infinity")
        out.append(Tensor(shape, {"dtype": dtype}, part, values))
        at += len(part)
    return out


# --- signs, codebook ----------------------------------------------------------------------------------------------


def single(value: float) -> float:
    """Rounded to float32; infinity where it does not fit."""
    try:
        return struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return math.inf


def bits_of(params: Params) -> int:
    return params.get("bits", 1)


def levels_of(params: Params) -> list[float]:
    text = CODEBOOKS[params["levels"]][str(bits_of(params))]
    half = [struct.unpack(">f", bytes.fromhex(word))[0] for word in text.split()]
    return [-level for level in reversed(half)] + half


def quantized_form(params: Params, *extra: str) -> Params:
    only(params, "group", "levels", "offset", "scale", "compression", *extra)
    bits = choose(params, "bits", (2, 3, 4, 5, 6, 7, 8)) if "bits" in extra else 1
    if not isinstance(params.get("levels"), str) or str(bits) not in CODEBOOKS.get(params["levels"], ()):
        fail("bad-parameter", f"no codebook {params.get('levels')!r} of {bits} bits")
    group, scale = choose(params, "group", GROUPS), choose(params, "scale", tuple(FLOATS))
    offset = choose(params, "offset", (True, False))
    return {"bits": bits, "group": group, "levels": params["levels"], "offset": offset, "scale": scale}


def groups_of(count: int, group: int) -> int:
    return -(-count // (group or max(count, 1)))


def quantized_bytes(shapes: list[Shape], params: Params) -> int | None:
    if params["compression"] == "zstd":
        return None
    groups = sum(groups_of(numel(shape), params["group"]) for shape in shapes)
    size = groups * DTYPES[params["scale"]] * (2 if params["offset"] else 1)
    return size + sum(packed_bytes(numel(shape), bits_of(params)) for shape in shapes)


def quantized_decode(payload: bytes, shapes: list[Shape], params: Params) -> list[Tensor]:
    sections = Sections(payload, params["compression"])
    packed = sections.section(sum(packed_bytes(numel(shape), bits_of(params)) for shape in shapes))
    return _assembled(packed, *_scales(sections, shapes, params), shapes, params)


def _scales(sections: Sections, shapes: list[Shape], params: Params) -> tuple[bytes, bytes]:
    """Scales and offsets, with which a payload ends."""
    width = DTYPES[params["scale"]]
    total = sum(groups_of(numel(shape), params["group"]) for shape in shapes)
    scales = sections.numbers(total, width)
    offsets = sections.numbers(total, width) if params["offset"] else b""
    if any(not math.isfinite(v) or math.copysign(1, v) < 0 for v in floats(scales, params["scale"])):
        fail("bad-scale", "a scale is negative, infinite or NaN")
    sections.done()
    return scales, offsets


def _assembled(packed: bytes, scales: bytes, offsets: bytes, shapes: list[Shape], params: Params) -> list[Tensor]:
    form = {"bits": bits_of(params), **{name: params[name] for name in ("group", "levels", "offset", "scale")}}
    width, out, at, first = DTYPES[params["scale"]], [], 0, 0
    for shape in shapes:
        size = packed_bytes(numel(shape), bits_of(params))
        last = first + groups_of(numel(shape), params["group"]) * width
        parts = packed[at : at + size], scales[first:last], offsets[first:last]
        out.append(Tensor(shape, form, b"".join(parts), _weights(numel(shape), params, *parts)))
        at, first = at + size, last
    return out


def _weights(count: int, params: Params, packed: bytes, scales: bytes, offsets: bytes) -> list[float]:
    levels, per_group = levels_of(params), params["group"] or max(count, 1)
    scale, offset = floats(scales, params["scale"]), floats(offsets, params["scale"])
    widest = [single(levels[-1] * s) + (abs(offset[g]) if offset else 0.0) for g, s in enumerate(scale)]
    if not all(math.isfinite(single(w)) for w in widest) or not all(map(math.isfinite, offset)):
        fail("not-finite", "an offset or a weight is not finite")
    out = []
    for i, code in enumerate(codes(packed, count, bits_of(params))):
        value = single(levels[code] * scale[i // per_group])
        out.append(single(value + offset[i // per_group]) if offset else value)
    return out


# --- predictive-signs ---------------------------------------------------------------------------------------------


def predictive_form(params: Params) -> Params:
    reader_signs.check_parameters(params)
    return quantized_form(params, *reader_signs.EXTRA)


def predictive_decode(payload: bytes, shapes: list[Shape], params: Params, given: Given = ()) -> list[Tensor]:
    sections = Sections(payload, params["compression"])
    taken = reader_signs.take(sections, shapes, params, is_given=bool(given))
    scales = _scales(sections, shapes, params)
    return _assembled(reader_signs.unpack(taken, shapes, params, given), *scales, shapes, params)


# --- predictive-codebook ------------------------------------------------------------------------------------------


def top_form(params: Params) -> Params:
    reader_signs.check_parameters(params)
    return quantized_form(params, "bits", *reader_signs.EXTRA)


def top_decode(payload: bytes, shapes: list[Shape], params: Params) -> list[Tensor]:
    sections, below = Sections(payload, params["compression"]), params["bits"] - 1
    taken = reader_signs.take(sections, shapes, params, is_given=False)
    low = sections.section(sum(packed_bytes(numel(shape), below) for shape in shapes))
    scales = _scales(sections, shapes, params)
    top = reader_signs.unpack(taken, shapes, params, ())
    return _assembled(reader_signs.joined(top, low, shapes, below), *scales, shapes, params)


# --- sparse -------------------------------------------------------------------------------------------------------


def value_codec(params: Params) -> tuple[Codec, Params]:
    inner = params.get("values")
    if not isinstance(inner, dict) or str(inner.get("codec")) not in VALUE_CODECS:
        fail("bad-parameter", "values name no codec")
    return VALUE_CODECS[inner["codec"]], {name: value for name, value in inner.items() if name != "codec"}


def sparse_form(params: Params) -> Params:
    only(params, "entries", "compression", "values")
    if type(params.get("entries")) is not int or params["entries"] < 0:
        fail("bad-parameter", "entries is no count")
    codec, inner = value_codec(params)
    return {"sparse": codec.form(inner)}


def sparse_decode(payload: bytes, shapes: list[Shape], params: Params) -> list[Tensor]:
    sections = Sections(payload, params["compression"])
    counts = list(struct.unpack(f"<{len(shapes)}I", sections.section(4 * len(shapes))))
    if sum(counts) != params["entries"] or any(n > numel(shape) for n, shape in zip(counts, shapes)):
        fail("bad-positions", "counts do not fit the index or the shapes")
    rice = sections.section(len(shapes))
    if any(k > 31 for k in rice):
        fail("bad-positions", "a Rice parameter above 31")
    low = sections.section(sum(packed_bytes(n, k) for n, k in zip(counts, rice)))
    highs = _unary(sections, [(n, k, numel(shape)) for n, k, shape in zip(counts, rice, shapes)])
    positions, at = [], 0
    for n, k, shape, high in zip(counts, rice, shapes, highs):
        gaps = codes(low[at : at + packed_bytes(n, k)], n, k)
        at += packed_bytes(n, k)
        found, last = [], -1
        for gap, part in zip(gaps, high):
            last += 1 + (part << k | gap)
            found.append(last)
        if last >= numel(shape):
            fail("bad-positions", "a position outside its tensor")
        positions.append(found)
    codec, inner = value_codec(params)
    rest, sizes = payload[sections.at :], [(n,) for n in counts]
    if codec.payload_bytes(sizes, inner) not in (None, len(rest)):
        fail("payload-size", "the values' payload has another size")
    out = []
    for shape, where, values in zip(shapes, positions, codec.decode(rest, sizes, inner)):
        content = struct.pack(f"<{len(where) + 1}q", len(where), *where) + values.content
        out.append(Tensor(shape, {"sparse": values.form}, content, values.values, where))
    return out


def _unary(sections: Sections, rows: list[tuple[int, int, int]]) -> list[list[int]]:
    """The gaps' high parts, each as that many zeros and a one; rows of (count, Rice parameter, elements)."""
    room = sum(n + (m >> k if k == 31 else min(m >> k, 2 * n)) for n, k, m in rows if n)
    size = sections.number()
    if size > packed_bytes(room, 1):
        fail("bad-positions", "too many bytes of unary parts")
    data = sections.section(size)
    if data and not data[-1]:
        fail("bad-positions", "unary parts end in a zero byte")
    ends = [8 * i + j for i, byte in enumerate(data) for j in range(8) if byte >> j & 1]
    if len(ends) != sum(n for n, _, _ in rows):
        fail("bad-positions", "another number of unary parts")
    high = [end - before - 1 for before, end in zip([-1, *ends], ends)]
    out, at = [], 0
    for n, _, _ in rows:
        out.append(high[at : at + n])
        at += n
    return out


# --- labels -------------------------------------------------------------------------------------------------------


def labels_decode(payload: bytes, count: int) -> list[str]:
    sections = Sections(payload, "zstd")
    size = sections.number()
    if size > LABEL_BYTES:
        fail("bad-labels", "class names take more than 1 MiB")
    data = sections.section(size)
    sections.done()
    try:
        labels = data.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        fail("bad-labels", "class names are not UTF-8")
    if len(labels) != count or any(not label or set(map(ord, label)) & STEERING for label in labels):
        fail("bad-labels", "another number of class names, or one that is empty or holds a control character")
    return labels


# --- the table of codecs -------------------------------------------------------------------------------------------


def _four(shapes: list[Shape], params: Params) -> int:
    return 4 * elements(shapes)


RAW = Codec(raw_form, _four, raw_bytes, raw_decode)
SIGNS = Codec(quantized_form, _four, quantized_bytes, quantized_decode)
CODEBOOK = Codec(lambda params: quantized_form(params, "bits"), _four, quantized_bytes, quantized_decode)
VALUE_CODECS = {"raw": RAW, "signs": SIGNS, "codebook": CODEBOOK}
SPARSE = Codec(
    sparse_form, lambda shapes, params: 32 * params["entries"] + 16 * len(shapes), lambda s, p: None, sparse_decode
)
PREDICTIVE = Codec(predictive_form, reader_signs.decoded_bytes, lambda s, p: None, predictive_decode, takes_given=True)
TOP = Codec(top_form, lambda s, p: reader_signs.decoded_bytes(s, p, each=8), lambda s, p: None, top_decode)
CODECS = {**VALUE_CODECS, "sparse": SPARSE, "predictive-signs": PREDICTIVE, "predictive-codebook": TOP}
