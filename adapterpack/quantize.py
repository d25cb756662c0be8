"""Dense weights to codes: the papers' quantizer for trained latents, and a least-squares one for post-training use.

Both are pure functions of float32 arrays and give the same bits on every machine for the same NumPy arithmetic order;
statistics are summed in float64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from adapterpack import bits as bitstream
from adapterpack.codebooks import levels_of, nearest
from adapterpack.errors import CallError, Reason
from adapterpack.tensors import SCALE_DTYPES, Quantized, groups_of

F32 = NDArray[np.float32]
EPSILON = 1e-5  # only in the normalisation, not in the stored deviation (Jie et al. 2023, QLinear)


def quantize_latent(values: F32, bits: int, levels: str = "normal-l1") -> Quantized:
    """A trained latent matrix to the weights that its training forward used.

    One group; offset = mean, scale = unbiased standard deviation, code = nearest level of (w − mean)/(std + 1e-5),
    a tie going to the lower level. Source: Jie et al. 2023, `binary_adapter/utils.py`, `QLinear`.

    Args:
        values: float32, any shape, at least two weights.
        bits: 1 … 8.
        levels: codebook name.

    Raises:
        CallError: `not-finite`, or `bad-call` for a single weight.
    """
    flat = _finite(values)
    if flat.size < 2:
        raise CallError("a tensor of one weight has no standard deviation", Reason.BAD_CALL, hint="keep it in 32 bits")
    mean = np.float32(flat.mean(dtype=np.float64))
    std = np.float32(flat.std(ddof=1, dtype=np.float64))
    units = (flat - mean) / (std + np.float32(EPSILON))
    codes = nearest(units, levels_of(levels, bits))
    return Quantized(values.shape, bits, levels, 0, bitstream.pack(codes, bits), np.array([std]), np.array([mean]))


def quantize(
    values: F32, bits: int, group: int = 0, *, levels: str | None = None, scale: str = "float32", offset: bool = True
) -> Quantized:
    """Post-training quantization: the scale and offset of each group are refitted by least squares to its codes.

    Codes start from the group's mean and standard deviation; two rounds of (fit scale and offset, reassign codes)
    follow, and a last fit. For 1 bit that is the pair of cluster means, the least squared error any two values give.

    Args:
        values: float32, any shape.
        bits: 1 … 8.
        group: weights per group, 0 for one group.
        levels: codebook name; by default `unit` for 1 bit and `normal-l1` above.
        scale: "float32" or "float16", the dtype of scales and offsets.
        offset: False fits a scale alone (ggml's Q1_0 has no offset).

    Raises:
        CallError: `not-finite`, or scales beyond float16.
    """
    flat = _finite(values)
    name = levels or ("unit" if bits == 1 else "normal-l1")
    table = levels_of(name, bits).astype(np.float64)
    count = groups_of(flat.size, group)
    width = group or max(flat.size, 1)
    rows = np.zeros((count, width))
    rows.reshape(-1)[: flat.size] = flat
    valid = (np.arange(count * width) < flat.size).reshape(count, width)
    codes, slope, shift = _fit(rows, valid, table, offset)
    packed = bitstream.pack(codes.reshape(-1)[: flat.size], bits)
    with np.errstate(over="ignore"):
        scales, offsets = (part.astype(SCALE_DTYPES[scale]) for part in (slope, shift))
    if not (np.isfinite(scales).all() and np.isfinite(offsets).all()):
        raise CallError("a scale does not fit float16", Reason.NOT_FINITE, hint="use float32 scales")
    return Quantized(values.shape, bits, name, group, packed, scales, offsets if offset else None)


def _fit(
    rows: NDArray[np.float64], valid: NDArray[np.bool_], table: NDArray[np.float64], offset: bool
) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.float64]]:
    """Codes [groups, width], scales and offsets [groups]; entries where `valid` is False count for nothing."""
    n = np.maximum(valid.sum(axis=1), 1)
    shift = (rows * valid).sum(axis=1) / n if offset else np.zeros(len(rows))
    slope = np.sqrt((((rows - shift[:, None]) ** 2) * valid).sum(axis=1) / n)
    codes = np.zeros(rows.shape, np.uint8)
    for _ in range(3):
        with np.errstate(divide="ignore", invalid="ignore"):
            units = np.nan_to_num((rows - shift[:, None]) / slope[:, None], posinf=0.0, neginf=0.0)
        codes = nearest(units, table.astype(np.float32)) * valid.astype(np.uint8)
        slope, shift = _least_squares(rows, valid, table[codes], offset, n)
    return codes, slope, shift


def _least_squares(
    rows: NDArray[np.float64], valid: NDArray[np.bool_], chosen: NDArray[np.float64], offset: bool, n: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scale and offset [groups] that bring scale·level + offset nearest to the weights; the scale is never negative."""
    level_mean = (chosen * valid).sum(axis=1) / n if offset else np.zeros(len(rows))
    row_mean = (rows * valid).sum(axis=1) / n if offset else np.zeros(len(rows))
    centred = (chosen - level_mean[:, None]) * valid
    power = (centred**2).sum(axis=1)
    cross = (centred * (rows - row_mean[:, None])).sum(axis=1)
    slope = np.maximum(np.divide(cross, power, out=np.zeros(len(rows)), where=power > 0), 0.0)
    return slope, row_mean - slope * level_mean


def relative_error(values: F32, approximation: F32) -> float:
    """Frobenius norm of the difference over that of the values; 0 for a zero tensor kept zero."""
    norm = float(np.linalg.norm(values.astype(np.float64)))
    gap = float(np.linalg.norm(values.astype(np.float64) - approximation))
    return gap / norm if norm else (0.0 if gap == 0 else float("inf"))


def _finite(values: F32) -> F32:
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    if not np.isfinite(flat).all():
        raise CallError("the tensor holds NaN or infinity", Reason.NOT_FINITE, hint="repair the checkpoint first")
    return flat
