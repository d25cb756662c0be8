"""The codecs of spec/codecs.md, decoded with the standard library alone.

Part of the second reader: written from the specification, importing nothing of the package. It is meant to be read, and
to be compared with; it makes no attempt at speed.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any, Callable, NamedTuple, NoReturn

Shape = tuple[int, ...]
Params = dict[str, Any]
CODEBOOKS: dict[str, dict[str, str]] = json.loads(Path(__file__).with_name("codebooks.json").read_text("ascii"))
COMPRESSIONS = ("none", "zstd")
GROUPS = (0, *(1 << k for k in range(3, 17)))
ELEMENTS = 1 << 40
LABEL_BYTES = 1 << 20
WINDOW = 1 << 20
FLOATS = {"float32": "f", "float16": "e"}
STEERING = {*range(0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000), 0x61C, 0x200E, 0x200F, 0x2028, 0x2029}
STEERING |= {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}


class FormatError(ValueError):
    """A file that must be refused: the reason of spec/errors.md, the place, and a sentence."""

    def __init__(self, reason: str, where: str, message: str) -> None:
        super().__init__(f"{reason}: {message}" + (f" (at {where})" if where else ""))
        self.reason, self.where, self.message = reason, where, message


class Tensor(NamedTuple):
    """A decoded tensor: `content` is what the digest covers; `positions` is None unless the tensor is sparse."""

    shape: Shape
    form: Params
    content: bytes
    values: list[float]
    positions: list[int] | None = None


class Codec(NamedTuple):
    """One row of the table of codecs; shapes are those of the segment's tensors, in file order."""

    form: Callable[[Params], Params]
    decoded_bytes: Callable[[list[Shape], Params], int]
    payload_bytes: Callable[[list[Shape], Params], "int | None"]
    decode: Callable[[bytes, list[Shape], Params], "list[Tensor]"]


def fail(reason: str, message: str, where: str = "") -> NoReturn:
    raise FormatError(reason, where, message)


def numel(shape: Shape) -> int:
    return math.prod(shape)


def elements(shapes: list[Shape]) -> int:
    return sum(numel(shape) for shape in shapes)


def packed_bytes(count: int, bits: int) -> int:
    return (count * bits + 7) // 8


def codes(packed: bytes, count: int, bits: int) -> list[int]:
    """Codes of `bits` bits, least significant bit first; the bits after the last must be zero."""
    stream = int.from_bytes(packed, "little")
    if stream >> (count * bits):
        fail("padding-bits", "pad bits are not zero")
    mask = (1 << bits) - 1
    return [stream >> (i * bits) & mask for i in range(count)]


def choose(params: Params, name: str, choices: tuple[Any, ...]) -> Any:
    value = params.get(name)
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        fail("bad-parameter", f"{name} is {value!r}")
    return value


def only(params: Params, *names: str) -> None:
    if set(params) - set(names):
        fail("bad-parameter", f"unknown parameter in {sorted(params)}")
    choose(params, "compression", COMPRESSIONS)


# --- sections -----------------------------------------------------------------------------------------------------


class Sections:
    """The runs of bytes that a payload is made of."""

    def __init__(self, payload: bytes, compression: str) -> None:
        self.payload, self.zstd, self.at = payload, compression == "zstd", 0

    def take(self, size: int) -> bytes:
        part = self.payload[self.at : self.at + size]
        if len(part) != size:
            fail("payload-size", "the payload ends early")
        self.at += size
        return part

    def number(self) -> int:
        value = 0
        for i in range(5):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << (7 * i)
            if byte < 0x80:
                if i and not byte:
                    break
                return value
        fail("payload-size", "a LEB128 number is not in its shortest form")

    def section(self, size: int) -> bytes:
        if not self.zstd:
            return self.take(size)
        stored = self.number()
        if stored > size:
            fail("payload-size", "a section is stored in more bytes than it has")
        data = self.take(stored)
        return data if stored == size else zstd(data, size)

    def numbers(self, count: int, width: int) -> bytes:
        """Numbers as little-endian bytes, put together from their planes where those are stored."""
        if not self.zstd:
            return self.take(count * width)
        planes = [self.section(count) for _ in range(width)]
        out = bytearray()
        for columns in zip(*planes):
            rotated = int.from_bytes(bytes(columns), "big")
            out += ((rotated >> 1) | (rotated & 1) << (8 * width - 1)).to_bytes(width, "little")
        return bytes(out)

    def done(self) -> None:
        if self.at != len(self.payload):
            fail("payload-size", "bytes that no section claims")


def zstd(frame: bytes, size: int) -> bytes:
    """One zstd frame that must hold `size` bytes; its header is read before anything is decompressed."""
    if frame[:4] != b"\x28\xb5\x2f\xfd" or len(frame) < 6 or frame[4] & 0x1F:
        fail("zstd-frame", "not a plain zstd frame")
    single = bool(frame[4] & 0x20)
    width = (1 if single else 0, 2, 4, 8)[frame[4] >> 6]
    start = 5 if single else 6
    field = frame[start : start + width]
    declared = int.from_bytes(field, "little") + (256 if width == 2 else 0)
    exponent, mantissa = frame[5] >> 3, frame[5] & 7
    window = declared if single else (1 << (10 + exponent)) // 8 * (8 + mantissa)
    if not width or len(field) != width or declared != size or window > WINDOW:
        fail("zstd-frame", f"a frame of {declared} bytes and a window of {window}, expected {size}")
    data = _inflate(frame)
    if len(data) != size:
        fail("zstd-frame", f"{len(data)} bytes, expected {size}")
    return data


def _inflate(frame: bytes) -> bytes:
    try:
        from compression import zstd as library  # Python 3.14
    except ImportError:
        import zstandard

        try:
            inflater = zstandard.ZstdDecompressor(max_window_size=WINDOW)
            return inflater.decompress(frame, read_across_frames=False, allow_extra_data=False)
        except zstandard.ZstdError as error:
            fail("zstd-frame", str(error))
    one = library.ZstdDecompressor(options={library.DecompressionParameter.window_log_max: 20})
    try:
        data = one.decompress(frame)
    except library.ZstdError as error:
        fail("zstd-frame", str(error))
    if not one.eof or one.unused_data:
        fail("zstd-frame", "more or less than one frame")
    return bytes(data)


# --- raw ----------------------------------------------------------------------------------------------------------

DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2}


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
    bits = choose(params, "bits", (2, 3, 4, 5, 6, 7, 8)) if extra else 1
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
    sections, bits, group = Sections(payload, params["compression"]), bits_of(params), params["group"]
    counts = [(packed_bytes(numel(shape), bits), groups_of(numel(shape), group)) for shape in shapes]
    packed = sections.section(sum(size for size, _ in counts))
    width, total = DTYPES[params["scale"]], sum(groups for _, groups in counts)
    scales = sections.numbers(total, width)
    if any(not math.isfinite(v) or math.copysign(1, v) < 0 for v in floats(scales, params["scale"])):
        fail("bad-scale", "a scale is negative, infinite or NaN")
    offsets = sections.numbers(total, width) if params["offset"] else b""
    sections.done()
    form = {"bits": bits, **{name: params[name] for name in ("group", "levels", "offset", "scale")}}
    out, at, first = [], 0, 0
    for shape, (size, groups) in zip(shapes, counts):
        parts = packed[at : at + size], scales[first : first + groups * width], offsets[first : first + groups * width]
        out.append(Tensor(shape, form, b"".join(parts), _weights(numel(shape), params, *parts)))
        at, first = at + size, first + groups * width
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


def _four(shapes: list[Shape], params: Params) -> int:
    return 4 * elements(shapes)


RAW = Codec(raw_form, _four, raw_bytes, raw_decode)
SIGNS = Codec(quantized_form, _four, quantized_bytes, quantized_decode)
CODEBOOK = Codec(lambda params: quantized_form(params, "bits"), _four, quantized_bytes, quantized_decode)
VALUE_CODECS = {"raw": RAW, "signs": SIGNS, "codebook": CODEBOOK}
SPARSE = Codec(
    sparse_form, lambda shapes, params: 32 * params["entries"] + 16 * len(shapes), lambda s, p: None, sparse_decode
)
CODECS = {**VALUE_CODECS, "sparse": SPARSE}
