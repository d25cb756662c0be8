"""What vectors are built of: small adapters of fixed numbers, and files in which each codec is the one asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from adapterpack import bits as bitstream
from adapterpack.adapter import Adapter, Backbone, Branch, Site
from adapterpack.codecs import CODECS, labels
from adapterpack.container import digest
from adapterpack.container.index import Labels, Segment, TaskEntry
from adapterpack.packing.encode import EncodedTask, encode_task
from adapterpack.packing.join import join
from adapterpack.packing.plan import Planned, plan
from adapterpack.tensors import Dense, Quantized, groups_of, round_bfloat16

BACKBONE = Backbone("vit_base_patch16_224.augreg_in21k", "sha256:" + "0123456789abcdef" * 4)


def numbers(*shape: int, start: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Weights that look random, are exact in bfloat16 and are the same everywhere: integers below 128, over 64."""
    count = int(np.prod(shape, dtype=np.int64))
    steps = (np.arange(start, start + count, dtype=np.int64) * 7919 + 104_729) % 251 - 125
    return (steps.astype(np.float32) / 64).reshape(shape)


def repeated(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Weights that compress."""
    return np.resize(numbers(8), shape).astype(np.float32)


def dense(values: Any, dtype: str = "float32") -> Dense:
    if dtype == "bfloat16":
        return Dense(round_bfloat16(values), dtype)
    return Dense(values.astype(dtype), dtype)


def coded(shape: tuple[int, ...], bits: int, levels: str, group: int, offset: bool, scale: str) -> Quantized:
    """Codes 0, 5, 10, … modulo the number of levels; scales 1/4, 2/4, …; offsets −1/8, −2/8, …."""
    count = int(np.prod(shape))
    codes = (np.arange(count) // 3 * 5 % (1 << bits)).astype(np.uint32)
    steps = np.arange(1, groups_of(count, group) + 1)
    shift = (-steps / 8).astype(scale) if offset else None
    return Quantized(shape, bits, levels, group, bitstream.pack(codes, bits), (steps / 4).astype(scale), shift)


def lora(down: Any, up: Any, blocks: int = 2, parts: str = "qv") -> tuple[Branch, ...]:
    return tuple(
        Branch(Site(f"blocks.{n}.attn.qkv", part), "lora", {"scale": 0.5}, {"down": down, "up": up})
        for n in range(blocks)
        for part in parts
    )


def adapter(*branches: Branch, **fields: Any) -> Adapter:
    return Adapter(**{"name": "task", "method": "test", "branches": branches, "backbone": BACKBONE, **fields})


def at(site: str, method: str, params: Any, **tensors: Any) -> Branch:
    return Branch(Site.parse(site), method, params, tensors)


def forced(one: Adapter, compression: str) -> EncodedTask:
    """As `encode_task`, but with the compression given instead of the smaller one."""
    return chosen(one, lambda part: _plain(part.form, sum(t.entries for t in part.tensors), compression))


def chosen(one: Adapter, choice: Callable[[Planned], tuple[str, dict[str, Any]]]) -> EncodedTask:
    """As `encode_task`, but with the codec and parameters given for each segment."""
    layout = plan(one)
    segments, payloads = [], []
    for planned in layout.segments:
        name, params = choice(planned)
        payloads.append(CODECS[name].encode(planned.tensors, params))
        segments.append(Segment(name, params, len(payloads[-1])))
    names = None
    if one.labels is not None:
        names = Labels(len(one.labels), len(segments))
        payloads.append(labels.encode(one.labels))
        segments.append(Segment("labels", {}, len(payloads[-1])))
    entry = TaskEntry(
        one.name, one.method, layout.groups, layout.head, tuple(segments), names, one.data, dict(one.metadata)
    )
    forms = [*(planned.form for planned in layout.segments), None]
    contents = (part for tensor in layout.tensors for part in tensor.content())
    return EncodedTask(entry, tuple(payloads), digest.digest(digest.describe(entry, forms, one.labels), contents))


def _plain(form: dict[str, Any], entries: int, compression: str) -> tuple[str, dict[str, Any]]:
    if "sparse" in form:
        name, params = _plain(form["sparse"], entries, compression)
        return "sparse", {"compression": compression, "entries": entries, "values": {"codec": name, **params}}
    if "dtype" in form:
        return "raw", {"compression": compression, **form}
    if form["bits"] == 1:
        return "signs", {"compression": compression, **{k: v for k, v in form.items() if k != "bits"}}
    return "codebook", {"compression": compression, **form}


def written(one: Adapter, profile: str = "small") -> bytes:
    return join([encode_task(one, profile)], one.backbone)
