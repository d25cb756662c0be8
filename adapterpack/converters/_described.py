"""The note that this package leaves in a library's own tensor file, so that the way back gives the same adapter.

A library's form keeps neither class names, preprocessing nor which branches one fused matrix was made of. The note says
it; the tensors stay the library's, and whoever reads the note must check that it fits them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterpack.adapter import Adapter, Branch, Site
from adapterpack.converters._flat import Fields, flatten, stems
from adapterpack.converters.safetensors import densified
from adapterpack.errors import CorruptFileError, Reason
from adapterpack.tensors import F32, Dense

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Row:
    """A branch as the note has it.

    Attributes:
        site, method: as in the adapter.
        roles: which tensors it has.
        rank: of its low-rank product, 0 where it has none.
        stem: what its arrays are named by, see `_flat.unflatten`.
    """

    site: Site
    method: str
    roles: tuple[str, ...]
    rank: int
    stem: str


def note_for(adapter: Adapter, form: str) -> dict[str, Any]:
    """The note on an adapter: its description, and the rank of each branch."""
    description, _ = flatten(densified(adapter))
    ranks = [b.tensors["down"].shape[0] if "down" in b.tensors else 0 for b in adapter.branches]
    return {"form": form, "task": description, "ranks": ranks}


def rows_in(note: Any, form: str) -> tuple[dict[str, Any], list[Row]]:
    """A note's description and its branches.

    Raises:
        CorruptFileError: `bad-field`, `missing-field`, `unknown-field`, `bad-name`, for a note of another shape.
    """
    fields = Fields(note, "note")
    if fields.take("form", str) != form:
        raise CorruptFileError("the note is of another form", Reason.BAD_FIELD, "note.form", f"expected {form}")
    task, ranks = fields.take("task", dict), fields.take("ranks", list)
    fields.end()
    listed = task.get("branches")
    if not isinstance(listed, list) or len(listed) != len(ranks) or not all(type(r) is int and r >= 0 for r in ranks):
        raise CorruptFileError("branches and ranks do not fit", Reason.BAD_FIELD, "note")
    bare, roles = [], []
    for i, item in enumerate(listed):
        row = Fields(item, f"note.task.branches[{i}]")
        bare.append(Branch(Site.parse(row.take("site", str)), row.take("method", str), {}, {}))
        roles.append(tuple(row.take("tensors", dict)))
    named = zip(bare, roles, ranks, stems(tuple(bare)))
    return task, [Row(branch.site, branch.method, has, rank, stem) for branch, has, rank, stem in named]


def require_same(found: Mapping[str, Dense], made: Mapping[str, F32], where: str) -> None:
    """Refuse a folder whose tensors are not those that its note describes.

    Args:
        found: the folder's tensors.
        made: what writing the described adapter gives.
        where: the folder, for messages.

    Raises:
        CorruptFileError: `conflicting-settings` naming a tensor.
    """
    odd = sorted(found.keys() ^ made.keys()) or sorted(
        name for name, tensor in found.items() if not np.array_equal(tensor.dense(), made[name])
    )
    if odd:
        raise changed(odd[0], where)


def changed(what: str, where: str) -> CorruptFileError:
    """The error for a folder that was changed after it was written."""
    message = f"{what} is not what the note in the tensor file says: the folder was changed after it was written"
    hint = "write it again, or save it with the library itself, which drops the note"
    return CorruptFileError(message, Reason.CONFLICTING_SETTINGS, where, hint)
