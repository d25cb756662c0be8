"""From the finished runs to a page: a table, what holds of the papers' claims, and a plot of accuracy against bytes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from math import sqrt
from pathlib import Path
from statistics import mean, stdev, variance
from typing import Any

from study.plan import CASES, VARIATIONS, WITHOUT_SCALE
from study.runner import falls_short, of_better_pair

Row = dict[str, Any]
Cells = dict[tuple[str, str], list[Row]]
# What the papers say, each of two cases: that the first loses nothing against the second, or that it beats the second
KEEPS = (
    ("1 bit loses nothing (LoRA, dim 32)", "lora 1 bit dim 32", "lora 32 bit dim 32"),
    ("1 bit loses nothing (LoRA, dim 8)", "lora 1 bit dim 8", "lora 32 bit dim 8"),
    ("1 bit loses nothing (AdaptFormer, dim 32)", "adaptformer 1 bit dim 32", "adaptformer 32 bit dim 32"),
    ("1 bit loses nothing (Consolidator)", "consolidator 1 bit", "consolidator 32 bit"),
)
BEATS = (
    ("high dim at 1 bit beats low dim at 8 bits (LoRA)", "lora 1 bit dim 32", "lora 8 bit dim 4"),
    ("high dim at 1 bit beats low dim at 8 bits (AdaptFormer)", "adaptformer 1 bit dim 32", "adaptformer 8 bit dim 4"),
    ("high dim at 1 bit beats dim 1 at 32 bits (LoRA)", "lora 1 bit dim 32", "lora 32 bit dim 1"),
    ("Consolidator beats LoRA at equal bytes, 32 bits", "consolidator 32 bit", "lora 32 bit dim 8"),
    ("Consolidator beats LoRA at equal bytes, 1 bit", "consolidator 1 bit", "lora 1 bit dim 128"),
    ("SPT beats LoRA at equal bytes, 32 bits", "spt-lora 32 bit 0.006 M", "lora 32 bit dim 1"),
    ("SPT beats LoRA at equal bytes, 1 bit", "spt-lora 1 bit 0.03 M", "lora 1 bit dim 16"),
    ("SPT in 1 bit beats SPT in 32 bits, in fewer bytes", "spt-lora 1 bit 0.03 M", "spt-lora 32 bit 0.006 M"),
    ("every adapter beats the probe (1-bit LoRA)", "lora 1 bit dim 32", "probe"),
)
LOSS = 1.0  # points


def write_report(rows: Sequence[Row], folder: Path) -> Path:
    """`study.md`, and a plot where matplotlib is there.

    Args:
        rows: of finished runs; tuning runs are left out.
        folder: where to.
    """
    finals = of_better_pair(rows)
    if not finals:
        raise SystemExit("study: only tuning runs are finished, there is nothing to report yet; run it again to go on")
    cells: Cells = {}
    for row in finals:
        cells.setdefault((row["case"], row["task"]), []).append(row)
    cases = [case.name for case in CASES if any(name == case.name for name, _ in cells)]
    tasks = sorted({task for _, task in cells})
    folder.mkdir(parents=True, exist_ok=True)
    plots = _plot(cells, cases, tasks, folder)
    parts = (_accuracies(cells, cases, tasks), plots, _claims(cells, tasks), _why(rows, finals),
             _above_probe(cells, cases, tasks), _sizes(cells, cases), _chosen(cells, cases, tasks))  # fmt: skip
    text = [*_head(finals), *chain.from_iterable(parts)]
    path = folder / "study.md"
    path.write_text("\n".join(text).rstrip() + "\n")
    return path


def _head(rows: Sequence[Row]) -> list[str]:
    epochs = "/".join(sorted({str(row["epochs"]) for row in rows}))
    seeds = len({row["seed"] for row in rows})
    return [
        "# Accuracy against bytes",
        "",
        f"{len(rows)} runs of {epochs} epochs, {seeds} seeds, written by `make study`. Learning rate and scale of "
        "every case were chosen on the validation images: the two best of six short runs were trained at full length, "
        "and the better of them with every seed. The epoch was chosen on them too; no test image chose anything. Test "
        "accuracy in percent, mean ± sample standard deviation over seeds. `.apk` is the whole file, head included; "
        "`adapter` leaves the head out.",
        "",
    ]


def _accuracies(cells: Cells, cases: Sequence[str], tasks: Sequence[str]) -> list[str]:
    lines = [f"| case | .apk, bytes | adapter, bytes | {' | '.join(tasks)} | mean |", "|---" * (len(tasks) + 4) + "|"]
    for case in cases:
        mine = [row for task in tasks for row in cells.get((case, task), [])]
        size = mean(row["bytes"] for row in mine)
        adapter = [row["adapter_bytes"] for row in mine if row["adapter_bytes"] is not None]
        shown = f"{mean(adapter):,.0f}" if adapter else "–"
        values = [_cell(cells.get((case, task), [])) for task in tasks]
        whole = [mean(row["test"] for row in cells[case, task]) for task in tasks if (case, task) in cells]
        average = f"{100 * mean(whole):.1f}" if len(whole) == len(tasks) else "–"
        lines.append(f"| {case} | {size:,.0f} | {shown} | {' | '.join(values)} | {average} |")
    return [*lines, ""]


def _cell(rows: Sequence[Row]) -> str:
    if not rows:
        return "–"
    values = [100 * row["test"] for row in rows]
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _claims(cells: Cells, tasks: Sequence[str]) -> list[str]:
    """Differences of the means over seeds; behind ± the standard error of each, from the spread over seeds."""
    lines = ["## What holds here of what the papers say", "",
             f"Nothing is lost where the mean is at most {LOSS:g} point lower; one beats another where the mean "
             "difference is above twice its standard error.", "",
             "| claim | here | difference, points | by task | bytes of the .apk |",
             "|---|---|---|---|---|"]  # fmt: skip
    for text, one, other in KEEPS + BEATS:
        both = [task for task in tasks if (one, task) in cells and (other, task) in cells]
        if both:
            gaps = [_mean(cells[one, task]) - _mean(cells[other, task]) for task in both]
            errors = [_error(cells[one, task], cells[other, task]) for task in both]
            by_task = ", ".join(f"{task} {gap:+.1f} ± {error:.1f}" for task, gap, error in zip(both, gaps, errors))
            size = mean(row["bytes"] for task in both for row in cells[one, task])
            beside = mean(row["bytes"] for task in both for row in cells[other, task])
            gap, error = mean(gaps), sqrt(sum(e**2 for e in errors)) / len(errors)
            found = _verdict(gap, error, keeps=(text, one, other) in KEEPS)
            lines.append(
                f"| {text} | {found} | {gap:+.2f} ± {error:.2f} | {by_task} | {size:,.0f} against {beside:,.0f} |"
            )
    return [*lines, ""]


def _why(rows: Sequence[Row], finals: Sequence[Row]) -> list[str]:
    """What changing one thing does where 1 bit falls short of float32."""
    lines = ["## Where 1 bit falls short, and what changes it", "",
             "One thing changed by itself, with the learning rate and scale that were chosen; behind ± the standard "
             "error of the difference from the first line.", "",
             "| task, adapter | changed | test accuracy | difference, points |", "|---|---|---|---|"]  # fmt: skip
    asked: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row["stage"] == "why":
            asked.setdefault((row["task"], row["case"], row["variation"]), []).append(row)
    found = []
    for task, *both in falls_short(finals):
        cases = [row["case"] for row in both]
        if not any(key[:2] == (task, case) for key in asked for case in cases):
            continue
        for case in cases:
            before = [row for row in finals if (row["task"], row["case"]) == (task, case)]
            found.append(f"| {task}, {case} | – | {_cell(before)} | |")
            for name in {**VARIATIONS, **WITHOUT_SCALE}:
                after = asked.get((task, case, name), [])
                if after:
                    gap = f"{_mean(after) - _mean(before):+.1f} ± {_error(after, before):.1f}"
                    found.append(f"| | {name} | {_cell(after)} | {gap} |")
    return [*lines, *found, ""] if asked and found else []


def _verdict(gap: float, error: float, *, keeps: bool) -> str:
    """What a mean difference says of a claim; `keeps` for one that nothing is lost, else that one beats another."""
    if keeps:
        return "holds" if gap >= -LOSS else "does not hold"
    if abs(gap) <= 2 * error:
        return "undecided"
    return "holds" if gap > 0 else "does not hold"


def _above_probe(cells: Cells, cases: Sequence[str], tasks: Sequence[str]) -> list[str]:
    lines = ["## Above the linear probe", ""]
    below = []
    least = []
    for task in tasks:
        probe = cells.get(("probe", task))
        there = [case for case in cases if case != "probe" and (case, task) in cells]
        gaps = {case: _mean(cells[case, task]) - _mean(probe) for case in there} if probe else {}
        if gaps:
            worst = min(gaps, key=lambda case: gaps[case])
            least.append(f"{task} {gaps[worst]:+.1f} ({worst})")
            below += [f"{case} on {task} by {-gap:.1f} points" for case, gap in gaps.items() if gap <= 0]
    if not least:
        return []
    said = f"Not above it: {'; '.join(below)}." if below else "Every adapter is above it on every task."
    return [*lines, f"{said} The least gain of any adapter, in points: {', '.join(least)}.", ""]


def _sizes(cells: Cells, cases: Sequence[str]) -> list[str]:
    """How much smaller a 1-bit adapter's part of the .apk is than its parameters in float32."""
    lines = ["## Size of the adapter, head aside", "",
             "| case | parameters | float32, bytes | in the .apk, bytes | times smaller |",
             "|---|---|---|---|---|"]  # fmt: skip
    for case in cases:
        mine = [row for (name, _), rows in cells.items() if name == case for row in rows]
        if any(row["adapter_bytes"] for row in mine):
            count, size = mean(row["parameters"] for row in mine), mean(row["adapter_bytes"] for row in mine)
            lines.append(f"| {case} | {count:,.0f} | {4 * count:,.0f} | {size:,.0f} | {4 * count / size:.1f} |")
    return [*lines, ""]


def _chosen(cells: Cells, cases: Sequence[str], tasks: Sequence[str]) -> list[str]:
    lines = ["## What the validation images chose", "", "Learning rate, and scale where the method has one.", "",
             f"| case | {' | '.join(tasks)} |", "|---" * (len(tasks) + 1) + "|"]  # fmt: skip
    scaled = {case.name for case in CASES if case.scaled}
    for case in cases:
        rows = [cells[case, task][0] if (case, task) in cells else None for task in tasks]
        shown = ["–" if row is None else f"{row['lr']:g}" + (f", {row['scale']:g}" if case in scaled else "")
                 for row in rows]  # fmt: skip
        lines.append(f"| {case} | {' | '.join(shown)} |")
    return [*lines, ""]


def _mean(rows: Sequence[Row]) -> float:
    return 100 * mean(row["test"] for row in rows)


def _error(one: Sequence[Row], other: Sequence[Row]) -> float:
    """Standard error of the difference of two means."""
    several = [[row["test"] for row in rows] for rows in (one, other) if len(rows) > 1]
    return 100 * sqrt(sum(variance(values) / len(values) for values in several))


def _plot(cells: Cells, cases: Sequence[str], tasks: Sequence[str], folder: Path) -> list[str]:
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(tasks), figsize=(4.2 * len(tasks), 4), squeeze=False, sharex=True)
    for axis, task in zip(axes[0], tasks):
        for case in cases:
            rows = cells.get((case, task), [])
            if rows:
                values = [100 * row["test"] for row in rows]
                error = stdev(values) if len(values) > 1 else 0.0
                axis.errorbar([mean(row["bytes"] for row in rows)], [mean(values)], yerr=[error],
                              fmt="osD^vP"[cases.index(case) % 6], capsize=3, label=case)  # fmt: skip
        axis.set(xscale="log", title=task, xlabel="bytes of the .apk")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("test accuracy, %")
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=4, fontsize=8, bbox_to_anchor=(0.5, -0.15))
    figure.savefig(folder / "study.svg", bbox_inches="tight")
    pyplot.close(figure)
    return ["![accuracy against bytes](study.svg)", ""]
