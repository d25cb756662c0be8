"""Random steps on a pool, each checked against what the task gives by itself.

    python -m tests._pool_steps 10000

walks ten thousand steps and says what they came to; the tests walk a few hundred.
"""

from __future__ import annotations

import gc
import sys
from collections import Counter
from typing import Any

import numpy as np
import torch

from adapterpack import AdapterPool
from tests._pool import KINDS, alone, file_of, relative, task
from tests._vit import images, same, snapshot, vit

KNOWN = [(kind, n) for n, kind in enumerate(KINDS)] + [("lora", n) for n in range(20, 24)]


class Walk:
    """A model, its pool, and what every task should give."""

    def __init__(self, seed: int = 0, *, gather: bool = False) -> None:
        self.model, self.x = vit(), images(4)
        self.before = snapshot(self.model)
        self.files = {f"{kind}-{n}": file_of(task(kind, n)) for kind, n in KNOWN}
        self.names = list(self.files)
        self.mixed = {name: alone(data, name, self.model, self.x) for name, data in self.files.items()}
        self.folded = {name: alone(data, name, self.model, self.x, "auto") for name, data in self.files.items()}
        self.pool = AdapterPool(self.model, memory_budget=60_000)
        self.pool._engine.gather = gather
        self.rng = np.random.default_rng(seed)
        self.done: Counter[str] = Counter()
        self.worst = 0.0

    def run(self, steps: int) -> None:
        kinds = [self.add, self.remove, self.activate, self.activate, self.restore, self.call, self.call, self.replace]
        with torch.no_grad():
            for _ in range(steps):
                step = kinds[int(self.rng.integers(len(kinds)))]
                step()
                self.done[step.__name__] += 1

    def _pick(self) -> str | None:
        return None if not len(self.pool) else str(self.rng.choice(self.pool.tasks))

    def add(self) -> None:
        name = str(self.rng.choice(self.names))
        if name not in self.pool:
            self.pool.add(self.files[name])

    def replace(self) -> None:
        name = self._pick()
        if name is not None:
            self.pool.add(self.files[name], replace=True)

    def remove(self) -> None:
        name = self._pick()
        if name is not None and len(self.pool) > 3:
            self.pool.remove(name)

    def activate(self) -> None:
        name = self._pick()
        self.pool.activate(name)
        if name is not None:
            assert torch.equal(self.model(self.x), self.folded[name]), name

    def restore(self) -> None:
        self.pool.activate(None)

    def call(self) -> None:
        if not len(self.pool):
            return
        active = self.pool.active
        tasks = [str(name) for name in self.rng.choice(self.pool.tasks, 4)]
        for i, (name, row) in enumerate(zip(tasks, self.pool(self.x, tasks=tasks))):
            self.worst = max(self.worst, relative(row, self.mixed[name][i]))
        assert self.worst < 5e-6 and self.pool.active == active

    def emptied(self) -> dict[str, Any]:
        """What is left when all tasks are gone: objects, tensors, and the pool's own figures."""
        for name in self.pool.tasks:
            self.pool.remove(name)
        gc.collect()
        objects = gc.get_objects()
        held = sum(o.untyped_storage().nbytes() for o in objects if type(o) is torch.Tensor)
        stats = self.pool.stats()
        kept = (stats.packed_bytes, stats.inflated_bytes, stats.active_bytes, stats.pristine_bytes)
        ours = sum(str(type(o).__module__).startswith(("adapterpack.", "torch")) for o in objects)
        figures = {"objects": len(objects), "ours": ours, "tensor_bytes": held}
        return {**figures, "kept": kept, "evictions": stats.evictions}

    def exact(self) -> bool:
        """Whether the backbone is what it was, to the bit."""
        return same(snapshot(self.model), self.before)


def main(steps: int) -> None:
    torch.set_num_threads(1)
    walk = Walk()
    walk.run(steps // 2)
    middle = walk.emptied()
    walk.run(steps - steps // 2)
    end, exact = walk.emptied(), walk.exact()
    print(f"{steps} steps: {dict(sorted(walk.done.items()))}")
    print(f"backbone to the bit: {exact}; largest difference of a mixed row from its task alone: {walk.worst:.1e}")
    for key, value in middle.items():
        print(f"{key}, emptied half-way and at the end: {value} {end[key]}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
