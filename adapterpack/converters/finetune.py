"""A whole fine-tuned model against its backbone: what training changed, in as few bytes as the caller asked for.

Vectors are kept as they are. Of a matrix, what is kept is the difference: its entries where few changed, a low-rank
product, or one bit a weight with a scale a matrix or group; each with what it costs. Arrays in, branches out.
Source of the 1-bit form: Liu et al. 2024 (BitDelta, arXiv 2402.10193), without its distillation of the scales.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterpack.adapter import Branch, Site
from adapterpack.codecs import CODECS
from adapterpack.codecs._quantized import GROUPS
from adapterpack.converters._in_place import Plain, backbone_value, differs
from adapterpack.converters._report import Extracted
from adapterpack.converters.schemes import place_of
from adapterpack.errors import CallError, CorruptFileError, Reason
from adapterpack.quantize import quantize
from adapterpack.tensors import Dense, Quantized, Sparse, Tensor

F32 = NDArray[np.float32]
FEW = 16  # "auto" keeps entries where at most one in so many changed
ALL = 0.9999  # the share of the squared difference that counts as all of it to "auto",
LOW = 8  # which keeps it as a low rank where that takes at most one byte in so many of the weights' own
MAX_RANK = 4096
_HOW = re.compile(r"(sparse|auto)|(lowrank):([1-9][0-9]{0,7})|(bitdelta)(?::([1-9][0-9]{0,7}))?")
_FAR = 1e37  # squares of larger differences, summed, are infinite in float32
_KINDS = "sparse, lowrank:R, bitdelta, bitdelta:GROUP or auto"
_GROUPS = GROUPS[1:]  # without the whole matrix, which is plain bitdelta


@dataclass(frozen=True, slots=True)
class How:
    """How the differences of matrices are kept: `kind`, the rank of "lowrank", the weights a scale of "bitdelta"."""

    kind: str
    rank: int = 0
    group: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """One candidate for a tensor: its branch's method and tensors, and the difference (exact: the values) they give."""

    form: str
    method: str
    tensors: Mapping[str, Tensor]
    gives: F32

    @property
    def params(self) -> dict[str, float]:
        return {"scale": 1.0} if self.method == "lora" else {}

    @property
    def bytes(self) -> int:
        return sum(map(stored_bytes, self.tensors.values()))


def parse_how(text: str) -> How:
    """`--as` of the command line.

    Raises:
        CallError: `bad-call`.
    """
    match = _HOW.fullmatch(text)
    rank, group = (int(match[i] or 0) for i in (3, 5)) if match else (0, 0)
    if match is None or rank > MAX_RANK or (group and group not in _GROUPS):
        groups = f"a power of two from {_GROUPS[0]} to {_GROUPS[-1]:,} as GROUP"
        hint = f"expected {_KINDS}, with at most {MAX_RANK:,} as R and {groups}"
        raise CallError(f"differences cannot be kept as {text[:40]!r}", Reason.BAD_CALL, hint=hint)
    return How(match[1] or match[2] or match[4], rank, group)


def extract(
    plains: Sequence[Plain], backbone: Mapping[str, F32], how: How
) -> tuple[list[Branch], tuple[Extracted, ...], list[str]]:
    """What training changed in a model.

    Args:
        plains: all of its parameters but the head's.
        backbone: the tensors that it started from, by timm's names.
        how: for matrices.

    Returns:
        Branches; a row for every tensor that changed, in the order given; notes.

    Raises:
        CorruptFileError: `missing-tensor`, a parameter of the backbone that the model lacks; `not-finite`.
        BackboneMismatchError: `missing-site`, `site-shape`.
    """
    _require_all(plains, backbone)
    changed = [plain for plain in plains if differs(plain, backbone)]
    sites: dict[tuple[str, str], tuple[dict[str, float], dict[str, Tensor]]] = {}
    rows = []
    for plain in changed:
        own = backbone_value(backbone, plain.place, plain.name)
        kept = _kept(plain, own, how)
        _, tensors = sites.setdefault((plain.place.site, kept.method), (kept.params, {}))
        tensors.update(kept.tensors)
        rows.append(_row(plain, own, kept))
    branches = [Branch(Site.parse(site), method, params, t) for (site, method), (params, t) in sites.items()]
    same = len(plains) - len(changed)
    return branches, tuple(rows), [f"{same} tensors equal the backbone's"] if same else []


def stored_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor in a file without compression."""
    if isinstance(tensor, Dense):
        return tensor.data.nbytes
    if isinstance(tensor, Quantized):
        return tensor.packed.nbytes + tensor.scale.nbytes + (0 if tensor.offset is None else tensor.offset.nbytes)
    values = {"codec": "raw", "compression": "none", "dtype": "float32"}
    params = {"compression": "none", "entries": tensor.entries, "values": values}
    return len(CODECS["sparse"].encode((tensor,), params))


def _require_all(plains: Sequence[Plain], backbone: Mapping[str, F32]) -> None:
    given = {plain.name for plain in plains}
    for name in backbone:
        place = place_of("timm", name)
        if name not in given and (place is None or place.kind != "head"):
            message = f"the tensor {name} is missing, which the backbone has"
            raise CorruptFileError(message, Reason.MISSING_TENSOR, hint="save the whole model's state dict")


def _kept(plain: Plain, own: F32, how: How) -> _Kept:
    if max(plain.values.shape, default=1) == plain.values.size:
        return _exact(plain)
    with np.errstate(over="ignore"):
        gap = plain.values - own
    if not np.abs(gap).max() < _FAR:
        raise CorruptFileError(f"{plain.name} is too far from the backbone's", Reason.NOT_FINITE, plain.name)
    if how.kind == "sparse":
        return _smaller(_sparse(plain, gap), plain)
    if how.kind == "bitdelta":
        return _bits(plain, gap, how.group)
    if how.kind == "lowrank":
        return _low_rank(plain, _Spectrum(gap), how.rank) if _is_layer(plain) else _exact(plain)
    return _cheapest(plain, gap)


def _cheapest(plain: Plain, gap: F32) -> _Kept:
    """Entries where few changed; a low rank that is nearly all; else what keeps more in one bit a weight: signs, or the
    highest rank of so many bytes."""
    if np.count_nonzero(gap) * FEW <= gap.size:
        return _sparse(plain, gap)
    signs = _bits(plain, gap, 0)
    if not _is_layer(plain):
        return signs
    spectrum = _Spectrum(gap)
    rank, each = spectrum.rank(ALL), 4 * sum(gap.shape)
    if rank * each * LOW <= gap.nbytes:
        return _low_rank(plain, spectrum, rank)
    low = _low_rank(plain, spectrum, max(signs.bytes // each, 1))
    fits = low.bytes <= signs.bytes and _energy(gap, low.gives) > _energy(gap, signs.gives)
    return low if fits else signs


def _is_layer(plain: Plain) -> bool:
    """Whether a low-rank product can be added: to a linear layer's weight, not to a convolution's."""
    return plain.place.role == "weight" and plain.values.ndim == 2


class _Spectrum:
    """The best approximations of a matrix of each rank, from the eigenvectors of its Gram matrix in float64."""

    def __init__(self, gap: F32) -> None:
        self._wide = gap.shape[0] > gap.shape[1]
        self._gap = (gap.T if self._wide else gap).astype(np.float64)
        values, vectors = np.linalg.eigh(self._gap @ self._gap.T)
        self._energy, self._vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]

    def rank(self, share: float) -> int:
        """The lowest rank that keeps a share of the energy."""
        kept = np.cumsum(self._energy)
        return min(int(np.searchsorted(kept, share * kept[-1])) + 1, len(kept))

    def factors(self, rank: int) -> tuple[F32, F32]:
        """up [out, rank] and down [rank, in], of equal norms column by row."""
        left = self._vectors[:, :rank]
        right = left.T @ self._gap
        root = np.sqrt(np.maximum(np.linalg.norm(right, axis=1), np.finfo(np.float64).tiny))
        up, down = left * root, right / root[:, None]
        pair = (down.T, up.T) if self._wide else (up, down)
        return np.ascontiguousarray(pair[0], np.float32), np.ascontiguousarray(pair[1], np.float32)


def _exact(plain: Plain) -> _Kept:
    return _Kept("exact", "replace", {plain.place.role: Dense(plain.values)}, plain.values)


def _sparse(plain: Plain, gap: F32) -> _Kept:
    at = np.flatnonzero(gap).astype(np.int64)
    tensor = Sparse(gap.shape, at, Dense(gap.reshape(-1)[at]))
    return _Kept("sparse", "sparse", {plain.place.role: tensor}, gap)


def _smaller(kept: _Kept, plain: Plain) -> _Kept:
    """The new values themselves where they take fewer bytes than entries with their positions."""
    exact = _exact(plain)
    return kept if kept.bytes < exact.bytes else exact


def _bits(plain: Plain, gap: F32, group: int) -> _Kept:
    tensor = quantize(gap, 1, group, scale="float16" if group else "float32", offset=False)
    return _Kept("bitdelta", "sparse", {plain.place.role: tensor}, tensor.dense())


def _low_rank(plain: Plain, spectrum: _Spectrum, rank: int) -> _Kept:
    up, down = spectrum.factors(rank)
    tensors: dict[str, Tensor] = {"down": Dense(down), "up": Dense(up)}
    return _Kept(f"lowrank:{up.shape[1]}", "lora", tensors, up @ down)


def _energy(gap: F32, gives: F32) -> float:
    """Share of the squared difference that is kept."""
    whole = float(np.square(gap, dtype=np.float64).sum())
    lost = float(np.square(gap.astype(np.float64) - gives).sum())
    return max(1.0 - lost / whole, 0.0) if whole else 1.0


def _row(plain: Plain, own: F32, kept: _Kept) -> Extracted:
    """Measured on the float32 sum that a fold forms."""
    wanted = plain.values.astype(np.float64) - own
    given: NDArray[Any] = kept.gives if kept.form == "exact" else own + kept.gives
    lost = float(np.linalg.norm(plain.values.astype(np.float64) - given))
    error = lost / float(np.linalg.norm(wanted))
    return Extracted(plain.name, plain.values.shape, kept.form, max(1.0 - error**2, 0.0), error, kept.bytes)
