"""A whole service: Ray, the board, the replicas and the HTTP front door, started in order and stopped in order.

The front door runs in a thread of the process that starts it, not behind Serve's own proxies: it bounds what waits, and
asks another replica where one dies, which those do not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
from ray import serve

from adapterpack.errors import MissingFileError, Reason
from adapterpack.serving import board as boards
from adapterpack.serving.board import Overview
from adapterpack.serving.folder import Folder
from adapterpack.serving.listener import Listener
from adapterpack.serving.replica import Replica
from adapterpack.serving.settings import Settings
from adapterpack.serving.start import gpus_of_each, quiet, start_ray

_GRACE_SECONDS = 20
_HEALTH_SECONDS = 5


class Service:
    """A running service; a context manager that stops it.

    Args:
        settings: what it is.
        host, port: where HTTP is answered; port 0 takes a free one.
        address: of a Ray cluster; "" starts Ray on this machine, where it does not run yet.
        log: is told in one line of what goes wrong meanwhile.

    Attributes:
        url: where it answers.
        overview: tasks, refused files and replicas as it started.

    Raises:
        AdapterPackError: the folder, the backbone, the device or the port cannot be had; nothing is left running.
    """

    def __init__(
        self,
        settings: Settings,
        host: str,
        port: int,
        address: str = "",
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.settings = settings = _absolute(settings)
        _refuse_early(settings)
        self._listener: Listener | None = None
        self._deployed = False
        self.overview: Overview
        self._joined = bool(address)
        self._own_ray = start_ray(address, settings.replicas * settings.cpus)
        try:
            self._board = boards.create(settings.name, settings.source, settings.watch_seconds)
            self._handle = self._deploy()
            self.refreshed()
            self._require_working()
            self._listener = self.listener(settings, log)
            self.url = self._listener.open(host, port)
        except BaseException:
            self.stop()
            raise

    def _deploy(self) -> Any:
        """Start the replicas and wait until they answer or have said why they cannot."""
        settings = self.settings
        gpus = gpus_of_each(settings.device, settings.replicas, settings.cpus, settings.gpus)
        logs = {"log_level": "ERROR", "enable_access_log": False}
        quiet("ray.serve")  # its import has set another level
        serve.start(proxy_location="Disabled", logging_config=logs)
        self._deployed = True
        deployment = serve.deployment(Replica).options(  # type: ignore[attr-defined]
            name="Replica",
            num_replicas=settings.replicas,
            max_ongoing_requests=settings.ongoing,
            max_queued_requests=settings.capacity,
            ray_actor_options={"num_cpus": settings.cpus, "num_gpus": gpus},
            graceful_shutdown_timeout_s=_GRACE_SECONDS,
            health_check_period_s=_HEALTH_SECONDS,
            logging_config=logs,
        )
        return serve.run(deployment.bind(settings, self._board), name=settings.name, route_prefix=None)

    def listener(self, settings: Settings, log: Callable[[str], None] = lambda line: None) -> Listener:
        """One more front door to the same replicas, with its own limits."""
        return Listener(settings, self._handle, self._board, log)

    def refreshed(self) -> Overview:
        """Tasks, refused files and replicas now."""
        self.overview = ray.get(self._board.overview.remote())
        return self.overview

    def _require_working(self) -> None:
        """Raise what a replica says it cannot work for: the backbone, the device."""
        for report in self.overview.reports:
            if report.failure is not None:
                raise report.failure.error()

    def stop(self) -> None:
        """Take no more requests, answer those in hand, and end; a second call does nothing."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._deployed and ray.is_initialized() and (self._joined or not self._own_ray):
            serve.delete(self.settings.name)
            ray.kill(self._board)
        self._deployed = False
        if self._own_ray:
            self._own_ray = False
            ray.shutdown()

    def __enter__(self) -> Service:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _refuse_early(settings: Settings) -> None:
    """What can be told before Ray is started.

    Raises:
        AdapterPackError: the folder or the backbone's file is not there.
    """
    Folder(settings.source)
    if settings.backbone.endswith(".safetensors") and not Path(settings.backbone).is_file():
        text = f"there is no file {settings.backbone}"
        raise MissingFileError(text, Reason.MISSING_FILE, hint="give a timm name or an existing file")


def _absolute(settings: Settings) -> Settings:
    """Paths that mean the same in every process."""
    source, backbone = settings.source, settings.backbone
    if "://" not in source:
        source = str(Path(source).absolute())
    if backbone.endswith(".safetensors"):
        backbone = str(Path(backbone).absolute())
    return dataclasses.replace(settings, source=source, backbone=backbone)
