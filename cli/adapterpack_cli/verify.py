"""`adapterpack verify`: decodes everything and checks every checksum and digest."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import click

from adapterpack.api import open as open_apk
from adapterpack.errors import AdapterPackError, printable
from adapterpack_cli import _output

_POOL_FROM = 16  # starting processes costs more than it saves for fewer files


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE…")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def verify(ctx: click.Context, files: Sequence[str], as_json: bool) -> None:
    """Decode everything and check every checksum; all files are checked even when one is bad."""
    results = _all_results(files)
    good = all(result["ok"] for result in results)
    if as_json:
        _output.print_json({"files": results, "ok": good})
    else:
        _show(results)
    bad = [result for result in results if not result["ok"]]
    if bad:
        first = bad[0]
        place = "" if first["path"] in first["error"] else f"{printable(first['path'])}: "
        click.echo(f"error: {len(bad)} of {len(results)} files: {place}{first['error']}", err=True)
        ctx.exit(int(first["exit_status"]))


def _all_results(files: Sequence[str]) -> list[dict[str, Any]]:
    workers = min(os.cpu_count() or 1, len(files) // (_POOL_FROM // 2))
    with _output.progress("verifying", len(files)) as step:
        results: list[dict[str, Any]] = []
        if workers < 2:
            for file in files:
                results.append(check(file))
                step()
            return results
        with ProcessPoolExecutor(workers, initializer=_warm_up) as pool:
            for result in pool.map(check, files, chunksize=4):
                results.append(result)
                step()
        return results


def _warm_up() -> None:
    """Numba's compiled decoder is worth loading once a worker, where it is installed."""
    with contextlib.suppress(ImportError):
        importlib.import_module("numba")


def check(file: str) -> dict[str, Any]:
    """Verify one file: path, ok, and either tasks and digest or error and reason."""
    try:
        bundle = open_apk(file)
        tasks = list(bundle.verify())
    except AdapterPackError as error:
        reason = {"error": str(error), "reason": error.reason, "where": error.where}
        return {"path": file, "ok": False, **reason, "exit_status": error.exit_status}
    return {"path": file, "ok": True, "tasks": tasks, "file_bytes": bundle.file_bytes, "digest": bundle.digest}


def _show(results: Sequence[dict[str, Any]]) -> None:
    rows = []
    for result in results:
        told = f"{len(result['tasks'])} task(s)  {result['digest'][:19]}" if result["ok"] else str(result["reason"])
        rows.append(["ok" if result["ok"] else "BAD", result["path"], told])
    _output.console().print(_output.table(("", "file", ""), rows))
