"""`adapterpack bundle` and `adapterpack split`: several tasks in one file, and apart again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from adapterpack import api
from adapterpack.errors import CallError, Reason
from adapterpack_cli import _output, _summary
from adapterpack_cli._place import PLACE
from adapterpack_cli._tables import Column, show


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE…", type=PLACE)
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The file to write.")
@click.option(
    "--cross-task",
    is_flag=True,
    help="Code signs given earlier tasks, where smaller: for tasks trained from one seed. Reading a task takes longer.",
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bundle(files: Sequence[str], out: Path, cross_task: bool, force: bool, as_json: bool) -> None:
    """Put the tasks of several FILEs of one backbone into one file."""
    how = ", coding each task given those before it" if cross_task else ""
    with _output.busy(f"bundling {_output.counted(len(files), 'file')}{how}"):
        summary = api.bundle(list(files), out, cross_task=cross_task, force=force)
    if as_json:
        _output.print_json(summary.sizes)
        return
    _summary.show_files(_output.console(), [summary.sizes])
    if cross_task:
        _output.console().print(_gain(**summary.sizes["cross_task"]))


def _gain(bytes_before: int, bytes_after: int) -> str:
    saved = bytes_before - bytes_after
    if not saved:
        return "coding tasks given earlier ones saves nothing here"
    share = f"{saved / bytes_before:.1%} smaller"
    return f"coding tasks given earlier ones: {bytes_before:,} to {bytes_after:,} bytes, {share}"


@click.command()
@click.argument("file", type=PLACE)
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The folder to write into.")
@click.option("--force", is_flag=True, help="Replace existing files.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def split(file: str, out: Path, force: bool, as_json: bool) -> None:
    """Write each task of FILE into a file of its own, <task>.apk."""
    if out.exists() and not out.is_dir():
        raise CallError(f"{out} is a file", Reason.NOT_A_FILE, hint="give -o a folder, which may be a new one")
    with _output.busy(f"splitting {file}"):
        summaries = api.split(file, out, force=force)
    if as_json:
        _output.print_json({"files": [summary.sizes for summary in summaries]})
        return
    rows = [[summary.path, f"{summary.sizes['file_bytes']:,}"] for summary in summaries]
    show(_output.console(), (Column("file", least=16), Column("bytes", right=True)), rows)
