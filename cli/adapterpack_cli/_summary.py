"""The table and picture of a file's sizes, shared by `pack`, `inspect`, `bundle` and `split`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adapterpack_cli import _output
from adapterpack_cli._tables import Column, show

if TYPE_CHECKING:
    from rich.console import Console

    from adapterpack.converters._report import Extracted
    from adapterpack.packing.requantize import Cost

COLUMNS = (
    Column("task", least=24),
    Column("method", least=12, drop=6),
    Column("bits", right=True),
    Column("classes", right=True, drop=2),
    Column("bytes", right=True),
    Column("adapter", right=True, drop=5),
    Column("head", right=True, drop=4),
    Column("bits/weight", right=True),
    Column("float32", right=True, drop=1),
    Column("smaller", right=True, drop=3),
)
FITTED = (
    Column("matrix", least=24),
    Column("weight error before", right=True, drop=1),
    Column("after", right=True, drop=2),
    Column("output error before", right=True),
    Column("after fitting", right=True),
)
MATRICES = (
    Column("tensor", least=24),
    Column("shape", drop=1),
    Column("kept as"),
    Column("energy kept", right=True),
    Column("relative error", right=True),
    Column("bytes", right=True, drop=2),
)
Json = Mapping[str, Any]


def show_files(out: Console, files: Sequence[Json]) -> None:
    """One table a file: bytes per task, and what they are spent on."""
    for number, file in enumerate(files):
        if number:
            out.print()
        _show_file(out, file)


def _show_file(out: Console, file: Json) -> None:
    backbone = file["backbone"]
    out.print(f"[bold]{_output.plain(file['path'])}[/]  {file['file_bytes']:,} bytes  format {file['format_version']}")
    finger = (backbone["fingerprint"] or "no fingerprint")[:19]
    out.print(f"backbone {_output.plain(backbone['name'] or 'unnamed')} ({finger})  digest {file['digest'][:19]}")
    show(out, COLUMNS, [_row(task) for task in file["tasks"]])
    parts = {name: 0 for name in ("adapter", "head", "metadata")}
    for task in file["tasks"]:
        for name, count in task["bytes_by_part"].items():
            parts[name] += count
    parts["container"] = file["container_bytes"]
    out.print(_output.bar(parts))
    out.print(_output.legend(parts))


def _row(task: Json) -> list[str]:
    rate, settings = task["bits_per_weight"], task["settings"]
    shown = [
        name for name in ("dim", "scale") if isinstance(settings.get(name), (int, float))
    ]  # a file may hold others
    method = " ".join([task["method"], *(f"{name}={settings[name]:g}" for name in shown)])
    return [
        task["name"],
        method,
        "–" if task["bits"] is None else str(task["bits"]),
        "–" if task["classes"] is None else str(task["classes"]),
        f"{task['bytes']:,}",
        f"{task['bytes_by_part']['adapter']:,}",
        f"{task['bytes_by_part']['head']:,}",
        "–" if rate is None else f"{rate:.3f}",
        _output.size(task["dense_bytes"]),
        f"{task['dense_bytes'] / task['bytes']:.1f}×" if task["bytes"] else "–",
    ]


def show_matrices(out: Console, rows: Sequence[Extracted]) -> None:
    """What was kept of each tensor that fine-tuning changed; those that are kept exactly in one line."""
    exact = [row for row in rows if row.form == "exact"]
    if exact:
        size = _output.size(sum(row.bytes for row in exact))
        out.print(f"kept exactly: {_output.counted(len(exact), 'tensor', 'tensors')}, {size}")
    others = [row for row in rows if row.form != "exact"]
    if others:
        show(out, MATRICES, [_matrix_row(row) for row in others])


def _matrix_row(row: Extracted) -> list[str]:
    shape = "×".join(map(str, row.shape))
    return [row.tensor, shape, row.form, f"{row.kept_energy:.2%}", f"{row.relative_error:.4f}", f"{row.bytes:,}"]


def matrices_json(rows: Sequence[Extracted]) -> list[Json]:
    """The same for `--json`, every tensor."""
    return [
        {
            "tensor": row.tensor,
            "shape": list(row.shape),
            "form": row.form,
            "kept_energy": row.kept_energy,
            "relative_error": row.relative_error,
            "bytes": row.bytes,
        }
        for row in rows
    ]


def _median(costs: Sequence[Cost]) -> float:
    from statistics import median  # slow to import, and `inspect` has no costs to show

    return median(cost.relative_error for cost in costs)


def show_costs(out: Console, costs: Sequence[Cost]) -> None:
    """What quantizing cost: relative error a matrix, median and worst."""
    if not costs:
        return
    worst = max(costs, key=lambda cost: cost.relative_error)
    middle = _median(costs)
    place = f"({_output.plain(worst.tensor)})"
    matrices = _output.counted(len(costs), "matrix", "matrices")
    out.print(f"quantized {matrices}: relative error median {middle:.4f}, worst {worst.relative_error:.4f} {place}")
    fitted = [cost for cost in costs if cost.output_after is not None]
    if fitted:
        show(out, FITTED, [_fitted_row(cost) for cost in fitted])


def _fitted_row(cost: Cost) -> list[str]:
    numbers = (cost.unfitted_error, cost.relative_error, cost.output_before, cost.output_after)
    return [cost.tensor, *("–" if number is None else f"{number:.4f}" for number in numbers)]


def show_accuracy(out: Console, accuracy: Json | None) -> None:
    """Accuracy of what was written, and of what it was made of where that is something else."""
    if accuracy is None:
        return
    before, after = f"{accuracy['before']:.2%}", f"{accuracy['after']:.2%}"
    told = {
        "unquantized": f"{before} before quantizing, {after} after",
        "fine-tuned": f"{before} of the fine-tuned model, {after} of what was kept of it",
    }
    out.print(f"accuracy on {accuracy['examples']:,} test images: {told.get(accuracy['baseline'], after)}")


def costs_json(costs: Sequence[Cost]) -> Json | None:
    """The same for `--json`."""
    if not costs:
        return None
    worst = max(costs, key=lambda cost: cost.relative_error)
    return {
        "median": _median(costs),
        "worst": worst.relative_error,
        "worst_tensor": worst.tensor,
        "tensors": {cost.tensor: cost.relative_error for cost in costs},
        **_fitted_json(costs),
    }


def _fitted_json(costs: Sequence[Cost]) -> Json:
    """What fitting scales to outputs did to each matrix; nothing where it was not done."""
    fitted = {
        cost.tensor: {
            "weight_error_before": cost.unfitted_error,
            "weight_error": cost.relative_error,
            "output_error_before": cost.output_before,
            "output_error": cost.output_after,
        }
        for cost in costs
        if cost.output_after is not None
    }
    return {"calibration": fitted} if fitted else {}
