"""Load on `adapterpack serve` over loopback: requests a second and their times, a replica that dies, too many requests.

The clients are a process of their own (this file, run with a URL); none of them asks twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

CLIENTS, TASKS = 16, (1, 8, 64)


@dataclass(frozen=True, slots=True)
class Load:
    """What the clients saw: seconds of each request, and how many had which status."""

    seconds: Sequence[float]
    statuses: Counter[str]
    whole: float

    def row(self) -> list[str]:
        times = sorted(self.seconds)
        places = (times[len(times) // 2], times[min(len(times) - 1, int(0.99 * len(times)))])
        return [f"{len(times) / self.whole:.0f}", *(f"{1000 * t:.0f}" for t in places)]


def report(rounds: int) -> str:
    """Both tables; `rounds` times 40 requests a cell."""
    from adapterpack.serving.service import Service
    from adapterpack.serving.settings import Settings
    from adapterpack.serving.start import ray_running
    from tests import _serving

    with tempfile.TemporaryDirectory() as place, ray_running("", 2), contextlib.ExitStack() as stack:
        folder, count = Path(place), 40 * rounds
        data = _serving.digits(folder)
        for i in range(max(TASKS)):
            (folder / f"task{i}.apk").write_bytes(_serving.variant(data, f"task{i}", classes=10 - i % 5, shift=i))
        settings = Settings(place, _serving.BACKBONE, replicas=2, cpus=1, batch_size=16)
        service = stack.enter_context(Service(settings, "127.0.0.1", 0))
        load(service.url, max(TASKS), 4 * max(TASKS))  # every task is inflated once
        rows = [[str(tasks), *load(service.url, tasks, count).row()] for tasks in TASKS]
        title = f"HTTP on loopback: {CLIENTS} clients, 2 replicas of a ViT of width 192 on 32×32 images\n\n"
        text = title + _table(["tasks", "requests/s", "p50, ms", "p99, ms"], rows)
        return f"{text}\n\n{_deaths(service, count)}\n\n{_overload(service, settings)}"


def _deaths(service: Any, count: int) -> str:
    """A replica is killed while requests are in hand."""
    pids = [int(report.figures["pid"]) for report in service.refreshed().ready]
    killer = threading.Timer(1.0, os.kill, (pids[0], signal.SIGKILL))
    killer.start()
    found = load(service.url, 8, count)
    killer.join()
    lost = sum(found.statuses.values()) - found.statuses["200"]
    longest = max(found.seconds)
    return f"One of 2 replicas killed under that load: {count} requests, {lost} lost, longest {longest:.1f} s"


def _overload(service: Any, settings: Any) -> str:
    """A front door with 4 places for 64 clients."""
    door = service.listener(replace(settings, replicas=1, batch_size=1, max_queue=2))
    try:
        found = load(door.open("127.0.0.1", 0), 8, 640, clients=64)
    finally:
        door.close()
    told = ", ".join(f"{count} × {status}" for status, count in sorted(found.statuses.items()))
    return f"64 clients at a door with 4 places: {told}"


def load(url: str, tasks: int, count: int, *, clients: int = CLIENTS) -> Load:
    """Run the clients."""
    words = [sys.executable, "-W", "ignore", __file__, url, str(tasks), str(count), str(clients)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    return Load(found["seconds"], Counter(found["statuses"]), found["whole"])


def _table(columns: list[str], rows: list[list[str]]) -> str:
    from tests.bench.timing import table

    return table(columns, rows)


async def _clients(url: str, tasks: int, count: int, clients: int) -> dict[str, Any]:
    import aiohttp

    from tests._serving import png

    images = [png(seed) for seed in range(8)]
    order = random.Random(0)
    left = iter([(order.randrange(tasks), order.choice(images)) for _ in range(count)])
    seconds: list[float] = []
    statuses: Counter[str] = Counter()

    async def client(session: aiohttp.ClientSession) -> None:
        for task, image in left:
            start = time.perf_counter()
            try:
                async with session.post(f"{url}/v1/tasks/task{task}/predict", data=image) as reply:
                    await reply.read()
                    statuses[str(reply.status)] += 1
            except aiohttp.ClientError as error:
                statuses[type(error).__name__] += 1
            seconds.append(time.perf_counter() - start)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        start = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(clients)))
        return {"seconds": seconds, "statuses": statuses, "whole": time.perf_counter() - start}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_clients(sys.argv[1], *map(int, sys.argv[2:])))))
