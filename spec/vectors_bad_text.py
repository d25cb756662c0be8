"""The bad vectors of the index as a text: JSON syntax, duplicate keys, depth, numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vectors_build import Parts, Row, edited, in_task, with_text


def json_text(b: Parts) -> Iterator[Row]:
    text = b.text
    i13, i15 = "item 13: openasr#73, safetensors", "item 15: zarr MAX_JSON_DEPTH, CWE-674"

    def swap(old: bytes, new: bytes) -> bytes:
        assert text.count(old) >= 1, old
        return with_text(b, text.replace(old, new, 1))

    yield (
        "duplicate-top",
        "duplicate-key",
        swap(b'{"backbone":', b'{"tasks":[],"backbone":'),
        "A key twice at the top.",
        i13,
    )
    twice = swap(b'"scale":0.5', b'"scale":0.5,"scale":0.5')
    yield "duplicate-deep", "duplicate-key", twice, "A key twice among settings, even with one value.", i13
    escaped = swap(b'"name":"task"', b'"name":"task","n\\u0061me":"b"')
    yield "duplicate-escaped", "duplicate-key", escaped, "One key in two spellings.", i13
    noted = swap(b'"scale":0.5}', b'"scale":0.5},"x-note":{"a":{"b":1,"b":1}}')
    yield "duplicate-ignored", "duplicate-key", noted, "A key twice within an ignorable field.", i13
    for depth, name in ((13, "too-deep"), (3000, "much-too-deep")):
        deep = b'"metadata":{"deep":' + b"[" * depth + b"1" + b"]" * depth + b'},"labels":'
        yield name, "too-deep", swap(b'"labels":', deep), f"Nesting of {depth + 4}; at most 16 are allowed.", i15
    i17 = "item 17: JSON"
    yield "json-empty", "index-syntax", with_text(b, b""), "An index of no bytes.", i17
    yield "json-half", "index-syntax", with_text(b, text[:-1]), "The last brace is missing.", i17
    yield "json-trailing", "index-syntax", with_text(b, text + b"{}"), "A second value.", i17
    yield "json-trailing-comma", "index-syntax", with_text(b, text[:-1] + b",}"), "A trailing comma.", i17
    yield "json-quotes", "index-syntax", with_text(b, text.replace(b'"', b"'")), "Single quotes.", i17
    yield "json-comment", "index-syntax", with_text(b, b"/**/" + text), "A comment.", i17
    yield "json-leading-zero", "index-syntax", swap(b'"bytes":', b'"bytes":0'), "A leading zero.", i17


def numbers_in_json(b: Parts) -> Iterator[Row]:
    text = b.text
    i14, i16 = "item 14: CPython json", "item 16: CPython's limit of 4,300 digits"

    def noted(number: bytes) -> bytes:
        return with_text(b, text.replace(b'"labels":', b'"metadata":{"n":' + number + b'},"labels":', 1))

    for name, number in (("nan", b"NaN"), ("infinity", b"Infinity"), ("minus-infinity", b"-Infinity")):
        yield f"number-{name}", "bad-number", noted(number), f"{number.decode()} is no JSON.", i14
    yield "number-1e999", "bad-number", noted(b"1e999"), "A number beyond float64.", i14
    yield "number-minus-0", "bad-number", noted(b"-0"), "A negative zero without a decimal point.", i14
    yield "number-2-53", "bad-number", noted(b"9007199254740992"), "The first integer beyond 2^53 − 1.", i14
    yield "number-minus-2-53", "bad-number", noted(b"-9007199254740992"), "Below −(2^53 − 1).", i14
    yield "number-5000-digits", "bad-number", noted(b"1" * 5000), "An integer of 5,000 digits.", i16

    def sized(value: Any) -> bytes:
        return edited(b, lambda index: index["tasks"][0]["segments"][0].update(bytes=value))

    size = len(b.payloads[0])
    yield "float-for-int", "bad-field", sized(float(size)), "A size with a decimal point.", i14
    yield "true-for-int", "bad-field", sized(True), "A boolean where an integer is due.", i14
    yield "text-for-int", "bad-field", sized(str(size)), "Text where an integer is due.", "item 17"
    yield "negative", "bad-field", sized(-size), "A negative size.", i14
    huge = sized((1 << 53) - 1)
    yield "size-huge", "truncated", huge, "A size that the file cannot have.", "item 6"
    whole = edited(b, in_task(lambda t: t["data"].update(mean=[0, 0, 0])))
    yield "int-for-float", "bad-field", whole, "Integers where decimal numbers are due.", "item 17"
    crop = edited(b, in_task(lambda t: t["data"].update(crop_pct=1)))
    yield "int-for-crop", "bad-field", crop, "An integer where a decimal number is due.", "item 17"
