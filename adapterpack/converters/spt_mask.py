"""SPT's masks: which entries, matrices and vectors of a ViT a sensitivity run chose to train. Pure arrays, no torch.

A mask file holds no trained values. Its positions mean nothing without the order of its tensors: they count through the
concatenation of all tensors that are not trained as a whole. Source: He et al. 2023, `engine.get_sensitivity`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterpack.errors import CorruptFileError, Reason
from adapterpack.tensors import Shape, numel

OPERATIONS = ("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2")
FIELDS = frozenset(
    [
        "unstructured_name_shapes",
        "unstructured_name_shapes_int",
        "unstructured_indexes",
        "unstructured_params",
        "structured_params",
        "params",
        "tuned_matrices",
        "tuned_vectors",
    ]
)


@dataclass(frozen=True, slots=True, eq=False)
class SptMask:
    """What SPT trains.

    Attributes:
        shapes: every tensor that is not trained as a whole, in the file's order (timm's names with q, k, v split).
        indexes: int64 [n], ascending, into the concatenation of those tensors, flattened.
        matrices: per block, for each of `OPERATIONS`, whether it gets a LoRA or adapter.
        vectors: names of the biases and norms trained as a whole.
        structured_params: trained parameters that are no single entries.
        params: all trained parameters, in millions, as the file says.
    """

    shapes: Mapping[str, Shape]
    indexes: NDArray[np.int64]
    matrices: tuple[tuple[bool, ...], ...]
    vectors: tuple[str, ...]
    structured_params: int
    params: float

    @property
    def structured(self) -> tuple[str, ...]:
        """The operations with a LoRA or adapter: `blocks.0.attn.v`, in the file's order."""
        return tuple(
            f"blocks.{block}.{name}"
            for block, row in enumerate(self.matrices)
            for name, chosen in zip(OPERATIONS, row)
            if chosen
        )

    def positions(self) -> dict[str, NDArray[np.int64]]:
        """The chosen entries of each tensor that has any: int64, ascending, into the flattened tensor."""
        ends = np.cumsum([0, *(numel(shape) for shape in self.shapes.values())])
        cuts = np.searchsorted(self.indexes, ends)
        found = {}
        for name, start, low, high in zip(self.shapes, ends, cuts, cuts[1:]):
            if high > low:
                found[name] = self.indexes[low:high] - start
        return found


def parse_mask(raw: object, where: str) -> SptMask:
    """A mask from the eight fields of the file, tensors already turned into arrays.

    Raises:
        CorruptFileError: `bad-source` naming the field, `bad-positions`.
    """
    if not isinstance(raw, dict) or raw.keys() != FIELDS:
        found = sorted(map(str, raw))[:4] if isinstance(raw, dict) else type(raw).__name__
        raise _bad(where, f"found {found}", f"expected exactly the fields {', '.join(sorted(FIELDS))}")
    shapes = _shapes(raw["unstructured_name_shapes"], raw["unstructured_name_shapes_int"], where)
    indexes = raw["unstructured_indexes"]
    if not isinstance(indexes, np.ndarray) or indexes.dtype != np.int64 or indexes.ndim != 1:
        raise _bad(where, "unstructured_indexes is no vector of 64-bit integers")
    if len(indexes) != _number(raw["unstructured_params"], where):
        raise _bad(where, f"{len(indexes)} indexes, but unstructured_params says {raw['unstructured_params']}")
    total = sum(map(numel, shapes.values()))
    if len(indexes) and not (indexes[0] >= 0 and indexes[-1] < total and (np.diff(indexes) > 0).all()):
        raise CorruptFileError(f"the indexes do not ascend below {total:,}", Reason.BAD_POSITIONS, where)
    return SptMask(
        shapes,
        indexes,
        _matrices(raw["tuned_matrices"], where),
        _vectors(raw["tuned_vectors"], shapes, where),
        int(_number(raw["structured_params"], where)),
        _number(raw["params"], where),
    )


def _shapes(raw: object, counts: object, where: str) -> dict[str, Shape]:
    if not isinstance(raw, dict) or not isinstance(counts, dict) or raw.keys() != counts.keys():
        raise _bad(where, "unstructured_name_shapes and unstructured_name_shapes_int name different tensors")
    shapes: dict[str, Shape] = {}
    for name, shape in raw.items():
        good = (
            isinstance(name, str) and isinstance(shape, tuple) and all(type(size) is int and size > 0 for size in shape)
        )
        if not good or numel(tuple(shape)) != _number(counts[name], where):
            raise _bad(where, f"the shape of {str(name)[:80]!r} is {str(shape)[:80]}, its size {counts[name]}")
        shapes[name] = tuple(shape)
    return shapes


def _matrices(raw: object, where: str) -> tuple[tuple[bool, ...], ...]:
    rows: list[Any] = raw if isinstance(raw, list) else [None]
    for row in rows:
        if (
            not isinstance(row, list)
            or len(row) != len(OPERATIONS)
            or any(type(x) is not int or x not in (0, 1) for x in row)
        ):
            raise _bad(where, "tuned_matrices is no list of six 0s and 1s a block")
    return tuple(tuple(bool(x) for x in row) for row in rows)


def _vectors(raw: object, shapes: Mapping[str, Shape], where: str) -> tuple[str, ...]:
    if not isinstance(raw, list) or not all(isinstance(name, str) for name in raw) or len(set(raw)) != len(raw):
        raise _bad(where, "tuned_vectors is no list of different names")
    both = [name for name in raw if name in shapes]
    if both:
        raise _bad(where, f"{both[0]} is trained as a whole and by entries")
    return tuple(raw)


def _number(raw: Any, where: str) -> float:
    if isinstance(raw, np.ndarray) and raw.ndim == 0:
        raw = raw.item()
    if isinstance(raw, np.generic):
        raw = raw.item()
    if type(raw) not in (int, float) or not 0 <= raw < 1e15:
        raise _bad(where, f"{str(raw)[:80]!r} is no count")
    return float(raw)


def _bad(where: str, message: str, hint: str = "give a param_req_*.pth of SPT") -> CorruptFileError:
    return CorruptFileError(message, Reason.BAD_SOURCE, where, hint)
