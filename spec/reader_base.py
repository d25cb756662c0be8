"""What every codec of the second reader stands on: its error, bit order, parameters, sections, zstd frames.

Written from spec/README.md and spec/codecs.md with the standard library alone; imports nothing of the package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

Shape = tuple[int, ...]
Params = dict[str, Any]
Given = Sequence[Sequence[bytes]]  # of each given task, the packed signs of every tensor of the segment
COMPRESSIONS = ("none", "zstd")
WINDOW = 1 << 20
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
    payload_bytes: Callable[[list[Shape], Params], int | None]
    decode: Callable[..., list[Tensor]]  # of payload, shapes, parameters and, if it takes them, given signs
    takes_given: bool = False


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
