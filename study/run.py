"""`make study`: runs what is missing, then writes `docs/study.md`. Stop it at any time and start it again."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from study.plan import BUDGETS, CASES, TASKS  # noqa: E402
from study.report import write_report  # noqa: E402
from study.runner import finished, study  # noqa: E402

DATA = Path(os.environ.get("ADAPTERPACK_VISION", ROOT.parent / "shared" / "data" / "vision"))


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", choices=BUDGETS, default="small", help="minutes, two hours, a day")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, help="instead of the budget's")
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES], help="instead of the budget's")
    parser.add_argument("--seeds", type=int, help="instead of the budget's")
    parser.add_argument("--epochs", type=int, help="of a final run, instead of the budget's")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of one thread each")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the tasks' .npz")
    parser.add_argument("--backbone", type=Path, default=ROOT / "fixtures" / "backbone.safetensors")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "study.jsonl")
    parser.add_argument("--report-only", action="store_true")
    asked = parser.parse_args()
    budget = BUDGETS[asked.budget]
    changes = {"tasks": asked.tasks and tuple(asked.tasks), "cases": asked.cases and tuple(asked.cases),
               "seeds": asked.seeds, "epochs": asked.epochs}  # fmt: skip
    budget = replace(budget, **{name: value for name, value in changes.items() if value})
    if not asked.report_only:
        study(budget, asked.data, asked.backbone, asked.out, workers=asked.workers)
    print(f"wrote {write_report(list(finished(asked.out).values()), asked.out.parent)}")


if __name__ == "__main__":
    main()
