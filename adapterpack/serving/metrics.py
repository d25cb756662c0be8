"""What Prometheus reads: counters of a front door, and figures of the replicas as they last told them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from adapterpack.serving.board import Overview

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """One front door's."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        p = "adapterpack"
        self._requests = Counter(f"{p}_requests", "Answers by kind and status.", ["kind", "status"], registry=registry)
        self._predictions = Counter(f"{p}_predictions", "Images classified, by task.", ["task"], registry=registry)
        self._seconds = Histogram(
            f"{p}_request_seconds",
            "From head to answer.",
            ["kind"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._batches = Histogram(f"{p}_batch_size", "Images computed together.", buckets=_SIZES, registry=registry)
        self._retries = Counter(f"{p}_retries", "Requests sent to another replica because one died.", registry=registry)
        self.in_hand = Gauge(f"{p}_requests_in_hand", "Predictions that are waiting or computed.", registry=registry)
        self._tasks = Gauge(f"{p}_tasks", "Tasks that are served.", registry=registry)
        self._refused = Gauge(f"{p}_refused_files", "Files that are not served.", registry=registry)
        self._replicas = Gauge(f"{p}_replicas", "Replicas that can answer.", registry=registry)
        self._folder = Gauge(f"{p}_folder_readable", "1 where the folder could be listed last.", registry=registry)
        self._packed = Gauge(
            f"{p}_packed_bytes", "Memory of the tasks that wait, by replica.", ["replica"], registry=registry
        )
        self._inflated = Gauge(
            f"{p}_inflated_bytes", "Memory of the tasks in use, by replica.", ["replica"], registry=registry
        )

    def answered(self, kind: str, status: int, seconds: float) -> None:
        """One answer, good or bad."""
        self._requests.labels(kind, str(status)).inc()
        self._seconds.labels(kind).observe(seconds)

    def predicted(self, task: str) -> None:
        """One image classified."""
        self._predictions.labels(task).inc()

    def computed(self, batch: int) -> None:
        """A batch; 0 is no batch."""
        if batch:
            self._batches.observe(batch)

    def retried(self) -> None:
        """A replica died with a request."""
        self._retries.inc()

    def text(self, overview: Overview) -> bytes:
        """Everything in Prometheus's text format."""
        self._tasks.set(len(overview.listing.tasks))
        self._refused.set(len(overview.listing.refused))
        self._replicas.set(len(overview.ready))
        self._folder.set(0 if overview.listing.problem else 1)
        for gauge, name in ((self._packed, "packed_bytes"), (self._inflated, "inflated_bytes")):
            gauge.clear()
            for report in overview.ready:
                gauge.labels(report.replica).set(report.figures.get(name, 0))
        return generate_latest(self._registry)
