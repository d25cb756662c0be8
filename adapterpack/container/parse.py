"""JSON to a validated index: every field checked for presence, type, range and agreement with the others."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from adapterpack.adapter import Backbone, DataSettings, Site
from adapterpack.container import limits, strict_json
from adapterpack.container.fields import Fields
from adapterpack.container.given import check_given
from adapterpack.container.index import FEATURE, Group, Index, Labels, Segment, TaskEntry, TensorRow
from adapterpack.container.names import fits_task
from adapterpack.errors import CorruptFileError, Reason, UnsupportedVersionError

FEATURES = frozenset([FEATURE])  # what `requires` may name
HEAD_ROLES = ({"weight"}, {"weight", "bias"})
LABELS_CODEC = "labels"


def parse_index(text: bytes) -> Index:
    """Read an index text.

    Raises:
        CorruptFileError: each index reason, with the path of the field.
        UnsupportedVersionError: `unknown-feature`.
    """
    top = Fields(strict_json.loads(text), "index")
    features = _features(top.take("requires", list)) if top.has("requires") else []
    backbone = _backbone(Fields(top.take("backbone", dict), "index.backbone"))
    tasks = top.take("tasks", list)
    top.done()
    if not tasks:
        raise CorruptFileError("the file holds no task", Reason.BAD_FIELD, "index.tasks")
    limits.require(len(tasks), limits.TASKS, "tasks", "index.tasks")
    index = Index(tuple(_task(Fields(v, f"index.tasks[{i}]")) for i, v in enumerate(tasks)), backbone)
    index.require_limits()  # before any site is expanded
    for i, task in enumerate(index.tasks):
        _check_task(task, f"index.tasks[{i}]")
    twice = repeated_name([task.name for task in index.tasks])
    if twice is not None:
        raise CorruptFileError(f"two tasks are called {twice!r}", Reason.DUPLICATE_NAME, "index.tasks")
    check_given(index, features)
    return index


def repeated_name(names: Sequence[str]) -> str | None:
    """A name that is given twice, whether its accents are composed or not; None where all differ."""
    seen: set[str] = set()
    for name in names:
        plain = unicodedata.normalize("NFC", name)
        if plain in seen:
            return name
        seen.add(plain)
    return None


def _features(features: list[Any]) -> list[str]:
    for name in features:
        if not isinstance(name, str):
            raise CorruptFileError(f"{name!r} is no feature's name", Reason.BAD_FIELD, "index.requires")
        if name not in FEATURES:
            hint = "upgrade adapterpack"
            raise UnsupportedVersionError(
                f"the file needs the feature {name!r}", Reason.UNKNOWN_FEATURE, "index.requires", hint
            )
    return features


def _backbone(f: Fields) -> Backbone:
    name = f.name("name") if f.has("name") else ""
    fingerprint = f.take("fingerprint", str) if f.has("fingerprint") else None
    f.done()
    if fingerprint is not None and not _is_fingerprint(fingerprint):
        raise CorruptFileError("a fingerprint is sha256: and 64 hex digits", Reason.BAD_FIELD, f.path("fingerprint"))
    return Backbone(name, fingerprint)


def _is_fingerprint(text: str) -> bool:
    return text.startswith("sha256:") and len(text) == 71 and set(text[7:]) <= set("0123456789abcdef")


def _task(f: Fields) -> TaskEntry:
    name, method = f.name("name"), f.name("method")
    if not fits_task(name):
        raise CorruptFileError(f"a task may not be called {name!r}", Reason.BAD_NAME, f.path("name"))
    segments = tuple(_segment(Fields(v, f"{f.where}.segments[{i}]")) for i, v in enumerate(f.take("segments", list)))
    groups = tuple(_group(Fields(v, f"{f.where}.groups[{i}]")) for i, v in enumerate(f.take("groups", list)))
    head = _rows(f.take("head", dict), f.path("head")) if f.has("head") else {}
    labels = _labels(Fields(f.take("labels", dict), f.path("labels"))) if f.has("labels") else None
    data = _data(Fields(f.take("data", dict), f.path("data"))) if f.has("data") else None
    metadata = f.take("metadata", dict) if f.has("metadata") else {}
    f.done()
    return TaskEntry(name, method, groups, head, segments, labels, data, metadata)


def _check_task(task: TaskEntry, where: str) -> None:
    if not task.groups and not task.head:
        raise CorruptFileError("the task has neither groups nor a head", Reason.BAD_FIELD, where)
    _check_head(task, f"{where}.head")
    _check_sites(task, where)
    _check_references(task, where)


def _segment(f: Fields) -> Segment:
    codec, size, params = f.name("codec"), f.count("bytes"), f.take("params", dict)
    skip = f.take("skip", bool) if f.has("skip") else False
    given = _given(f) if f.has("given") else ()
    f.done()
    return Segment(codec, params, size, skip, given)


def _given(f: Fields) -> tuple[str, ...]:
    names = f.take("given", list)
    limits.require(len(names), limits.GIVEN, "given tasks", f.path("given"))
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise CorruptFileError("expected a list of different names of tasks", Reason.BAD_FIELD, f.path("given"))
    return tuple(names)


def _rows(value: dict[str, Any], where: str) -> Mapping[str, TensorRow]:
    rows: dict[str, TensorRow] = {}
    for role in sorted(value):
        f = Fields(value[role], f"{where}.{role}")
        rows[role] = TensorRow(f.shape(), f.count("segment", limits.SEGMENTS))
        f.done()
    if not rows:
        raise CorruptFileError("no tensors", Reason.BAD_FIELD, where)
    return rows


def _group(f: Fields) -> Group:
    given = f.has("blocks")
    blocks = f.counts("blocks") if given else ()
    method, params, sites = f.name("method"), f.take("params", dict), f.take("sites", list)
    rows = _rows(f.take("tensors", dict), f.path("tensors"))
    f.done()
    if list(blocks) != sorted(set(blocks)) or len(blocks) % 2 or given != bool(blocks):
        raise CorruptFileError(f"{list(blocks)} are no ascending ranges", Reason.BAD_FIELD, f.path("blocks"))
    if not sites or not all(isinstance(site, str) for site in sites) or sites != sorted(set(sites)):
        raise CorruptFileError("sites are no ascending list of names", Reason.BAD_FIELD, f.path("sites"))
    for site in sites:
        if site.startswith("blocks.*.") != bool(blocks) or site.count("*") > 1:
            raise CorruptFileError(f"{site[:80]!r} does not agree with the blocks", Reason.BAD_FIELD, f.path("sites"))
        Site.parse(site.replace("*", "0", 1) if blocks else site)
    limits.require(blocks[-1] if blocks else 0, 10_000, "blocks", f.path("blocks"))
    group = Group(method, params, tuple(sites), blocks, rows)
    limits.require(group.site_count() * len(rows), limits.TENSORS, "tensors", f.where)
    return group


def _labels(f: Fields) -> Labels:
    found = Labels(f.count("count", least=1), f.count("segment", limits.SEGMENTS))
    f.done()
    return found


def _data(f: Fields) -> DataSettings:
    size = f.counts("input_size", least=1)
    mean, std = (_floats(f.take(name, list), f.path(name)) for name in ("mean", "std"))
    crop_pct, crop_mode, interpolation = f.take("crop_pct", float), f.name("crop_mode"), f.name("interpolation")
    f.done()
    if len(size) != 3 or not len(mean) == len(std) == size[0]:
        raise CorruptFileError("input_size, mean and std disagree", Reason.BAD_FIELD, f.where)
    if min(std) <= 0 or not 0 < crop_pct <= 1:
        raise CorruptFileError("std and crop_pct must be positive, crop_pct at most 1", Reason.BAD_FIELD, f.where)
    return DataSettings((size[0], size[1], size[2]), mean, std, interpolation, crop_pct, crop_mode)


def _floats(values: list[Any], where: str) -> tuple[float, ...]:
    if not values or not all(type(value) is float for value in values):
        raise CorruptFileError("expected a list of decimal numbers", Reason.BAD_FIELD, where)
    return tuple(values)


def _check_head(task: TaskEntry, where: str) -> None:
    if not task.head:
        if task.labels is not None:
            raise CorruptFileError("class names without a head", Reason.BAD_LABELS, where)
        return
    shapes = {role: row.shape for role, row in task.head.items()}
    if set(shapes) not in HEAD_ROLES or len(shapes["weight"]) != 2:
        raise CorruptFileError("a head is a weight [classes, features] and perhaps a bias", Reason.BAD_SHAPE, where)
    classes = shapes["weight"][0]
    if shapes.get("bias", (classes,)) != (classes,):
        raise CorruptFileError(f"a bias of shape {list(shapes['bias'])} for {classes} classes", Reason.BAD_SHAPE, where)
    if task.labels is not None and task.labels.count != classes:
        raise CorruptFileError(f"{task.labels.count} class names for {classes} classes", Reason.BAD_LABELS, where)


def _check_sites(task: TaskEntry, where: str) -> None:
    """Of groups of one method and settings, no two may have a site in common; one alone has each site once."""
    if len(task.groups) == 1:
        return
    methods = Counter(group.method for group in task.groups)
    seen: set[tuple[str, str, bytes]] = set()
    for i, group in enumerate(task.groups):
        if methods[group.method] == 1:
            continue
        params = strict_json.dumps(group.params)
        for site in group.expand():
            key = (str(site), group.method, params)
            if key in seen:
                raise CorruptFileError(f"{site} has two equal branches", Reason.DUPLICATE_NAME, f"{where}.groups[{i}]")
            seen.add(key)


def _check_references(task: TaskEntry, where: str) -> None:
    """Every segment serves tensors of one part, or the labels, or is marked to be skipped."""
    users: dict[int, str] = {}
    rows = [(row.segment, "adapter") for group in task.groups for row in group.tensors.values()]
    rows += [(row.segment, "head") for row in task.head.values()]
    rows += [(task.labels.segment, "metadata")] if task.labels is not None else []
    for number, part in rows:
        if number >= len(task.segments):
            raise CorruptFileError(f"there is no segment {number}", Reason.SEGMENT_REFERENCE, where)
        if users.setdefault(number, part) != part:
            message = f"segment {number} serves both {users[number]} and {part}"
            raise CorruptFileError(message, Reason.SEGMENT_REFERENCE, where)
    for number, segment in enumerate(task.segments):
        if (number in users) == segment.skip:
            problem = "is used but marked to be skipped" if segment.skip else "is used by nothing"
            raise CorruptFileError(f"segment {number} {problem}", Reason.SEGMENT_REFERENCE, where)
        if (segment.codec == LABELS_CODEC) != (users.get(number) == "metadata"):
            message = f"segment {number} has the codec {segment.codec!r}"
            raise CorruptFileError(message, Reason.SEGMENT_REFERENCE, where)
