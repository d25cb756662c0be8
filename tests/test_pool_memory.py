"""What a task takes while it waits and while it is used; the budget, and who goes first."""

from __future__ import annotations

import gc
import io
import tracemalloc

import numpy as np
import pytest
import torch

from adapterpack import AdapterPool, CorruptFileError
from adapterpack.adapter import Head
from adapterpack.runtime.pool import store as pool_store
from adapterpack.runtime.pool.cache import Cache
from adapterpack.runtime.pool.store import Packed
from adapterpack.tensors import Dense
from tests._pool import file_of, task
from tests._threads import one_thread  # noqa: F401
from tests._vit import WIDTH, images, vit


def large(number: int) -> bytes:
    """A file of some 40 kB: most of it the head."""
    weight = np.random.default_rng(number).standard_normal((200, WIDTH)).astype(np.float32)
    return file_of(task("lora", number, head=Head(Dense(weight))))


def test_a_thousand_waiting_tasks_are_their_files() -> None:
    """Everything that Python allocates while the last 100 are added is at most a fiftieth more than the files."""
    pool, data = AdapterPool(vit()), large(0)
    for n in range(900):
        pool.add(bytearray(data), name=f"t{n}")
    gc.collect()
    tracemalloc.start()
    for n in range(900, 1000):
        pool.add(bytearray(data), name=f"t{n}")
    gc.collect()
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(pool) == 1000 and pool.stats().packed_bytes == 1000 * len(data)
    assert 100 * len(data) <= taken <= 1.02 * 100 * len(data)


@pytest.mark.parametrize("size", [1 << 20, 0])
def test_large_files_are_refused_by_their_heads(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not ours is not read whole first."""
    monkeypatch.setattr(pool_store, "_AT_ONCE", size)
    read: list[int] = []

    class Counting(io.BytesIO):
        def read(self, length: int | None = -1) -> bytes:
            read.append(length or 0)
            return super().read(length)

    pool, data = AdapterPool(vit()), large(1)
    assert pool.add(Counting(data)) == ("lora-1",)
    read.clear()
    with pytest.raises(CorruptFileError):
        pool.add(Counting(bytes(100_000)))
    assert (max(read) < 100_000) == (size == 0)


@pytest.mark.parametrize("kind", ["lora", "adaptformer", "convpass"])
def test_a_bundles_tasks_take_what_they_take_alone(kind: str) -> None:
    pool, made = AdapterPool(vit()), [task(kind, n) for n in range(20)]
    pool.add(file_of(*made))
    assert [t.packed_bytes for t in pool.stats().tasks] == [len(file_of(one)) for one in made]


def test_inflated_when_used_and_given_up_when_removed() -> None:
    pool = AdapterPool(vit())
    for n in range(3):
        pool.add(file_of(task("lora", n)))
    assert pool.stats().inflated_bytes == 0
    pool(images(4), tasks=["lora-0", "lora-1", "lora-0", "lora-1"])
    stats = pool.stats()
    assert [t.inflated_bytes > 0 for t in stats.tasks] == [True, True, False]
    assert (stats.hits, stats.misses, stats.evictions) == (0, 2, 0)
    pool(images(2), tasks=["lora-1", "lora-2"])
    assert (pool.stats().hits, pool.stats().misses) == (1, 3)
    for n in range(3):
        pool.remove(f"lora-{n}")
    assert pool.stats().inflated_bytes == pool.stats().packed_bytes == 0


def test_the_least_recently_used_go_first() -> None:
    one = AdapterPool(vit())
    one.add(file_of(task("lora", 0, classes=3)))
    one(images(1), tasks=["lora-0"])
    size = one.stats().inflated_bytes
    pool = AdapterPool(vit(), memory_budget=2 * size)
    for n in range(4):
        pool.add(file_of(task("lora", n, classes=3)))

    def here() -> list[int]:
        return [n for n, t in enumerate(pool.stats().tasks) if t.inflated_bytes]

    for name, expected in (("lora-0", [0]), ("lora-1", [0, 1]), ("lora-0", [0, 1]), ("lora-2", [0, 2])):
        pool(images(1), tasks=[name])
        assert here() == expected and pool.stats().inflated_bytes <= 2 * size
    rows = pool(images(4), tasks=[f"lora-{n}" for n in range(4)])  # more than the budget, for this call alone
    assert len(rows) == 4 and len(here()) == 2
    assert pool.stats().memory_budget == 2 * size and pool.stats().evictions == 3


@pytest.mark.parametrize("budget", [0, 1])
def test_no_budget_at_all_still_answers(budget: int) -> None:
    pool, free = AdapterPool(vit(), memory_budget=budget), AdapterPool(vit())
    for made in (pool, free):
        made.add(file_of(task("everything", 1)))
    for _ in range(2):
        assert torch.equal(pool(images(1), ["everything-1"])[0], free(images(1), ["everything-1"])[0])
        pool.activate("everything-1")
        assert pool.stats().inflated_bytes == 0 and pool.stats().active_bytes > 0


class Thing:
    """Something inflated."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.labels = None


def test_two_that_inflate_one_task_share_it() -> None:
    """The second to finish gets the first one's."""
    cache = Cache(None)
    waiting = Packed("t", b"", 0, "lora", None)
    inner: list[Thing] = []

    def slow(found: Packed) -> Thing:
        inner.append(cache.get(found, Thing, lambda _: Thing(5)))
        return Thing(5)

    assert cache.get(waiting, Thing, slow) is inner[0]
    assert cache.sizes() == {waiting: 5} and cache.misses == 2
    cache.drop(waiting)
    cache.drop(waiting)
    assert cache.sizes() == {} and cache.peek(waiting) is None
