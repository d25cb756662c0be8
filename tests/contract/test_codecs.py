"""What every codec promises, over the whole registry.

A new codec needs one row in EXAMPLES (and may have one in STRATEGIES); every test below then covers it. A segment is a
list of tensors of one form with the parameters that store them.
"""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterpack.codecs import CODECS
from adapterpack.codecs._sections import Reader, varint
from adapterpack.codecs.predictive import candidate_params
from adapterpack.codecs.signs import from_q1_0, to_q1_0
from adapterpack.codecs.zstd import compress
from adapterpack.errors import AdapterPackError, CallError, CorruptFileError, UnsupportedAdapterError
from adapterpack.quantize import quantize, quantize_latent
from adapterpack.tensors import (
    DENSE_DTYPES,
    Dense,
    Quantized,
    Shape,
    Sparse,
    Tensor,
    groups_of,
    numel,
    same_tensor,
)
from tests.factories import dense, numbers, sparse

COMPRESSIONS = ("none", "zstd")


@dataclass(frozen=True)
class Segment:
    """Tensors of one form, and parameters that store them."""

    tensors: list[Tensor]
    params: dict[str, Any]

    @property
    def shapes(self) -> list[Shape]:
        return [tensor.shape for tensor in self.tensors]


def special(dtype: str) -> np.ndarray:
    """Zeros of both signs, subnormals, and the largest numbers of a dtype, as its bit patterns."""
    patterns = {
        "float32": [0, 0x80000000, 1, 0x80000001, 0x007FFFFF, 0x7F7FFFFF, 0xFF7FFFFF, 0x3F800000],
        "float16": [0, 0x8000, 1, 0x8001, 0x03FF, 0x7BFF, 0xFBFF, 0x3C00],
        "bfloat16": [0, 0x8000, 1, 0x8001, 0x007F, 0x7F7F, 0xFF7F, 0x3F80],
    }
    width = DENSE_DTYPES[dtype].itemsize
    return np.array(patterns[dtype], f"<u{width}").view(DENSE_DTYPES[dtype])


def with_compression(tensors: list[Tensor], params: dict[str, Any]) -> list[Segment]:
    return [Segment(tensors, {**params, "compression": compression}) for compression in COMPRESSIONS]


def raw_examples() -> list[Segment]:
    out = []
    for dtype in DENSE_DTYPES:
        tensors: list[Tensor] = [
            Dense(special(dtype), dtype),
            dense(numbers(1, (3, 40)), dtype),
            Dense(special(dtype)[:1], dtype),
        ]
        out += with_compression(tensors, {"dtype": dtype})
    return out


def quantized_params(tensor: Quantized) -> dict[str, Any]:
    form = tensor.form()
    return form if tensor.bits > 1 else {name: value for name, value in form.items() if name != "bits"}


def quantized_examples(widths: tuple[int, ...]) -> list[Segment]:
    out = []
    for bits in widths:
        shapes: list[Shape] = [(4, 48), (48, 4), (7,), (1, 9)]
        paper: list[Tensor] = [quantize_latent(numbers(i, shape), bits) for i, shape in enumerate(shapes)]
        grouped: list[Tensor] = [
            quantize(numbers(i, s), bits, 16, scale="float16", offset=bits > 2) for i, s in enumerate(shapes)
        ]
        for tensors in (paper, grouped):
            assert isinstance(tensors[0], Quantized)
            out += with_compression(tensors, quantized_params(tensors[0]))
    return out


def sparse_examples() -> list[Segment]:
    def one_bit(values: np.ndarray) -> Quantized:
        return quantize(values, 1)

    def four_bit(values: np.ndarray) -> Quantized:
        return quantize(values, 4, 8)

    plain: list[Tensor] = [
        sparse(numbers(1, (20, 30)), 11),
        sparse(numbers(2, (64,)), 1),
        Sparse((9, 9), np.zeros(0, np.int64), Dense(np.zeros(0, np.float32))),
        Sparse((300, 300), np.array([0, 89_999], np.int64), Dense(np.array([-0.0, 1e-40], np.float32))),
    ]
    bits: list[Tensor] = [sparse(numbers(3, (50, 20)), 3, one_bit), sparse(numbers(4, (77,)), 5, one_bit)]
    codes: list[Tensor] = [sparse(numbers(5, (50, 20)), 3, four_bit)]
    out = []
    for tensors, inner in ((plain, "raw"), (bits, "signs"), (codes, "codebook")):
        for compression in COMPRESSIONS:
            values = tensors[0].values if isinstance(tensors[0], Sparse) else None
            form = quantized_params(values) if isinstance(values, Quantized) else {"dtype": "float32"}
            entries = sum(tensor.entries for tensor in tensors)
            params = {"codec": inner, **form, "compression": compression}
            out.append(Segment(tensors, {"entries": entries, "compression": compression, "values": params}))
    return out


def predictive_examples(bits: int = 1) -> list[Segment]:
    """Branches of few units (joined), of many, with nothing to gain, mixed shapes, and a head that is split."""

    def low_rank(seed: int, *shape: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return np.outer(rng.normal(size=shape[0]), rng.normal(size=shape[1])).astype(np.float32)

    lists: list[list[Tensor]] = [
        [quantize_latent(low_rank(i, *shape), bits) for i, shape in enumerate([(1, 40), (40, 1)] * 3)],
        [quantize_latent(low_rank(i, *shape), bits) for i, shape in enumerate([(8, 40), (40, 8)] * 2)],
        [quantize_latent(numbers(i, shape), bits) for i, shape in enumerate([(9, 7), (3, 30), (30, 3), (5, 5)])],
    ]
    out = []
    for tensors in lists:
        shapes = [tensor.shape for tensor in tensors]
        for extra in candidate_params("adapter", shapes):
            assert isinstance(tensors[0], Quantized)
            out += with_compression(tensors, {**quantized_params(tensors[0]), **extra})
    head: list[Tensor] = [quantize_latent(low_rank(7, 131, 24), bits)]
    assert isinstance(head[0], Quantized)
    for extra in candidate_params("head", [head[0].shape]):
        out += with_compression(head, {**quantized_params(head[0]), **extra})
    return out


EXAMPLES: dict[str, Callable[[], list[Segment]]] = {
    "raw": raw_examples,
    "signs": lambda: quantized_examples((1,)),
    "codebook": lambda: quantized_examples((2, 3, 5, 8)),
    "sparse": sparse_examples,
    "predictive-signs": predictive_examples,
    "predictive-codebook": lambda: [*predictive_examples(2), *predictive_examples(5)],
}

shapes_of = st.lists(st.lists(st.integers(1, 9), min_size=0, max_size=3).map(tuple), min_size=1, max_size=5)
compression_of = st.sampled_from(COMPRESSIONS)


def finite_patterns(rng: np.random.Generator, dtype: str, shape: Shape) -> np.ndarray:
    """Random bit patterns without NaN and infinity, special values among them."""
    width = DENSE_DTYPES[dtype].itemsize
    raw = rng.integers(0, 256, (numel(shape), width), np.uint8).reshape(-1).view(f"<u{width}").copy()
    exponent = {"float32": 0x7F800000, "float16": 0x7C00, "bfloat16": 0x7F80}[dtype]
    raw[raw & exponent == exponent] = 0
    values = raw.view(DENSE_DTYPES[dtype])
    chosen = rng.integers(0, 8, len(values))
    values = np.where(rng.random(len(values)) < 0.3, special(dtype)[chosen], values)
    return values.astype(DENSE_DTYPES[dtype]).reshape(shape)


@st.composite
def raw_segments(draw: st.DrawFn) -> Segment:
    dtype, rng = draw(st.sampled_from(list(DENSE_DTYPES))), np.random.default_rng(draw(st.integers(0, 2**32)))
    tensors: list[Tensor] = [Dense(finite_patterns(rng, dtype, shape), dtype) for shape in draw(shapes_of)]
    return Segment(tensors, {"dtype": dtype, "compression": draw(compression_of)})


def random_quantized(rng: np.random.Generator, shape: Shape, form: dict[str, Any]) -> Quantized:
    count, bits = numel(shape), form["bits"]
    groups = groups_of(count, form["group"])
    stream = sum(int(code) << (i * bits) for i, code in enumerate(rng.integers(0, 2**bits, count)))
    packed = np.frombuffer(stream.to_bytes((count * bits + 7) // 8, "little"), np.uint8)
    largest = np.float32(5e37).astype(form["scale"]) if form["scale"] == "float32" else np.float16(65504)
    scale = np.minimum(np.abs(finite_patterns(rng, form["scale"], (groups,))), largest)
    offset = finite_patterns(rng, form["scale"], (groups,)).clip(-largest, largest) if form["offset"] else None
    return Quantized(shape, bits, form["levels"], form["group"], packed, scale, offset)


@st.composite
def forms(draw: st.DrawFn, widths: tuple[int, ...]) -> dict[str, Any]:
    bits = draw(st.sampled_from(widths))
    names = {1: ["unit", "normal-l1"], 8: ["normal-l1", "normal-l1-500"]}.get(bits, ["normal-l1"])
    return {
        "bits": bits,
        "group": draw(st.sampled_from([0, 8, 32, 128, 65_536])),
        "levels": draw(st.sampled_from(names)),
        "offset": draw(st.booleans()),
        "scale": draw(st.sampled_from(["float32", "float16"])),
    }


@st.composite
def quantized_segments(draw: st.DrawFn, widths: tuple[int, ...]) -> Segment:
    form, rng = draw(forms(widths)), np.random.default_rng(draw(st.integers(0, 2**32)))
    tensors: list[Tensor] = [random_quantized(rng, shape, form) for shape in draw(shapes_of)]
    if widths == (1,):
        del form["bits"]
    return Segment(tensors, {**form, "compression": draw(compression_of)})


@st.composite
def sparse_segments(draw: st.DrawFn) -> Segment:
    inner = draw(st.sampled_from(["raw", "signs", "codebook"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from(list(DENSE_DTYPES)))
    form = {} if inner == "raw" else draw(forms((1,) if inner == "signs" else (2, 4, 8)))
    tensors: list[Tensor] = []
    for shape in draw(shapes_of):
        shape = (*shape, draw(st.sampled_from([1, 50, 5000])))
        where = np.flatnonzero(rng.random(numel(shape)) < draw(st.sampled_from([0.0, 0.002, 0.1, 1.0])))[:400]
        values = (
            Dense(finite_patterns(rng, dtype, (len(where),)), dtype)
            if inner == "raw"
            else random_quantized(rng, (len(where),), form)
        )
        tensors.append(Sparse(shape, where.astype(np.int64), values))
    entries = sum(tensor.entries for tensor in tensors)
    params = (
        {"dtype": dtype} if inner == "raw" else {k: v for k, v in form.items() if k != "bits" or inner == "codebook"}
    )
    compression = draw(compression_of)
    return Segment(
        tensors,
        {
            "entries": entries,
            "compression": compression,
            "values": {"codec": inner, **params, "compression": draw(compression_of)},
        },
    )


STRATEGIES: dict[str, st.SearchStrategy[Segment]] = {
    "raw": raw_segments(),
    "signs": quantized_segments((1,)),
    "codebook": quantized_segments((2, 3, 4, 5, 6, 7, 8)),
    "sparse": sparse_segments(),
}

CASES = [pytest.param(name, s, id=f"{name}-{i}") for name in EXAMPLES for i, s in enumerate(EXAMPLES[name]())]
all_cases = pytest.mark.parametrize(("name", "segment"), CASES)


def decode(name: str, payload: bytes, segment: Segment) -> list[Tensor]:
    return CODECS[name].decode(memoryview(payload), segment.shapes, segment.params)


def check_round_trip(name: str, segment: Segment) -> None:
    codec = CODECS[name]
    form = codec.form(segment.params)
    assert all(tensor.form() == form for tensor in segment.tensors)
    payload = codec.encode(segment.tensors, segment.params)
    decoded = decode(name, payload, segment)
    assert len(decoded) == len(segment.tensors)
    assert all(same_tensor(a, b) for a, b in zip(decoded, segment.tensors))
    expected = codec.payload_bytes(segment.shapes, segment.params)
    assert expected is None or expected == len(payload)
    assert codec.encode(decoded, segment.params) == payload
    assert codec.encode(segment.tensors, segment.params) == payload


def test_every_codec_has_examples() -> None:
    assert set(EXAMPLES) == set(CODECS), "add a row to EXAMPLES"
    assert set(STRATEGIES) <= set(CODECS)


@all_cases
def test_decoding_is_the_inverse(name: str, segment: Segment) -> None:
    check_round_trip(name, segment)


@pytest.mark.parametrize("name", STRATEGIES)
@given(data=st.data())
def test_decoding_is_the_inverse_of_any_segment(name: str, data: st.DataObject) -> None:
    check_round_trip(name, data.draw(STRATEGIES[name]))


@pytest.mark.parametrize("name", EXAMPLES)
def test_size_is_declared_without_compression(name: str) -> None:
    """Where a codec knows its size, a reader can refuse a lie before it allocates anything."""
    for segment in EXAMPLES[name]():
        if segment.params.get("compression") == "none" and name in ("raw", "signs", "codebook"):
            assert CODECS[name].payload_bytes(segment.shapes, segment.params) is not None


@all_cases
def test_a_missing_or_unknown_parameter_is_refused(name: str, segment: Segment) -> None:
    wrong = [{k: v for k, v in segment.params.items() if k != gone} for gone in segment.params]
    for params in [*wrong, {**segment.params, "colour": "red"}, {}]:
        with pytest.raises(CorruptFileError) as error:
            CODECS[name].form(params)
        assert error.value.reason == "bad-parameter"


STRANGE: list[Any] = [
    None,
    True,
    False,
    -1,
    0,
    7,
    2**60,
    1.0,
    "",
    "x",
    [],
    ["a"],
    {},
    {"codec": []},
    {"codec": "sparse"},
]


@all_cases
def test_a_parameter_of_another_type_is_refused(name: str, segment: Segment) -> None:
    """Or it is a value that the codec knows; nothing else, and no other exception."""
    for key, value in segment.params.items():
        for strange in STRANGE:
            params = {**segment.params, key: strange}
            if type(strange) is not type(value):
                with pytest.raises(CorruptFileError):
                    CODECS[name].form(params)
                continue
            try:
                CODECS[name].form(params)
            except CorruptFileError as error:
                assert error.reason == "bad-parameter"


@all_cases
def test_a_payload_cut_short_is_refused(name: str, segment: Segment) -> None:
    payload = CODECS[name].encode(segment.tensors, segment.params)
    cuts = range(len(payload)) if len(payload) < 200 else np.linspace(0, len(payload) - 1, 200).astype(int)
    for cut in cuts:
        with pytest.raises(AdapterPackError):
            decode(name, payload[:cut], segment)


@all_cases
@pytest.mark.parametrize("tail", [b"\x00", b"\xff" * 9])
def test_a_payload_with_a_tail_is_refused(name: str, segment: Segment, tail: bytes) -> None:
    payload = CODECS[name].encode(segment.tensors, segment.params)
    with pytest.raises(AdapterPackError):
        decode(name, payload + tail, segment)


@all_cases
def test_a_changed_byte_is_refused_or_seen(name: str, segment: Segment) -> None:
    """Nothing but our own error comes out; and, zstd apart, no two payloads decode to the same tensors."""
    plain = "zstd" not in repr(segment.params)
    payload = CODECS[name].encode(segment.tensors, segment.params)
    most = 40 if name == "predictive-signs" else 250  # a decoder that takes milliseconds
    places = range(len(payload)) if len(payload) < most else np.linspace(0, len(payload) - 1, most).astype(int)
    for place in places:
        for flip in (1, 0x80, 0xFF):
            changed = bytearray(payload)
            changed[place] ^= flip
            try:
                found = decode(name, bytes(changed), segment)
            except AdapterPackError:
                continue
            same = all(same_tensor(a, b) for a, b in zip(found, segment.tensors))
            assert not (plain and same), f"byte {place}"


@pytest.mark.parametrize("name", EXAMPLES)
@given(data=st.data())
def test_any_bytes_give_a_result_or_our_error(name: str, data: st.DataObject) -> None:
    segment = data.draw(st.sampled_from(EXAMPLES[name]()))
    payload = data.draw(st.binary(max_size=300))
    with contextlib.suppress(AdapterPackError):
        decode(name, payload, segment)


@all_cases
def test_memory_is_bounded(name: str, segment: Segment) -> None:
    """Decoding allocates no more than a small multiple of what the codec declared, whatever the bytes say."""
    codec = CODECS[name]
    payload = codec.encode(segment.tensors, segment.params)
    allowed = 8 * codec.decoded_bytes(segment.shapes, segment.params) + 2 * len(payload) + 200_000
    decode(name, payload, segment)  # tables that are made once
    rng = np.random.default_rng(0)
    for trial in range(10 if name == "predictive-signs" else 40):
        changed = bytearray(payload)
        for place in rng.integers(0, len(payload), min(trial, 3)):
            changed[place] = int(rng.integers(0, 256))
        tracemalloc.start()
        try:
            decode(name, bytes(changed), segment)
        except AdapterPackError:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak <= allowed


def test_a_sparse_bomb_is_refused() -> None:
    """One entry in a huge tensor whose unary part would be 2 Gbit long: gone before anything is inflated."""
    shape, params = (
        (1 << 31,),
        {"entries": 1, "compression": "zstd", "values": {"codec": "raw", "dtype": "float32", "compression": "none"}},
    )
    size = 1 << 24  # 128 Mbit are enough to see it
    frame = compress(bytes(size - 1) + b"\x80")
    head = varint(4) + struct.pack("<I", 1) + varint(1) + b"\x00" + varint(0)
    payload = head + varint(size) + varint(len(frame)) + frame + struct.pack("<f", 1.0)
    tracemalloc.start()
    try:
        with pytest.raises(CorruptFileError) as error:
            CODECS["sparse"].decode(memoryview(payload), [shape], params)
        assert error.value.reason == "bad-positions"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_far_entries_of_a_large_tensor_are_stored() -> None:
    """The bound on unary parts holds for everything that a writer makes."""
    rng = np.random.default_rng(1)
    for count in (1, 2, 5, 100):
        for size in (100, 2**20, 2**31, 2**45):
            where = np.unique(rng.integers(0, size, count)).astype(np.int64)
            skewed = np.unique(np.concatenate([np.arange(min(count, size // 2)), [size - 1]])).astype(np.int64)
            for positions in (where, skewed):
                tensor = Sparse((size,), positions, Dense(np.ones(len(positions), np.float32)))
                values = {"codec": "raw", "dtype": "float32", "compression": "none"}
                check_round_trip(
                    "sparse", Segment([tensor], {"entries": len(positions), "compression": "none", "values": values})
                )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DENSE_DTYPES)
def test_the_writer_refuses_what_is_not_finite(bad: float, dtype: str) -> None:
    for compression in COMPRESSIONS:
        tensor = dense(np.array([1, bad, 2], np.float32), dtype)
        with pytest.raises(CallError) as error:
            CODECS["raw"].encode([tensor], {"dtype": dtype, "compression": compression})
        assert error.value.reason == "not-finite"


@pytest.mark.parametrize(
    ("scale", "offset", "reason"),
    [(np.nan, 0, "bad-scale"), (np.inf, 0, "bad-scale"), (-1, 0, "bad-scale"), (-0.0, 0, "bad-scale"),
     (1, np.nan, "not-finite"), (1, np.inf, "not-finite")],
)  # fmt: skip
@pytest.mark.parametrize("bits", [1, 4])
def test_bad_scales_are_refused_both_ways(bits: int, scale: float, offset: float, reason: str) -> None:
    good = quantize(numbers(1, (4, 4)), bits)
    bad = Quantized(
        good.shape, bits, good.levels, 0, good.packed, np.array([scale], np.float32), np.array([offset], np.float32)
    )
    codec = CODECS["signs" if bits == 1 else "codebook"]
    params = {**quantized_params(good), "compression": "none"}
    with pytest.raises(CallError) as refused:
        codec.encode([bad], params)
    assert refused.value.reason == reason
    payload = good.packed.tobytes() + struct.pack("<ff", scale, offset)
    with pytest.raises(CorruptFileError) as corrupt:
        codec.decode(memoryview(payload), [good.shape], params)
    assert corrupt.value.reason == reason


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("beside", [-0.5, 0.5])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_bad_offset_is_seen_beside_good_ones(bad: float, beside: float, dtype: Any) -> None:
    good = quantize(numbers(1, (4, 4)), 1)
    scale = np.ones(1, dtype)
    rows = [
        Quantized(good.shape, 1, good.levels, 0, good.packed, scale, np.array([offset], dtype))
        for offset in (beside, bad, beside)
    ]
    params = {**quantized_params(rows[0]), "compression": "none"}
    with pytest.raises(CallError) as error:
        CODECS["signs"].encode(rows, params)
    assert error.value.reason == "not-finite"


@pytest.mark.parametrize("positions", [[3, 2], [2, 2], [-1, 2], [2, 9]])
def test_the_writer_refuses_positions_out_of_order(positions: list[int]) -> None:
    tensor = Sparse((3, 3), np.array(positions, np.int64), Dense(np.ones(2, np.float32)))
    values = {"codec": "raw", "dtype": "float32", "compression": "none"}
    with pytest.raises(CallError) as error:
        CODECS["sparse"].encode([tensor], {"entries": 2, "compression": "none", "values": values})
    assert error.value.reason == "bad-positions"


def test_pad_bits_are_checked() -> None:
    tensor = quantize(numbers(1, (3, 3)), 1)
    params = {**quantized_params(tensor), "compression": "none"}
    payload = bytearray(CODECS["signs"].encode([tensor], params))
    payload[1] |= 0b10
    with pytest.raises(CorruptFileError) as error:
        CODECS["signs"].decode(memoryview(bytes(payload)), [(3, 3)], params)
    assert error.value.reason == "padding-bits"


def test_a_large_section_keeps_its_window_small() -> None:
    """More than 1 MiB in one section: a frame with a window, not a single segment."""
    values = np.tile(numbers(1, (1 << 16,)), 20)
    check_round_trip("raw", Segment([Dense(values)], {"dtype": "float32", "compression": "zstd"}))


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 16_383, 16_384, 2**35 - 1])
def test_lengths_have_one_spelling(value: int) -> None:
    shortest = varint(value)
    assert sum((byte & 0x7F) << (7 * i) for i, byte in enumerate(shortest)) == value
    assert Reader(memoryview(shortest), "zstd").number() == value
    longer = shortest[:-1] + bytes([shortest[-1] | 0x80, 0])
    for wrong in (longer, shortest[:-1], b"\x80" * 9 + b"\x01"):
        with pytest.raises(CorruptFileError) as error:
            Reader(memoryview(wrong), "zstd").number()
        assert error.value.reason == "payload-size"


def q1_0_blocks(values: np.ndarray) -> tuple[bytes, np.ndarray]:
    """ggml's Q1_0 from its layout: for each 128 weights a float16 d, then 16 bytes, weight i in bit i mod 8 of byte
    i div 8; a set bit stands for +d and a clear one for −d."""
    out, decoded = b"", []
    for block in values.reshape(-1, 128):
        d = np.float16(np.abs(block.astype(np.float64)).mean())
        signs = [1 if value > 0 else 0 for value in block]
        qs = bytes(sum(signs[8 * byte + bit] << bit for bit in range(8)) for byte in range(16))
        out += struct.pack("<e", d) + qs
        decoded += [np.float32(d) if sign else -np.float32(d) for sign in signs]
    return out, np.array(decoded, np.float32).reshape(values.shape)


def test_q1_0_blocks_are_exact_both_ways() -> None:
    values = numbers(1, (6, 256))
    blocks, decoded = q1_0_blocks(values)
    tensor = quantize(values, 1, 128, scale="float16", offset=False)
    assert len(blocks) * 8 / values.size == 1.125
    assert to_q1_0(tensor) == blocks
    back = from_q1_0(blocks, (6, 256))
    assert same_tensor(back, tensor)
    assert back.dense().tobytes() == decoded.tobytes()


def test_what_is_no_q1_0_is_refused() -> None:
    good = quantize(numbers(1, (2, 128)), 1, 128, scale="float16", offset=False)
    others = [
        quantize(numbers(1, (2, 128)), 1, 128, scale="float16"),
        quantize(numbers(1, (2, 128)), 1, 128, offset=False),
        quantize(numbers(1, (2, 128)), 1, 64, scale="float16", offset=False),
        quantize(numbers(1, (4, 64)), 1, 128, scale="float16", offset=False),
    ]
    for tensor in others:
        with pytest.raises(UnsupportedAdapterError) as error:
            to_q1_0(tensor)
        assert error.value.reason == "not-expressible"
    data = to_q1_0(good)
    for wrong, shape in ((data[:-1], (2, 128)), (data, (3, 128)), (data, (4, 64)), (data, ())):
        with pytest.raises(CorruptFileError):
            from_q1_0(wrong, shape)
    with pytest.raises(CorruptFileError) as bad:
        from_q1_0(struct.pack("<e", -1.0) + data[2:], (2, 128))
    assert bad.value.reason == "bad-scale"
