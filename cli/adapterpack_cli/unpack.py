"""`adapterpack unpack`: the way back out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterpack import exchange
from adapterpack.converters import EXPORTERS
from adapterpack.converters.hf_names import NAMINGS
from adapterpack.errors import printable
from adapterpack_cli import _output
from adapterpack_cli._place import PLACE

if TYPE_CHECKING:
    _Choice = click.Choice[str]
else:  # click 8.1 has no types to give
    _Choice = click.Choice


class _Form(_Choice):
    """A form's name; what is no adapter's form but a model's is told where it is written."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value == "onnx":
            how = "adapterpack load FILE --backbone B --export OUT.onnx"
            self.fail(f"ONNX holds a whole model; write it with: {how}", param, ctx)
        return super().convert(value, param, ctx)


@click.command()
@click.argument("file", type=PLACE)
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The file to write.")
@click.option("--to", required=True, type=_Form(list(EXPORTERS)), help="The form to write.")
@click.option("--task", help="Which task, where FILE has several.")
@click.option("--names", type=click.Choice(list(NAMINGS)), help="Whose module names peft gets; else the source's.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def unpack(file: str, out: Path, to: str, task: str | None, names: str | None, force: bool, as_json: bool) -> None:
    """Write one task of FILE in another program's form, and say what that form cannot hold."""
    with _output.busy(f"unpacking {file}"):
        written = exchange.unpack(file, out, to=to, task=task, names=names or "", force=force)
    _output.notes(written.notes)
    if as_json:
        paths = [str(path) for path in written]
        size = sum(path.stat().st_size for path in written)
        notes = list(written.notes)
        _output.print_json({"path": paths[0], "paths": paths, "form": to, "bytes": size, "notes": notes})
    else:
        click.echo(f"wrote {' and '.join(printable(path) for path in written)}")
