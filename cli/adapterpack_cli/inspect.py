"""`adapterpack inspect`: bytes per task and what they are spent on, from the heads of files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from adapterpack.api import open as open_apk
from adapterpack.errors import AdapterPackError, Reason
from adapterpack.packing.sizes import describe_file, describe_tensors
from adapterpack_cli import _output, _summary
from adapterpack_cli._place import PLACE
from adapterpack_cli._tables import Column, show

Json = dict[str, Any]
_COLUMNS = (
    Column("site", least=20),
    Column("role"),
    Column("method", drop=1),
    Column("tensors", right=True, drop=2),
    Column("shape", drop=3),
    Column("codec", least=10),
    Column("bits", right=True),
    Column("bits/weight", right=True),
)


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE…", type=PLACE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--tensors", is_flag=True, help="List sites, shapes, codecs and bit widths too.")
def inspect(files: Sequence[str], as_json: bool, tensors: bool) -> None:
    """Show bytes per task and what they are spent on; all files are shown that can be read.

    Reads the head of each FILE only: a path or a URL.
    """
    found: list[Json] = []
    errors: list[tuple[str, AdapterPackError]] = []
    for file in files:
        try:
            found.append(_described(file, tensors=tensors))
        except AdapterPackError as error:
            errors.append((file, error))
    if as_json:
        _print_json(found, errors)
    elif found:
        _show(found, tensors=tensors)
    if errors:
        _output.notes([_output.told(error) for _, error in errors[1:]])
        raise _first(errors, len(files))


def _described(file: str, *, tensors: bool) -> Json:
    bundle = open_apk(file)
    description = describe_file(bundle)
    if tensors:
        for task, entry in zip(description["tasks"], bundle.index.tasks):
            task["tensors"] = describe_tensors(entry)
    return description


def _print_json(found: list[Json], errors: Sequence[tuple[str, AdapterPackError]]) -> None:
    bad = [{"path": file, "error": _output.told(error), "reason": error.reason} for file, error in errors]
    _output.print_json({"files": found, **({"errors": bad} if bad else {})})


def _first(errors: Sequence[tuple[str, AdapterPackError]], files: int) -> AdapterPackError:
    error = errors[0][1]
    if files == 1:
        return error
    message = f"{len(errors)} of {files} files: {error.message}"
    return type(error)(message, Reason(error.reason), error.where, error.hint)


def _show(found: Sequence[Json], *, tensors: bool) -> None:
    out = _output.console()
    _summary.show_files(out, found)
    for description in found if tensors else ():
        for task in description["tasks"]:
            out.print()
            show(out, _COLUMNS, [_row(task["name"], row) for row in task["tensors"]])


def _row(task: str, row: Json) -> list[str]:
    spans = ", ".join(f"{a}–{b - 1}" if b - a > 1 else str(a) for a, b in zip(row["blocks"][::2], row["blocks"][1::2]))
    sites = " ".join(row["sites"]) + (f" (blocks {spans})" if spans else "")
    params = row["params"]
    return [
        f"{task}: {sites}",
        row["role"],
        row["method"],
        str(row["tensors"]),
        "×".join(map(str, row["shape"])),
        row["codec"] + (f" group {params['group']}" if params.get("group") else ""),
        "–" if row["bits"] is None else str(row["bits"]),
        "–" if row["bits_per_weight"] is None else f"{row['bits_per_weight']:.3f}",
    ]
