"""`adapterpack predict`: the classes of every image of a folder, as one Parquet file."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from adapterpack.errors import printable
from adapterpack_cli import _output, _streams
from adapterpack_cli._late import late
from adapterpack_cli._place import BACKBONE, PLACE
from adapterpack_cli._signals import terminable


@click.command()
@click.argument("folder", metavar="FOLDER_OF_IMAGES", type=click.Path(path_type=Path))
@click.option("--adapter", type=PLACE, required=True, metavar="FILE", help="An .apk file.")
@BACKBONE
@click.option("-o", "out", required=True, type=click.Path(path_type=Path), help="The Parquet file to write.")
@click.option("--task", "tasks", multiple=True, help="Which task; may be repeated; all of FILE without.")
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="How many classes to give.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Copies of the backbone.")
@click.option("--cpus", type=click.FloatRange(0.1), default=1, show_default=True, help="That each worker reserves.")
@click.option(
    "--gpus", type=click.FloatRange(0.01), default=1, show_default=True, help="Likewise, where there are GPUs."
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--address", default="", help="Of a Ray cluster (auto: the one here); without, Ray is started here.")
@click.option("--skip-corrupt", is_flag=True, help="Leave out images that cannot be read.")
@click.option("--any-backbone", is_flag=True, help="Do not compare the backbone's fingerprint.")
@click.option("--force", is_flag=True, help="Replace an existing output, and drop unfinished parts of another run.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def predict(any_backbone: bool, as_json: bool, **options: Any) -> None:
    """Classify every image in FOLDER_OF_IMAGES and in the folders inside it.

    An interrupted run goes on where it was when it is repeated: finished parts lie beside the output until the end.
    """
    with terminable(), _streams.own_errors():
        module = late("adapterpack.serving.predict", "serve")
        question = module.Question(check_fingerprint=not any_backbone, **options)
        found = module.predict(question, partial(_output.progress, "predicting"))
    _output.notes(found["notes"])
    for path in found["corrupt"]:
        click.echo(f"warning: left out {printable(path)}, which cannot be read", err=True)
    if as_json:
        _output.print_json(found)
        return
    images, tasks = _output.counted(found["images"], "image"), _output.counted(len(found["tasks"]), "task")
    before = f", {found['resumed']:,} of them done before" if found["resumed"] else ""
    _output.console().print(f"{images}{before}, {tasks} in {found['seconds']:.1f} s: {_output.plain(found['out'])}")
