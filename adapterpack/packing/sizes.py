"""What a file's bytes are spent on, from its index alone; `pack` and `inspect` both report through here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from adapterpack.adapter import DataSettings
from adapterpack.codecs import CODECS
from adapterpack.container.index import Group, TaskEntry, TensorRow
from adapterpack.errors import AdapterPackError
from adapterpack.packing.bundle import Bundle
from adapterpack.tensors import numel

Json = dict[str, Any]


def describe_file(bundle: Bundle) -> Json:
    """One file of `inspect --json`; container_bytes + Σ tasks[].bytes == file_bytes, always."""
    tasks = [describe_task(entry) for entry in bundle.index.tasks]
    for task, digest in zip(tasks, bundle.digests):
        task["digest"] = f"sha256:{digest.hex()}"
    return {
        "path": bundle.source.name,
        "file_bytes": bundle.file_bytes,
        "format_version": bundle.format_version,
        "digest": bundle.digest,
        "container_bytes": bundle.file_bytes - sum(task["bytes"] for task in tasks),
        "backbone": {"name": bundle.backbone.name or None, "fingerprint": bundle.backbone.fingerprint},
        "tasks": tasks,
    }


def describe_task(entry: TaskEntry) -> Json:
    """One task: Σ bytes_by_part == bytes, always.

    `parameters` counts the adapter's numbers (a sparse tensor's entries), `head_parameters` the classifier's;
    `dense_bytes` is both in float32; `bits_per_weight` is every byte of the adapter part over its parameters; `data` is
    the preprocessing that the file records, or None.
    """
    bytes_by_part = {"adapter": 0, "head": 0, "metadata": 0}
    counts = dict(bytes_by_part)
    parts = _segment_parts(entry)
    for segment, (part, entries) in zip(entry.segments, parts):
        bytes_by_part[part] += segment.size
        counts[part] += entries
    parameters, head = counts["adapter"], counts["head"]
    return {
        "name": entry.name,
        "method": entry.method,
        "bits": _bits(entry, parts),
        "parameters": parameters,
        "head_parameters": head,
        "bytes": sum(bytes_by_part.values()),
        "bytes_by_part": bytes_by_part,
        "bits_per_weight": round(8 * bytes_by_part["adapter"] / parameters, 4) if parameters else None,
        "dense_bytes": 4 * (parameters + head),
        "classes": entry.head["weight"].shape[0] if entry.head else None,
        "settings": _settings(entry),
        "data": _data(entry.data),
        "metadata": dict(entry.metadata),
    }


def describe_tensors(entry: TaskEntry) -> list[Json]:
    """A row for each group, role and segment: sites, shape, codec, bit width, and the segment's bits a weight."""
    entries = [count for _, count in _segment_parts(entry)]
    rows = [
        {**_place(group), "role": role, "tensors": group.site_count(), **_stored(entry, row, entries)}
        for group in entry.groups
        for role, row in group.tensors.items()
    ]
    head: Json = {"part": "head", "sites": ["head"], "blocks": [], "method": "head"}
    return rows + [
        {**head, "role": role, "tensors": 1, **_stored(entry, row, entries)} for role, row in entry.head.items()
    ]


def _place(group: Group) -> Json:
    return {"part": "adapter", "sites": list(group.sites), "blocks": list(group.blocks), "method": group.method}


def _stored(entry: TaskEntry, row: TensorRow, entries: Sequence[int]) -> Json:
    """How a tensor is stored; `bits` is None where the codec is not known here."""
    segment = entry.segments[row.segment]
    return {
        "shape": list(row.shape),
        "codec": segment.codec,
        "params": dict(segment.params),
        "bits": _width(segment.codec, segment.params) or None if segment.codec in CODECS else None,
        "given": list(segment.given),
        "segment": row.segment,
        "bits_per_weight": _rate(segment.size, entries[row.segment]),
    }


def _data(data: DataSettings | None) -> Json | None:
    """Preprocessing as JSON, its pairs and triples as lists."""
    if data is None:
        return None
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(data).items()}


def _rate(size: int, entries: int) -> float | None:
    return round(8 * size / entries, 4) if entries else None


def _segment_parts(entry: TaskEntry) -> list[tuple[str, int]]:
    """The part and the number of entries of each segment, in one pass over the tensors."""
    parts = ["metadata"] * len(entry.segments)
    entries = [0] * len(entry.segments)
    for row, part in entry.rows():
        parts[row.segment] = part
        entries[row.segment] += numel(row.shape)
    for number, segment in enumerate(entry.segments):
        if segment.codec == "sparse":
            count = segment.params.get("entries")
            entries[number] = count if type(count) is int and count > 0 else 0  # unchecked until the task is read
    return list(zip(parts, entries))


def _bits(entry: TaskEntry, parts: list[tuple[str, int]]) -> int | None:
    """The bit width of most of the adapter's weights (of the head's, where there is no adapter)."""
    wanted = "adapter" if any(part == "adapter" for part, _ in parts) else "head"
    widths: dict[int, int] = {}
    for segment, (part, entries) in zip(entry.segments, parts):
        if part == wanted and segment.codec in CODECS:
            width = _width(segment.codec, segment.params)
            widths[width] = widths.get(width, 0) + entries
    return max(widths, key=lambda width: widths[width]) if widths else None


def _width(codec: str, params: Any) -> int:
    try:
        form = CODECS[codec].form(params)
    except AdapterPackError:
        return 0  # `inspect` shows what it can of a damaged task; `verify` says what is wrong
    while "sparse" in form:
        form = form["sparse"]
    return int(form["bits"]) if "bits" in form else (32 if form["dtype"] == "float32" else 16)


def _settings(entry: TaskEntry) -> Json:
    """The settings of the largest group, for people: `{"scale": 0.1, "dim": 32}`."""
    if not entry.groups:
        return {}

    def weight(group: Group) -> int:
        return group.site_count() * sum(numel(row.shape) for row in group.tensors.values())

    group = max(entry.groups, key=weight)
    down = group.tensors["down"].shape if "down" in group.tensors else ()
    return {**dict(group.params), **({"dim": down[0]} if down else {})}
