"""The index of spec/README.md: strict JSON, then every field checked, alone and with the others.

Part of the second reader; standard library only, imports nothing of the package.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from typing import Any

import reader_given
from reader_base import STEERING, Shape, fail, numel

DEPTH, STRING, NAME, TASKS, TENSORS, SEGMENTS = 16, 65_536, 255, 4096, 65_535, 65_535
DIMENSIONS, ELEMENTS, INTEGER, BLOCKS = 8, 1 << 40, (1 << 53) - 1, 10_000
SITE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.([A-Za-z_][A-Za-z0-9_]*|0|[1-9][0-9]{0,3}))*(\[[qkv]\])?")
Json = dict[str, Any]

# field: type, "?" where it may be absent
INDEX = {"backbone": dict, "tasks": list, "requires?": list}
BACKBONE = {"name?": str, "fingerprint?": str}
TASK = {"name": str, "method": str, "groups": list, "segments": list}
TASK |= {"head?": dict, "labels?": dict, "data?": dict, "metadata?": dict}
SEGMENT = {"bytes": int, "codec": str, "params": dict, "skip?": bool, "given?": list}
GROUP = {"method": str, "params": dict, "sites": list, "tensors": dict, "blocks?": list}
ROW = {"shape": list, "segment": int}
LABELS = {"count": int, "segment": int}
DATA = {"crop_mode": str, "crop_pct": float, "input_size": list, "interpolation": str, "mean": list, "std": list}


# --- JSON ---------------------------------------------------------------------------------------------------------


def dumps(value: Any) -> bytes:
    """The canonical spelling."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def loads(data: bytes) -> Any:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        fail("index-encoding", "the index is not UTF-8", "index")
    if text.startswith("\ufeff"):
        fail("index-encoding", "the index begins with a byte-order mark", "index")
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_no_number
        )
    except json.JSONDecodeError as error:
        fail("index-syntax", str(error), "index")
    except RecursionError:
        fail("too-deep", "the index is nested too deeply", "index")
    _walk(value, 1)
    return value


def _object(pairs: list[tuple[str, Any]]) -> Json:
    if len({name for name, _ in pairs}) != len(pairs):
        fail("duplicate-key", "a key is given twice", "index")
    return dict(pairs)


def _integer(text: str) -> int:
    if len(text) > 17 or text == "-0" or abs(int(text)) > INTEGER:
        _no_number(text)
    return int(text)


def _float(text: str) -> float:
    if not math.isfinite(float(text)):
        _no_number(text)
    return float(text)


def _no_number(text: str) -> None:
    fail("bad-number", f"{text[:20]} is out of range or no number", "index")


def _walk(value: Any, depth: int) -> None:
    """Depth and strings. An object or array may lie in at most 15 others."""
    if isinstance(value, str):
        if len(value) > STRING:
            fail("limit-exceeded", "a string is too long", "index")
        if set(map(ord, value)) & STEERING:
            fail("bad-name", "a string holds a control character or a surrogate", "index")
    if isinstance(value, (dict, list)):
        if depth > DEPTH:
            fail("too-deep", "the index is nested too deeply", "index")
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            _walk(item, depth + 1)


# --- fields -------------------------------------------------------------------------------------------------------


def take(value: Any, kinds: dict[str, type], where: str) -> Json:
    """The known fields of an object, each of its type; unknown ones only where their name begins with x-."""
    if type(value) is not dict:
        fail("bad-field", "expected an object", where)
    found = {}
    for key, kind in kinds.items():
        name = key.rstrip("?")
        if name in value:
            if type(value[name]) is not kind:
                fail("bad-field", f"{name} is no {kind.__name__}", where)
            found[name] = value[name]
        elif name == key:
            fail("missing-field", f"{name} is missing", where)
    for name in value:
        if name not in found and not name.startswith("x-"):
            fail("unknown-field", f"unknown field {name}", where)
    return found


def at_most(value: int, limit: int, where: str) -> None:
    if value > limit:
        fail("limit-exceeded", f"{value} where at most {limit} is allowed", where)


def check_names(found: Json, names: tuple[str, ...], where: str) -> None:
    for name in names:
        if name in found and not 0 < len(found[name].encode()) <= NAME:
            fail("bad-name", f"{name} has {len(found[name].encode())} bytes", where)


def check_counts(values: list[Any], least: int, where: str) -> None:
    if any(type(value) is not int or value < least for value in values):
        fail("bad-field", f"expected integers from {least}", where)


def parse_index(text: bytes) -> Json:
    """The index with every rule of the page checked that needs no payload, no codec and no method."""
    top = loads(text)
    reader_given.check_requires(top)
    index = take(top, INDEX, "index")
    backbone = take(index["backbone"], BACKBONE, "index.backbone")
    check_names(backbone, ("name",), "index.backbone")
    if not re.fullmatch("sha256:[0-9a-f]{64}", backbone.get("fingerprint", "sha256:" + 64 * "0")):
        fail("bad-field", "a fingerprint is sha256: and 64 digits", "index.backbone.fingerprint")
    if not index["tasks"]:
        fail("bad-field", "the file holds no task", "index.tasks")
    at_most(len(index["tasks"]), TASKS, "index.tasks")
    tasks = [_task(task, f"index.tasks[{i}]") for i, task in enumerate(index["tasks"])]
    at_most(sum(site_count(g) * len(g["tensors"]) for t in tasks for g in t["groups"]), TENSORS, "index.tasks")
    at_most(sum(len(task["segments"]) for task in tasks), SEGMENTS, "index.tasks")
    for i, task in enumerate(tasks):
        _check_task(task, f"index.tasks[{i}]")
    if len({unicodedata.normalize("NFC", task["name"]) for task in tasks}) != len(tasks):
        fail("duplicate-name", "two tasks have one name", "index.tasks")
    reader_given.check_given(tasks, [shapes_of(task) for task in tasks], index.get("requires", []))
    return {"backbone": backbone, "tasks": tasks}


def _task(value: Any, where: str) -> Json:
    task = take(value, TASK, where)
    check_names(task, ("name", "method"), where)
    if "/" in task["name"] or "\\" in task["name"] or task["name"].startswith("."):
        fail("bad-name", "a task's name may not look like a path", f"{where}.name")
    task["segments"] = [_segment(s, f"{where}.segments[{i}]") for i, s in enumerate(task["segments"])]
    task["groups"] = [_group(g, f"{where}.groups[{i}]") for i, g in enumerate(task["groups"])]
    if "head" in task:
        task["head"] = _rows(task["head"], f"{where}.head")
    if "labels" in task:
        task["labels"] = take(task["labels"], LABELS, f"{where}.labels")
        check_counts([task["labels"]["count"]], 1, f"{where}.labels")
        check_counts([task["labels"]["segment"]], 0, f"{where}.labels")
        at_most(task["labels"]["segment"], SEGMENTS, f"{where}.labels")
    if "data" in task:
        task["data"] = _data(task["data"], f"{where}.data")
    return task


def _segment(value: Any, where: str) -> Json:
    segment = take(value, SEGMENT, where)
    check_names(segment, ("codec",), where)
    check_counts([segment["bytes"]], 0, where)
    reader_given.check_names(segment, f"{where}.given")
    return segment


def _rows(value: Json, where: str) -> Json:
    rows = {}
    for role in sorted(value):
        row = rows[role] = take(value[role], ROW, f"{where}.{role}")
        check_counts(row["shape"], 1, f"{where}.{role}.shape")
        at_most(len(row["shape"]), DIMENSIONS, f"{where}.{role}.shape")
        at_most(numel(tuple(row["shape"])), ELEMENTS, f"{where}.{role}.shape")
        check_counts([row["segment"]], 0, f"{where}.{role}.segment")
        at_most(row["segment"], SEGMENTS, f"{where}.{role}.segment")
    if not rows:
        fail("bad-field", "no tensors", where)
    return rows


def _group(value: Any, where: str) -> Json:
    group = take(value, GROUP, where)
    check_names(group, ("method",), where)
    group["tensors"] = _rows(group["tensors"], f"{where}.tensors")
    blocks, sites = group.get("blocks"), group["sites"]
    check_counts(blocks or [], 0, f"{where}.blocks")
    if blocks is not None and (not blocks or blocks != sorted(set(blocks)) or len(blocks) % 2):
        fail("bad-field", "no ascending ranges", f"{where}.blocks")
    if not sites or not all(isinstance(site, str) for site in sites) or sites != sorted(set(sites)):
        fail("bad-field", "no ascending list of names", f"{where}.sites")
    for site in sites:
        if site.startswith("blocks.*.") != (blocks is not None) or site.count("*") > 1:
            fail("bad-field", "a site does not agree with the blocks", f"{where}.sites")
        if len(site) > NAME or not SITE.fullmatch(site.replace("*", "0") if blocks else site):
            fail("bad-name", f"{site[:40]} is no site", f"{where}.sites")
    at_most(blocks[-1] if blocks else 0, BLOCKS, f"{where}.blocks")
    at_most(site_count(group) * len(group["tensors"]), TENSORS, where)
    return group


def _data(value: Any, where: str) -> Json:
    data = take(value, DATA, where)
    check_names(data, ("crop_mode", "interpolation"), where)
    check_counts(data["input_size"], 1, where)
    if any(not data[name] or any(type(v) is not float for v in data[name]) for name in ("mean", "std")):
        fail("bad-field", "mean and std are lists of decimal numbers", where)
    size, mean, std = data["input_size"], data["mean"], data["std"]
    if len(size) != 3 or not len(mean) == len(std) == size[0] or min(std) <= 0 or not 0 < data["crop_pct"] <= 1:
        fail("bad-field", "data settings disagree", where)
    return data


# --- what the fields say together ---------------------------------------------------------------------------------


def block_numbers(group: Json) -> list[int]:
    blocks = group.get("blocks", [])
    return [n for start, stop in zip(blocks[::2], blocks[1::2]) for n in range(start, stop)]


def site_count(group: Json) -> int:
    blocks = group.get("blocks", [])
    return len(group["sites"]) * (sum(blocks[1::2]) - sum(blocks[::2]) if blocks else 1)


def expand(group: Json) -> list[str]:
    """The sites in file order."""
    if "blocks" not in group:
        return list(group["sites"])
    return [site.replace("*", str(n)) for n in block_numbers(group) for site in group["sites"]]


def rows_of(task: Json) -> list[tuple[str, str, str, Shape, int]]:
    """Every tensor in file order: (site, method, role, shape, segment); the head's have the site "head"."""
    found = [
        (site, group["method"], role, tuple(row["shape"]), row["segment"])
        for group in task["groups"]
        for site in expand(group)
        for role, row in group["tensors"].items()
    ]
    return found + [("head", "", r, tuple(row["shape"]), row["segment"]) for r, row in task.get("head", {}).items()]


def shapes_of(task: Json) -> list[list[Shape]]:
    """The shapes of each segment's tensors, in file order; the references are checked already."""
    found: list[list[Shape]] = [[] for _ in task["segments"]]
    for *_, shape, number in rows_of(task):
        found[number].append(shape)
    return found


def _check_task(task: Json, where: str) -> None:
    head = {role: tuple(row["shape"]) for role, row in task.get("head", {}).items()}
    if not task["groups"] and not head:
        fail("bad-field", "the task is empty", where)
    if "labels" in task and not head:
        fail("bad-labels", "class names without a head", where)
    if head and (set(head) - {"bias"} != {"weight"} or len(head["weight"]) != 2):
        fail("bad-shape", "a head is a weight and perhaps a bias", f"{where}.head")
    if head and head.get("bias", head["weight"][:1]) != head["weight"][:1]:
        fail("bad-shape", "the head's bias has another length", f"{where}.head")
    if "labels" in task and task["labels"]["count"] != head["weight"][0]:
        fail("bad-labels", "another number of class names than classes", where)
    seen = [(site, g["method"], dumps(g["params"])) for g in task["groups"] for site in expand(g)]
    if len(set(seen)) != len(seen):
        fail("duplicate-name", "two equal branches at one site", where)
    _check_references(task, where)


def _check_references(task: Json, where: str) -> None:
    users: dict[int, str] = {}
    pairs = [(row["segment"], "adapter") for group in task["groups"] for row in group["tensors"].values()]
    pairs += [(row["segment"], "head") for row in task.get("head", {}).values()]
    pairs += [(task["labels"]["segment"], "labels")] if "labels" in task else []
    for number, part in pairs:
        if number >= len(task["segments"]) or users.setdefault(number, part) != part:
            fail("segment-reference", f"segment {number} is missing or serves two parts", where)
    for number, segment in enumerate(task["segments"]):
        if (number in users) == segment.get("skip", False):
            fail("segment-reference", f"segment {number} is unused, or used and skipped", where)
        if (segment["codec"] == "labels") != (users.get(number) == "labels"):
            fail("segment-reference", f"segment {number} has the codec {segment['codec']}", where)
