"""What the study runs: cases, tasks, and the same number of tuning runs for each case. It computes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One adapter: its name, method, and settings of the recipe; `scaled` where a scale is tuned as well."""

    name: str
    method: str
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def scaled(self) -> bool:
        return self.method in ("lora", "adaptformer")


def _case(name: str, method: str, **settings: Any) -> Case:
    return Case(name, method, tuple(sorted(settings.items())))


def _equal_storage(method: str) -> list[Case]:
    """bits × hidden dimension = 32: the same bytes in five ways."""
    return [_case(f"{method} {b} bit dim {h}", method, bits=b, dim=h)
            for b, h in ((1, 32), (2, 16), (4, 8), (8, 4), (32, 1))]  # fmt: skip


CASES: tuple[Case, ...] = (
    _case("probe", "linear"),
    _case("lora 32 bit dim 32", "lora", bits=32, dim=32),
    _case("lora 32 bit dim 8", "lora", bits=32, dim=8),
    *_equal_storage("lora"),
    _case("lora 1 bit dim 8", "lora", bits=1, dim=8),
    _case("lora 1 bit dim 16", "lora", bits=1, dim=16),
    _case("lora 1 bit dim 128", "lora", bits=1, dim=128),
    _case("adaptformer 32 bit dim 32", "adaptformer", bits=32, dim=32),
    *_equal_storage("adaptformer"),
    _case("consolidator 32 bit", "consolidator", bits=32),
    _case("consolidator 1 bit", "consolidator", bits=1),
    _case("spt-lora 32 bit 0.006 M", "spt-lora", bits=32, budget=0.006),
    _case("spt-lora 1 bit 0.03 M", "spt-lora", bits=1, budget=0.03),
    _case("spt-lora 32 bit 0.06 M", "spt-lora", bits=32, budget=0.06),
    _case("bias", "bias"),
    _case("full", "full"),
)
# Where 1 bit falls short of float32 at dim 32, each of these is changed by itself: what was chosen times a factor, or a
# setting of the recipe. The first is tried on the float32 adapter too.
VARIATIONS: Mapping[str, Settings] = {
    "twice the steps": {"epochs": 2},
    "a third of the scale": {"scale": 1 / 3},
    "three times the scale": {"scale": 3},
    "head from small weights": {"head_start": "normal"},
    "up from a tenth of the deviation": {"up_start": 0.0001},
    "up from ten times the deviation": {"up_start": 0.01},
}
WITHOUT_SCALE: Mapping[str, Settings] = {  # of a method that has none, and starts its head from small weights anyway
    "twice the steps": {"epochs": 2},
    "branches never dropped": {"branch_drop": 0.0},
}
PAIRS = (
    ("lora 1 bit dim 32", "lora 32 bit dim 32"),
    ("adaptformer 1 bit dim 32", "adaptformer 32 bit dim 32"),
    ("consolidator 1 bit", "consolidator 32 bit"),
)
SHORT = 0.005  # of accuracy: a smaller difference is not looked into
CORE = ("probe", "lora 32 bit dim 32", "lora 1 bit dim 32", "adaptformer 32 bit dim 32", "adaptformer 1 bit dim 32",
        "lora 32 bit dim 1", "lora 8 bit dim 4")  # fmt: skip
TASKS = ("digits", "clothing", "signdigits", "omniglot", "derived_rot4", "mnist", "derived_where16")


@dataclass(frozen=True, slots=True)
class Budget:
    """How much is run: cases, tasks, seeds, epochs of a final and of a tuning run, and the batch."""

    cases: tuple[str, ...]
    tasks: tuple[str, ...]
    seeds: int
    epochs: int
    tuning_epochs: int
    batch_size: int = 32


BUDGETS: Mapping[str, Budget] = {
    "small": Budget(("probe", "lora 32 bit dim 8", "lora 1 bit dim 32", "lora 32 bit dim 1"), ("digits",), 2, 6, 2),
    "core": Budget(CORE, TASKS[:5], 3, 15, 5),
    "full": Budget(tuple(case.name for case in CASES), TASKS, 3, 30, 10),
}


@dataclass(frozen=True, slots=True)
class Run:
    """One training: what makes it the one it is."""

    task: str
    case: str
    stage: str
    seed: int
    epochs: int
    batch_size: int
    lr: float
    scale: float
    variation: str = ""

    @property
    def key(self) -> str:
        fixed = (self.task, self.case, self.stage, self.seed, self.epochs, self.batch_size, self.lr, self.scale)
        return "|".join(map(str, (*fixed, self.variation) if self.variation else fixed))


def grid(case: Case) -> Sequence[tuple[float, float]]:
    """Six pairs of learning rate and scale for every case; those without a scale get six rates."""
    if case.scaled:
        scales = (1.0, 10.0) if dict(case.settings)["bits"] < 32 else (0.1, 1.0)
        return tuple(product((1e-3, 3e-3, 1e-2), scales))
    rates = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2) if case.method == "full" else (3e-4, 1e-3, 3e-3, 5e-3, 1e-2, 3e-2)
    return tuple((lr, 1.0) for lr in rates)


def tuning(budget: Budget, task: str, case: Case) -> list[Run]:
    """The runs that choose; on the validation images, with the first seed."""
    fixed = (0, budget.tuning_epochs, budget.batch_size)
    return [Run(task, case.name, "tune", *fixed, lr, scale) for lr, scale in grid(case)]


def final(budget: Budget, task: str, case: Case, lr: float, scale: float) -> list[Run]:
    """The runs that count."""
    rest = (budget.epochs, budget.batch_size, lr, scale)
    return [Run(task, case.name, "final", seed, *rest) for seed in range(budget.seeds)]


def variations(case: Case) -> Mapping[str, Settings]:
    """What is changed of a case, the steps first."""
    return VARIATIONS if case.scaled else WITHOUT_SCALE


def varied(budget: Budget, task: str, case: str, lr: float, scale: float, names: Sequence[str]) -> list[Run]:
    """The runs that ask why, from the pair that was chosen."""
    runs = []
    for name in names:
        change = {**WITHOUT_SCALE, **VARIATIONS}[name]
        epochs, other = budget.epochs * change.get("epochs", 1), scale * change.get("scale", 1)
        runs += [Run(task, case, "why", s, epochs, budget.batch_size, lr, other, name) for s in range(budget.seeds)]
    return runs


def pairs(budget: Budget) -> Iterator[tuple[str, Case]]:
    """Every case with every task, so that a study that is stopped has all tasks of its first cases."""
    cases = {case.name: case for case in CASES}
    return ((task, cases[name]) for name in budget.cases for task in budget.tasks)
