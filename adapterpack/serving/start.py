"""Ray itself: started quietly on this machine, or joined where a cluster runs."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import ray

from adapterpack.errors import CallError, Reason

NAMESPACE = "adapterpack"
_CONNECT_SECONDS = 10


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
            _require_listener(address)
            ray.init(address=address, **logs)
        else:
            known = max(os.cpu_count() or 1, int(cpus) + 1)
            ray.init(address="local", num_cpus=known, include_dashboard=False, **logs)
    except (OSError, RuntimeError, ValueError) as error:
        text = f"Ray at {address or 'this machine'}: {' '.join(str(error).split())[:300]}"
        hint = "give the address that `ray start --head` printed" if address else "see /tmp/ray/session_latest/logs"
        raise CallError(text, Reason.IO, hint=hint) from error
    return True


def _require_listener(address: str) -> None:
    """Where nothing listens, Ray itself says so after many minutes.

    Raises:
        OSError: nothing does.
        ValueError: the port is no number.
    """
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if host:  # else a word, such as "auto"
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()


def quiet(*names: str) -> None:
    """Have Python's loggers of these names tell of errors only."""
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)


def gpus_of_each(device: str, copies: int, cpus: float, gpus: float) -> float:
    """GPUs that each copy of the backbone reserves: none where it runs on processors.

    Args:
        device: "auto", "cpu" or "cuda".
        copies: of the backbone.
        cpus, gpus: what each is to reserve; gpus counts only where the device is a GPU.

    Raises:
        CallError: `bad-call`, they do not fit into what Ray has: it would wait for more, without a word and for ever.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    there = any(node.get("GPU", 0) > 0 for node in nodes)
    if device == "cuda" and not there:
        raise CallError("Ray sees no GPU", Reason.BAD_CALL, hint="use --device cpu, or a cluster that has one")
    each = {"CPU": cpus, "GPU": gpus if there and device != "cpu" else 0}
    room = sum(_fitting(node, each) for node in nodes)
    if room < copies:
        need = f"{cpus:g} CPUs and {each['GPU']:g} GPUs"
        text = f"{copies} copies of the backbone with {need} each: there is room for {room}"
        hint = "start fewer, or reserve less: --cpus, --gpus, --device cpu"
        raise CallError(text, Reason.BAD_CALL, hint=hint)
    return each["GPU"]


def _fitting(node: Mapping[str, float], each: Mapping[str, float]) -> int:
    """How many copies a node has room for; a hair is added because 0.3 / 0.1 is less than 3."""
    return min(int(node.get(name, 0) / amount + 1e-6) for name, amount in each.items() if amount)


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
