"""The study's report from runs made up here, and its rule for what is finished."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from study import runner
from study.plan import BUDGETS, CASES, VARIATIONS, final, tuning
from study.report import write_report
from study.runner import _settings, asking_why, finished, two_best


def run(case: str, task: str, seed: int, test: float, **more: Any) -> dict[str, Any]:
    fixed = {"stage": "final", "epochs": 15, "lr": 0.01, "scale": 10.0, "validation_loss": 1.0, "bytes": 9000}
    sizes = {"adapter_bytes": 2000, "parameters": 10_000}
    return {"case": case, "task": task, "seed": seed, "test": test, "validation": test, **fixed, **sizes, **more}


ROWS = [
    *[run("probe", "digits", s, t, adapter_bytes=0, parameters=0) for s, t in enumerate((0.50, 0.52))],
    *[run("lora 32 bit dim 32", "digits", s, t, adapter_bytes=40_000) for s, t in enumerate((0.80, 0.84))],
    *[run("lora 1 bit dim 32", "digits", s, t) for s, t in enumerate((0.81, 0.81))],
    *[run("lora 8 bit dim 4", "digits", s, t) for s, t in enumerate((0.40, 0.44))],
]


@pytest.fixture
def page(tmp_path: Path) -> str:
    return write_report(ROWS, tmp_path).read_text("utf-8")


def test_accuracies(page: str) -> None:
    """0.80 and 0.84 have the mean 82.0 and the sample standard deviation sqrt(8) = 2.8."""
    assert "| lora 32 bit dim 32 | 9,000 | 40,000 | 82.0 ± 2.8 | 82.0 |" in page
    assert "| probe | 9,000 | 0 | 51.0 ± 1.4 | 51.0 |" in page


def test_claims(page: str) -> None:
    """81.0 − 82.0, with the error sqrt(8 / 2 + 0 / 2) = 2.0; 81.0 is far above 42.0 ± 2.8 and 51.0 ± 1.4."""
    assert "| 1 bit loses nothing (LoRA, dim 32) | holds | -1.00 ± 2.00 | digits -1.0 ± 2.0 |" in page
    assert "| high dim at 1 bit beats low dim at 8 bits (LoRA) | holds | +39.00 ± 2.00 |" in page
    assert "AdaptFormer" not in page  # nothing is claimed of what was not run


def test_what_is_below_the_probe_is_named(page: str) -> None:
    assert "Not above it: lora 8 bit dim 4 on digits by 9.0 points." in page


def test_sizes(page: str) -> None:
    assert "| lora 1 bit dim 32 | 10,000 | 40,000 | 2,000 | 20.0 |" in page
    assert "| probe | 0 |" not in page


def test_only_tuning_runs_are_no_report(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="only tuning"):
        write_report([{**ROWS[0], "stage": "tune"}], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_line_that_was_cut_off_is_not_finished(tmp_path: Path) -> None:
    path = tmp_path / "study.jsonl"
    path.write_text(json.dumps({"key": "a"}) + "\n" + json.dumps({"key": "b"})[:-3])
    assert set(finished(path)) == {"a"}


def test_a_study_goes_on_after_a_line_that_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "study.jsonl"
    runs = tuning(BUDGETS["small"], "digits", CASES[0])[:2]
    rows = [{"key": run.key, **asdict(run), "validation": 0.5, "seconds": 1.0} for run in runs]
    path.write_text(json.dumps(rows[0]) + "\n" + json.dumps(rows[1])[:-3])
    monkeypatch.setattr(runner, "one", lambda run, *_: rows[runs.index(run)])
    with ThreadPoolExecutor(1) as pool:
        runner._do(pool, runs, ("", ""), path)  # type: ignore[arg-type]
    assert finished(path) == {row["key"]: row for row in rows}


def test_every_case_is_tuned_as_often() -> None:
    for budget in BUDGETS.values():
        chosen = [case for case in CASES if case.name in budget.cases]
        assert {len({run.key for run in tuning(budget, "digits", case)}) for case in chosen} == {6}
        assert len(final(budget, "digits", chosen[0], 0.1, 1.0)) == budget.seeds


def test_the_better_pair_counts(tmp_path: Path) -> None:
    """Chosen by the first seed's validation accuracy, whatever the test images say."""
    worse = [run("lora 32 bit dim 32", "digits", s, 0.99, lr=0.1, validation=0.1) for s in (0, 1)]
    assert write_report([*worse, *ROWS], tmp_path).read_text("utf-8") == write_report(ROWS, tmp_path).read_text("utf-8")


def test_two_best() -> None:
    rows = [{"validation": v, "validation_loss": loss, "lr": lr, "scale": 1.0}
            for v, loss, lr in ((0.9, 2.0, 1e-3), (0.9, 1.0, 3e-3), (0.8, 0.1, 1e-2))]  # fmt: skip
    assert two_best(rows) == [(3e-3, 1.0), (1e-3, 1.0)]


def test_what_falls_short_is_asked_why(tmp_path: Path) -> None:
    """81.0 is a point below 82.0; 85.0 and 85.0 with twice the steps are 4.0 above it."""
    more = [run("lora 1 bit dim 32", "digits", s, 0.85, stage="why", variation="twice the steps") for s in (0, 1)]
    page = write_report([*ROWS, *more], tmp_path).read_text("utf-8")
    assert "| digits, lora 1 bit dim 32 | – | 81.0 ± 0.0 | |" in page
    assert "| | twice the steps | 85.0 ± 0.0 | +4.0 ± 0.0 |" in page
    assert "82.0 ± 2.8 | 82.0 |" in page  # such runs count nowhere else
    assert "falls short" not in write_report(ROWS, tmp_path).read_text("utf-8")


def test_the_runs_that_ask_why() -> None:
    """Every variation of the 1-bit adapter with every seed, and the first of the float32 one; nothing where it wins."""
    core = BUDGETS["core"]
    rows = {str(i): row for i, row in enumerate(ROWS)}
    runs = asking_why(core, rows)
    assert len(runs) == len({run.key for run in runs}) == core.seeds * (len(VARIATIONS) + 1)
    assert {(one.lr, one.batch_size, one.stage) for one in runs} == {(0.01, core.batch_size, "why")}
    assert {one.epochs for one in runs if one.case == "lora 32 bit dim 32"} == {2 * core.epochs}
    assert sorted({one.scale for one in runs}) == pytest.approx([10 / 3, 10.0, 30.0])
    better = [{**row, "test": 0.9} if row["case"] == "lora 1 bit dim 32" else row for row in ROWS]
    assert asking_why(core, {str(i): row for i, row in enumerate(better)}) == []


def test_the_runs_that_ask_why_of_a_method_without_a_scale() -> None:
    few, many = (run(f"consolidator {bits} bit", "digits", 0, test) for bits, test in ((1, 0.7), (32, 0.9)))
    budget = replace(BUDGETS["core"], cases=(few["case"], many["case"]))
    runs = asking_why(budget, {"0": few, "1": many})
    assert [(one.case, one.variation) for one in runs if one.seed == 0] == [
        ("consolidator 1 bit", "twice the steps"),
        ("consolidator 1 bit", "branches never dropped"),
        ("consolidator 32 bit", "twice the steps"),
    ]
    settings = [_settings(one, next(case for case in CASES if case.name == one.case)) for one in runs]
    assert [one["branch_drop"] for one in settings if "branch_drop" in one] == [0.0] * budget.seeds


@pytest.mark.parametrize(
    ("tests", "found"), [((0.80, 0.86), "undecided"), ((0.70, 0.70), "holds"), ((0.95, 0.95), "does not hold")]
)
def test_one_that_beats_another(tests: tuple[float, float], found: str, tmp_path: Path) -> None:
    """81.0 is 2.0 below 83.0, whose standard error is 3.0; above 70.0 and below 95.0 without any."""
    rows = [*ROWS[:6], *[run("lora 8 bit dim 4", "digits", s, t) for s, t in enumerate(tests)]]
    page = write_report(rows, tmp_path).read_text("utf-8")
    assert f"| high dim at 1 bit beats low dim at 8 bits (LoRA) | {found} |" in page
