"""`adapterpack load`: puts an adapter into a frozen ViT and shows that it works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from adapterpack.api import open as open_apk
from adapterpack_cli import _output
from adapterpack_cli._late import late
from adapterpack_cli._place import BACKBONE, PLACE

Json = dict[str, Any]


@click.command()
@click.argument("file", type=PLACE)
@BACKBONE
@click.option("--task", help="Which task, where FILE has several.")
@click.option("--fold", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--image", "images", type=PLACE, multiple=True, metavar="PATH", help="Classify an image; may be repeated."
)
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="How many classes to print.")
@click.option("--export", type=click.Path(path_type=Path), help="Write the model with it: .safetensors or .onnx.")
@click.option("--any-backbone", is_flag=True, help="Do not compare the backbone's fingerprint.")
@click.option("--force", is_flag=True, help="Replace an existing --export file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def load(file: str, backbone: str, task: str | None, any_backbone: bool, as_json: bool, **options: Any) -> None:
    """Put the adapter in FILE into a frozen ViT, classify images with it, export the model with it.

    Where the backbone's weights cannot be downloaded, random ones take their place, and a note says so; nothing is
    exported then.
    """
    bundle = open_apk(file)
    bundle.task_digest(task)  # a wrong task name is told before torch is imported
    with _output.busy(f"loading into {backbone}"):
        module = late("adapterpack.runtime.trial")
        trial = module.Trial(bundle, backbone, task, check_fingerprint=not any_backbone, **options)
        result = module.try_out(trial)
    _output.notes(result["notes"])
    if as_json:
        _output.print_json(result)
    else:
        _show(result)


def _show(result: Json) -> None:
    out = _output.console()
    sites = f"{_output.counted(len(result['folded']), 'site')} folded, {len(result['attached'])} attached"
    out.print(
        f"[bold]{_output.plain(result['task'])}[/] into {_output.plain(result['backbone'])} on {result['device']}: "
        f"{_output.counted(result['classes'], 'class', 'classes')}, {sites}, {result['load_ms']:.1f} ms"
    )
    for image in result["images"]:
        out.print(f"\n{_output.plain(image['path'])}")
        for row in image["top"]:
            cells = round(30 * row["probability"])
            name = _output.plain(row["label"] or f"class {row['class']}")
            out.print(f"  {row['probability']:7.2%}  [cyan]{'█' * cells}[/]{'░' * (30 - cells)}  {name}")
    if "export" in result:
        out.print(f"\nwrote {_output.plain(result['export'])}")
    exact = "bit for bit what it was" if result["unload_exact"] else "NOT what it was; please report this"
    out.print(f"unloaded: the backbone is {exact}")
