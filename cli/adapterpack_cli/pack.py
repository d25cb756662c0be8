"""`adapterpack pack`: any supported adapter becomes one `.apk`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from adapterpack import exchange
from adapterpack.errors import CallError, MissingFileError, Reason
from adapterpack.packing.options import BITS, PROFILES
from adapterpack.stores import shown
from adapterpack_cli import _output, _summary
from adapterpack_cli._place import PLACE
from adapterpack_cli._words import metadata_of, settings_of

_CHOICE = click.Choice([str(b) for b in BITS])


@click.command()
@click.argument("source", type=PLACE)
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The file to write.")
@click.option("--task", help="The task's name.")
@click.option(
    "--backbone", type=PLACE, metavar="NAME_OR_FILE", help="timm name, or .safetensors with a .json beside it."
)
@click.option("--bits", type=_CHOICE, help="Quantize the adapter's matrices.")
@click.option("--group", type=int, default=0, show_default=True, help="Weights a scale when quantizing; 0: a tensor.")
@click.option("--head-bits", type=_CHOICE, help="Quantize the head.")
@click.option(
    "--profile", type=click.Choice(PROFILES), default="small", show_default=True, help="Smallest, or fastest."
)
@click.option("--labels", type=click.Path(path_type=Path), help="Class names, one a line, in the head's order.")
@click.option(
    "--meta",
    multiple=True,
    metavar="KEY=VALUE",
    help='Free metadata; may be repeated. 0.81 is a number, true and false are such; "0.81" in quotes is text.',
)
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="What the source does not say (reorder=no)."
)
@click.option(
    "--as",
    "how",
    metavar="HOW",
    help="A whole fine-tuned model, as what it changed of --backbone: sparse, lowrank:R, bitdelta[:GROUP] or auto.",
)
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Images to fit the scales of --bits to what the branches give out; needs --backbone.",
)
@click.option(
    "--evaluate",
    type=click.Path(path_type=Path),
    metavar="DATA",
    help="Measure accuracy on DATA's test images, before and after quantizing, and keep it as the metadata's accuracy"
    " unless --meta gives one; needs --backbone.",
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def pack(
    source: str,
    out: Path,
    task: str | None,
    backbone: str | None,
    bits: str | None,
    group: int,
    head_bits: str | None,
    profile: str,
    labels: Path | None,
    meta: Sequence[str],
    settings: Sequence[str],
    how: str | None,
    calibrate: Path | None,
    evaluate: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Make one .apk of SOURCE: a training checkpoint, a published file, a folder or hf://user/repository, an .apk."""
    with _output.busy(f"packing {shown(source).rstrip('/').rpartition('/')[2]}"):
        summary = exchange.pack(
            source,
            out,
            profile=profile,
            task=task,
            backbone=backbone,
            bits=int(bits) if bits else None,
            group=group,
            head_bits=int(head_bits) if head_bits else None,
            labels=None if labels is None else _lines(labels),
            metadata=metadata_of(meta),
            settings=settings_of(settings, how),
            calibrate=calibrate,
            evaluate=evaluate,
            force=force,
        )
    if as_json:
        costs = _summary.costs_json(summary.costs)
        told = {**summary.sizes, "notes": list(summary.notes), "quantization": costs}
        told |= {"matrices": _summary.matrices_json(summary.matrices)} if summary.matrices else {}
        _output.print_json(told if summary.accuracy is None else {**told, "accuracy": dict(summary.accuracy)})
        return
    _output.notes(summary.notes)
    console = _output.console()
    _summary.show_files(console, [summary.sizes])
    _summary.show_matrices(console, summary.matrices)
    _summary.show_costs(console, summary.costs)
    _summary.show_accuracy(console, summary.accuracy)


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: no such file", Reason.MISSING_FILE, hint="check --labels") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CallError(f"{path}: {error}", Reason.IO, hint="--labels wants a UTF-8 text file") from error
