"""SPT's budget: from a sensitivity for each parameter to what is trained as a module, as a vector, or entry by entry.

Pure arrays. Source: He et al. 2023, `engine.get_sensitivity`; docs/training.md, "SPT".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapterpack.converters.spt_mask import OPERATIONS, SptMask
from adapterpack.errors import CallError, Reason

Sensitivities = Mapping[str, NDArray[np.float32]]  # by timm's names with q, k, v split, in the model's order
ALPHA, BETA = 10, 5  # a matrix gets a module from P/α entries on, a vector is trained whole from n/β on
STEP, STEPS = 20_000, 79  # the thresholds that are tried, for a ViT-B/16 …
VIT_B = 85_056_000  # … which has so many candidates; a smaller model is tried in smaller steps


@dataclass(frozen=True, slots=True, eq=False)
class _Split:
    """What one threshold leads to: the modules, the whole vectors, and what each part costs."""

    matrices: NDArray[np.bool_]
    vectors: NDArray[np.bool_]
    structured: int
    sparse: int


def module_size(kind: str, shape: tuple[int, int], rank: int) -> int:
    """Parameters of a LoRA ("lora") or adapter ("adapter") on a weight [out, in]."""
    outward, inward = shape
    return rank * (inward + outward) if kind == "lora" else 2 * outward * rank + rank + outward


def split_budget(found: Sensitivities, budget: float, *, kind: str, rank: int, token: int) -> SptMask:
    """The mask whose parameters come nearest to a budget.

    For each threshold τ the τ most sensitive entries of all tensors together are marked. A matrix with at least a
    tenth of its module's parameters marked gets the module, a vector with a fifth marked is trained whole, other marked
    entries are trained one by one. Two thresholds equally near: the larger. A budget that no mask reaches gives the
    largest.

    Args:
        found: sensitivities, float32, in the parameter's shape.
        budget: in millions of parameters, head not counted.
        kind: "lora" or "adapter".
        rank: of the modules.
        token: parameters of the class token, which is always trained.

    Raises:
        CallError: `bad-call`, a budget that every mask exceeds twice over; `not-finite`.
    """
    sizes = np.array([values.size for values in found.values()], np.int64)
    total = int(sizes.sum())
    step = max(1, round(STEP * min(1.0, total / VIT_B)))
    best = _most_sensitive(found, min(step * STEPS, total))
    owner = np.searchsorted(np.cumsum(sizes), best, side="right")
    modules = _modules(found, kind, rank)
    counts = np.zeros(len(sizes), np.int64)
    nearest: tuple[float, int, _Split] | None = None
    for tau in range(step, len(best) + 1, step):
        counts += np.bincount(owner[tau - step : tau], minlength=len(sizes))
        split = _split(counts, sizes, modules, _is_vector(found))
        gap = abs(split.structured + split.sparse + token - budget * 1e6)
        if nearest is None or gap <= nearest[0]:
            nearest = gap, tau, split
    if nearest is None or nearest[0] > budget * 1e6:
        raise CallError(f"no mask of this model comes near {budget} million parameters", Reason.BAD_CALL)
    return _mask(found, np.sort(best[: nearest[1]]), nearest[2], token)


def _most_sensitive(found: Sensitivities, count: int) -> NDArray[np.int64]:
    """Positions in the concatenation of all tensors, the most sensitive first, of two equal ones the first."""
    flat = np.concatenate([values.reshape(-1) for values in found.values()])
    if not np.isfinite(flat).all():
        raise CallError("a sensitivity is no number", Reason.NOT_FINITE, hint="check the images and the backbone")
    edge = np.partition(flat, len(flat) - count)[len(flat) - count]
    above = np.flatnonzero(flat > edge)
    level = np.flatnonzero(flat == edge)[: count - len(above)]
    chosen = np.sort(np.concatenate([above, level]))
    order: NDArray[np.int64] = chosen[np.argsort(-flat[chosen], kind="stable")]
    return order


def _modules(found: Sensitivities, kind: str, rank: int) -> NDArray[np.int64]:
    """The size of each tensor's module, 0 where it can have none."""
    out = []
    for name, values in found.items():
        two = name.endswith(tuple(f"{operation}.weight" for operation in OPERATIONS))
        out.append(module_size(kind, (values.shape[0], values.shape[1]), rank) if two else 0)
    return np.array(out, np.int64)


def _is_vector(found: Sensitivities) -> NDArray[np.bool_]:
    return np.array([values.ndim == 1 for values in found.values()])


def _split(
    counts: NDArray[np.int64], sizes: NDArray[np.int64], modules: NDArray[np.int64], vector: NDArray[np.bool_]
) -> _Split:
    matrices = (modules > 0) & (counts * ALPHA >= modules)
    vectors = vector & (counts * BETA >= sizes)
    structured = int(modules[matrices].sum() + sizes[vectors].sum())
    return _Split(matrices, vectors, structured, int(counts[~matrices & ~vectors].sum()))


def _mask(found: Sensitivities, marked: NDArray[np.int64], split: _Split, token: int) -> SptMask:
    shapes, kept, names = {}, [], list(found)
    start = offset = 0
    for name, whole in zip(names, split.matrices | split.vectors):
        size = found[name].size
        if not whole:
            low, high = np.searchsorted(marked, [start, start + size])
            kept.append(marked[low:high] - start + offset)
            shapes[name] = tuple(found[name].shape)
            offset += size
        start += size
    chosen = {name for name, module in zip(names, split.matrices) if module}
    depth = 1 + max(int(name.split(".")[1]) for name in names if name.startswith("blocks."))
    rows = tuple(
        tuple(f"blocks.{block}.{operation}.weight" in chosen for operation in OPERATIONS) for block in range(depth)
    )
    vectors = tuple(name for name, whole in zip(names, split.vectors) if whole)
    indexes = np.concatenate([*kept, np.zeros(0, np.int64)])
    return SptMask(shapes, indexes, rows, vectors, split.structured, (split.structured + split.sparse + token) / 1e6)
