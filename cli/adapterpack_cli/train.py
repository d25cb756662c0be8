"""`adapterpack train`: an adapter from images, written as a checkpoint that `pack` reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterpack.errors import CallError, Reason
from adapterpack_cli import _output, _progress
from adapterpack_cli._late import late
from adapterpack_cli._place import BACKBONE

if TYPE_CHECKING:
    from adapterpack.train.run import Result

METHODS = ("lora", "adaptformer", "consolidator", "spt-lora", "spt-adapter", "linear", "bias", "full")
_BITS = click.Choice(["1", "2", "4", "8", "32"])
_RECIPE = ("bits", "head_bits", "dim", "groups", "reorder", "branch_drop", "budget", "scale", "epochs", "lr",
           "weight_decay", "batch_size", "accumulate", "schedule", "drop_path", "seed", "precision",
           "val_share")  # fmt: skip
# settings that only some methods have; given to another one, they do nothing, and a note says so
_ONLY = {
    "dim": ("lora", "adaptformer", "spt-lora", "spt-adapter"),
    "scale": ("lora", "adaptformer"),
    "groups": ("consolidator",),
    "reorder": ("consolidator",),
    "branch_drop": ("consolidator", "spt-lora", "spt-adapter"),
    "budget": ("spt-lora", "spt-adapter"),
    "mask": ("spt-lora", "spt-adapter"),
    "bits": ("lora", "adaptformer", "consolidator", "spt-lora", "spt-adapter"),
}


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@BACKBONE
@click.option("--method", required=True, type=click.Choice(METHODS))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The checkpoint to write.")
@click.option("--bits", type=_BITS, help="Of the trained matrices.  [default: the paper's]")
@click.option("--head-bits", type=_BITS, help="Of the head; below 32 it has no bias.  [default: 32]")
@click.option("--dim", type=int, help="Hidden dimension or rank.  [default: 32 in 1 and 2 bits, else 8]")
@click.option("--groups", metavar="N,…", help="Consolidator's group counts, one a branch.  [default: half the width]")
@click.option("--reorder/--no-reorder", default=None, help="Consolidator: read reordered channels.  [default: no]")
@click.option("--branch-drop", type=float, help="Consolidator, SPT: drop path of a branch.")
@click.option("--budget", type=float, help="SPT: millions of parameters.  [default: 0.5 % of the backbone]")
@click.option("--mask", type=click.Path(path_type=Path), help="SPT: a param_req_*.pth; else it is made first.")
@click.option("--scale", metavar="S", help="Of a LoRA or AdaptFormer; auto: the best of 0.01 … 100 on validation.")
@click.option("--epochs", type=int, help="[default: 100]")
@click.option("--lr", type=float, help="Peak learning rate.  [default: the paper's]")
@click.option("--weight-decay", type=float)
@click.option("--batch-size", type=int, help="[default: 64]")
@click.option("--accumulate", type=int, help="Compute a batch in so many parts.")
@click.option("--schedule", type=click.Choice(["auto", "epoch", "step"]), help="When the rate changes.")
@click.option("--drop-path", type=float, help="Of the last block.  [default: 0.1]")
@click.option("--val-share", type=float, help="Of the training images, where there is no val/.  [default: 0.2]")
@click.option("--seed", type=int, help="[default: 0]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--precision", type=click.Choice(["auto", "float32", "bf16"]), help="auto: bf16 where it is native.")
@click.option("--input", "inputs", type=click.Choice(["auto", "recipe", "backbone"]), default="auto", show_default=True,
              help="Input values: the paper's, or the backbone's own (auto: own for a file).")  # fmt: skip
@click.option("--task", default="", help="The task's name.  [default: that of DATA]")
@click.option("--skip-corrupt", is_flag=True, help="Leave out images that cannot be read.")
@click.option("--resume", is_flag=True, help="Go on where an earlier run was stopped.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def train(data: Path, as_json: bool, **options: Any) -> None:
    """Train an adapter on the images in DATA.

    DATA is a folder with train/, perhaps val/, and test/, each with a folder of images for every class; or an .npz with
    images, labels and perhaps split (0 train, 1 val, 2 test) and classes. The epoch that is best on the validation
    images is kept; test images choose nothing. Start it with `accelerate launch` for several devices.
    """
    recipes, run = late("adapterpack.train.recipe"), late("adapterpack.train.run")
    changes = {name: options[name] for name in _RECIPE if options[name] is not None}
    _output.notes(_without_effect(options["method"], options))
    recipe = recipes.recipe_for(options["method"], _plain(changes))
    names = ("backbone", "out", "task", "mask", "inputs", "device", "skip_corrupt", "resume", "force")
    request = run.Request(data=data, **{name: options[name] for name in names})
    first = os.environ.get("RANK", "0") == "0"
    part = late("adapterpack.train.resume").part_of(request.out)
    if first and part.exists() != request.resume:
        begun = f"{part.name}, an unfinished run, will be replaced; --resume would go on with it"
        _output.notes([f"there is no {part.name} to go on from: the run begins anew" if request.resume else begun])
    with _progress.training(quiet=not first) as report:
        result = run.train(request, recipe, report)
    if first:
        _show(result, options["out"], as_json=as_json)


def _plain(changes: dict[str, Any]) -> dict[str, Any]:
    out = dict(changes)
    for name in ("bits", "head_bits"):
        if name in out:
            out[name] = int(out[name])
    if "groups" in out:
        out["groups"] = _numbers(out["groups"])
    if "scale" in out:
        out["scale"] = None if out["scale"] == "auto" else _number(out["scale"])
    return out


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise CallError(f"--groups is {text!r}", Reason.BAD_CALL, hint="expected e.g. 384 or 192,384") from error


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise CallError(f"--scale is {text!r}", Reason.BAD_CALL, hint="expected a number or auto") from error


def _without_effect(method: str, options: dict[str, Any]) -> list[str]:
    given = [name for name, methods in _ONLY.items() if options[name] is not None and method not in methods]
    return [f"--{name.replace('_', '-')} has no effect on {method}" for name in given]


def _show(result: Result, out: Path, *, as_json: bool) -> None:
    best = result.state.best_score
    found = {
        "path": str(out),
        "method": result.recipe.method,
        "validation_accuracy": best.accuracy,
        "test_accuracy": None if result.test is None else result.test.accuracy,
        "test_examples": None if result.test is None else result.test.examples,
        "best_epoch": result.state.best_epoch,
        "parameters": result.parameters,
        "file_bytes": out.stat().st_size,
        "seconds": round(result.seconds, 2),
        "recipe": result.recipe.to_json(),
        "history": result.state.history,
        "notes": list(result.notes),
    }
    _output.notes(result.notes)
    if as_json:
        _output.print_json(found)
        return
    console = _output.console()
    console.print(f"wrote {_output.plain(str(out))}: {result.parameters:,} trained parameters, {result.seconds:.1f} s")
    console.print(f"validation {best.accuracy:.2%} in epoch {result.state.best_epoch} of {result.recipe.epochs}")
    scored = [row["val_accuracy"] for row in result.state.history if "val_accuracy" in row]
    if len(scored) > 1:
        console.print(f"           {_output.curve(scored)}  from {scored[0]:.2%} to {scored[-1]:.2%}")
    if result.test is not None:
        console.print(f"test       {result.test.accuracy:.2%} of {result.test.examples:,} images")
