"""Many threads on one pool, and the lock that keeps them apart."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from adapterpack import AdapterPool, CallError
from adapterpack.runtime.pool.lock import ModelLock
from tests._pool import alone, file_of, relative, task
from tests._threads import one_thread  # noqa: F401
from tests._vit import images, same, snapshot, vit

STEADY = [("lora", 0), ("adaptformer", 1), ("replace", 2), ("everything", 3)]
WAIT = 60


def together(*jobs: Callable[[], None]) -> None:
    """Run all at once; the first error of any is raised."""
    start = threading.Barrier(len(jobs))

    def begin(job: Callable[[], None]) -> None:
        start.wait(WAIT)
        job()

    with ThreadPoolExecutor(len(jobs)) as workers:
        for done in [workers.submit(begin, job) for job in jobs]:
            done.result(WAIT)


@pytest.fixture
def impatient() -> Iterator[None]:
    """Threads take turns a hundred times as often."""
    import sys

    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(before)


class Crowd:
    """A pool, what its tasks should give, and what several threads do with it at once."""

    def __init__(self) -> None:
        self.model, self.x = vit(), images(4)
        self.files = {f"{kind}-{n}": file_of(task(kind, n)) for kind, n in STEADY}
        self.coming = {f"lora-{n}": file_of(task("lora", n)) for n in range(10, 13)}
        every = {**self.files, **self.coming}
        self.mixed = {name: alone(data, name, self.model, self.x) for name, data in every.items()}
        self.folded = {name: alone(data, name, self.model, self.x, "auto") for name, data in self.files.items()}
        self.pool = AdapterPool(self.model, memory_budget=40_000)
        for data in self.files.values():
            self.pool.add(data)

    def call(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(25):
            tasks = [str(name) for name in rng.choice(list(self.mixed), 4)]
            try:
                rows = self.pool(self.x, tasks=tasks)
            except CallError as error:
                assert error.reason == "unknown-task" and set(tasks) - set(self.files)
                continue
            for i, name in enumerate(tasks):
                assert relative(rows[i], self.mixed[name][i]) < 5e-6, name

    def use(self) -> None:
        for n in range(40):
            name = list(self.files)[n % len(self.files)]
            with self.pool.using(name) as inside, torch.no_grad():
                assert torch.equal(inside(self.x), self.folded[name]), name
            self.pool.activate(name if n % 3 else None)

    def change(self) -> None:
        for n in range(40):
            name = list(self.coming)[n % len(self.coming)]
            self.pool.add(self.coming[name])
            self.pool.add(self.coming[name], replace=True)
            assert self.pool.stats().packed_bytes >= len(self.coming[name])
            assert self.pool.info(name).packed_name == name
            self.pool.remove(name)


def test_all_at_once(impatient: None) -> None:
    """Callers, one that activates, and one that adds and removes: every answer is one that could be given."""
    crowd = Crowd()
    before = snapshot(crowd.model)
    together(lambda: crowd.call(1), lambda: crowd.call(2), crowd.use, crowd.change)
    crowd.pool.activate(None)
    assert set(crowd.pool.tasks) == set(crowd.files) and same(snapshot(crowd.model), before)


def test_one_name_is_added_once(impatient: None) -> None:
    pool, data = AdapterPool(vit()), file_of(task("lora", 1))
    won: list[int] = []

    def add(n: int) -> Callable[[], None]:
        def run() -> None:
            try:
                pool.add(data)
            except CallError as error:
                assert error.reason == "duplicate-name"
            else:
                won.append(n)

        return run

    together(*(add(n) for n in range(4)))
    assert len(won) == 1 and pool.tasks == ("lora-1",)


def test_readers_run_beside_each_other_and_writers_alone() -> None:
    lock, inside = ModelLock(), threading.Barrier(2)

    def read() -> None:
        with lock.reading():
            inside.wait(WAIT)  # passes only where both are in

    together(read, read)
    order: list[str] = []
    entered, release = threading.Event(), threading.Event()

    def write() -> None:
        with lock.writing():
            entered.set()
            release.wait(WAIT)
            order.append("writer")

    def late() -> None:
        entered.wait(WAIT)
        release.set()
        with lock.reading():
            order.append("reader")

    together(write, late)
    assert order == ["writer", "reader"]


def test_a_waiting_writer_goes_before_new_readers() -> None:
    lock, order = ModelLock(), []
    reading, release = threading.Event(), threading.Event()

    def read_long() -> None:
        with lock.reading():
            reading.set()
            release.wait(WAIT)

    def write() -> None:
        reading.wait(WAIT)
        with lock.writing():
            order.append("writer")

    def read_late() -> None:
        reading.wait(WAIT)
        with lock._free:
            lock._free.wait_for(lambda: lock._writers_waiting == 1 or bool(order), 0.001)
        while not lock._writers_waiting:
            pass
        release.set()
        with lock.reading():
            order.append("reader")

    together(read_long, write, read_late)
    assert order == ["writer", "reader"]


def test_the_writer_may_enter_again() -> None:
    lock = ModelLock()
    with lock.writing(), lock.writing(), lock.reading():
        pass
    with pytest.raises(KeyError), lock.writing():
        raise KeyError
    with lock.reading():
        assert lock._readers == 1
    assert lock._owner is None and not lock._readers
