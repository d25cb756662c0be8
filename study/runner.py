"""Runs what is missing: one JSON line a finished run, so that it can be stopped and started again at any time."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from study.plan import CASES, PAIRS, SHORT, Budget, Case, Run, final, pairs, tuning, variations, varied

HERE = Path(__file__).resolve().parent
Row = dict[str, Any]


def finished(path: Path) -> dict[str, Row]:
    """The runs in a file by key; a line that was cut off is left out."""
    rows = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows[row["key"]] = row
    return rows


def study(budget: Budget, data: Path, backbone: Path, out: Path, *, workers: int) -> None:
    """Tune, train the two best at full length, and the better with every seed; all that is in `out` already is kept.

    Args:
        budget: what to run.
        data: folder of the tasks' `.npz`.
        backbone: `.safetensors` file.
        out: `.jsonl`.
        workers: processes of one thread each.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    where = (str(data), str(backbone))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        chosen = list(pairs(budget))
        _do(pool, [run for task, case in chosen for run in tuning(budget, task, case)], where, out)
        for name in budget.cases:  # one case after another, so that a study that is stopped has whole ones
            mine = [(task, case) for task, case in chosen if case.name == name]
            known = finished(out)
            best = {task: two_best([known[run.key] for run in tuning(budget, task, case)]) for task, case in mine}
            long = {task: [final(budget, task, case, *pair) for pair in best[task]] for task, case in mine}
            _do(pool, [runs[0] for both in long.values() for runs in both], where, out)
            known = finished(out)
            _do(pool, [run for both in long.values() for run in _better(both, known)], where, out)
        _do(pool, asking_why(budget, finished(out)), where, out)


def two_best(rows: Iterable[Row]) -> list[tuple[float, float]]:
    """Learning rate and scale of the two tuning runs that did best on the validation images, the best first."""
    return [(row["lr"], row["scale"]) for row in sorted(rows, key=on_validation, reverse=True)[:2]]


def on_validation(row: Row) -> tuple[float, float]:
    """What a choice goes by: accuracy, then loss."""
    return row["validation"], -row["validation_loss"]


def _better(both: list[list[Run]], known: Mapping[str, Row]) -> list[Run]:
    """All seeds of the pair whose first seed did better at full length: short runs forgive rates that are too high."""
    return max(both, key=lambda runs: on_validation(known[runs[0].key]))


def of_better_pair(rows: Iterable[Row]) -> list[Row]:
    """Of the two pairs of learning rate and scale that were trained at full length, the one that is better with the
    first seed on the validation images."""
    finals = [row for row in rows if row["stage"] == "final"]
    first: dict[tuple[str, str], Row] = {}
    for row in finals:
        key = (row["case"], row["task"])
        if row["seed"] == 0 and (key not in first or on_validation(row) > on_validation(first[key])):
            first[key] = row
    pair = {key: (row["lr"], row["scale"]) for key, row in first.items()}
    return [row for row in finals if pair.get((row["case"], row["task"])) == (row["lr"], row["scale"])]


def falls_short(rows: Sequence[Row]) -> list[tuple[str, Row, Row]]:
    """The tasks on which 1 bit is below float32 by more than `SHORT`, each with one run of either."""
    cells: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        cells.setdefault((row["case"], row["task"]), []).append(row)
    found = []
    for few, many in PAIRS:
        for case, task in sorted(cells):
            if case == few and (many, task) in cells:
                one, other = cells[few, task], cells[many, task]
                if mean(row["test"] for row in one) < mean(row["test"] for row in other) - SHORT:
                    found.append((task, one[0], other[0]))
    return found


def asking_why(budget: Budget, known: Mapping[str, Row]) -> list[Run]:
    """Where 1 bit falls short of float32: one thing changed at a time, with every seed."""
    short = falls_short([row for row in of_better_pair(known.values()) if row["task"] in budget.tasks])
    cases = {case.name: case for case in CASES}
    runs = []
    for task, one, other in short:
        if {one["case"], other["case"]} <= set(budget.cases):
            names = list(variations(cases[one["case"]]))
            runs += varied(budget, task, one["case"], one["lr"], one["scale"], names)
            runs += varied(budget, task, other["case"], other["lr"], other["scale"], names[:1])
    return runs


def _do(pool: ProcessPoolExecutor, runs: list[Run], where: tuple[str, str], out: Path) -> None:
    known = finished(out)
    missing = [run for run in runs if run.key not in known]
    waiting = [pool.submit(one, run, *where) for run in missing]
    cut = out.exists() and out.read_bytes()[-1:] not in (b"", b"\n")  # no row may join a line that was cut off
    with out.open("a") as file:
        file.write("\n" if cut else "")
        for count, done in enumerate(as_completed(waiting), 1):
            row = done.result()
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
            print(f"{count}/{len(missing)}  {_said(row)}", flush=True)


def _said(row: Row) -> str:
    what = f"{row['task']:16} {row['case']:26} {row['variation'] or row['stage']} seed {row['seed']}"
    return (
        f"{what}  lr {row['lr']:g} scale {row['scale']:g}: validation {row['validation']:.1%}, {row['seconds']:.0f} s"
    )


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def one(run: Run, data: str, backbone: str) -> Row:
    """One training, packed and measured; in a process of its own."""
    from adapterpack import pack
    from adapterpack.train.recipe import recipe_for
    from adapterpack.train.run import Request, train

    case = next(case for case in CASES if case.name == run.case)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run.ckpt"
        result = train(Request(_data(run.task, Path(data), Path(folder)), backbone, out, device="auto"),
                       recipe_for(case.method, _settings(run, case)), lambda _: None)  # fmt: skip
        sizes: Row = {"bytes": out.stat().st_size, "adapter_bytes": None, "head_bytes": None}
        if case.method != "full":
            (task,) = pack(out, Path(folder) / "task.apk").sizes["tasks"]
            parts = task["bytes_by_part"]
            sizes = {"bytes": (Path(folder) / "task.apk").stat().st_size, "adapter_bytes": parts["adapter"],
                     "head_bytes": parts["head"]}  # fmt: skip
    best = result.state.best_score
    if result.test is None:
        raise RuntimeError(f"{run.task} has no test images")
    return {"key": run.key, **asdict(run), "validation": best.accuracy, "validation_loss": best.loss,
            "test": result.test.accuracy, "epoch": result.state.best_epoch, "parameters": result.parameters,
            **sizes, "seconds": round(result.seconds, 1)}  # fmt: skip


def _settings(run: Run, case: Case) -> dict[str, Any]:
    common = {"epochs": run.epochs, "batch_size": run.batch_size, "lr": run.lr, "seed": run.seed}
    extra = {"scale": run.scale} if case.scaled else {}
    own = {name: v for name, v in variations(case).get(run.variation, {}).items() if name not in ("epochs", "scale")}
    return {**dict(case.settings), **common, **extra, **own}


def _data(task: str, data: Path, folder: Path) -> Path:
    if task != "digits":
        return data / f"task_{task}.npz"
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    split = np.full(len(order), 2)
    split[order[:800]], split[order[800:1000]] = 0, 1
    path = folder / "digits.npz"
    np.savez(path, images=(found.images * (255 / 16)).round().astype(np.uint8), labels=found.target, split=split)
    return path
