"""Timing that can be compared: every case once a round, in rotating order, in one process; medians of ratios."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to time; `before` and `after` are not timed."""

    run: Callable[[], object]
    before: Callable[[], object] = lambda: None
    after: Callable[[object], object] = lambda _: None


@dataclass(frozen=True, slots=True)
class Timed:
    """Milliseconds, and the ratio to the first case: median, and the middle half of the rounds."""

    ms: float
    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.ratio:.2f} [{self.low:.2f}, {self.high:.2f}]"


def interleave(
    cases: Mapping[str, Case], rounds: int = 15, clock: Callable[[], float] = time.process_time
) -> dict[str, Timed]:
    """Time all cases; the first is the reference of the ratios. One round more, first, is not counted."""
    names = list(cases)
    times: dict[str, list[float]] = {name: [] for name in names}
    for r in range(rounds + 1):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            case = cases[name]
            case.before()
            start = clock()
            result = case.run()
            spent = clock() - start
            case.after(result)
            if r:
                times[name].append(1000 * spent)
    out: dict[str, Timed] = {}
    for name in names:
        ratios = sorted(t / max(base, 1e-9) for t, base in zip(times[name], times[names[0]]))
        quarter = len(ratios) // 4
        out[name] = Timed(median(times[name]), median(ratios), ratios[quarter], ratios[-1 - quarter])
    return out


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    line = lambda row: "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths)) + " |"  # noqa: E731
    return "\n".join([line(columns), "|" + "|".join("-" * (w + 2) for w in widths) + "|", *map(line, rows)])
