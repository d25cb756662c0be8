"""Settings files and how conflicts between places are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapterpack.converters import settings
from adapterpack.errors import AdapterPackError, CallError


def test_flat_yaml() -> None:
    text = b"scale: 0.1\nbit: 8\nreorder: false\nname: a_b-c.d/e\nnothing: null\nsmall: 1.0e-05\n"
    expected = {"scale": 0.1, "bit": 8, "reorder": False, "name": "a_b-c.d/e", "nothing": None, "small": 1e-05}
    assert settings.parse_yaml(text, "x") == expected


@pytest.mark.parametrize(
    "line",
    [
        b"a",
        b"a:1",
        b" a: 1",
        b"a: [1]",
        b"a: {b: 1}",
        b"a: &x 1",
        b"a: .nan",
        b"a: 0x10",
        b"a: 'x'",
        b"- a",
        b"a: b # c",
        b"a: 01",
    ],
)
def test_what_flat_yaml_does_not_have(line: bytes) -> None:
    with pytest.raises(AdapterPackError, match="line 1") as caught:
        settings.parse_yaml(line, "x")
    assert caught.value.reason == "bad-source"


@pytest.mark.parametrize(
    "word", ["yes", "No", "on", "null", "5", "1e5", "a b", "a: b", "", "#x", "- x", "räder", "x\n"]
)
def test_words_that_yaml_would_read_otherwise(word: str) -> None:
    assert not settings.is_plain_word(word)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"scale": 1, "scale": 2}', "bad-source"),
        ('{"scale": NaN}', "bad-source"),
        ("[1]", "bad-source"),
        ("{", "bad-source"),
    ],
)
def test_bad_json(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(AdapterPackError) as caught:
        settings.read_file(tmp_path / "x.json")
    assert caught.value.reason == reason


def test_select_takes_what_it_knows() -> None:
    found = settings.select(
        {"bits": 4, "lr": 1e-3, 7: "x", "scale": 1, "with_channel_shuffle": False, "mask": None}, "x"
    )
    assert found == {"bit": 4, "scale": 1.0, "reorder": False}


@pytest.mark.parametrize(
    "bad",
    [
        {"bit": True}, {"scale": "1"}, {"scale": float("nan")}, {"reorder": 1}, {"dim": -1}, {"trained": [1]},
        {"scale": 10**400}, {"dim": 10**400}, {"head_bias": "some"}, {"head_bias": False},
    ],
)  # fmt: skip
def test_wrong_types(bad: dict[str, object]) -> None:
    with pytest.raises(AdapterPackError) as caught:
        settings.select(bad, "x")
    assert caught.value.reason == "bad-source"


def test_two_places_must_agree_unless_the_caller_decides() -> None:
    places = [("args", {"scale": 1.0, "bit": 1}), ("run.yaml", {"scale": 10.0, "dim": 4})]
    with pytest.raises(AdapterPackError, match=r"1\.0 in args and 10\.0 in run\.yaml") as caught:
        settings.combine(places, {})
    assert caught.value.reason == "conflicting-settings"
    assert settings.combine(places, {"scale": 10}) == {"scale": 10.0, "bit": 1, "dim": 4}
    with pytest.raises(AdapterPackError) as caught:
        settings.select({"bit": 1, "bits": 2}, "x")
    assert caught.value.reason == "conflicting-settings"
    with pytest.raises(AdapterPackError, match=r"--set scale=… \(settings={'scale': …}\)"):
        settings.combine(places, {})
    with pytest.raises(AdapterPackError, match=r"--set scale="):
        settings.require({}, "scale")
    with pytest.raises(CallError) as caught:
        settings.combine(places, {"scale": "big"})
    assert caught.value.reason == "bad-call"
    with pytest.raises(AdapterPackError, match="sclae") as caught:
        settings.combine(places, {"sclae": 1.0})
    assert caught.value.reason == "bad-call"
