"""Ray itself: started quietly on this machine, or joined where a cluster runs."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import ray

from adapterpack.errors import CallError, Reason

NAMESPACE = "adapterpack"


def start_ray(address: str, cpus: float) -> bool:
    """Have Ray run; one that this process has started already is used.

    Args:
        address: of a cluster; "" starts Ray here.
        cpus: that Ray must believe this machine to have, at the least; what it really has is used in any case.

    Returns:
        Whether it was started or joined here, so that it must be left again.

    Raises:
        CallError: `io-error`, there is no cluster at the address, or Ray does not start.
    """
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    quiet("ray")
    logs: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "namespace": NAMESPACE}
    try:
        if address:
            ray.init(address=address, **logs)
        else:
            known = max(os.cpu_count() or 1, int(cpus) + 1)
            ray.init(address="local", num_cpus=known, include_dashboard=False, **logs)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        text = f"Ray at {address or 'this machine'}: {' '.join(str(error).split())[:300]}"
        hint = "give the address that `ray start --head` printed" if address else "see /tmp/ray/session_latest/logs"
        raise CallError(text, Reason.IO, hint=hint) from error
    return True


def quiet(*names: str) -> None:
    """Have Python's loggers of these names tell of errors only."""
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)


def gpus(device: str, each: float) -> float:
    """GPUs that one copy of the backbone reserves: none where it runs on processors."""
    there = ray.cluster_resources().get("GPU", 0) > 0  # type: ignore[no-untyped-call]
    return each if device == "cuda" or (there and device == "auto") else 0


@contextlib.contextmanager
def ray_running(address: str, cpus: float) -> Iterator[None]:
    """Ray for as long as the block runs.

    Raises:
        CallError: as `start_ray`.
    """
    started = start_ray(address, cpus)
    try:
        yield
    finally:
        if started:
            ray.shutdown()
