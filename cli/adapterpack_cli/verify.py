"""`adapterpack verify`: decodes everything and checks every checksum and digest."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import click

from adapterpack.api import open as open_apk
from adapterpack.errors import AdapterPackError
from adapterpack_cli import _output
from adapterpack_cli._place import PLACE
from adapterpack_cli._tables import Column, show

_POOL_FROM = 16  # starting processes costs more than it saves for fewer tasks
_COLUMNS = (Column(""), Column("file", least=16), Column("", least=12))
Json = dict[str, Any]
Failure = Json | None


@dataclass(frozen=True, slots=True)
class Job:
    """Some tasks of one file, checked by one process; None for all, where some are coded given others."""

    file: str
    tasks: tuple[str, ...] | None
    count: int


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE…", type=PLACE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def verify(ctx: click.Context, files: Sequence[str], as_json: bool) -> None:
    """Decode everything and check every checksum; all files are checked even when one is bad."""
    results = _all_results(files)
    bad = [result for result in results if not result["ok"]]
    if as_json:
        _output.print_json({"files": results, "ok": not bad})
    else:
        _show(results)
    if bad:
        share = f"{len(bad)} of {len(results)} files: " if len(results) > 1 else ""
        click.echo(f"error: {share}{bad[0]['error']}", err=True)
        ctx.exit(int(bad[0]["exit_status"]))


def _all_results(files: Sequence[str]) -> list[Json]:
    """Every file's head here, its tasks in as many processes as pay."""
    results = [_head(file) for file in files]
    total = sum(len(result["tasks"]) for result in results if result["ok"])
    workers = min(os.cpu_count() or 1, total // (_POOL_FROM // 2))
    jobs = [
        (number, job)
        for number, result in enumerate(results)
        if result["ok"]
        for job in _jobs(result, max(1, total // (8 * workers)) if workers > 1 else 1)
    ]
    with _output.progress("verifying", total) as step:
        for (number, _), failure in zip(jobs, _checked([job for _, job in jobs], workers, step)):
            if failure is not None and results[number]["ok"]:
                results[number] = failure
    for result in results:
        result.pop("given", None)
    return results


def _head(file: str) -> Json:
    """What a file is, as far as its head says: path, ok, and either tasks and digest or error and reason."""
    try:
        bundle = open_apk(file)
    except AdapterPackError as error:
        return _failed(file, error)
    given = any(segment.given for task in bundle.index.tasks for segment in task.segments)
    facts = {"tasks": list(bundle.tasks), "file_bytes": bundle.file_bytes, "digest": bundle.digest}
    return {"path": file, "ok": True, **facts, "given": given}


def _failed(file: str, error: AdapterPackError) -> Json:
    told = {"error": _output.told(error), "reason": error.reason, "where": error.where}
    return {"path": file, "ok": False, **told, "exit_status": error.exit_status}


def _jobs(result: Json, most: int) -> Iterator[Job]:
    """Tasks that are coded given others stay together, because each process would have to decode those again."""
    file, tasks = result["path"], result["tasks"]
    if result["given"]:
        yield Job(file, None, len(tasks))
        return
    for i in range(0, len(tasks), most):
        part = tuple(tasks[i : i + most])
        yield Job(file, part, len(part))


def _checked(jobs: Sequence[Job], workers: int, step: Callable[[int], None]) -> Iterator[Failure]:
    """What is wrong with each job's tasks, in order; `step` is told of every task."""
    if workers < 2:
        for job in jobs:
            yield check(job, step)
        return
    done = 0
    try:
        with ProcessPoolExecutor(workers, initializer=_begin) as pool:
            for job, failure in zip(jobs, pool.map(check, jobs)):
                step(job.count)
                done += 1
                yield failure
    except BrokenProcessPool:  # the system ended a worker, to have its memory: the rest one by one, here
        yield from _checked(jobs[done:], 1, step)


def _begin() -> None:
    """Ctrl-C is for the first process to answer; Numba's decoder, where installed, is worth loading once a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(ImportError):
        importlib.import_module("numba")


def check(job: Job, step: Callable[[int], None] | None = None) -> Failure:
    """Verify some tasks of one file; None where all is well."""
    try:
        for _ in open_apk(job.file).verify(job.tasks):
            if step is not None:
                step(1)
    except AdapterPackError as error:
        return _failed(job.file, error)
    return None


def _show(results: Sequence[Json]) -> None:
    rows = []
    for result in results:
        told = str(result.get("reason"))
        if result["ok"]:
            told = f"{_output.counted(len(result['tasks']), 'task')}  {result['digest'][:19]}"
        rows.append(["ok" if result["ok"] else "BAD", result["path"], told])
    show(_output.console(), _COLUMNS, rows)
