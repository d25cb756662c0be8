"""The predictive sign streams: published vectors, a second decoder, round trips, damage."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from adapterpack.codecs import _sign_block as block
from adapterpack.codecs import _sign_layout as layout
from adapterpack.codecs import _sign_model as model
from adapterpack.codecs import _sign_stream as streams
from adapterpack.codecs import _sign_tables as tables
from adapterpack.errors import AdapterPackError, CallError, CorruptFileError

U8 = NDArray[np.uint8]
HAS_NUMBA = importlib.util.find_spec("numba") is not None
USING = ["numpy", pytest.param("numba", marks=pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed"))]


def _second_reader() -> ModuleType:
    path = Path(__file__).resolve().parent.parent / "spec" / "sign_reader.py"
    spec = importlib.util.spec_from_file_location("sign_reader", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault("sign_reader", module)
    spec.loader.exec_module(module)
    return module


reader = _second_reader()


def published(folder: Path, method: str, task: str, dim: int) -> tuple[list[U8], U8 | None]:
    """Matrices of 0 and 1 in file order, and the 1-bit head of a `-bihead` file."""
    raw = np.fromfile(folder / method / f"{task}-bit1-dim{dim}.bin", np.uint8)
    count, size = (48 if method.startswith("lora") else 24), 96 * dim + 8
    matrices = [
        np.unpackbits(raw[size * i : size * (i + 1) - 8], bitorder="little").reshape(
            (768, dim) if i % 2 else (dim, 768)
        )
        for i in range(count)
    ]
    if not method.endswith("bihead"):
        return matrices, None
    return matrices, np.unpackbits(raw[size * count : -8], bitorder="little").reshape(-1, 768)


# method, task, dim, join (None = the head), bytes, first half of SHA-256, shape, λ, padding
VECTORS = [
    ("adaptformer", "clevr_count", 32, 1, 55024, "7b8d44c56e6c76870605316c43d6aaee", (24, 768, 32), 40, 0),
    ("adaptformer", "clevr_count", 32, 2, 54672, "2636151e1622ebf4fd7ac1577f4a4659", (12, 768, 64), 90, 0),
    ("lora", "kitti", 32, 1, 123000, "8785b7e5de9f5869165d2a35bbe50acb", (48, 768, 32), 40, 0),
    ("lora-bihead", "cifar", 32, 1, 24340, "dc2a6de1f99746728082c3009bea5e89", (48, 768, 32), 40, 0),
    ("lora", "cifar", 1, 0, 4140, "6b54dd94fff58657aabac2144bf47c2f", (2, 768, 24), 120, 0),
    ("lora-bihead", "dtd", 32, None, 4244, "aa4c4ceecd327195fef3ee0f05d40e56", (1, 768, 47), 40, 0),
    ("lora-bihead", "sun397", 32, None, 30316, "98b8b992e675e0aaa35e354b0122199b", (4, 768, 100), 40, 3),
]  # fmt: skip


@pytest.mark.parametrize("using", USING)
@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v[0]}-{v[1]}-{v[2]}-{v[3]}")
def test_published_vectors(petl_vit: Path, vector: Any, using: Any) -> None:
    method, task, dim, join, size, sha, shape, lam, padding = vector
    matrices, head = published(petl_vit, method, task, dim)
    if join is None:
        assert head is not None
        matrices, params = [head], layout.head_params()
    else:
        params = layout.branch_params([matrix.shape for matrix in matrices], join)
    parts = layout.plan([matrix.shape for matrix in matrices], params)
    assert parts is not None
    (signs,), what = layout.to_streams(matrices, parts), parts[0].stream
    assert (signs.shape, what.lam, what.padding) == (shape, lam, padding)
    settings_of = {"lam": lam, "pooled": what.pooled, "kinds": what.kinds, "padding": padding}
    stream = model.encode_signs(signs, **settings_of, using=using)
    assert (len(stream), hashlib.sha256(stream).hexdigest()[:32]) == (size, sha)
    decoded = model.decode_signs(stream, *shape, **settings_of, using=using)
    back = layout.from_streams([decoded], parts)
    assert all(np.array_equal(a, b) for a, b in zip(matrices, back, strict=True))
    if size < 5000:
        assert np.array_equal(reader.decode(stream, *shape, **settings_of), signs)


def test_default_parameters() -> None:
    dim32 = [(32, 768), (768, 32)] * 12
    assert layout.branch_params(dim32) == {"join": 1, "lam": 40, "pooled": True, "units": "short"}
    assert layout.branch_params(dim32, 2) == {"join": 2, "lam": 90, "pooled": True, "units": "short"}
    assert layout.branch_params([(1, 768), (768, 1)]) == {"join": 0, "lam": 120, "pooled": False, "units": "short"}
    (part,) = layout.plan([(1, 768), (768, 1)] * 24, layout.branch_params([(1, 768)])) or ()
    assert part.stream == streams.Stream(2, 768, 24, 120, False, 2, 0)


def test_probabilities() -> None:
    table = tables.probability_of_plus()
    positive = table[: tables.Y_LIMIT + 1]
    assert int(positive.sum()) == 172_882_511
    assert hashlib.sha256(positive.astype("<u2").tobytes()).hexdigest()[:16] == "9a0baf84bbd8aa50"
    assert all(table[y] == reader.probability(y) for y in range(-tables.Y_LIMIT, tables.Y_LIMIT + 1))
    assert all(tables.KNOTS[k] == min(round(65536 / (1 + np.exp(-k / 4))), 65535) for k in range(45))


@pytest.mark.parametrize("channels", [1, 2, 3, 40, 192, 384, 768, 1024, 4096])
def test_order_and_blocks_agree_with_the_second_reader(channels: int) -> None:
    order = tables.visiting_order(channels).tolist()
    assert order == reader.visiting_order(channels) and sorted(order) == list(range(channels))
    assert tables.block_bounds(channels) == reader.blocks(channels)


def test_strides_and_blocks_given_in_the_specification() -> None:
    assert [int(tables.visiting_order(c)[-1] * -1 % c) for c in (768, 40, 2)] == [473, 23, 1]
    assert len(tables.block_bounds(768)) == 14


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_range_coder_is_what_the_specification_says(data: st.DataObject) -> None:
    chance = st.one_of(st.sampled_from([1, 32768, 65535]), st.integers(1, 65535))
    symbols = data.draw(st.lists(st.tuples(chance, st.integers(0, 1)), max_size=200))
    ours = reader.RangeEncoder()
    for p, bit in symbols:
        ours.bit(p, bit)
    theirs = constriction.stream.queue.RangeEncoder()
    bits = np.array([bit for _, bit in symbols], np.int32)
    chances = np.array([p / 65536 for p, _ in symbols], np.float32)
    theirs.encode(bits, constriction.stream.model.Bernoulli(perfect=False), chances)
    stream = ours.finish()
    assert stream == theirs.get_compressed().astype("<u4").tobytes()
    if symbols:
        decoder = reader.RangeDecoder(stream)
        assert [decoder.bit(p) for p, _ in symbols] == bits.tolist()
        decoder.finish()
        assert decoder.consumed == theirs.pos()[0] + 2


def test_carry_through_many_words() -> None:
    """A long run of − at the largest P of + makes words of ones, and one + carries through all of them."""
    for count in range(60, 75):
        ours, theirs = reader.RangeEncoder(), constriction.stream.queue.RangeEncoder()
        symbols = [(32768, 1)] * count + [(65535, 1)] * 40 + [(1, 1)] * 3 + [(65535, 0)] * 5
        for p, bit in symbols:
            ours.bit(p, bit)
            theirs.encode(bit, constriction.stream.model.Bernoulli(p / 65536, perfect=False))
        assert ours.finish() == theirs.get_compressed().astype("<u4").tobytes()


@st.composite
def sign_streams(draw: st.DrawFn) -> tuple[U8, dict[str, Any]]:
    """Signs of every character, with any parameters."""
    matrices, units = draw(st.integers(1, 4)), draw(st.integers(1, 20))
    channels = draw(st.sampled_from([1, 2, 3, 5, 9, 17, 40]))
    padding = draw(st.integers(0, units - 1))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (matrices, channels, units)
    character = draw(st.sampled_from(["random", "zeros", "ones", "alternating", "rank one", "skewed"]))
    signs = {
        "random": rng.integers(0, 2, shape),
        "zeros": np.zeros(shape, int),
        "ones": np.ones(shape, int),
        "alternating": np.indices(shape).sum(axis=0) % 2,
        "rank one": rng.integers(0, 2, shape[:2])[:, :, None] ^ rng.integers(0, 2, (matrices, 1, units)),
        "skewed": rng.random(shape) < 0.03,
    }[character].astype(np.uint8)
    signs[-1, :, units - padding :] = 0
    pooled = matrices % 2 == 0 and draw(st.booleans())
    lam = draw(st.sampled_from([1, 40, 90, 255]))
    return signs, {"lam": lam, "pooled": pooled, "kinds": draw(st.integers(1, matrices)), "padding": padding}


@given(sign_streams())
@settings(max_examples=80, deadline=None)
def test_round_trip_in_every_implementation(case: tuple[U8, dict[str, Any]]) -> None:
    signs, params = case
    stream = model.encode_signs(signs, **params)
    assert len(stream) >= streams.Stream(*signs.shape, **params).least_bytes()
    assert np.array_equal(model.decode_signs(stream, *signs.shape, **params), signs)
    assert np.array_equal(reader.decode(stream, *signs.shape, **params), signs)
    if HAS_NUMBA:
        assert model.encode_signs(signs, **params, using="numba") == stream
        assert np.array_equal(model.decode_signs(stream, *signs.shape, **params, using="numba"), signs)


@pytest.mark.parametrize("using", USING)
@pytest.mark.parametrize(
    ("shape", "params"),
    [
        ((2, 1024, 16), {"lam": 40, "pooled": True, "kinds": 2}),
        ((2, 192, 300), {"lam": 1, "pooled": True, "kinds": 2}),  # more units than channels
        ((1, 4096, 3), {"lam": 255, "pooled": False, "kinds": 1}),
        ((128, 30, 2), {"lam": 1, "pooled": True, "kinds": 2}),
        ((1, 2, 512), {"lam": 1, "pooled": False, "kinds": 1, "padding": 511}),
    ],
)
def test_round_trip_at_the_limits(shape: tuple[int, int, int], params: dict[str, Any], using: Any) -> None:
    rng = np.random.default_rng(5)
    signs = (rng.integers(0, 2, (*shape[:2], 1)) ^ (rng.random(shape) < 0.1)).astype(np.uint8)
    signs[-1, :, shape[2] - params.get("padding", 0) :] = 0
    stream = model.encode_signs(signs, **params, using=using)
    assert stream == model.encode_signs(signs, **params)
    assert np.array_equal(model.decode_signs(stream, *shape, **params, using=using), signs)


@pytest.mark.parametrize(("rank", "flip"), [(1, 0.0), (1, 0.001), (3, 0.0), (3, 0.001), (40, 0.01)])
def test_factors_stay_exact_at_the_extremes(rank: int, flip: float) -> None:
    """Equal units, the most channels and λ = 1 give the smallest pivots and the largest quotients."""
    rng = np.random.default_rng(9)
    patterns = rng.choice([-1.0, 1.0], (2, rank, 4095))
    signs = patterns[:, rng.integers(0, rank, 100)] * np.where(rng.random((2, 100, 4095)) < flip, -1, 1)
    gram = signs @ signs.transpose(0, 2, 1)
    a, total = block.regularised(streams.Stream(2, 4096, 100, 1, True, 2), gram, 4095)
    lower, diagonal = block.factor(a)
    plain = reader.Model(2, 100, 1, True, 2)
    plain.gram = gram.astype(int).tolist()
    expected, r = plain.factor(0, 4095)
    assert (lower[0] * 16384).astype(int).tolist() == expected
    assert np.floor(512 * total / diagonal[0]).astype(int).tolist() == r
    if HAS_NUMBA:
        from adapterpack.codecs import _sign_compiled as compiled

        found, found_r = np.zeros((2, 100, 100)), np.zeros((2, 100))
        compiled._factor_all(gram, 4095, 1, True, found, found_r)
        assert found[0].astype(int).tolist() == expected
        assert found_r[0].astype(int).tolist() == r


def test_random_signs_cost_hardly_more_than_plain_ones() -> None:
    signs = np.random.default_rng(0).integers(0, 2, (4, 768, 16), np.uint8)
    assert len(model.encode_signs(signs, lam=40, pooled=True, kinds=2)) <= signs.size / 8 * 1.01 + 8


def test_one_unit_costs_one_bit_a_sign() -> None:
    signs = np.random.default_rng(0).integers(0, 2, (1, 1024, 1), np.uint8)
    assert signs.size / 8 <= len(model.encode_signs(signs, lam=40, pooled=False, kinds=1)) <= signs.size / 8 + 8


def test_damage_gives_an_error_or_other_signs() -> None:
    rng = np.random.default_rng(3)
    common = rng.integers(0, 2, (2, 30, 1)) ^ rng.integers(0, 2, (2, 1, 9))
    signs = np.asarray(common ^ (rng.random((2, 30, 9)) < 0.15), np.uint8)
    params: dict[str, Any] = {"lam": 40, "pooled": True, "kinds": 2}
    good = model.encode_signs(signs, **params)
    damaged = [good[:k] for k in range(len(good))] + [good + bytes(4 * k) for k in (1, 2, 9)] + [good + b"\xff" * 4]
    for position in range(8 * len(good)):
        flipped = bytearray(good)
        flipped[position // 8] ^= 1 << position % 8
        damaged.append(bytes(flipped))
    for stream in damaged:
        expected = _outcome(reader.decode, stream, signs.shape, params)
        for using in ["numpy", "numba"] if HAS_NUMBA else ["numpy"]:
            found = _outcome(model.decode_signs, stream, signs.shape, {**params, "using": using})
            assert (found is None) == (expected is None)
            if found is not None and expected is not None:
                assert np.array_equal(found, expected)
                assert not np.array_equal(found, signs), "one content has one stream"


def _outcome(decode: Any, stream: bytes, shape: Any, params: dict[str, Any]) -> U8 | None:
    """Signs, or None where the stream was refused as `bad-stream`."""
    try:
        return np.asarray(decode(stream, *shape, **params), np.uint8)
    except CorruptFileError as error:
        assert error.reason == "bad-stream"
    except reader.BadStream:
        pass
    return None


@pytest.mark.parametrize("using", USING)
@given(st.binary(max_size=120))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_signs_or_our_error(using: Any, stream: bytes) -> None:
    try:
        signs = model.decode_signs(stream, 2, 9, 7, lam=40, pooled=True, kinds=2, using=using)
    except AdapterPackError:
        return
    assert signs.shape == (2, 9, 7) and int(signs.max()) <= 1


@pytest.mark.parametrize(
    ("shape", "change", "reason"),
    [
        ((129, 1, 1), {}, "limit-exceeded"),
        ((2, 4097, 1), {}, "limit-exceeded"),
        ((2, 1, 513), {}, "limit-exceeded"),
        ((0, 1, 1), {}, "limit-exceeded"),
        ((2, 10**18, 1), {}, "limit-exceeded"),
        ((3, 8, 4), {}, "bad-parameter"),
        ((2, 8, 4), {"lam": 0}, "bad-parameter"),
        ((2, 8, 4), {"lam": 256}, "bad-parameter"),
        ((2, 8, 4), {"kinds": 0}, "bad-parameter"),
        ((2, 8, 4), {"kinds": 3}, "bad-parameter"),
        ((2, 8, 4), {"padding": 4}, "bad-parameter"),
        ((2, 8, 4), {"padding": -1}, "bad-parameter"),
    ],
)
def test_limits_are_checked_before_anything(shape: Any, change: dict[str, int], reason: str) -> None:
    params: dict[str, Any] = {"lam": 40, "pooled": True, "kinds": 2, **change}
    with pytest.raises(CorruptFileError) as caught:
        model.decode_signs(b"", *shape, **params)
    assert caught.value.reason == reason


def test_a_few_bytes_cannot_ask_for_hours_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "_walk", None)
    with pytest.raises(CorruptFileError) as caught:
        model.decode_signs(bytes(60_000), 128, 4096, 512, lam=1, pooled=True, kinds=2)
    assert caught.value.reason == "bad-stream"


def test_encoder_refuses_what_it_would_lose() -> None:
    with pytest.raises(CallError):
        model.encode_signs(np.full((1, 2, 2), 2, np.uint8), lam=40, pooled=False, kinds=1)
    with pytest.raises(CallError):
        model.encode_signs(np.ones((1, 2, 2), np.uint8), lam=40, pooled=False, kinds=1, padding=1)


def test_factor_against_the_second_reader() -> None:
    rng = np.random.default_rng(1)
    signs = rng.choice([-1.0, 1.0], (2, 9, 50)) + 0
    gram = signs @ signs.transpose(0, 2, 1)
    a, total = block.regularised(streams.Stream(2, 768, 9, 7, True, 1), gram, 50)
    lower, diagonal = block.factor(a)
    plain = reader.Model(2, 9, 7, True, 1)
    plain.gram = gram.astype(int).tolist()
    for m in range(2):
        expected, r = plain.factor(m, 50)
        assert (lower[m] * 16384).astype(int).tolist() == expected
        assert np.floor(512 * total / diagonal[m]).astype(int).tolist() == r


def test_which_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "numba", raising=False)
    assert model.implementation(1000) == "numpy"
    monkeypatch.setitem(sys.modules, "numba", ModuleType("numba"))
    assert model.implementation(1000) == "numba"
    monkeypatch.undo()
    assert model.implementation(10**9, "numpy") == "numpy"
    assert model.implementation(10**9) == ("numba" if HAS_NUMBA else "numpy")
    with pytest.raises(CallError):
        model.implementation(1, "cython")


def test_numba_asked_for_but_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    assert model.implementation(10**9) == "numpy"
    with pytest.raises(CallError) as caught:
        model.implementation(1, "numba")
    assert caught.value.reason == "missing-extra"


SHAPES = [
    [(8, 192), (192, 8)] * 3,
    [(8, 192), (576, 8)] * 2,  # a fused qkv: the sides have different channels, so no partners
    [(384, 2)] * 5 + [(96, 8)],  # grouped weights
    [(4, 24), (24, 4), (4, 24)],  # odd count
    [(1, 30)], [(30, 1)], [(1, 1)], [(6, 6), (6, 6)], [(300, 20)], [(200, 16), (16, 200), (7, 16)],
    [(2, 50), (50, 2)] * 7 + [(3, 50), (50, 3)],
    [(300, 700), (700, 300)] * 2,
    [(520, 530), (530, 520)],
    [(1, 9), (9, 1)] * 200,
]  # fmt: skip


@pytest.mark.parametrize("units", ["short", "rows"])
@pytest.mark.parametrize("join", [0, 1, 2, 3])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_layout_of_any_shapes(shapes: list[tuple[int, int]], join: int, units: str) -> None:
    rng = np.random.default_rng(2)
    matrices = [rng.integers(0, 2, shape, np.uint8) for shape in shapes]
    parts = layout.plan(shapes, {"join": join, "lam": 40, "pooled": True, "units": units})
    assert parts is not None
    for part in parts:
        part.stream.check()
    gathered = layout.to_streams(matrices, parts)
    for signs, part in zip(gathered, parts):
        assert signs.shape == (part.stream.matrices, part.stream.channels, part.stream.units)
        assert not signs[-1, :, part.stream.units - part.stream.padding :].any()
    back = layout.from_streams(gathered, parts)
    assert all(np.array_equal(a, b) for a, b in zip(matrices, back, strict=True))


def test_partners_learn_from_each_other() -> None:
    parts = layout.plan([(8, 192), (192, 8)] * 3, layout.branch_params([(8, 192)])) or ()
    assert [part.stream for part in parts] == [streams.Stream(6, 192, 8, 40, True, 2)]
    parts = layout.plan([(8, 192), (576, 8)] * 3, layout.branch_params([(8, 192)])) or ()
    assert [(p.stream.matrices, p.stream.channels, p.stream.pooled) for p in parts] == [
        (3, 192, False),
        (3, 576, False),
    ]


@pytest.mark.parametrize("shapes", [[], [(3,)], [(2, 3, 4)], [(0, 5)], [(8, 4097)], [(8, 16), (16, 8), (16,)]])
def test_layout_says_where_it_does_not_apply(shapes: list[tuple[int, ...]]) -> None:
    assert layout.plan(shapes, {"join": 1, "lam": 40, "pooled": True, "units": "short"}) is None


def test_working_memory_is_bounded_before_decoding() -> None:
    largest = streams.Stream(128, 4096, 512, 40, True, 2)
    assert largest.working_bytes() < 4 << 30
