"""Names of tasks in a pool, and what is told about them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from adapterpack.container.names import TASK_NAMES, fits_task
from adapterpack.errors import CallError, Reason
from adapterpack.packing.sizes import describe_task
from adapterpack.runtime.pool.active import Front
from adapterpack.runtime.pool.cache import Cache
from adapterpack.runtime.pool.facts import PoolStats, TaskInfo, TaskStats
from adapterpack.runtime.pool.graphs import Graphs
from adapterpack.runtime.pool.store import Packed


def new_names(found: Sequence[Packed], name: str | None) -> dict[str, Packed]:
    """The tasks of a file by the names they get.

    Raises:
        CallError: `bad-call`, a name for a file of several tasks, or one that no file could have.
    """
    if name is None:
        return {packed.task: packed for packed in found}
    if len(found) != 1:
        text = f"one name, {name!r}, for a file of {len(found)} tasks"
        raise CallError(text, Reason.BAD_CALL, hint="leave the name out: each keeps its own")
    if not isinstance(name, str) or not fits_task(name):
        raise CallError(f"a task cannot be called {str(name)[:80]!r}", Reason.BAD_CALL, hint=TASK_NAMES)
    return {name: found[0]}


def unknown(name: object, known: Sequence[str]) -> CallError:
    """The error for a task that is not there, with the nearest names."""
    near = difflib.get_close_matches(str(name)[:255], known, n=3)
    hint = f"nearest: {', '.join(near)}" if near else f"the pool has {len(known)} tasks, see pool.tasks"
    return CallError(f"there is no task {str(name)[:255]!r}", Reason.UNKNOWN_TASK, hint=hint)


def stats_of(tasks: Mapping[str, Packed], cache: Cache, front: Front, graphs: Graphs | None) -> PoolStats:
    sizes, chosen = cache.sizes(), front.chosen
    active = None if chosen is None else chosen.name
    rows = tuple(
        TaskStats(name, task.method, task.classes, task.packed_bytes, sizes.get(task, 0), name == active)
        for name, task in tasks.items()
    )
    return PoolStats(
        tasks=rows,
        packed_bytes=sum(row.packed_bytes for row in rows),
        inflated_bytes=sum(sizes.values()),
        pristine_bytes=front.kept_bytes,
        active_bytes=0 if chosen is None else chosen.nbytes,
        memory_budget=cache.budget,
        active=active,
        hits=cache.hits,
        misses=cache.misses,
        evictions=cache.evictions,
        graph_bytes=0 if graphs is None else graphs.nbytes,
    )


def info_of(name: str, task: Packed, cache: Cache) -> TaskInfo:
    """Facts of a task; its class names come from where they are in memory, or are decoded."""
    bundle = task.opened()
    entry = next(entry for entry in bundle.index.tasks if entry.name == task.task)
    said = describe_task(entry)
    return TaskInfo(
        name=name,
        packed_name=task.task,
        method=entry.method,
        bits=said["bits"],
        classes=said["classes"],
        labels=_labels(task, cache),
        digest=bundle.task_digest(task.task),
        backbone=bundle.backbone.name,
        packed_bytes=task.packed_bytes,
        parameters=said["parameters"],
    )


def _labels(task: Packed, cache: Cache) -> tuple[str, ...] | None:
    found = cache.peek(task)
    return task.opened().content(task.task).labels if found is None else found.labels
