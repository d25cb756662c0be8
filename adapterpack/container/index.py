"""The index: which tasks a file holds, which tensors each has, and which segments their payloads are.

Sites are listed by pattern (`blocks.*.attn.qkv[q]` for blocks 0 to 11), not tensor by tensor. Codec and method names
and their parameters are opaque here. Source: spec/README.md, "The index".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from adapterpack.adapter import Backbone, DataSettings, Site
from adapterpack.container import limits
from adapterpack.stacks import Run, Shapes
from adapterpack.tensors import Shape

FEATURE = "cross-task"  # in `requires` where a segment is given tasks


@dataclass(frozen=True, slots=True)
class TensorRow:
    """The shape of a role's tensor and the number of the task's segment that holds it."""

    shape: Shape
    segment: int


@dataclass(frozen=True, slots=True)
class Group:
    """Branches that differ only in their site.

    Attributes:
        method, params: opaque here.
        sites: patterns, in ascending order; `*` stands for the block's number.
        blocks: half-open ranges, flattened ([0, 12] or [0, 3, 5, 12]); empty where no pattern has a `*`.
        tensors: by role, in the file's order of roles (ascending).
    """

    method: str
    params: Mapping[str, Any]
    sites: tuple[str, ...]
    blocks: tuple[int, ...]
    tensors: Mapping[str, TensorRow]

    def expand(self) -> tuple[Site, ...]:
        """The sites in file order: block by block, patterns in the order listed."""
        expanded = _expanded if self.site_count() > _FEW else _kept
        return expanded(self.sites, self.blocks)

    def site_count(self) -> int:
        blocks = sum(self.blocks[1::2]) - sum(self.blocks[::2])
        return len(self.sites) * (blocks if self.blocks else 1)


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of payload bytes: its codec (opaque), the codec's parameters, its size.

    Attributes:
        skip: an unknown codec that a reader may leave undecoded.
        given: earlier tasks of the file whose segments of the same number must be decoded before this one.
    """

    codec: str
    params: Mapping[str, Any]
    size: int
    skip: bool = False
    given: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Labels:
    """How many class names there are and which segment holds them."""

    count: int
    segment: int


@dataclass(frozen=True, slots=True)
class TaskEntry:
    """One task of the index; see `adapter.Adapter` for the meaning of the fields."""

    name: str
    method: str
    groups: tuple[Group, ...]
    head: Mapping[str, TensorRow]
    segments: tuple[Segment, ...]
    labels: Labels | None = None
    data: DataSettings | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def rows(self) -> Iterator[tuple[TensorRow, str]]:
        """Every tensor in file order, with its part: "adapter" tensors block by block, site by site, role by role,
        then the "head"'s."""
        for group in self.groups:
            roles = list(group.tensors.values())
            for _ in range(group.site_count()):
                for row in roles:
                    yield row, "adapter"
        for row in self.head.values():
            yield row, "head"

    def shapes_by_segment(self) -> list[Shapes]:
        """The shapes of each segment's tensors, a run a group and a run a tensor of the head; the references are
        checked already."""
        found: list[list[Run]] = [[] for _ in self.segments]
        for group in self.groups:
            one_site: dict[int, list[Shape]] = {}
            for row in group.tensors.values():
                one_site.setdefault(row.segment, []).append(row.shape)
            for number, shapes in one_site.items():
                found[number].append(Run(tuple(shapes), group.site_count()))
        for row in self.head.values():
            found[row.segment].append(Run((row.shape,), 1))
        return [Shapes(runs) for runs in found]

    def payload_bytes(self) -> int:
        return sum(segment.size for segment in self.segments)


@dataclass(frozen=True, slots=True)
class Index:
    """What a head says."""

    tasks: tuple[TaskEntry, ...]
    backbone: Backbone

    def require_limits(self) -> None:
        """The counts that both reader and writer keep to.

        Raises:
            CorruptFileError: `limit-exceeded`.
        """
        limits.require(len(self.tasks), limits.TASKS, "tasks", "index.tasks")
        tensors = sum(g.site_count() * len(g.tensors) for t in self.tasks for g in t.groups)
        limits.require(tensors, limits.TENSORS, "tensors", "index.tasks")
        limits.require(sum(len(t.segments) for t in self.tasks), limits.SEGMENTS, "segments", "index.tasks")


def _expanded(patterns: tuple[str, ...], blocks: tuple[int, ...]) -> tuple[Site, ...]:
    if not blocks:
        return tuple(Site.parse(pattern) for pattern in patterns)
    numbers = [n for start, stop in zip(blocks[::2], blocks[1::2]) for n in range(start, stop)]
    plain = [Site.parse(pattern.replace("*", "0")) for pattern in patterns]
    tails = [(site.path.removeprefix("blocks.0."), site.part) for site in plain]
    return tuple(Site(f"blocks.{n}.{tail}", part) for n in numbers for tail, part in tails)


_FEW = 1024  # sites: what is kept must not grow with what a file claims
_kept = lru_cache(maxsize=64)(_expanded)  # the tasks of one backbone have the same few lists of sites


def to_json(index: Index) -> dict[str, Any]:
    """The index as the JSON object that is written."""
    backbone = {"name": index.backbone.name, "fingerprint": index.backbone.fingerprint}
    found = {
        "backbone": {name: value for name, value in backbone.items() if value},
        "tasks": [_task_json(task) for task in index.tasks],
    }
    crossed = any(segment.given for task in index.tasks for segment in task.segments)
    return {**found, "requires": [FEATURE]} if crossed else found


def _task_json(task: TaskEntry) -> dict[str, Any]:
    found: dict[str, Any] = {
        "groups": [group_json(group, _rows_json(group.tensors)) for group in task.groups],
        "method": task.method,
        "name": task.name,
        "segments": [_segment_json(segment) for segment in task.segments],
    }
    if task.head:
        found["head"] = _rows_json(task.head)
    if task.labels is not None:
        found["labels"] = {"count": task.labels.count, "segment": task.labels.segment}
    if task.data is not None:
        found["data"] = data_json(task.data)
    if task.metadata:
        found["metadata"] = dict(task.metadata)
    return found


def group_json(group: Group, tensors: dict[str, Any]) -> dict[str, Any]:
    """One group as JSON, with what is said of its tensors."""
    found: dict[str, Any] = {
        "method": group.method,
        "params": dict(group.params),
        "sites": list(group.sites),
        "tensors": tensors,
    }
    return {"blocks": list(group.blocks), **found} if group.blocks else found


def _rows_json(rows: Mapping[str, TensorRow]) -> dict[str, Any]:
    return {role: {"segment": row.segment, "shape": list(row.shape)} for role, row in rows.items()}


def _segment_json(segment: Segment) -> dict[str, Any]:
    found: dict[str, Any] = {"bytes": segment.size, "codec": segment.codec, "params": dict(segment.params)}
    if segment.given:
        found["given"] = list(segment.given)
    return {**found, "skip": True} if segment.skip else found


def data_json(data: DataSettings) -> dict[str, Any]:
    """Data settings as JSON."""
    return {
        "crop_mode": data.crop_mode,
        "crop_pct": float(data.crop_pct),
        "input_size": list(data.input_size),
        "interpolation": data.interpolation,
        "mean": [float(v) for v in data.mean],
        "std": [float(v) for v in data.std],
    }
