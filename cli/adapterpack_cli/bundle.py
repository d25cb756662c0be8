"""`adapterpack bundle` and `adapterpack split`: several tasks in one file, and apart again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from adapterpack import api
from adapterpack_cli import _output, _summary


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE…")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The file to write.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bundle(files: Sequence[str], out: Path, force: bool, as_json: bool) -> None:
    """Put the tasks of several FILEs of one backbone into one file."""
    with _output.busy(f"bundling {len(files)} files"):
        summary = api.bundle(list(files), out, force=force)
    if as_json:
        _output.print_json(summary.sizes)
    else:
        _summary.show_files(_output.console(), [summary.sizes])


@click.command()
@click.argument("file")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The folder to write into.")
@click.option("--force", is_flag=True, help="Replace existing files.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def split(file: str, out: Path, force: bool, as_json: bool) -> None:
    """Write each task of FILE into a file of its own, <task>.apk."""
    with _output.busy(f"splitting {file}"):
        summaries = api.split(file, out, force=force)
    if as_json:
        _output.print_json({"files": [summary.sizes for summary in summaries]})
        return
    rows = [[summary.path, f"{summary.sizes['file_bytes']:,}"] for summary in summaries]
    _output.console().print(_output.table(("file", "bytes"), rows, (1,)))
