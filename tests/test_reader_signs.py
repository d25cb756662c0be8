"""The page on `predictive-signs`, and its reader in plain integers, against the package: layout, sizes, numbers."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adapterpack.codecs import CODECS, _sign_given
from adapterpack.codecs import _sign_layout as layout
from adapterpack.codecs import _sign_tables as tables
from adapterpack.codecs.predictive import MAX_SIGNS
from adapterpack.errors import CorruptFileError

SPEC = Path(__file__).resolve().parent.parent / "spec"
NAMES = ("reader_base", "reader_signs", "sign_reader")
PAGE = (SPEC / "codecs.md").read_text("utf-8").split("\n## predictive-signs\n")[1].split("\n## labels\n")[0]
FORM: dict[str, Any] = {"compression": "none", "group": 0, "levels": "unit", "offset": True, "scale": "float32"}


@pytest.fixture(scope="module")
def plain() -> Iterator[dict[str, ModuleType]]:
    """The second reader's modules by name."""
    sys.path.insert(0, str(SPEC))
    try:
        yield {name: importlib.import_module(name) for name in NAMES}
    finally:
        sys.path.remove(str(SPEC))
        for name in NAMES:
            sys.modules.pop(name, None)


@st.composite
def segments(draw: st.DrawFn) -> tuple[list[tuple[int, ...]], dict[str, Any]]:
    """Shapes with many neighbours alike, at and around every limit, and any parameters."""
    side = st.one_of(st.integers(1, 12), st.sampled_from([64, 127, 128, 129, 256, 511, 512, 513, 700, 4096]))
    shapes: list[tuple[int, ...]] = []
    for _ in range(draw(st.integers(1, 4))):
        a, b = draw(side), draw(side)
        run = draw(st.sampled_from([[(a, b)], [(a, b), (b, a)], [(b, a), (a, b), (a, b)]]))
        shapes += run * draw(st.one_of(st.integers(1, 5), st.sampled_from([63, 64, 65, 130])))
    odd = draw(st.sampled_from([None, None, None, None, (3,), (), (2, 2, 2), (5, 4097), (16_385, 2), (16_384, 2)]))
    params = {
        "join": draw(st.one_of(st.integers(0, 64), st.sampled_from([0, 1, 2, 63, 64]))),
        "lam": draw(st.sampled_from([1, 40, 255])),
        "pooled": draw(st.booleans()),
        "units": draw(st.sampled_from(["short", "rows"])),
    }
    return shapes + ([] if odd is None else [odd]), {**FORM, **params}


DEFAULT = {**FORM, "join": 0, "lam": 40, "pooled": True, "units": "short"}


@given(segment=segments())
@settings(max_examples=150, deadline=None)
@example(segment=([(512, 600), (600, 512), (513, 600), (600, 513)], DEFAULT))
@example(segment=([(128, 600), (129, 601), (64, 700), (64, 700), (86, 800), (86, 800), (86, 800)], DEFAULT))
@example(segment=([(16_384, 2), (16_257, 3)], {**DEFAULT, "units": "rows"}))
def test_layout_and_decoded_bytes_agree(segment: Any, plain: dict[str, ModuleType]) -> None:
    shapes, params = segment
    signs = plain["reader_signs"]
    try:
        theirs = signs.streams_of(shapes, params)
    except plain["reader_base"].FormatError as error:
        with pytest.raises(CorruptFileError) as caught:
            CODECS["predictive-signs"].decoded_bytes(shapes, params)
        assert caught.value.reason == error.reason
        return
    parts = layout.plan(shapes, params)
    assert parts is not None and len(parts) == len(theirs)
    for part, stream in zip(parts, theirs):
        mine = part.stream
        assert [list(entry) for entry in part.entries] == stream.entries and part.join == stream.join
        assert (mine.matrices, mine.channels, mine.units) == (stream.M, stream.C, stream.U)
        assert (mine.padding, mine.kinds, part.units) == (stream.padding, stream.kinds, stream.units)
        assert mine.pooled == (params["pooled"] and stream.kinds == 2)
        assert part.transposed == {i for i in stream.members if signs.rows_are_units(i, shapes[i], params)}
        for is_given in (False, True):
            assert mine.least_bytes(is_given=is_given) == -(-signs.least_bits(stream, is_given) // 32) * 4
        mine.check()  # what the page says follows from its rules
    assert CODECS["predictive-signs"].decoded_bytes(shapes, params) == signs.decoded_bytes(shapes, params)


@pytest.mark.parametrize(
    ("shapes", "change"),
    [
        ([(3, 9), (9, 3)] * 3, {"join": 2}),
        ([(3, 9), (9, 3), (3, 9)], {"join": 0}),
        ([(70, 4)] * 3, {"join": 0, "units": "rows"}),
        ([(520, 3)] * 2, {"units": "rows"}),
        ([(5, 5)] * 4, {}),
    ],
)
def test_every_sign_has_the_same_place(shapes: Any, change: Any, plain: dict[str, ModuleType]) -> None:
    params = {**FORM, "join": 1, "lam": 40, "pooled": True, "units": "short", **change}
    parts = layout.plan(shapes, params)
    assert parts is not None
    rng, signs = np.random.default_rng(4), plain["reader_signs"]
    matrices = [rng.integers(0, 2, shape, np.uint8) for shape in shapes]
    for gathered, stream in zip(layout.to_streams(matrices, parts), signs.streams_of(shapes, params)):
        for index, entry in enumerate(stream.entries):
            for kind, i in enumerate(entry):
                down = signs.rows_are_units(i, shapes[i], params)
                for (row, column), bit in np.ndenumerate(matrices[i]):
                    m, u = signs.place(stream, index, kind, row if down else column)
                    assert gathered[m, column if down else row, u] == bit


def test_limits_and_tables_of_the_page() -> None:
    knots = [int(word) for row in re.findall(r"^    ((?:\d{5} ){14}\d{5})$", PAGE, re.M) for word in row.split()]
    assert tuple(knots) == tables.KNOTS
    for numbers in (tables.AL_THRESHOLDS, tables.UM_THRESHOLDS):
        assert "{" + ", ".join(map(str, numbers)) + "}" in " ".join(PAGE.split())
    assert f"blocks of {', '.join(map(str, tables.BLOCKS))} and from then on {tables.LAST_BLOCK}" in " ".join(
        PAGE.split()
    )
    for text in ("⌊618·C/1000⌋", f"{tables.FIRST_H:,}", f"are {tables.FIRST_WEIGHT} at first", "⌊512·Z/D(j)⌋"):
        assert text in PAGE
    for limit in (tables.MU_LIMIT, tables.X_LIMIT, tables.Y_LIMIT, tables.STEP_LIMIT):
        assert f", {limit})" in PAGE
    for text in (
        f"{_sign_given.CLASSES} weights",
        f"H is {_sign_given.FIRST_H:,}",
        f"z = {_sign_given.ONE:.0f}·t₁",
        f"⌊256·g/H⌋, {_sign_given.STEP_LIMIT})",
        f"clamp(t₁·(t₂ + … + tₙ), {_sign_given.MOST}) + ",
    ):
        assert text in " ".join(PAGE.split())
    assert MAX_SIGNS == 1 << 26 and "at most 2^26 weights" in PAGE
    assert tables.MAX_MATRICES * layout.SPLIT_UNITS == 16_384 and (tables.MAX_UNITS, tables.MAX_CHANNELS) == (512, 4096)


def test_hashes_of_the_page_are_those_that_are_tested() -> None:
    tested = (Path(__file__).with_name("test_sign_model.py")).read_text("utf-8").split("VECTORS = [")[1].split("\n]")[0]
    rows = re.findall(r'(\d+), "([0-9a-f]{32})", \((\d+), (\d+), (\d+)\)', tested)
    assert len(rows) == 7
    for size, sha, *shape in rows:
        assert re.search(rf"\| {', '.join(shape)}(, \d+ padding)? \| [^|]+ \| {int(size):,} \| `{sha}` \|", PAGE), sha


def test_numbers_of_the_example(plain: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of the page, computed by the plain reader on the way through the example's words."""
    seen: list[Any] = []
    updates: list[Any] = []  # two in a block of sixteen units

    class Watched(plain["sign_reader"].Model):  # type: ignore[misc]
        def predict(self, m: int, u: int, *rest: Any) -> Any:
            seen.append(super().predict(m, u, *rest))
            return seen[-1]

        def calibrate(self, *inputs: Any) -> Any:
            found = super().calibrate(*inputs)
            seen[-1] = (*seen[-1], found[0])
            return found

        def update_weights(self) -> None:
            super().update_weights()
            updates.append((self.um[0], *self.factors[0], [list(table) for table in self.weights[0]]))

    monkeypatch.setattr(plain["sign_reader"], "Model", Watched)
    plain["sign_reader"].decode(bytes.fromhex("666666661EEC575A"), 1, 6, 16, 1, False, 1)
    cells = {row[0]: row[1:] for row in re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", PAGE, re.M)}

    def listed(values: Any) -> str:
        return ", ".join(f"{v}".replace("-", "−") for v in values)

    for block in (0, 1):
        first, second = (seen[32 * (block + 1) + lane : 32 * (block + 1) + 8 : 2] for lane in (0, 1))
        assert cells["μ of units 0 to 3, first column"][block] == listed(mu for mu, _, _ in first)
        assert cells["x"][block] == listed(x for _, x, _ in first)
        assert cells["second column: μ"][block] == listed(mu for mu, _, _ in second)
        chances = re.findall(r"^\| P \| (.+?) \| (.+?) \|$", PAGE, re.M)
        assert [row[block] for row in chances] == [listed(p for _, _, p in lane) for lane in (first, second)]
        um, lower, r, learned = updates[2 * block]
        assert cells["L(1,0); L(2,0), L(2,1); L(3,0), L(3,1), L(3,2)"][block] == "; ".join(
            listed(lower[i][:i]) for i in (1, 2, 3)
        )
        assert cells["R(0), R(1), …, R(15)"][block] == f"{r[0]}, {r[1]}, …, {r[15]}"
        assert cells["um"][block] == f"{um[0]} for all units" and len(set(um)) == 1
        one, two, three = learned[:3]
        assert cells["first table after unit 7, weights 0 to 3"][block] == listed(one[:4])
        assert cells["second table, weight 0"][block] == str(two[0])
        assert cells["third table, weights 2 and 3"][block] == listed(three[2:4])
