"""`adapterpack serve`: the tasks of a folder behind HTTP, until it is interrupted."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import click

from adapterpack.errors import printable
from adapterpack_cli import _output, _streams
from adapterpack_cli._late import late
from adapterpack_cli._place import BACKBONE, PLACE
from adapterpack_cli._signals import terminable

_TOKEN = "ADAPTERPACK_TOKEN"


@click.command()
@click.argument("source", metavar="FOLDER_OR_URL", type=PLACE)
@BACKBONE
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; 0.0.0.0 for all of the network.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--address", default="", help="Of a Ray cluster (auto: the one here); without, Ray is started here.")
@click.option("--name", default="adapterpack", show_default=True, help="Of the application on the cluster.")
@click.option("--replicas", type=click.IntRange(1), default=1, show_default=True, help="Copies of the backbone.")
@click.option("--cpus", type=click.FloatRange(0.1), default=1, show_default=True, help="That each replica reserves.")
@click.option(
    "--gpus", type=click.FloatRange(0.01), default=1, show_default=True, help="Likewise, where there are GPUs."
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--memory-budget", type=click.IntRange(0), metavar="BYTES", help="Of inflated tasks a replica.")
@click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True, help="Most images at once.")
@click.option(
    "--batch-wait-ms", type=click.FloatRange(0), default=5, show_default=True, help="How long to wait for more."
)
@click.option("--max-queue", type=click.IntRange(0), default=128, show_default=True, help="More are answered with 503.")
@click.option("--max-bytes", "most_bytes", type=click.IntRange(1), default=20_000_000, show_default=True)
@click.option("--max-pixels", "most_pixels", type=click.IntRange(1), default=50_000_000, show_default=True)
@click.option("--timeout", "most_seconds", type=click.FloatRange(0.1), default=60, show_default=True, help="Seconds.")
@click.option("--watch", "watch_seconds", type=click.FloatRange(0.1), default=2, show_default=True, help="Seconds.")
@click.option("--any-backbone", is_flag=True, help="Do not compare the backbone's fingerprint.")
def serve(host: str, port: int, address: str, batch_wait_ms: float, any_backbone: bool, **options: Any) -> None:
    """Answer over HTTP which classes an image has, for every task of the .apk files in FOLDER_OR_URL.

    New, changed and deleted files are noticed. Tasks can also be added and removed over HTTP: on this machine alone by
    anybody, beyond it only with the token that is in the environment variable ADAPTERPACK_TOKEN.
    """
    token = os.environ.get(_TOKEN, "")
    settings = late("adapterpack.serving.settings", "serve").Settings(
        batch_wait=batch_wait_ms / 1000, check_fingerprint=not any_backbone, token=token, **options
    )
    with terminable(), _streams.own_errors():
        module = late("adapterpack.serving.service", "serve")
        with _output.busy("starting Ray and the replicas"):
            service = module.Service(settings, host, port, address, _log)
        ended = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):  # now, because Ray has put in its own
            signal.signal(number, lambda *_: ended.set())
        with service:
            _greet(service)
            ended.wait()
            click.echo("answering what is in hand, then ending", err=True)


def _greet(service: Any) -> None:
    notes = {note for report in service.overview.ready for note in report.notes}
    tasks = len(service.overview.listing.tasks)
    if not tasks:
        notes.add(f"there is no task in {service.settings.source} yet")
    _output.notes(sorted(notes))
    click.echo(f"serving {_output.counted(tasks, 'task')} at {service.url}; stop with Ctrl-C", err=True)


def _log(line: str) -> None:
    click.echo(f"warning: {printable(line)}", err=True)
