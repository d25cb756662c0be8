"""What a pool tells about itself: frozen records of plain values, ready for JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Prediction:
    """The most probable classes of one image, best first.

    Attributes:
        task: the task's name in the pool.
        labels: class names; the class's number as text where the task has no names.
        probabilities: of each.
        indices: each class's row in the task's head.
    """

    task: str
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    indices: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class TaskStats:
    """One task of a pool.

    Attributes:
        name: in the pool.
        method: what trained it.
        classes: of its head; None where it has none and the backbone's own head answers.
        packed_bytes: what it takes while it waits.
        inflated_bytes: what its tensors take, for mixed batches and for activating; 0 while it waits.
        active: whether it is in the model now.
    """

    name: str
    method: str
    classes: int | None
    packed_bytes: int
    inflated_bytes: int
    active: bool


@dataclass(frozen=True, slots=True)
class PoolStats:
    """A pool at one moment.

    Attributes:
        tasks: in the order in which they were added.
        packed_bytes: of all tasks.
        inflated_bytes: of the tasks that are inflated, at most `memory_budget` between calls.
        pristine_bytes: the copies of backbone rows and the heads that activating keeps for itself.
        active_bytes: tensors of the active task, which are among the inflated ones unless they were given up there.
        memory_budget: bytes, or None for no limit.
        active: the active task's name, or None.
        hits, misses, evictions: of the inflated tasks, since the pool was made; one hit or miss a task and call.
        graph_bytes: where captured CUDA graphs read batches from; not what they need inside.
    """

    tasks: tuple[TaskStats, ...]
    packed_bytes: int
    inflated_bytes: int
    pristine_bytes: int
    active_bytes: int
    memory_budget: int | None
    active: str | None
    hits: int
    misses: int
    evictions: int
    graph_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self) | {"tasks": [asdict(task) for task in self.tasks]}


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """What one task's packed bytes say of it.

    Attributes:
        name: in the pool; `packed_name` is what the file calls it.
        method: what trained it.
        bits: of most of its weights, or None.
        classes: of its head, or None.
        labels: class names, or None.
        digest: "sha256:…" over its decoded content.
        backbone: name of what it was trained on, "" where the file does not say.
        packed_bytes, parameters: its size.
    """

    name: str
    packed_name: str
    method: str
    bits: int | None
    classes: int | None
    labels: tuple[str, ...] | None
    digest: str
    backbone: str
    packed_bytes: int
    parameters: int

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        labels = None if self.labels is None else list(self.labels)
        return asdict(self) | {"labels": labels}
