"""`adapterpack load`: puts an adapter into a frozen ViT and shows that it works."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterpack.api import open as open_apk
from adapterpack.errors import CallError, Reason
from adapterpack_cli import _output
from adapterpack_cli._late import late

if TYPE_CHECKING:
    from adapterpack.runtime.images import TopClass
    from adapterpack.runtime.load import Loaded

Json = dict[str, Any]


@click.command()
@click.argument("file")
@click.option("--backbone", required=True, metavar="NAME_OR_FILE", help="timm name, or .safetensors beside a .json.")
@click.option("--task", help="Which task, where FILE has several.")
@click.option("--fold", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--image", "images", multiple=True, metavar="PATH", help="Classify an image; may be repeated.")
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="How many classes to print.")
@click.option("--export", type=click.Path(path_type=Path), help="Write the folded model as .safetensors.")
@click.option("--any-backbone", is_flag=True, help="Do not compare the backbone's fingerprint.")
@click.option("--force", is_flag=True, help="Replace an existing --export file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def load(
    file: str,
    backbone: str,
    task: str | None,
    fold: str,
    device: str,
    images: Sequence[str],
    top: int,
    export: Path | None,
    any_backbone: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Put the adapter in FILE into a frozen ViT, classify images with it, export the folded model.

    Where the backbone's weights cannot be downloaded, random ones take their place, and a note says so.
    """
    bundle = open_apk(file)
    bundle.task_digest(task)  # a wrong task name is told before a backbone is made
    with _output.busy(f"making {backbone}"):
        made = late("adapterpack.runtime.backbone").create_backbone(backbone)
        before = _bits(made.model)
    _output.notes([made.note] if made.note else [])
    start = time.perf_counter()
    check = not (any_backbone or made.note)  # random weights match no fingerprint, and the note has said so
    deploy = late("adapterpack.runtime.deploy").load
    loaded = deploy(bundle, made.model, task, fold, _device(device), check_fingerprint=check)
    seconds = time.perf_counter() - start
    result = _describe(loaded, backbone, made.note, seconds)
    result["images"] = [_classify(loaded, path, made.data, top) for path in images]
    if export is not None:
        late("adapterpack.runtime.export").export_folded(made.model, export, force=force)
        result["export"] = str(export)
    loaded.unload()
    result["unload_exact"] = _bits(made.model) == before
    if as_json:
        _output.print_json(result)
    else:
        _show(result)


def _device(name: str) -> str | None:
    torch = late("torch")
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise CallError("there is no CUDA device here", Reason.BAD_CALL, hint="use --device cpu")
    return "cuda" if there and name != "cpu" else "cpu"


def _bits(model: Any) -> str:
    """The digest of the frozen tensors, computed afresh: equal before and after means restored to the bit."""
    found: str = late("adapterpack.runtime.fingerprint").fingerprint(model.state_dict())
    return found


def _describe(loaded: Loaded, backbone: str, note: str, seconds: float) -> Json:
    return {
        "task": loaded.task,
        "classes": loaded.classes,
        "backbone": backbone,
        "random_weights": bool(note),
        "device": str(next(loaded.model.parameters()).device),
        "folded": list(loaded.folded),
        "attached": list(loaded.attached),
        "load_ms": round(1000 * seconds, 3),
    }


def _classify(loaded: Loaded, path: str, data: Any, top: int) -> Json:
    images = late("adapterpack.runtime.images")
    image = images.read_image(path, loaded.data or data)
    best: list[TopClass] = images.top_classes(loaded.model, image, top, loaded.labels)
    return {
        "path": path,
        "top": [{"class": b.index, "label": b.label or None, "probability": round(b.probability, 6)} for b in best],
    }


def _show(result: Json) -> None:
    out = _output.console()
    out.print(
        f"[bold]{_output.plain(result['task'])}[/] into {_output.plain(result['backbone'])} on {result['device']}: "
        f"{result['classes']} classes, {len(result['folded'])} sites folded, {len(result['attached'])} attached, "
        f"{result['load_ms']:.1f} ms"
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
