"""All branches of one timm layer as one adapter of PEFT's on it.

timm keeps query, key and value in one layer, so LoRAs on rows of it share one pair of matrices there: A holds their
down matrices one above the other, B their up matrices in blocks, with zeros between. Nouns in, arrays out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from adapterpack.adapter import Adapter, Branch
from adapterpack.errors import Reason, UnsupportedAdapterError
from adapterpack.tensors import F32

_QKV = "qkv"


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """All branches of one layer in PEFT's form.

    Attributes:
        rank: of A and B, 0 for IA³.
        alpha: the factor times the rank.
        before: whether IA³ scales the input.
        tensors: by what follows the module's name.
    """

    rank: int
    alpha: float
    before: bool
    tensors: Mapping[str, F32]


def layers_of(adapter: Adapter) -> dict[str, Layer]:
    """What each adapted layer gets, by timm's module name, for a `prepared` adapter.

    Raises:
        UnsupportedAdapterError: `not-expressible`.
    """
    modules: dict[str, list[Branch]] = {}
    for branch in adapter.branches:
        if branch.method not in ("replace", "sparse"):
            modules.setdefault(branch.site.path, []).append(branch)
    makers = {"lora": _lora, "dora": _dora, "affine": _ia3}
    layers = {module: makers[rows[0].method](module, rows) for module, rows in modules.items()}
    added = [branch for branch in adapter.branches if branch.method == "sparse"]
    if not added:
        return layers
    return {module: _with_bias(module, layer, added) for module, layer in layers.items()}


def _with_bias(module: str, layer: Layer, added: Sequence[Branch]) -> Layer:
    """The layer with a bias of B, zeros where nothing is added; PEFT has one on every layer or on none."""
    rows = [branch for branch in added if branch.site.path == module]
    parts = [branch.site.part for branch in rows]
    bias = np.zeros(len(layer.tensors["lora_B.weight"]), np.float32)
    _outward(module, [("", len(bias)), *((branch.site.part, branch.tensors["bias"].shape[0]) for branch in rows)])
    if len(set(parts)) < len(parts) or ("" in parts and len(parts) > 1):
        raise UnsupportedAdapterError(f"two additions to one bias at {module}", Reason.NOT_EXPRESSIBLE)
    for branch in rows:
        values = branch.tensors["bias"].dense()
        found = before_scale(values, layer.alpha / layer.rank)
        bias[_rows(branch.site.part, len(bias))] = values if found is None else found
    return replace(layer, tensors={**layer.tensors, "lora_B.bias": bias})


def before_scale(values: F32, scale: float) -> F32 | None:
    """What gives the values to the last bit when it is multiplied by the scale; None where nothing does."""
    factor = np.float32(scale)
    with np.errstate(all="ignore"):
        near = values / factor
        found = near.copy()
        for step in (np.nextafter(near, np.float32(-np.inf)), np.nextafter(near, np.float32(np.inf))):
            found = np.where(found * factor == values, found, step)
        return found.astype(np.float32) if np.array_equal(found * factor, values) else None


def _lora(module: str, rows: Sequence[Branch]) -> Layer:
    if len({branch.tensors["down"].shape[1] for branch in rows}) > 1:
        raise UnsupportedAdapterError(f"the branches at {module} read different inputs", Reason.NOT_EXPRESSIBLE)
    out = _outward(module, [(branch.site.part, branch.tensors["up"].shape[0]) for branch in rows])
    down = np.concatenate([branch.tensors["down"].dense() for branch in rows])
    up, start = np.zeros((out, len(down)), np.float32), 0
    for branch in rows:
        block = branch.tensors["up"].dense()
        up[_rows(branch.site.part, out), start : start + block.shape[1]] = block
        start += block.shape[1]
    tensors = {"lora_A.weight": down, "lora_B.weight": up}
    return Layer(len(down), rows[0].params["scale"] * len(down), False, tensors)


def _dora(module: str, rows: Sequence[Branch]) -> Layer:
    if len(rows) > 1 or rows[0].site.part:
        hint = "PEFT's magnitudes are for all rows of timm's qkv, and those of the others are the backbone's own"
        raise UnsupportedAdapterError(f"DoRA on rows of {module}", Reason.NOT_EXPRESSIBLE, hint=hint)
    lora = _lora(module, rows)
    return replace(lora, tensors={**lora.tensors, "lora_magnitude_vector": rows[0].tensors["magnitude"].dense()})


def _ia3(module: str, rows: Sequence[Branch]) -> Layer:
    before = rows[0].params["tap"] == "input"
    doubled = len({branch.site.part for branch in rows}) < len(rows) or (before and len(rows) > 1)
    if doubled or any("shift" in branch.tensors for branch in rows):
        hint = "IA³ multiplies a layer's input or output once, and adds nothing"
        raise UnsupportedAdapterError(f"the branches at {module}", Reason.NOT_EXPRESSIBLE, hint=hint)
    if before:
        return Layer(0, 0.0, True, {"ia3_l": rows[0].tensors["factor"].dense().reshape(1, -1)})
    factor = np.ones(_outward(module, [(b.site.part, b.tensors["factor"].shape[0]) for b in rows]), np.float32)
    for branch in rows:
        factor[_rows(branch.site.part, len(factor))] = branch.tensors["factor"].dense()
    return Layer(0, 0.0, False, {"ia3_l": factor.reshape(-1, 1)})


def _outward(module: str, sizes: Sequence[tuple[str, int]]) -> int:
    """How many features a layer gives, from those of its parts."""
    found = {3 * size if part else size for part, size in sizes}
    if len(found) > 1:
        raise UnsupportedAdapterError(f"the branches at {module} differ in size", Reason.NOT_EXPRESSIBLE)
    return found.pop()


def _rows(part: str, out: int) -> slice:
    """The rows of a part in a fused layer of so many."""
    third = out // 3
    return slice(_QKV.index(part) * third, (_QKV.index(part) + 1) * third) if part else slice(None)


def part_of(values: F32, part: str, start: int, rank: int) -> tuple[slice, slice]:
    """Where a branch's up matrix is in a layer's B."""
    return _rows(part, len(values)), slice(start, start + rank)
