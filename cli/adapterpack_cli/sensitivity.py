"""`adapterpack sensitivity`: SPT's first step alone, written as a mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from adapterpack_cli import _output
from adapterpack_cli._late import late
from adapterpack_cli._place import BACKBONE


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@BACKBONE
@click.option("--budget", required=True, type=float, metavar="M", help="Millions of parameters, head not counted.")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The mask to write.")
@click.option("--kind", type=click.Choice(["lora", "adapter"]), default="lora", show_default=True)
@click.option("--dim", type=int, default=8, show_default=True, help="Rank of the modules.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--input", "inputs", type=click.Choice(["auto", "recipe", "backbone"]), default="auto", show_default=True)
@click.option("--skip-corrupt", is_flag=True, help="Leave out images that cannot be read.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def sensitivity(as_json: bool, **options: Any) -> None:
    """Find which parameters of the backbone matter most for the images in DATA/train, and write a mask.

    The mask has the form of SPT's own param_req_*.pth files; `train --mask` takes it.
    """
    measure = late("adapterpack.train.measure_mask")
    with _output.progress("measuring", 16) as step:
        found = measure.write_mask(measure.MaskRequest(**options), step)
    _output.notes(found["notes"])
    if as_json:
        _output.print_json(found)
        return
    console = _output.console()
    console.print(f"wrote {_output.plain(found['path'])}: {found['parameters']:,} parameters")
    chosen = ", ".join(f"{count} {name}" for name, count in found["matrices"].items() if count) or "none"
    console.print(f"modules: {chosen}; {found['vectors']} whole vectors; {found['sparse']:,} single entries")
