"""The test vectors: package and second reader give what `index.json` promises, and the same; the page tells the truth.

Reads only. Vectors are made by `spec/make_vectors.py`, by hand.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from adapterpack import codebooks
from adapterpack.adapter import Adapter
from adapterpack.codecs import CODECS, labels
from adapterpack.container import deflate, limits
from adapterpack.container.parse import parse_index
from adapterpack.errors import AdapterPackError, CorruptFileError, Reason
from adapterpack.methods import METHODS
from adapterpack.methods._nonlinear import NONLINEARITIES
from adapterpack.packing.bundle import open_bundle
from adapterpack.packing.cross import cross_coded
from adapterpack.packing.encode import encode_task
from adapterpack.packing.join import join
from adapterpack.tensors import Tensor

ROOT = Path(__file__).resolve().parent.parent
SPEC = ROOT / "spec"
FOLDER = SPEC / "vectors"
ROWS: list[dict[str, Any]] = json.loads((FOLDER / "index.json").read_text("utf-8"))
GOOD = [row for row in ROWS if row["result"] == "ok"]
BAD = [row for row in ROWS if row["result"] == "error"]
READER = (
    "reader", "reader_base", "reader_codecs", "reader_given", "reader_index", "reader_methods", "reader_signs",
    "sign_reader",
)  # fmt: skip


def names(rows: list[dict[str, Any]]) -> list[str]:
    return [row["file"] for row in rows]


@pytest.fixture(scope="module")
def second() -> Iterator[dict[str, ModuleType]]:
    """The second reader's modules by name."""
    sys.path.insert(0, str(SPEC))
    try:
        yield {name: importlib.import_module(name) for name in READER}
    finally:
        sys.path.remove(str(SPEC))
        for name in READER:
            sys.modules.pop(name, None)


def data_of(row: dict[str, Any]) -> bytes:
    return (FOLDER / row["file"]).read_bytes()


def read_all(data: bytes) -> list[Adapter]:
    bundle = open_bundle(data)
    return [bundle.read(task) for task in bundle.tasks]


def reason_of(call: Callable[[bytes], Any], data: bytes) -> str | None:
    """Why a reader refuses, None where it does not."""
    try:
        call(data)
    except AdapterPackError as error:
        return str(error.reason)
    except ValueError as error:
        return str(error.reason)  # type: ignore[attr-defined]  # the second reader's FormatError; any other is a bug
    return None


def tensors_of(adapter: Adapter) -> list[tuple[str, str, Tensor]]:
    found = [(str(b.site), role, tensor) for b in adapter.branches for role, tensor in b.tensors.items()]
    head = adapter.head.tensors if adapter.head else {}
    return found + [("head", role, head[role]) for role in sorted(head)]


# --- the index of the vectors


def test_index_lists_every_file_once_with_its_sha256() -> None:
    listed = names(ROWS)
    there = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.apk"))
    assert listed == sorted(set(listed)) == there
    for row in ROWS:
        assert hashlib.sha256(data_of(row)).hexdigest() == row["sha256"], row["file"]
        assert row["why"].endswith("."), row["file"]
        assert len(data_of(row)) <= 4096


def test_folders_hold_only_vectors() -> None:
    assert {path.suffix for path in FOLDER.rglob("*") if path.is_file()} == {".apk", ".json"}


# --- good vectors


@pytest.mark.parametrize("row", GOOD, ids=names(GOOD))
def test_good_vector(row: dict[str, Any], second: dict[str, ModuleType]) -> None:
    data = data_of(row)
    bundle, other = open_bundle(data), second["reader"].read(data)
    assert bundle.digest == row["digest"] == f"sha256:{other['digest']}"
    assert [task["name"] for task in row["tasks"]] == list(bundle.tasks) == [task["name"] for task in other["tasks"]]
    for task, theirs in zip(row["tasks"], other["tasks"]):
        adapter = bundle.read(task["name"])
        assert bundle.task_digest(task["name"]) == task["digest"] == f"sha256:{theirs['digest']}"
        assert adapter.labels == (None if theirs["labels"] is None else tuple(theirs["labels"]))
        mine = tensors_of(adapter)
        assert len(mine) == len(theirs["tensors"])
        for (site, role, tensor), (site2, _, role2, tensor2) in zip(mine, theirs["tensors"]):
            assert (site, role, tensor.shape, tensor.form()) == (site2, role2, tensor2.shape, tensor2.form)
            assert b"".join(tensor.content()) == tensor2.content
            if small(tensor):
                assert tensor.dense().astype("<f4").tobytes() == second["reader"].float32(tensor2)
        sums = [hashlib.sha256(t.dense().astype("<f4").tobytes()).hexdigest() for _, _, t in mine if small(t)]
        assert sums == [value for _, _, value in task["tensors"]]


def small(tensor: Tensor) -> bool:
    return int(np.prod(tensor.shape, dtype=object)) <= 1 << 20


@pytest.mark.parametrize(("name", "each"), [("predictive-signs", 6), ("predictive-codebook", 8)])
def test_decoded_bytes_of_both_readers(name: str, each: int, second: dict[str, ModuleType]) -> None:
    """One pair of 8 units and 96 channels, by the page's formula."""
    params = {"compression": "none", "join": 1, "lam": 40, "pooled": True, "units": "short"}
    shapes = [(8, 96), (96, 8)]
    expected = each * 1536 + 2 * 8 * (48 * 8 + 4 * 96 + 4096) + (1 << 20)
    for codecs in (CODECS, second["reader_codecs"].CODECS):
        assert codecs[name].decoded_bytes(shapes, params) == expected


CANONICAL = [row for row in GOOD if row["writer"]]


@pytest.mark.parametrize("row", CANONICAL, ids=names(CANONICAL))
def test_good_vector_is_written_again(row: dict[str, Any]) -> None:
    bundle = open_bundle(data_of(row))
    is_cross = row["writer"] == "cross-task"
    profile = "small" if is_cross else row["writer"]
    again = join([encode_task(bundle.read(task), profile) for task in bundle.tasks], bundle.backbone)
    assert (cross_coded(again) if is_cross else again) == data_of(row)


def test_every_codec_and_method_has_a_good_vector(second: dict[str, ModuleType]) -> None:
    indexes = [open_bundle(data_of(row)).index for row in GOOD]
    codecs = {segment.codec for index in indexes for task in index.tasks for segment in task.segments}
    methods = {group.method for index in indexes for task in index.tasks for group in task.groups}
    assert codecs >= set(second["reader_codecs"].CODECS) | {"labels"}
    assert methods == set(METHODS) == set(second["reader_methods"].METHODS)
    assert (
        {segment.codec for index in indexes for task in index.tasks for segment in task.segments if segment.given}
        == {name for name, codec in CODECS.items() if codec.takes_given}
        == {name for name, codec in second["reader_codecs"].CODECS.items() if codec.takes_given}
    )
    assert set(second["reader_codecs"].CODECS) == set(CODECS)


# --- bad vectors


@pytest.mark.parametrize("row", BAD, ids=names(BAD))
def test_bad_vector(row: dict[str, Any], second: dict[str, ModuleType]) -> None:
    data = data_of(row)
    with pytest.raises(AdapterPackError) as error:
        read_all(data)
    assert error.value.reason == row["reason"]
    assert error.value.where == row.get("where", error.value.where)
    assert str(error.value).isprintable()
    assert reason_of(second["reader"].read, data) == row["reason"]


def error_rows() -> dict[str, tuple[str, str]]:
    """reason → (class, who shows it) of spec/errors.md."""
    page = (SPEC / "errors.md").read_text("utf-8")
    return {m[1]: (m[2], m[3]) for m in re.finditer(r"^\| `([a-z-]+)` \| ([^|]+?) \| ([^|]+?) \|", page, re.M)}


def test_every_reason_has_a_row_and_every_reason_of_a_file_a_vector() -> None:
    rows = error_rows()
    assert set(rows) == {reason.value for reason in Reason}
    of_files = {reason for reason, (_, shown) in rows.items() if shown == "file"}
    assert of_files == {row["reason"] for row in BAD}


def test_the_page_names_the_class_that_is_raised() -> None:
    rows = error_rows()
    for row in BAD:
        with pytest.raises(AdapterPackError) as error:
            read_all(data_of(row))
        assert type(error.value).__name__ in rows[row["reason"]][0], row["file"]


def test_the_page_names_every_class_of_a_reason() -> None:
    rows, raised = error_rows(), set()
    for path in (ROOT / "adapterpack").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("Error"):
                words = [ast.unparse(given) for given in call.args]
                raised |= {(word, ast.unparse(call.func)) for word in words if word.startswith("Reason.")}
    assert len(raised) > 50
    for word, kind in sorted(raised):
        assert kind in rows[Reason[word[7:]].value][0].replace(",", " ").split(), word


# --- every damage is seen


@pytest.mark.parametrize("name", ["good/worked-example.apk", "good/head-only.apk"])
def test_every_flipped_bit_is_refused(name: str, second: dict[str, ModuleType]) -> None:
    data = bytearray((FOLDER / name).read_bytes())
    for i in range(8 * len(data)):
        data[i // 8] ^= 1 << i % 8
        mine, theirs = reason_of(read_all, bytes(data)), reason_of(second["reader"].read, bytes(data))
        assert mine is not None and mine == theirs, f"bit {i}"
        data[i // 8] ^= 1 << i % 8


@pytest.mark.parametrize("name", ["good/worked-example.apk", "good/everything.apk"])
def test_every_truncation_is_refused(name: str, second: dict[str, ModuleType]) -> None:
    data = (FOLDER / name).read_bytes()
    for size in range(len(data)):
        assert reason_of(read_all, data[:size]) == reason_of(second["reader"].read, data[:size]) == "truncated"


def test_swapped_payloads_are_refused(second: dict[str, ModuleType]) -> None:
    """Checksums of both parts fit somewhere, but not where they are."""
    data = (FOLDER / "good/worked-example.apk").read_bytes()
    swapped = data[:-32] + data[-16:] + data[-32:-16]
    assert reason_of(read_all, swapped) == reason_of(second["reader"].read, swapped) == "checksum-mismatch"


# --- limits, at and one past


def index_text(**task: Any) -> dict[str, Any]:
    row = {"segment": 0, "shape": [1]}
    groups = [{"method": "replace", "params": {}, "sites": ["a"], "tensors": {"value": row}}]
    segment = {"bytes": 4, "codec": "raw", "params": {"compression": "none", "dtype": "float32"}}
    return {"backbone": {}, "tasks": [{"groups": groups, "method": "m", "name": "t", "segments": [segment], **task}]}


def group_text(blocks: list[int], sites: list[str], shape: list[int]) -> dict[str, Any]:
    rows = {"value": {"segment": 0, "shape": shape}}
    where = {"blocks": blocks} if blocks else {}
    return index_text(groups=[{"method": "replace", "params": {}, "sites": sites, "tensors": rows, **where}])


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else 1


def many_tasks(count: int) -> dict[str, Any]:
    task = index_text()["tasks"][0]
    return {"backbone": {}, "tasks": [{**task, "name": str(i)} for i in range(count)]}


def given_tasks(count: int) -> dict[str, Any]:
    index = {**many_tasks(count + 1), "requires": ["cross-task"]}
    *before, last = index["tasks"]
    given = {**last["segments"][0], "given": [task["name"] for task in before]}
    return {**index, "tasks": [*before, {**last, "segments": [given]}]}


STAR = ["blocks.*.a"]
WIDE = sorted(f"blocks.*.s{i:05}" for i in range(13_107))  # 5 · 13,107 = 65,535

LIMITS: dict[str, tuple[Any, Any, str]] = {
    "depth": (index_text(metadata={"a": nested(12)}), index_text(metadata={"a": nested(13)}), "too-deep"),
    "dimensions": (group_text([], ["a"], [1] * 8), group_text([], ["a"], [1] * 9), "limit-exceeded"),
    "elements": (group_text([], ["a"], [1 << 20, 1 << 20]), group_text([], ["a"], [(1 << 40) + 1]), "limit-exceeded"),
    "name": (index_text(name="é" * 127 + "a"), index_text(name="é" * 128), "bad-name"),
    "string": (index_text(metadata={"a": "b" * 65_536}), index_text(metadata={"a": "b" * 65_537}), "limit-exceeded"),
    "integer": (
        index_text(metadata={"a": (1 << 53) - 1}),
        index_text(metadata={"a": 1 << 53}),
        "bad-number",
    ),
    "blocks": (group_text([0, 10_000], STAR, [1]), group_text([1, 10_001], STAR, [1]), "limit-exceeded"),
    "tensors": (group_text([0, 5], WIDE, [1]), group_text([0, 5], [*WIDE, "blocks.*.t"], [1]), "limit-exceeded"),
    "tasks": (many_tasks(4096), many_tasks(4097), "limit-exceeded"),
    "site": (group_text([], ["a" * 255], [1]), group_text([], ["a" * 256], [1]), "bad-name"),
    "given": (given_tasks(64), given_tasks(65), "limit-exceeded"),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limit_at_and_one_past(name: str, second: dict[str, ModuleType]) -> None:
    at, past = (json.dumps(value, ensure_ascii=False).encode() for value in LIMITS[name][:2])
    reason = LIMITS[name][2]
    for parse in (parse_index, second["reader_index"].parse_index):
        assert reason_of(parse, at) is None
        assert reason_of(parse, past) == reason


def test_decoded_bytes_at_and_one_below() -> None:
    data = (FOLDER / "good/head-only.apk").read_bytes()
    need = 4 * (3 * 8 + 3)
    open_bundle(data, limits.Limits(need)).read()
    with pytest.raises(CorruptFileError) as error:
        open_bundle(data, limits.Limits(need - 1)).read()
    assert error.value.reason == "limit-exceeded"


def test_limits_of_both_readers_are_those_of_the_page(second: dict[str, ModuleType]) -> None:
    page = (SPEC / "README.md").read_text("utf-8")
    index, reader, given = second["reader_index"], second["reader"], second["reader_given"]
    pairs = {
        "index, inflated": (limits.INDEX_BYTES, reader.INDEX),
        "head": (limits.HEAD_BYTES, reader.HEAD),
        "tasks": (limits.TASKS, index.TASKS),
        "tensors": (limits.TENSORS, index.TENSORS),
        "segments": (limits.SEGMENTS, index.SEGMENTS),
        "tasks that a segment is given": (limits.GIVEN, given.GIVEN),
        "dimensions of a tensor": (limits.DIMENSIONS, index.DIMENSIONS),
        "elements of a tensor": (limits.ELEMENTS, index.ELEMENTS),
        "a name": (limits.NAME_BYTES, index.NAME),
        "any other text": (limits.STRING_BYTES, index.STRING),
        "nesting": (limits.JSON_DEPTH, index.DEPTH),
        "an integer": (limits.INTEGER, index.INTEGER),
        "a task, decoded": (limits.DECODED_BYTES, reader.DECODED),
    }
    for what, (mine, theirs) in pairs.items():
        assert mine == theirs
        assert re.search(rf"^\| {re.escape(what)} \| {mine:,} ", page, re.M), what


# --- the page


def test_dictionary_and_codebooks_beside_the_page() -> None:
    page = (SPEC / "README.md").read_text("utf-8")
    dictionary = (SPEC / "dictionary.bin").read_bytes()
    assert dictionary == deflate.DICTIONARY
    assert hashlib.sha256(dictionary).hexdigest() in page and f"{len(dictionary):,} bytes" in page
    tables = json.loads((SPEC / "codebooks.json").read_text("ascii"))
    assert {(name, int(bits)) for name, rows in tables.items() for bits in rows} == {
        (name, bits) for name in tables for bits in range(1, 9) if codebooks.is_codebook(name, bits)
    }
    for name, rows in tables.items():
        for bits, words in rows.items():
            half = np.array([int(word, 16) for word in words.split()], np.uint32).view(np.float32)
            assert np.concatenate([-half[::-1], half]).tobytes() == codebooks.levels_of(name, int(bits)).tobytes()


def test_worked_example_of_the_page() -> None:
    page = (SPEC / "README.md").read_text("utf-8").split("## A worked file")[1]
    rows = re.findall(r"^\| (\d+) \| (\d+) \| `([0-9a-f ]+)`", page, re.M)
    data = (FOLDER / "good/worked-example.apk").read_bytes()
    at = 0
    for start, size, digits in rows:
        assert int(start) == at and len(bytes.fromhex(digits)) == int(size)
        assert data[at : at + int(size)] == bytes.fromhex(digits), f"byte {at}"
        at += int(size)
    assert at == len(data)
    text = deflate.decompress(data[28:86], 378).decode()
    assert text in page
    assert open_bundle(data).digest.removeprefix("sha256:") in page


def test_digest_of_the_worked_example_by_hand() -> None:
    """The page's recipe, spelled out: nothing of the package but the expected value."""
    page = (SPEC / "README.md").read_text("utf-8").split("## A worked file")[1]
    description = next(line for line in page.splitlines() if line.startswith('{"data":null'))
    tensor = bytes.fromhex("38 0000803e 000000be")
    found = hashlib.sha256(b"adapterpack digest 1\n" + description.encode() + b"\n" + 4 * tensor).hexdigest()
    assert found == ROWS[names(ROWS).index("good/worked-example.apk")]["digest"].removeprefix("sha256:")


# --- the second reader is what it claims to be


def test_second_reader_imports_the_standard_library_only() -> None:
    allowed = {*sys.stdlib_module_names, *READER, "compression"}
    for name in READER:
        tree = ast.parse((SPEC / f"{name}.py").read_text("utf-8"))
        for node in ast.walk(tree):
            roots = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            roots += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for root in roots:
                assert root.split(".")[0] in allowed | ({"zstandard"} if name == "reader_base" else set()), (name, root)


def run(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, check=True, cwd=ROOT, env={**os.environ, **environment}
    )
    return done.stdout.decode()


def test_second_reader_runs_without_any_installed_package() -> None:
    out = run("-S", "spec/reader.py", "spec/vectors/good/everything.apk", PYTHONPATH="", PYTHONIOENCODING="utf-8")
    assert json.loads(out)["tasks"][0]["labels"] == ["Bär", "ねこ", "گل\u200cسرخ"]


@pytest.mark.parametrize(("words", "told"), [([], "usage: "), (["none.apk"], "error: ")])
def test_second_reader_says_what_it_lacks(words: list[str], told: str) -> None:
    done = subprocess.run([sys.executable, "spec/reader.py", *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and done.stderr.startswith(told) and done.stderr.count("\n") == 1


def test_same_bytes_in_every_process() -> None:
    code = (
        "import sys, hashlib; sys.path[:0] = ['spec', '.']; import vectors_good as v, vectors_signs as w, "
        "vectors_cross as c, vectors_top as t; "
        "every = (*v.good(), *w.good_signs(), *c.good_cross(), *t.good_top()); "
        "print(hashlib.sha256(b''.join(x.data for x in every)).hexdigest())"
    )
    sums = {run("-c", code, PYTHONHASHSEED=seed) for seed in ("0", "1", "4242")}
    assert len(sums) == 1


def test_worked_examples_of_the_codecs_page(second: dict[str, ModuleType]) -> None:
    """Each example's bytes stand in the page and decode to the weights that it names."""
    page = (SPEC / "codecs.md").read_text("utf-8")
    raw = {"compression": "none", "dtype": "float32"}
    coded = {"compression": "none", "group": 0, "levels": "unit", "offset": False, "scale": "float32"}
    three = {**coded, "bits": 3, "levels": "normal-l1", "offset": True, "scale": "float16"}
    levels, two = codebooks.levels_of("normal-l1", 3), codebooks.levels_of("normal-l1", 2)
    entries = {"compression": "none", "entries": 2, "values": {"codec": "raw", **raw}}
    board = {**coded, "join": 1, "lam": 1, "pooled": False, "units": "rows"}
    rows: tuple[tuple[str, str, dict[str, Any], tuple[int, ...], list[float]], ...] = (
        ("03 78 80 00  03 00 01 00", "raw", {"compression": "zstd", "dtype": "float16"}, (3,), [1, -2, 0]),
        ("0B  00 00 00 3F", "signs", coded, (5,), [0.5, 0.5, -0.5, 0.5, -0.5]),
        ("D1 58  00 3C  00 BC", "codebook", three, (5,), [float(levels[c] - np.float32(1)) for c in range(1, 6)]),
        ("02 00 00 00  00  01  0A  00 00 80 3F 00 00 00 40", "sparse", entries, (8,), [0, 1, 0, 2, 0, 0, 0, 0]),
        (
            "08  66 66 66 66 1E EC 57 5A  00 00 00 3F", "predictive-signs", board, (16, 6),
            [0.5 if (i + j) % 2 else -0.5 for i in range(16) for j in range(6)],
        ),
        (
            f"08  66 66 66 66 1E EC 57 5A  {' '.join(12 * ['FF'])}  00 00 00 3F", "predictive-codebook",
            {**board, "bits": 2, "levels": "normal-l1"}, (16, 6),
            [float(two[3 if (i + j) % 2 else 1]) / 2 for i in range(16) for j in range(6)],
        ),
    )  # fmt: skip
    for digits, codec, params, shape, expected in rows:
        assert f"`{digits}`" in page.replace("\n", " "), digits
        payload = bytes.fromhex(digits)
        mine = CODECS[codec].decode(memoryview(payload), [shape], params)[0]
        theirs = second["reader_codecs"].CODECS[codec].decode(payload, [shape], params)[0]
        assert mine.dense().reshape(-1).tolist() == expected
        assert second["reader"].float32(theirs) == mine.dense().tobytes()
        assert CODECS[codec].encode([mine], params) == payload
    assert labels.decode(memoryview(bytes.fromhex("07 07 63 61 74 0A 64 6F 67")), 2) == ("cat", "dog")


@pytest.mark.parametrize("name", [*CODECS, "labels"])
def test_every_codec_has_a_section(name: str) -> None:
    assert f"\n## {name}\n" in (SPEC / "codecs.md").read_text("utf-8")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_section_with_its_roles_and_settings(name: str) -> None:
    page = (SPEC / "methods.md").read_text("utf-8")
    section = re.split(r"^## ", page.split(f"\n## {name}\n")[1], flags=re.M)[0]
    method = METHODS[name]
    listed = set(re.findall(r"^\| `([a-z_]+)` \|", section, re.M))
    if name != "replace":  # its table is that of `sparse`
        assert listed == {*method.roles.order, *method.settings}


def test_the_page_and_both_readers_know_the_same_nonlinearities(second: dict[str, ModuleType]) -> None:
    section = (SPEC / "methods.md").read_text("utf-8").split("\n## Nonlinearities\n")[1].split("\n## ")[0]
    listed = tuple(re.findall(r"^\| `([a-z_]+)` \|", section, re.M))
    assert listed == tuple(NONLINEARITIES) == second["reader_methods"].NONLINEARITIES
