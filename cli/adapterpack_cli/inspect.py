"""`adapterpack inspect`: bytes per task and what they are spent on, from the heads of files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from adapterpack.api import open as open_apk
from adapterpack.packing.sizes import describe_file, describe_tensors
from adapterpack_cli import _output, _summary


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE…")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--tensors", is_flag=True, help="List sites, shapes and codecs too.")
def inspect(files: Sequence[str], as_json: bool, tensors: bool) -> None:
    """Show bytes per task and what they are spent on.

    Reads the head of each FILE only: a path or a URL.
    """
    found: list[dict[str, Any]] = []
    for file in files:
        bundle = open_apk(file)
        description = describe_file(bundle)
        if tensors:
            for task, entry in zip(description["tasks"], bundle.index.tasks):
                task["tensors"] = describe_tensors(entry)
        found.append(description)
    if as_json:
        _output.print_json({"files": found})
        return
    out = _output.console()
    _summary.show_files(out, found)
    for description in found if tensors else ():
        for task in description["tasks"]:
            out.print()
            out.print(_output.table(_COLUMNS, [_row(task["name"], row) for row in task["tensors"]], (3, 6)))


_COLUMNS = ("site", "role", "method", "tensors", "shape", "codec", "bits/weight")


def _row(task: str, row: dict[str, Any]) -> list[str]:
    spans = ", ".join(f"{a}–{b - 1}" if b - a > 1 else str(a) for a, b in zip(row["blocks"][::2], row["blocks"][1::2]))
    sites = " ".join(row["sites"]) + (f" (blocks {spans})" if spans else "")
    params = row["params"]
    codec = row["codec"] + (f" group {params['group']}" if params.get("group") else "")
    return [
        f"{task}: {sites}",
        row["role"],
        row["method"],
        str(row["tensors"]),
        "×".join(map(str, row["shape"])),
        codec,
        "–" if row["bits_per_weight"] is None else f"{row['bits_per_weight']:.3f}",
    ]
