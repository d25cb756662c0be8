"""What folding overwrites as a whole: one pristine copy of each region, made once, and copied back from then on.

A region is some rows of a parameter. Its copy is made before anything else writes to that parameter, so it is the
backbone's to the bit. A task that writes to the region of the task before it restores it just before writing, while the
rows are in the cache anyway.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Union

import torch

from adapterpack.runtime.fold import Arena, write
from adapterpack.runtime.places import Place
from adapterpack.runtime.plan import Step

Key = tuple[int, str, Union[tuple[int, int], None]]  # module, parameter, rows


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """Rows of a parameter, and what they were.

    Attributes:
        place, role: which; the parameter is looked up again, in case the model was moved or cast meanwhile.
        parameter, address: what it was when the copy was made.
        pristine: the copy.
    """

    place: Place
    role: str
    parameter: torch.Tensor
    address: int
    pristine: torch.Tensor

    def target(self) -> torch.Tensor:
        found = self.place.tensor(self.role)
        if found is None:
            raise RuntimeError(f"the {self.role} at {self.place.site} is gone")
        return found

    def restore(self) -> None:
        self.target().copy_(self.pristine)

    def is_at(self, parameter: torch.Tensor | None) -> bool:
        return parameter is self.parameter and self.parameter.data_ptr() == self.address


class Regions:
    """All regions of a model that tasks wrote to so far; which of them are not as they were."""

    def __init__(self) -> None:
        self._arena = Arena()
        self._known: dict[Key, Region] = {}
        self._written: dict[Key, Region] = {}
        self._stale: set[Key] = set()

    @property
    def nbytes(self) -> int:
        """Memory of the copies."""
        return sum(region.pristine.nbytes for region in list(self._known.values()))

    @property
    def changed(self) -> bool:
        """Whether any region is not as it was."""
        return bool(self._written)

    def restore(self) -> None:
        """Make all regions what they were."""
        self._stale.clear()
        for key, region in list(self._written.items()):
            region.restore()
            del self._written[key]

    def begin(self, steps: Sequence[Step]) -> None:
        """Prepare for a task: every region is as it was, or will be when it is first written to.

        Args:
            steps: all that the task does. Where several of them write to the same numbers, these are restored and
                copied at once.
        """
        touched, alone = _touched(steps), _alone(steps)
        for key, region in list(self._written.items()):
            if key not in touched or key[:2] not in alone:
                region.restore()
                del self._written[key]
        self._stale = set(self._written)
        for key, (place, role) in touched.items():
            if key[:2] not in alone:
                self._region(key, place, role)

    def write(self, place: Place, role: str, delta: Any, *, replaces: bool) -> None:
        """Fold a delta into a region, see `fold.write`."""
        key = _key(place, role)
        if key in self._stale:  # before a copy is made anew, where the model was moved meanwhile
            self._written[key].restore()
            self._stale.discard(key)
        region = self._written[key] = self._region(key, place, role)
        write(region.target(), delta, replaces=replaces)

    def _region(self, key: Key, place: Place, role: str) -> Region:
        parameter, known = place.module._parameters.get(place.name(role)), self._known.get(key)
        if known is not None and known.is_at(parameter):
            return known
        target = place.tensor(role)
        if parameter is None or target is None:
            raise RuntimeError(f"the plan let {role} at {place.site} through")
        found = Region(place, role, parameter, parameter.data_ptr(), self._arena.copy(target))
        self._known[key] = found
        return found


def is_plain(step: Step) -> bool:
    """Whether a step folds into regions; what writes few entries, or reads what it writes to, keeps its own copies."""
    return step.how == "fold" and (step.method.replaces or step.method.name == "lora")


def _key(place: Place, role: str) -> Key:
    return id(place.module), place.name(role), place.rows


def _touched(steps: Sequence[Step]) -> dict[Key, tuple[Place, str]]:
    """The regions that a task writes to."""
    return {
        _key(step.place, role): (step.place, role)
        for step in steps
        if is_plain(step)
        for role in (step.roles if step.method.replaces else ("weight",))
    }


def _alone(steps: Sequence[Step]) -> set[tuple[int, str]]:
    """The parameters whose numbers are each written to by one step at most."""
    writers: dict[tuple[int, str], list[tuple[int, int] | None]] = defaultdict(list)
    shared: set[int] = set()
    for step in steps:
        if is_plain(step):
            for role in step.roles if step.method.replaces else ("weight",):
                writers[_key(step.place, role)[:2]].append(step.place.rows)
        elif step.how in ("fold", "swap"):
            shared.add(id(step.place.module))
    return {
        parameter
        for parameter, rows in writers.items()
        if parameter[0] not in shared and (len(rows) == 1 or (None not in rows and len(set(rows)) == len(rows)))
    }
