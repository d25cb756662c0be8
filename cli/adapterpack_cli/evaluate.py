"""`adapterpack evaluate`: top-1 accuracy of a stored adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from adapterpack_cli import _output
from adapterpack_cli._late import late
from adapterpack_cli._place import BACKBONE


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@BACKBONE
@click.option("--task", help="Which task, where FILE has several.")
@click.option("--split", type=click.Choice(["test", "val", "train"]), default="test", show_default=True)
@click.option("--fold", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--precision", type=click.Choice(["auto", "float32", "bf16"]), default="float32", show_default=True)
@click.option("--skip-corrupt", is_flag=True, help="Leave out images that cannot be read.")
@click.option("--any-backbone", is_flag=True, help="Do not compare the backbone's fingerprint.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(any_backbone: bool, as_json: bool, **options: Any) -> None:
    """Measure the accuracy of the adapter in FILE on the test images of DATA."""
    module = late("adapterpack.train.evaluate")
    question = module.Question(check_fingerprint=not any_backbone, **options)
    with _output.busy(f"evaluating {question.file.name}"):
        found = module.evaluate(question)
    _output.notes(found["notes"])
    if as_json:
        _output.print_json(found)
        return
    text = f"{found['accuracy']:.2%} of {found['examples']:,} {found['split']} images, {found['file_bytes']:,} bytes"
    _output.console().print(f"{_output.plain(found['task'])}: {text}")
