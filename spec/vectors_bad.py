"""The bad vectors: at least one for every item of "What a reader refuses" in spec/README.md that a file can show."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from vectors_bad_payloads import payloads
from vectors_build import Json, Parts, Vector, edited, take_apart, with_frame, with_text
from vectors_good import adapter, at, dense, lora, numbers, written

from adapterpack.adapter import DataSettings, Head
from adapterpack.container import deflate

Row = tuple[str, str, bytes, str, str]  # name, reason, file, why, source
Change = Callable[[Json], object]


def base() -> Parts:
    """A small good file: LoRA in two blocks, a head, class names, data settings."""
    branches = lora(dense(numbers(1, 8)), dense(numbers(8, 1)))
    head = Head(dense(numbers(2, 8)), dense(numbers(2)))
    data = DataSettings((3, 32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return take_apart(written(adapter(*branches, head=head, labels=("cat", "dog"), data=data), "fast"))


def bad() -> Iterator[Vector]:
    for rows in (_begin, _frame, _encoding, _json, _numbers_in_json, _fields, _counts, _names, _shapes, _together):
        for name, reason, data, why, source in rows(base()):
            yield Vector(name, data, why, source, reason)
    for name, reason, data, why, source in (*_methods(base()), *payloads()):
        yield Vector(name, data, why, source, reason)


def _task(change: Change) -> Change:
    return lambda index: change(index["tasks"][0])


def _group(change: Change) -> Change:
    return lambda index: change(index["tasks"][0]["groups"][0])


def _set(**fields: Any) -> Change:
    return lambda place: place.update(fields)


def _begin(b: Parts) -> Iterator[Row]:
    d = b.build()
    i1, i2, i3 = "item 1: safetensors test_header_too_small", "item 2: Soup#189", "item 3: PNG's signature"
    yield "empty", "truncated", b"", "A file of no bytes.", i1
    yield "magic-only-half", "truncated", d[:5], "The file ends within the magic.", i1
    yield "fixed-part-short", "truncated", d[:27], "One byte of the fixed part is missing.", i1
    yield "magic-zip", "other-format", b"PK\x03\x04" + d[4:], "A ZIP archive, such as an Android package.", i2
    yield "magic-gguf", "other-format", b"GGUF" + d[4:], "A GGUF model.", i2
    yield "magic-pickle", "other-format", b"\x80\x04" + d[4:], "A Python pickle.", i2
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"
    yield "magic-lfs-pointer", "other-format", lfs, "A Git LFS pointer instead of the file.", i2
    yield "magic-html", "other-format", b"<!DOCTYPE html><html></html>", "An error page instead of the file.", i2
    tensors = b"\x02\0\0\0\0\0\0\0{}" + bytes(20)
    yield "magic-safetensors", "other-format", tensors, "A safetensors file.", i2
    yield "magic-unknown", "bad-magic", b"ABCDEFGH" + d[8:], "No magic that is known.", i2
    yield (
        "magic-escapes",
        "bad-magic",
        b"\x1b[2J\x07abc" + d[8:],
        "Control bytes, which a message must escape.",
        "item 2: ggml llama/14381",
    )
    yield "magic-unix-text", "mangled-magic", d.replace(b"\r\n", b"\n"), "CR LF became LF.", i3
    yield "magic-dos-text", "mangled-magic", d.replace(b"\n", b"\r\n"), "LF became CR LF.", i3
    yield "magic-mac-text", "mangled-magic", d[:7] + b"\r" + d[8:], "LF became CR.", i3
    yield "magic-utf8", "mangled-magic", d.decode("latin-1").encode(), "Latin-1 became UTF-8.", i3
    yield "magic-utf8-replaced", "mangled-magic", b"\xef\xbf\xbd" + d[1:], "Decoded with replacement characters.", i3
    yield "magic-7-bit", "mangled-magic", bytes(v & 0x7F for v in d), "The high bits were lost.", i3
    yield "magic-ascii-replaced", "mangled-magic", b"?" + d[1:], "Encoded to ASCII with question marks.", i3


def _frame(b: Parts) -> Iterator[Row]:
    d, text = b.build(), b.text
    i4, i6, i7 = "item 4: ggml llama/13943", "item 6: safetensors InvalidHeaderLength", "item 7"
    yield "version-0", "bad-version", with_frame(b, version=(0, 0)), "Major version 0.", i4
    yield "version-swapped", "bad-version", with_frame(b, version=(0, 1)), "The bytes of the version swapped.", i4
    yield "version-2", "newer-version", with_frame(b, version=(2, 0)), "A newer major version.", i4
    yield "flag-lowest", "reserved-bits", with_frame(b, flags=1), "A reserved flag.", "item 5"
    yield "flag-highest", "reserved-bits", with_frame(b, flags=0x8000), "A reserved flag.", "item 5"

    def sized(**sizes: int) -> bytes:
        return with_frame(b, sizes=sizes)

    stored = deflate.compress(text)
    yield "head-0", "head-size", sized(head=0), "A head of no bytes.", i6
    yield "head-too-small", "head-size", sized(head=28 + len(stored) - 4), "A head smaller than its index.", i6
    yield "head-odd", "head-size", sized(head=28 + len(stored) + 6), "A table that is no multiple of 4 bytes.", i6
    yield "head-beyond-file", "truncated", sized(head=28 + len(stored) + 4 * 1000), "A head larger than the file.", i6
    yield "head-beyond-limit", "limit-exceeded", sized(head=(4 << 20) + 1), "A head above 4 MiB.", i6
    yield "head-huge", "limit-exceeded", sized(head=0xFFFFFFFF), "Sizes that overflow when added in 32 bits.", i6
    yield "stored-beyond-head", "head-size", sized(stored=0xFFFFFFF0), "An index larger than the head.", i6
    yield "index-beyond-limit", "limit-exceeded", sized(index=(1 << 20) + 1), "An index above 1 MiB.", i6
    yield "index-longer", "index-compression", sized(index=len(text) - 1), "More comes out than declared.", i7
    yield "index-shorter", "index-compression", sized(index=len(text) + 1), "Less comes out than declared.", i7
    yield "index-bomb", "index-compression", _bomb(b), "A megabyte comes out where 100 bytes are declared.", "item 31"
    extra, half = stored + bytes(4), stored[: len(stored) // 2]
    yield "deflate-trailing", "index-compression", with_frame(b, deflated=extra), "Bytes after the last block.", i7
    yield "deflate-truncated", "index-compression", with_frame(b, deflated=half), "The last block does not end.", i7
    yield "deflate-block-type", "index-compression", with_frame(b, deflated=b"\x07" * 8), "Block type 3.", "item 31"
    wrapped = zlib.compress(text)
    yield "deflate-zlib", "index-compression", with_frame(b, deflated=wrapped), "A zlib wrapper around it.", "item 31"
    far = b"\x03" + b"\xff" * 8
    yield "deflate-invalid", "index-compression", with_frame(b, deflated=far), "Symbols that do not exist.", "item 31"
    table = _table(b)
    i18, i33 = "item 18: parquet out_of_range_element_count", "item 33"
    yield "table-short", "head-size", with_frame(b, table=table[:-4]), "A digest is cut short.", "item 33: numcodecs"
    yield "table-long", "head-size", with_frame(b, table=table + bytes(4)), "A checksum too many.", i18
    yield "table-missing", "head-size", with_frame(b, table=b""), "No checksums at all.", i33
    yield "tail", "trailing-bytes", with_frame(b, tail=b"\0"), "A byte after the last payload.", "item 8: gguf-py"
    yield "tail-zip", "trailing-bytes", with_frame(b, tail=b"PK\x05\x06" + bytes(18)), "A polyglot's tail.", "item 8"
    yield "payload-cut", "truncated", d[:-1], "The last byte is missing.", "item 9"
    yield "head-cut", "truncated", d[:100], "The file ends within its head.", "item 9"
    yield "head-checksum", "checksum-mismatch", sized(checksum=0), "The head's checksum is another.", i33
    wrong = bytes([table[0] ^ 1]) + table[1:]
    yield "segment-checksum", "checksum-mismatch", with_frame(b, table=wrong), "A segment's checksum is another.", i33
    other = [bytes(32)]
    yield "digest", "digest-mismatch", with_frame(b, digests=other), "Checksums fit, the digest does not.", i33
    swapped = with_frame(b, digests=[b.digests[0][::-1]])
    yield "digest-reversed", "digest-mismatch", swapped, "The digest's bytes in another order.", i33


def _bomb(b: Parts) -> bytes:
    packer = zlib.compressobj(9, wbits=-15)
    return with_frame(b, deflated=packer.compress(bytes(1 << 20)) + packer.flush(), sizes={"index": 100})


def _table(b: Parts) -> bytes:
    return b"".join(struct.pack("<I", zlib.crc32(p)) for p in b.payloads) + b"".join(b.digests)


def _encoding(b: Parts) -> Iterator[Row]:
    text = b.text
    i11, i12 = "item 11: safetensors test_header_invalid_header_non_utf8", "item 12"

    def named(spelling: bytes) -> bytes:
        return with_text(b, text.replace(b'"name":"task"', b'"name":"' + spelling + b'"'))

    yield "latin-1", "index-encoding", named(b"b\xe4r"), "A name in Latin-1.", i11
    yield "overlong", "index-encoding", named(b"\xc0\xaf"), "An overlong UTF-8 sequence.", i11
    yield "surrogate-bytes", "index-encoding", named(b"\xed\xa0\x80"), "A surrogate encoded in UTF-8.", i11
    yield "bom", "index-encoding", with_text(b, b"\xef\xbb\xbf" + text), "A byte-order mark.", "item 11: CPython json"
    utf16 = text.decode().encode("utf-16")
    yield "utf-16-bom", "index-encoding", with_text(b, utf16), "UTF-16 with a mark.", "item 11: CPython json"
    yield (
        "utf-16-bare",
        "index-syntax",
        with_text(b, utf16[2:]),
        "UTF-16 without a mark: NULs.",
        "item 11: CPython json",
    )
    yield "surrogate-escape", "bad-name", named(rb"\ud800"), "A lone surrogate as an escape.", i12 + ": CPython json"
    yield "nul-escape", "bad-name", named(rb"a\u0000b"), "NUL in a name.", i12
    yield "escape-escape", "bad-name", named(rb"\u001b[31m"), "An escape sequence for terminals.", i12 + ": gguf_dump"
    yield "raw-control", "index-syntax", named(b"a\tb"), "An unescaped control character.", i12
    yield "delete", "bad-name", named(b"a\x7f"), "The character DEL.", i12
    yield "c1-control", "bad-name", named("a\x9bm".encode()), "A control character beyond ASCII.", i12
    yield "bidi", "bad-name", named("a\u202egpj".encode()), "Right-to-left override.", i12
    yield "line-separator", "bad-name", named("a\u2028b".encode()), "A line separator.", i12
    key = text.replace(b'"labels":', '"metadata":{"\u202e":1},"labels":'.encode())
    yield "bidi-key", "bad-name", with_text(b, key), "Right-to-left override in a key.", i12


def _json(b: Parts) -> Iterator[Row]:
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


def _numbers_in_json(b: Parts) -> Iterator[Row]:
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
    whole = edited(b, _task(lambda t: t["data"].update(mean=[0, 0, 0])))
    yield "int-for-float", "bad-field", whole, "Integers where decimal numbers are due.", "item 17"
    crop = edited(b, _task(lambda t: t["data"].update(crop_pct=1)))
    yield "int-for-crop", "bad-field", crop, "An integer where a decimal number is due.", "item 17"


def _fields(b: Parts) -> Iterator[Row]:
    i17 = "item 17: fastsafetensors#96"
    yield "index-array", "bad-field", with_text(b, b"[]"), "The index is an array.", i17
    yield "index-null", "bad-field", with_text(b, b"null"), "The index is null.", i17
    for name, change, what in (
        ("task-null", lambda i: i["tasks"].__setitem__(0, None), "A task is null."),
        ("tasks-object", _set(tasks={}), "The tasks are an object."),
        ("tasks-empty", _set(tasks=[]), "There is no task."),
        ("metadata-null", _task(_set(metadata=None)), "The metadata are null."),
        ("backbone-null", _set(backbone=None), "The backbone is null."),
        ("params-array", _group(_set(params=[])), "Settings are an array."),
        ("head-empty", _task(_set(head={})), "A head without tensors."),
        ("tensors-empty", _group(_set(tensors={})), "A group without tensors."),
        ("skip-number", _task(lambda t: t["segments"][0].update(skip=0)), "A number where a boolean is due."),
        ("row-null", _group(lambda g: g["tensors"].update(up=None)), "A tensor's row is null."),
        ("segment-text", _task(lambda t: t["segments"].__setitem__(0, "raw")), "A segment is text."),
        ("site-number", _group(_set(sites=[1])), "A site is a number."),
        ("requires-number", _set(requires=[1]), "A feature's name is a number."),
        ("requires-array", _set(requires=[["a"]]), "A feature's name is an array."),
        ("fingerprint-short", _set(backbone={"fingerprint": "sha256:00"}), "A fingerprint of two digits."),
        ("fingerprint-md5", _set(backbone={"fingerprint": "md5:" + 64 * "0"}), "Another algorithm."),
        ("fingerprint-case", _set(backbone={"fingerprint": "sha256:" + 64 * "A"}), "Upper-case digits."),
        ("data-2-sizes", _task(lambda t: t["data"].update(input_size=[3, 32])), "An input of two dimensions."),
        ("data-channels", _task(lambda t: t["data"].update(mean=[0.5])), "One mean for three channels."),
        ("data-std-0", _task(lambda t: t["data"].update(std=[0.5, 0.0, 0.5])), "A deviation of zero."),
        ("data-size-0", _task(lambda t: t["data"].update(input_size=[3, 0, 32])), "An image without height."),
        ("labels-count-0", _task(lambda t: t["labels"].update(count=0)), "No class names."),
        ("labels-segment-negative", _task(lambda t: t["labels"].update(segment=-1)), "A segment before the first."),
        ("segment-negative", _group(lambda g: g["tensors"]["up"].update(segment=-1)), "A segment before the first."),
        ("data-crop", _task(lambda t: t["data"].update(crop_pct=1.5)), "A crop larger than the image."),
    ):
        yield name, "bad-field", edited(b, change), what, i17
    for name, change, what in (
        ("no-backbone", lambda i: i.pop("backbone"), "No backbone."),
        ("no-tasks", lambda i: i.pop("tasks"), "No tasks."),
        ("no-name", _task(lambda t: t.pop("name")), "A task without a name."),
        ("no-segments", _task(lambda t: t.pop("segments")), "A task without segments."),
        ("no-shape", _group(lambda g: g["tensors"]["up"].pop("shape")), "A tensor without a shape."),
        ("no-mean", _task(lambda t: t["data"].pop("mean")), "Data settings without a mean."),
    ):
        yield name, "missing-field", edited(b, change), what, "item 17"
    for name, change in (
        ("top", _set(extra=1)),
        ("backbone", lambda i: i["backbone"].update(url="")),
        ("task", _task(_set(licence="MIT"))),
        ("segment", _task(lambda t: t["segments"][0].update(offset=0))),
        ("row", _group(lambda g: g["tensors"]["up"].update(dtype="f32"))),
        ("upper-case-x", _set(**{"X-note": 1})),
    ):
        yield f"unknown-field-{name}", "unknown-field", edited(b, change), "A field that is unknown.", "item 17"
    feature = edited(b, _set(requires=["rotation"]))
    yield "requires-unknown", "unknown-feature", feature, "A feature that must be understood.", "item 4: zarr"


def _counts(b: Parts) -> Iterator[Row]:
    i19 = "item 19: ggml"

    def many_groups(index: Json, count: int, sites: int) -> None:
        row = {"shape": [1], "segment": 0}
        names = sorted(f"blocks.*.site{i}" for i in range(sites))
        group = {"method": "replace", "params": {}, "sites": names, "blocks": [0, 10_000], "tensors": {"value": row}}
        index["tasks"][0]["groups"] = [group] * count

    one, several = edited(b, lambda i: many_groups(i, 1, 7)), edited(b, lambda i: many_groups(i, 40, 6))
    yield "tensors-70000", "limit-exceeded", one, "A group of 70,000 tensors.", i19
    yield "tensors-2400000", "limit-exceeded", several, "Groups of 60,000 tensors each, 40 of them.", i19
    task = {"groups": [], "method": "m", "name": "t", "segments": []}
    tasks = with_frame(b, index={"backbone": {}, "tasks": [task] * 4097}, payloads=[], digests=[])
    yield "tasks-4097", "limit-exceeded", tasks, "One task more than allowed.", i19
    long = edited(b, _task(_set(metadata={"a": "b" * 65_537})))
    yield "string-long", "limit-exceeded", long, "A text of 65,537 characters.", "item 17"
    number = edited(b, _group(lambda g: g["tensors"]["up"].update(segment=65_536)))
    yield "segment-65536", "limit-exceeded", number, "A segment number beyond all segments.", "item 18"
    number = edited(b, _task(lambda t: t["labels"].update(segment=65_536)))
    yield "labels-segment-65536", "limit-exceeded", number, "A segment number beyond all segments.", "item 18"


def _names(b: Parts) -> Iterator[Row]:
    i20 = "item 20: zarr node names, DDUF"
    rows: tuple[tuple[str, str, str], ...] = (
        ("empty", "", "A task without a name."),
        ("256", "é" * 128, "A name of 256 bytes."),
        ("dots", "..", "A name that is a path."),
        ("hidden", ".task", "A name that begins with a dot."),
        ("slash", "../../etc/passwd", "A name that is a path."),
        ("backslash", "a\\b", "A name that is a path elsewhere."),
    )
    for name, value, why in rows:
        yield f"task-name-{name}", "bad-name", edited(b, _task(_set(name=value))), why, i20
    codec = edited(b, _task(lambda t: t["segments"][0].update(codec="")))
    yield "codec-name-empty", "bad-name", codec, "A codec without a name.", i20
    for name, change, why in (
        ("method", _task(_set(method="")), "A method without a name."),
        ("group-method", _group(_set(method="")), "A method without a name."),
        ("backbone", _set(backbone={"name": ""}), "A backbone whose name is empty."),
        ("interpolation", _task(lambda t: t["data"].update(interpolation="")), "An interpolation without a name."),
    ):
        yield f"name-empty-{name}", "bad-name", edited(b, change), why, i20
    for i, site in enumerate(("blocks.*.attn..qkv", "blocks.*.attn.qkv[x]", "blocks.*.", "blocks.*." + "a" * 250)):
        yield f"site-{i}", "bad-name", edited(b, _group(_set(sites=[site]))), "No site.", i20
    fields: tuple[tuple[str, Json, str], ...] = (
        ("sites-unsorted", {"sites": ["blocks.*.b", "blocks.*.a"]}, "Sites out of order."),
        ("sites-twice", {"sites": ["blocks.*.a", "blocks.*.a"]}, "A site twice in a group."),
        ("sites-none", {"sites": []}, "No sites."),
        ("sites-without-star", {"sites": ["blocks.0.attn.qkv[q]"]}, "Blocks, but a site without a star."),
        ("sites-two-stars", {"sites": ["blocks.*.*"]}, "Two stars."),
        ("blocks-odd", {"blocks": [0, 2, 4]}, "A range without an end."),
        ("blocks-descending", {"blocks": [2, 0]}, "A range that ends before it begins."),
        ("blocks-touching", {"blocks": [0, 1, 1, 2]}, "Two ranges that are one."),
        ("blocks-negative", {"blocks": [-1, 2]}, "A block before the first."),
        ("blocks-empty", {"blocks": []}, "Blocks, but none."),
    )
    for name, change, why in fields:
        yield name, "bad-field", edited(b, _group(_set(**change))), why, "item 17"
    yield (
        "blocks-10001",
        "limit-exceeded",
        edited(b, _group(_set(blocks=[10_000, 10_001]))),
        "A block too many.",
        "item 18",
    )
    star = edited(b, _group(lambda g: g.pop("blocks")))
    yield "sites-star-without-blocks", "bad-field", star, "A star, but no blocks.", "item 17"
    twice = edited(b, _task(lambda t: t["groups"].append(t["groups"][0])))
    yield "branch-twice", "duplicate-name", twice, "Two equal branches at one site.", "item 13: gguf duplicate tensors"
    i20 = "item 20"
    for name, second in (("tasks-one-name", "é"), ("tasks-one-name-decomposed", "e\u0301")):
        yield name, "duplicate-name", _two_tasks(b, "é", second), "Two tasks of one name.", i20


def _two_tasks(b: Parts, first: str, second: str) -> bytes:
    assert isinstance(b.index, dict)
    tasks = [{**b.index["tasks"][0], "name": name} for name in (first, second)]
    return with_frame(b, index={**b.index, "tasks": tasks}, payloads=b.payloads * 2, digests=b.digests * 2)


def _shapes(b: Parts) -> Iterator[Row]:
    def shaped(shape: list[Any]) -> bytes:
        return edited(b, _group(lambda g: g["tensors"]["up"].update(shape=shape)))

    yield "dimensions-9", "limit-exceeded", shaped([1] * 9), "Nine dimensions.", "item 21: gguf n_dims"
    yield "dimension-0", "bad-field", shaped([0, 1]), "A dimension of zero.", "item 21: safetensors#205, #221, #226"
    yield "dimension-float", "bad-field", shaped([8.0, 1]), "A dimension with a decimal point.", "item 14"
    yield "dimension-true", "bad-field", shaped([8, True]), "A boolean for a dimension.", "item 14"
    wrap = shaped([1 << 32, 1 << 32])
    yield (
        "elements-2-64",
        "limit-exceeded",
        wrap,
        "A product that is 0 in 64 bits.",
        "item 21: gguf dims_product_no_uint64_wraparound",
    )
    wrapped = shaped([(1 << 32) + 1, (1 << 32) - 1, 8])
    yield "elements-wrapped", "limit-exceeded", wrapped, "A product that is small and negative in 64 bits.", "item 21"
    beyond = shaped([(1 << 40) + 1])
    yield "elements-2-40", "limit-exceeded", beyond, "One element more than allowed.", "item 21"


def _together(b: Parts) -> Iterator[Row]:
    i27 = "item 27"
    for name, change, why in (
        ("head-no-weight", _task(lambda t: t["head"].pop("weight")), "A head without a weight."),
        ("head-flat", _task(lambda t: t["head"]["weight"].update(shape=[16])), "A head's weight of one dimension."),
        ("head-bias-3", _task(lambda t: t["head"]["bias"].update(shape=[3])), "A bias for three of two classes."),
        ("head-role", _task(lambda t: t["head"].update(scale={"shape": [2], "segment": 1})), "A role no head has."),
    ):
        yield name, "bad-shape", edited(b, change), why, i27
    three = edited(b, _task(lambda t: t["labels"].update(count=3)))
    yield "labels-3-for-2", "bad-labels", three, "Three class names for two classes.", i27
    headless = edited(b, _task(lambda t: t.pop("head")))
    yield "labels-without-head", "bad-labels", headless, "Class names without a head.", i27
    nothing = edited(b, _task(lambda t: [t.pop("head"), t.pop("labels"), t.update(groups=[], segments=[])]))
    yield "task-of-nothing", "bad-field", nothing, "A task with neither groups nor head.", "item 17"
    i9 = "item 9: safetensors attempts 2 to 4"
    extra = {"bytes": 0, "codec": "raw", "params": {"compression": "none", "dtype": "float32"}}
    for name, change, why in (
        ("segment-missing", _group(lambda g: g["tensors"]["up"].update(segment=9)), "A segment that does not exist."),
        ("segment-unused", _task(lambda t: t["segments"].append(extra)), "A segment that nothing uses."),
        ("segment-shared", _task(lambda t: t["head"]["bias"].update(segment=0)), "Head and adapter in one segment."),
        ("segment-skipped", _task(lambda t: t["segments"][0].update(skip=True)), "A segment used and skipped."),
        ("segment-of-labels", _task(lambda t: t["segments"][0].update(codec="labels")), "Tensors as class names."),
        ("labels-of-tensors", _task(lambda t: t["segments"][2].update(codec="raw")), "Class names as tensors."),
        (
            "labels-skipped",
            _task(lambda t: [t.pop("labels"), t["segments"][2].update(skip=True)]),
            "Class names skipped.",
        ),
    ):
        yield name, "segment-reference", edited(b, change), why, i9


def _methods(b: Parts) -> Iterator[Row]:
    i22, i27 = "item 22", "item 27"
    yield "method-unknown", "unknown-method", edited(b, _group(_set(method="dora"))), "A method that is unknown.", i22
    for name, params in (
        ("missing", {}),
        ("unknown", {"scale": 1.0, "alpha": 16.0}),
        ("int", {"scale": 1}),
        ("null", {"scale": None}),
    ):
        data = edited(b, _group(_set(params=params)))
        yield f"setting-{name}", "bad-parameter", data, f"A scale that is {name}, or another setting.", i22
    rows = {
        "adaptformer-widths": ("adaptformer", {"scale": 1.0}, [2, 8], [6, 2]),
        "adapter-widths": ("adapter", {"scale": 1.0, "tap": "output"}, [2, 8], [6, 2]),
        "lora-ranks": ("lora", {"scale": 1.0}, [2, 8], [8, 3]),
        "lora-flat": ("lora", {"scale": 1.0}, [2, 8], [16]),
    }
    for name, (method, params, down, up) in rows.items():
        tensors = {"down": dense(numbers(*down)), "up": dense(numbers(*up))}
        yield name, "bad-shape", _unchecked(method, params, tensors), "Shapes that do not belong together.", i27
    pair = {"down": dense(numbers(2, 8)), "up": dense(numbers(8, 2))}
    tap = _unchecked("adapter", {"scale": 1.0, "tap": "residual"}, pair)
    yield "adapter-tap", "bad-parameter", tap, "A tap that does not exist.", i22
    biased = _unchecked("adaptformer", {"scale": 1.0}, {**pair, "up_bias": dense(numbers(7))})
    yield "adaptformer-bias", "bad-shape", biased, "A bias of another length.", i27
    weight = {"weight": dense(numbers(8, 2))}
    for name, groups in (("consolidator-3-groups", 3), ("consolidator-0-groups", 0)):
        data = _unchecked("consolidator", {"groups": groups, "reorder": False}, weight)
        yield name, "bad-shape", data, f"{groups} groups of 8 rows.", i27
    number = _unchecked("consolidator", {"groups": 2, "reorder": 0}, weight)
    yield "consolidator-reorder", "bad-parameter", number, "A number where a boolean is due.", i22
    missing = _unchecked("lora", {"scale": 1.0}, {"down": pair["down"]})
    yield "role-missing", "missing-field", missing, "A LoRA without its up matrix.", i27
    unknown = _unchecked("lora", {"scale": 1.0}, {**pair, "down_bias": dense(numbers(2))})
    yield "role-unknown", "unknown-field", unknown, "A LoRA with a bias.", i27


def _unchecked(method: str, params: Json, tensors: Json) -> bytes:
    """A file of one branch that its method would not allow: written as replacements, then renamed."""
    roles = dict(zip(("bias", "value", "weight"), sorted(tensors)))
    stand_in = {role: tensors[name] for role, name in roles.items()}
    parts = take_apart(written(adapter(at("site", "replace", {}, **stand_in)), "fast"))
    assert isinstance(parts.index, dict)
    group = parts.index["tasks"][0]["groups"][0]
    group.update(method=method, params=params, tensors={roles[role]: row for role, row in group["tensors"].items()})
    return parts.build()
