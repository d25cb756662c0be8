"""Bytes: `.apk` in both profiles beside the headerless dump, safetensors, and general compressors."""

from __future__ import annotations

import lzma
from pathlib import Path

import brotli
import numpy as np
import zstandard
from safetensors.numpy import save

import adapterpack
from adapterpack import Adapter
from adapterpack.converters import CONVERTERS
from adapterpack.converters._base import Hints
from adapterpack.packing.encode import encode_task
from adapterpack.packing.join import join
from adapterpack.packing.sizes import describe_file
from tests.bench.inputs import DIMS, METHODS, published
from tests.bench.timing import table


def packed(adapter: Adapter, profile: str) -> bytes:
    """The bytes of an `.apk`."""
    return join([encode_task(adapter, profile)], adapter.backbone)


def dense_tensors(adapter: Adapter) -> dict[str, np.ndarray]:
    """Every tensor of an adapter in float32, by a name."""
    found = {f"{b.site}.{role}": t.dense() for b in adapter.branches for role, t in b.tensors.items()}
    if adapter.head is not None:
        found |= {f"head.{role}": t.dense() for role, t in adapter.head.tensors.items()}
    return found


def report() -> str:
    """Totals over the tasks of each method and dimension, as shares of the headerless dumps."""
    rows = []
    for method in METHODS:
        for dim in DIMS:
            files = list(published(method, dim))
            if files:
                rows.append(_row(f"{method} {dim}", files))
    if not rows:
        return "sizes: the published adapters are not here (set ADAPTERPACK_PETL_VIT); nothing to measure"
    columns = ["method dim", "files", "dump, bytes", "apk small", "apk fast", "zstd -19", "xz -9e", "brotli -11"]
    text = table([*columns, "st f32", "st f16", "st f32 + zstd", "bits/weight", "largest head"], rows)
    return "Bytes of all files, as shares of the headerless dumps (largest head: bytes that are not payload)\n\n" + text


def _row(name: str, files: list[Path]) -> list[str]:
    totals = dict.fromkeys(("dump", "small", "fast", "zstd", "xz", "brotli", "f32", "f16", "f32z"), 0)
    head, rates = 0, []
    for path in files:
        dump = path.read_bytes()
        adapter = CONVERTERS["petl-vit"].read(path, Hints()).adapter
        tensors = dense_tensors(adapter)
        f32 = save(tensors)
        small, fast = packed(adapter, "small"), packed(adapter, "fast")
        head = max(head, int.from_bytes(small[12:16], "little"))
        rates.append(describe_file(adapterpack.open(small))["tasks"][0]["bits_per_weight"])
        sizes = (dump, small, fast, zstandard.compress(dump, 19), lzma.compress(dump, preset=9 | lzma.PRESET_EXTREME),
                 brotli.compress(dump, quality=11), f32, save({k: v.astype(np.float16) for k, v in tensors.items()}),
                 zstandard.compress(f32, 19))  # fmt: skip
        for key, data in zip(totals, sizes):
            totals[key] += len(data)
    shares = [f"{totals[key] / totals['dump']:.3f}" for key in list(totals)[1:]]
    return [name, str(len(files)), f"{totals['dump']:,}", *shares, f"{min(rates):.2f}–{max(rates):.2f}", str(head)]
