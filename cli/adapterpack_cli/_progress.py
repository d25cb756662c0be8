"""A training run on standard error: a bar where that is a terminal, one line an epoch where it is not."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from adapterpack.train.loop import Progress


@contextlib.contextmanager
def training(*, quiet: bool = False) -> Iterator[Callable[[Progress], None]]:
    """What is told of every step.

    Args:
        quiet: say nothing, for the second and further processes of a run.
    """
    if quiet:
        yield lambda progress: None
    elif sys.stderr.isatty():
        with _bar() as told:
            yield told
    else:
        yield _line


def _line(progress: Progress) -> None:
    if progress.validation is not None:
        click.echo(f"{progress.stage}: {_numbers(progress)}", err=True)


def _numbers(progress: Progress) -> str:
    text = f"epoch {progress.epoch}/{progress.epochs}  loss {progress.loss:.4f}  accuracy {progress.accuracy:.1%}"
    if progress.validation is not None:
        text += f"  validation {progress.validation.accuracy:.1%}"
    return text


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns: list[Any] = [TextColumn("[bold]{task.description}"), BarColumn(), TextColumn("{task.fields[numbers]}")]
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as shown:
        rows: dict[str, Any] = {}
        last: dict[str, str] = {}

        def told(progress: Any) -> None:
            stage = progress.stage
            if stage not in rows:
                rows[stage] = shown.add_task(stage, total=progress.epochs, numbers="")
            if progress.validation is not None:
                last[stage] = f"  validation {progress.validation.accuracy:.1%}"
                done = float(progress.epoch)
            else:
                done = progress.epoch - 1 + progress.step / progress.steps
            numbers = f"loss {progress.loss:.4f}  accuracy {progress.accuracy:.1%}{last.get(stage, '')}"
            shown.update(rows[stage], completed=done, numbers=numbers)

        yield told
