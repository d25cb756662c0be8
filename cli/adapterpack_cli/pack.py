"""`adapterpack pack`: any supported adapter becomes one `.apk`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from adapterpack import exchange
from adapterpack.errors import CallError, MissingFileError, Reason
from adapterpack.packing.options import BITS, PROFILES
from adapterpack_cli import _output, _summary

_CHOICE = click.Choice([str(b) for b in BITS])


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The file to write.")
@click.option("--task", help="The task's name.")
@click.option("--backbone", metavar="NAME_OR_FILE", help="timm name, or .safetensors with a .json beside it.")
@click.option("--bits", type=_CHOICE, help="Quantize the adapter's matrices.")
@click.option("--group", type=int, default=0, show_default=True, help="Weights a scale when quantizing; 0: a tensor.")
@click.option("--head-bits", type=_CHOICE, help="Quantize the head.")
@click.option(
    "--profile", type=click.Choice(PROFILES), default="small", show_default=True, help="Smallest, or fastest."
)
@click.option("--labels", type=click.Path(path_type=Path), help="Class names, one a line, in the head's order.")
@click.option("--meta", multiple=True, metavar="KEY=VALUE", help="Free metadata; may be repeated.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="What the source does not say (reorder=no)."
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def pack(
    source: Path,
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
    force: bool,
    as_json: bool,
) -> None:
    """Make one .apk of SOURCE: a training checkpoint, a published file, a folder."""
    with _output.busy(f"packing {source.name}"):
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
            metadata=_pairs(meta, "--meta"),
            settings={name: _value(value) for name, value in _pairs(settings, "--set").items()},
            force=force,
        )
    if as_json:
        costs = _summary.costs_json(summary.costs)
        _output.print_json({**summary.sizes, "notes": list(summary.notes), "quantization": costs})
        return
    _output.notes(summary.notes)
    shown = _output.console()
    _summary.show_files(shown, [summary.sizes])
    _summary.show_costs(shown, summary.costs)


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: no such file", Reason.MISSING_FILE, hint="check --labels") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CallError(f"{path}: {error}", Reason.IO, hint="--labels wants a UTF-8 text file") from error


def _pairs(words: Sequence[str], option: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name or name in found:
            problem = "given twice" if name in found else "not KEY=VALUE"
            raise CallError(
                f"{option} {word}: {problem}", Reason.BAD_CALL, hint=f"for example {option} dataset=cifar100"
            )
        found[name] = value
    return found


def _value(text: str) -> Any:
    """yes/no, whole and decimal numbers, else text."""
    if text.lower() in ("yes", "true", "no", "false"):
        return text.lower() in ("yes", "true")
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
