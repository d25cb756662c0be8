"""A second reader of the format, written from spec/README.md alone with the standard library.

`python spec/reader.py FILE` prints what a file holds as JSON. Its purpose is to show that the page is complete: it
accepts and refuses the same files as the package, for the same reasons. zstd is in the standard library from Python
3.14; before that, files that use it need the module `zstandard`.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

from reader_base import FormatError, Shape, Tensor, fail, numel
from reader_codecs import CODECS, labels_decode
from reader_given import Key, last_uses, signs_of
from reader_index import Json, at_most, dumps, parse_index, rows_of, shapes_of
from reader_methods import check_group

MAGIC = b"\x89APK\r\n\x1a\n"
FIXED = struct.Struct("<8sBBHIIII")
DICTIONARY = Path(__file__).with_name("dictionary.bin").read_bytes()
HEAD, INDEX, DECODED = 4 << 20, 1 << 20, 4 << 30
MANGLED = (b"\x89APK\n", b"\x89APK\r\r", b"\x89APK\r\n\x1a\r", b"\xc2\x89APK", b"\xef\xbf\xbdAPK", b"\x09APK", b"?APK")
OTHERS = (b"PK", b"GGUF", b"\x80", b"version https://git-lfs", b"<")


def read(data: bytes) -> Json:
    """Everything in a file.

    Returns:
        {"version", "backbone", "digest", "tasks": [{"name", "method", "digest", "tensors", "labels", …}]};
        `tensors` is a list of (site, method, role, Tensor) in file order.

    Raises:
        FormatError: with the reason of spec/errors.md.
    """
    version, text, table, start = _head(data)
    index = parse_index(text)
    counts = [len(task["segments"]) for task in index["tasks"]]
    if len(table) != 4 * sum(counts) + 32 * len(counts):
        fail("head-size", "the table does not fit the index", "byte 12")
    end = start + sum(segment["bytes"] for task in index["tasks"] for segment in task["segments"])
    if end != len(data):
        fail("truncated" if end > len(data) else "trailing-bytes", f"{len(data)} bytes, expected {end}", f"byte {end}")
    checksums = list(struct.unpack_from(f"<{sum(counts)}I", table))
    digests = [table[i : i + 32] for i in range(4 * sum(counts), len(table), 32)]
    tasks = []
    uses, kept = last_uses(index["tasks"]), dict[Key, list[Tensor]]()
    for i, task in enumerate(index["tasks"]):
        payloads = []
        for segment in task["segments"]:
            payloads.append(data[start : start + segment["bytes"]])
            start += segment["bytes"]
        found, segments = _task(task, payloads, checksums[: counts[i]], digests[i], f"index.tasks[{i}]", kept)
        tasks.append(found)
        checksums = checksums[counts[i] :]
        kept |= {(task["name"], number): tensors for number, tensors in enumerate(segments)}
        kept = {key: tensors for key, tensors in kept.items() if uses.get(key, 0) > i}
    whole = digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()
    return {"version": version, "backbone": index["backbone"], "digest": whole.hex(), "tasks": tasks}


def _head(data: bytes) -> tuple[str, bytes, bytes, int]:
    """(version, index text, table, where the payloads start)."""
    _magic(data)
    if len(data) < FIXED.size:
        fail("truncated", "shorter than the fixed part", "byte 0")
    _, major, minor, flags, head, stored, size, checksum = FIXED.unpack_from(data)
    _version(major, minor)
    if flags:
        fail("reserved-bits", "flags are not zero", "byte 10")
    at_most(head, HEAD, "byte 12")
    at_most(size, INDEX, "byte 20")
    if FIXED.size + stored > head or (head - FIXED.size - stored) % 4:
        fail("head-size", "the head cannot hold its index", "byte 12")
    if head > len(data):
        fail("truncated", "the file ends within its head", "byte 12")
    if zlib.crc32(data[28:head], zlib.crc32(data[:24])) != checksum:
        fail("checksum-mismatch", "the head does not match its checksum", "byte 24")
    text = _inflate(data[28 : 28 + stored], size)
    return f"{major}.{minor}", text, data[28 + stored : head], head


def _version(major: int, minor: int) -> None:
    if major == 0:
        fail("bad-version", "version 0", "byte 8")
    if major > 1:
        fail("newer-version", f"version {major}.{minor}, this reader knows 1.x", "byte 8")


def _inflate(stored: bytes, size: int) -> bytes:
    inflater = zlib.decompressobj(wbits=-15, zdict=DICTIONARY)
    try:
        text = inflater.decompress(stored, size + 1)
    except zlib.error as error:
        fail("index-compression", str(error), "byte 28")
    if len(text) != size or not inflater.eof or inflater.unused_data:
        fail("index-compression", "the index has another size", "byte 28")
    return text


def _magic(data: bytes) -> None:
    if data[:8] == MAGIC:
        return
    if MAGIC.startswith(data[:8]):
        fail("truncated", "the file ends within its magic", "byte 0")
    if data.startswith(MANGLED):
        fail("mangled-magic", "changed by a text-mode transfer", "byte 0")
    if data.startswith(OTHERS) or data[8:9] == b"{":
        fail("other-format", "a file of another format", "byte 0")
    fail("bad-magic", "not an adapterpack file", "byte 0")


def _task(
    task: Json, payloads: list[bytes], checksums: list[int], digest: bytes, where: str, kept: dict[Key, list[Tensor]]
) -> tuple[Json, list[list[Tensor]]]:
    """What a task holds, and its tensors by segment. `kept`: the segments of earlier tasks that are given to it."""
    for i, (payload, checksum) in enumerate(zip(payloads, checksums)):
        if zlib.crc32(payload) != checksum:
            fail("checksum-mismatch", f"segment {i} does not match its checksum", f"{where}.segments[{i}]")
    for i, group in enumerate(task["groups"]):
        check_group(group, f"{where}.groups[{i}]")
    rows, shapes = rows_of(task), shapes_of(task)
    forms = _forms(task, shapes, where, sum(len(tensor.content) for tensors in kept.values() for tensor in tensors))
    decoded: list[list[Tensor]] = []
    for i, segment in enumerate(task["segments"]):
        plain, place = forms[i] is None, f"{where}.segments[{i}]"
        given = [_given(kept[name, i], f"{place}.given") for name in segment.get("given", ())]
        decoded.append([] if plain else _decode(segment, payloads[i], shapes[i], given, place))
    labels = None
    if "labels" in task:
        number = task["labels"]["segment"]
        labels = _placed(f"{where}.segments[{number}]", labels_decode, payloads[number], task["labels"]["count"])
    queues = [iter(tensors) for tensors in decoded]
    tensors = [(site, method, role, next(queues[number])) for site, method, role, _, number in rows]
    sha = hashlib.sha256(b"adapterpack digest 1\n" + _description(task, forms, labels) + b"\n")
    for *_, tensor in tensors:
        sha.update(tensor.content)
    if sha.digest() != digest:
        fail("digest-mismatch", "the content does not match the digest", where)
    named = {name: task.get(name) for name in ("name", "method", "data", "metadata")}
    return {**named, "labels": labels, "digest": digest.hex(), "tensors": tensors}, decoded


def _forms(task: Json, shapes: list[list[Shape]], where: str, decoded: int) -> list[Json | None]:
    """The form of each segment's tensors; None for class names and skipped segments."""
    forms: list[Json | None] = []
    for i, segment in enumerate(task["segments"]):
        place, params, name = f"{where}.segments[{i}]", segment["params"], segment["codec"]
        forms.append(None)
        if name == "labels" and params:
            fail("bad-parameter", "class names have no parameters", place)
        if segment.get("skip"):
            continue
        if name not in (*CODECS, "labels"):
            fail("unknown-codec", f"the codec {name} is unknown", place)
        if "given" in segment and (name == "labels" or not CODECS[name].takes_given):
            fail("bad-field", f"{name} uses no given tasks", f"{place}.given")
        if name == "labels":
            continue
        forms[i] = _placed(place, CODECS[name].form, params)
        if CODECS[name].payload_bytes(shapes[i], params) not in (None, segment["bytes"]):
            fail("payload-size", "the payload has another size", place)
        decoded += CODECS[name].decoded_bytes(shapes[i], params)
        at_most(decoded, DECODED, where)
    return forms


def _given(tensors: list[Tensor], where: str) -> list[bytes]:
    """The packed signs of one given segment."""
    signs = signs_of(tensors)
    if signs is None:
        fail("segment-reference", "a given segment holds no signs", where)
    return signs


def _decode(segment: Json, payload: bytes, shapes: list[Shape], given: list[list[bytes]], where: str) -> list[Tensor]:
    extra = [given] if given else []
    return _placed(where, CODECS[segment["codec"]].decode, payload, shapes, segment["params"], *extra)


def _placed(where: str, function: Any, *arguments: Any) -> Any:
    """The function's result, its errors given their place."""
    try:
        return function(*arguments)
    except FormatError as error:
        raise FormatError(error.reason, error.where or where, error.message) from None


def _description(task: Json, forms: list[Json | None], labels: list[str] | None) -> bytes:
    def rows(tensors: Json) -> Json:
        return {role: {"form": forms[row["segment"]], "shape": row["shape"]} for role, row in tensors.items()}

    groups = [{**group, "tensors": rows(group["tensors"])} for group in task["groups"]]
    return dumps({"data": task.get("data"), "groups": groups, "head": rows(task.get("head", {})), "labels": labels})


def float32(tensor: Tensor) -> bytes:
    """The tensor's values, zeros of a sparse one written out: float32, little-endian, row-major."""
    values = tensor.values
    if tensor.positions is not None:
        values = [0.0] * numel(tensor.shape)
        for position, value in zip(tensor.positions, tensor.values):
            values[position] = value
    return struct.pack(f"<{len(values)}f", *values)


def summary(found: Json) -> Json:
    """The same without the numbers: the SHA-256 of each tensor's float32 values in their place."""

    def row(site: str, method: str, role: str, tensor: Tensor) -> Json:
        values = hashlib.sha256(float32(tensor)).hexdigest()
        return {
            "site": site,
            "method": method,
            "role": role,
            "shape": tensor.shape,
            "form": tensor.form,
            "sha256": values,
        }

    return {**found, "tasks": [{**t, "tensors": [row(*r) for r in t["tensors"]]} for t in found["tasks"]]}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python reader.py FILE")
    try:
        print(json.dumps(summary(read(Path(sys.argv[1]).read_bytes())), indent=1, ensure_ascii=False))
    except (FormatError, OSError) as problem:
        sys.exit(f"error: {problem}")
