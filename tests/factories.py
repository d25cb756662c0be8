"""Small adapters in memory, of every method and every form of tensor; and what a test does to a file's bytes.

Everything follows from seeds, so two processes make the same bytes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from adapterpack.adapter import Adapter, Backbone, Branch, DataSettings, Head, Site
from adapterpack.container import deflate, framing, strict_json
from adapterpack.packing.encode import encode_task
from adapterpack.packing.join import join
from adapterpack.quantize import quantize, quantize_latent
from adapterpack.tensors import F32, Dense, Quantized, Shape, Sparse, Tensor, round_bfloat16

WIDTH = 16
BLOCKS = 3
CLASSES = 5
BACKBONE = Backbone("vit_small_test", "sha256:" + "ab" * 32)
FORMS = ("float32", "float16", "bfloat16", "bits1", "bits1-group", "bits2", "bits3", "bits4", "bits8", "sparse")


def numbers(seed: int, shape: Shape, scale: float = 0.1) -> F32:
    """Normally distributed weights."""
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def dense(values: F32, dtype: str = "float32") -> Dense:
    if dtype == "bfloat16":
        return Dense(round_bfloat16(values), dtype)
    return Dense(values.astype(dtype), dtype)


def sparse(values: F32, every: int = 7, inner: Callable[[F32], Dense | Quantized] = Dense) -> Sparse:
    """Every `every`-th entry of a tensor."""
    where = np.arange(every // 2, values.size, every, dtype=np.int64)
    return Sparse(values.shape, where, inner(values.reshape(-1)[where]))


def in_form(values: F32, form: str) -> Tensor:
    """A tensor in one of FORMS."""
    if form == "sparse":
        return sparse(values)
    if form.startswith("float") or form == "bfloat16":
        return dense(values, form)
    if form == "bits1":
        return quantize_latent(values, 1)
    if form == "bits1-group":
        return quantize(values, 1, 8, scale="float16", offset=False)
    return quantize(values, int(form[4:]))


def head(classes: int = CLASSES, form: str = "float32", seed: int = 900) -> Head:
    return Head(in_form(numbers(seed, (classes, WIDTH)), form), Dense(numbers(seed + 1, (classes,))))


def _pair(site: str, method: str, params: dict[str, Any], form: str, seed: int, rank: int) -> Branch:
    tensors = {
        "down": in_form(numbers(seed, (rank, WIDTH)), form),
        "up": in_form(numbers(seed + 1, (WIDTH, rank)), form),
    }
    return Branch(Site.parse(site), method, params, tensors)


def lora_branches(form: str = "bits1", seed: int = 0, rank: int = 4) -> list[Branch]:
    sites = [f"blocks.{i}.attn.qkv[{part}]" for i in range(BLOCKS) for part in "qv"]
    return [_pair(site, "lora", {"scale": 10.0}, form, seed + 2 * n, rank) for n, site in enumerate(sites)]


def adaptformer_branches(form: str = "bits1", seed: int = 100, rank: int = 4) -> list[Branch]:
    sites = [f"blocks.{i}.mlp" for i in range(BLOCKS)]
    return [_pair(site, "adaptformer", {"scale": 0.1}, form, seed + 2 * n, rank) for n, site in enumerate(sites)]


def adapter_branches(form: str = "float32", seed: int = 200, rank: int = 4) -> list[Branch]:
    out = []
    for n in range(BLOCKS):
        pair = _pair(
            f"blocks.{n}.mlp.fc2",
            "adapter",
            {"nonlinearity": "gelu", "scale": 1.0, "tap": "output"},
            form,
            seed + 4 * n,
            rank,
        )
        biases: dict[str, Tensor] = {
            "down_bias": Dense(numbers(seed + 4 * n + 2, (rank,))),
            "up_bias": Dense(numbers(seed + 4 * n + 3, (WIDTH,))),
        }
        out.append(Branch(pair.site, pair.method, pair.params, {**pair.tensors, **biases}))
    return out


def consolidator_branches(form: str = "float32", seed: int = 300) -> list[Branch]:
    out = []
    for n in range(BLOCKS):
        for groups in (4, 8):
            weight = in_form(numbers(seed + 10 * n + groups, (WIDTH, WIDTH // groups)), form)
            site = Site.parse(f"blocks.{n}.attn.proj")
            out.append(Branch(site, "consolidator", {"groups": groups, "reorder": True}, {"weight": weight}))
    return out


def sparse_branches(seed: int = 400) -> list[Branch]:
    return [
        Branch(Site.parse(f"blocks.{n}.mlp.fc1"), "sparse", {}, {"weight": sparse(numbers(seed + n, (64, WIDTH)))})
        for n in range(BLOCKS)
    ]


def replace_branches(seed: int = 500) -> list[Branch]:
    norm = {"weight": Dense(numbers(seed, (WIDTH,))), "bias": Dense(numbers(seed + 1, (WIDTH,)))}
    token: dict[str, Tensor] = {"value": Dense(numbers(seed + 2, (1, 1, WIDTH)))}
    return [Branch(Site("cls_token"), "replace", {}, token), Branch(Site("norm"), "replace", {}, norm)]


def affine_branches(seed: int = 600) -> list[Branch]:
    rows = []
    for n in range(BLOCKS):
        both = {"factor": Dense(numbers(seed + n, (WIDTH,))), "shift": Dense(numbers(seed + 50 + n, (WIDTH,)))}
        rows.append(Branch(Site.parse(f"blocks.{n}.norm1"), "affine", {"tap": "output"}, both))
        factor = Dense(numbers(seed + 90 + n, (4 * WIDTH,)))
        rows.append(Branch(Site.parse(f"blocks.{n}.mlp.fc2"), "affine", {"tap": "input"}, {"factor": factor}))
    return rows


def dora_branches(form: str = "bits4", seed: int = 700) -> list[Branch]:
    pairs = [_pair(f"blocks.{n}.attn.proj", "dora", {"scale": 2.0}, form, seed + 3 * n, 4) for n in range(BLOCKS)]
    return [
        Branch(b.site, b.method, b.params, {**b.tensors, "magnitude": Dense(numbers(seed + n, (WIDTH,)))})
        for n, b in enumerate(pairs)
    ]


def convpass_branches(form: str = "bits1", seed: int = 800) -> list[Branch]:
    params = {"scale": 0.5, "prefix": 1}
    pairs = [_pair(f"blocks.{n}.attn", "convpass", params, form, seed + 3 * n, 4) for n in range(BLOCKS)]
    return [
        Branch(b.site, b.method, b.params, {**b.tensors, "conv": in_form(numbers(seed + n, (4, 4, 3, 3)), form)})
        for n, b in enumerate(pairs)
    ]


def fact_branches(seed: int = 900) -> list[Branch]:
    down, up = Dense(numbers(seed, (4, WIDTH))), Dense(numbers(seed + 1, (WIDTH, 4)))
    return [
        Branch(
            Site.parse(f"blocks.{n}.{name}"),
            "fact",
            {"scale": 1.0},
            {"down": down, "core": Dense(numbers(seed + n, (4 * j, 4 * k))), "up": up},
        )
        for n in range(BLOCKS)
        for name, j, k in (("attn.proj", 1, 1), ("mlp.fc1", 4, 1), ("mlp.fc2", 1, 4))
    ]


MAKERS: dict[str, Callable[[], list[Branch]]] = {
    "lora": lora_branches,
    "adaptformer": adaptformer_branches,
    "adapter": adapter_branches,
    "consolidator": consolidator_branches,
    "sparse": sparse_branches,
    "replace": replace_branches,
    "affine": affine_branches,
    "dora": dora_branches,
    "convpass": convpass_branches,
    "fact": fact_branches,
    "spt": lambda: [*replace_branches(), *sparse_branches(), *lora_branches("float32")[::2]],
}


def make(
    method: str = "lora", name: str = "cifar", *, branches: list[Branch] | None = None, labels: bool = True, **more: Any
) -> Adapter:
    """An adapter of one of MAKERS."""
    fields: dict[str, Any] = {
        "head": head(),
        "labels": tuple(f"class {i}" for i in range(CLASSES)) if labels else None,
        "data": DataSettings(),
        "metadata": {"dataset": name},
        "backbone": BACKBONE,
        **more,
    }
    rows = MAKERS[method]() if branches is None else branches
    return Adapter(name, method, tuple(rows), **fields)


def pack(*adapters: Adapter, profile: str = "small", backbone: Backbone = BACKBONE) -> bytes:
    """The bytes of a file."""
    return join([encode_task(adapter, profile) for adapter in adapters], backbone)


def index_of(data: bytes) -> dict[str, Any]:
    """A file's index as JSON."""
    fixed = framing.parse_fixed(data, len(data))
    found: dict[str, Any] = strict_json.loads(framing.open_head(data[: fixed.head_bytes], fixed).index)
    return found


def with_index(data: bytes, index: Any) -> bytes:
    """The same table and payloads behind another index (JSON value or bytes), its checksum right."""
    fixed = framing.parse_fixed(data, len(data))
    table = data[framing.FIXED_BYTES + fixed.stored_bytes : fixed.head_bytes]
    text = index if isinstance(index, bytes) else strict_json.dumps(index)
    return reframe(text, table) + data[fixed.head_bytes :]


def reframe(text: bytes, table: bytes) -> bytes:
    """A head around any index text, whether or not a writer would allow it."""
    stored = deflate.compress(text)
    size = framing.FIXED_BYTES + len(stored) + len(table)
    front = struct.pack("<8sBBHIII", framing.MAGIC, 1, 0, 0, size, len(stored), len(text))
    checksum = zlib.crc32(stored + table, zlib.crc32(front))
    return front + struct.pack("<I", checksum) + stored + table


def with_head_checksum(data: bytes) -> bytes:
    """The file with the checksum that its (changed) head should have."""
    head_bytes = int.from_bytes(data[12:16], "little")
    rest = data[28:head_bytes]
    return data[:24] + struct.pack("<I", zlib.crc32(rest, zlib.crc32(data[:24]))) + data[28:]


def with_checksums(data: bytes) -> bytes:
    """The file with segment and head checksums that fit its (changed) payloads."""
    index = index_of(data)
    fixed = framing.parse_fixed(data, len(data))
    table = bytearray(data[framing.FIXED_BYTES + fixed.stored_bytes : fixed.head_bytes])
    at = fixed.head_bytes
    for i, segment in enumerate(s for task in index["tasks"] for s in task["segments"]):
        table[4 * i : 4 * i + 4] = struct.pack("<I", zlib.crc32(data[at : at + segment["bytes"]]))
        at += segment["bytes"]
    start = framing.FIXED_BYTES + fixed.stored_bytes
    return with_head_checksum(data[:start] + bytes(table) + data[fixed.head_bytes :])


def with_checksums_of(data: bytes, index: Any) -> bytes:
    """Another index before the same payloads, and the checksum of each segment that it cuts them into, where it can."""
    fixed = framing.parse_fixed(data, len(data))
    payloads = data[fixed.head_bytes :]
    digests = data[fixed.head_bytes - 32 * len(index["tasks"]) : fixed.head_bytes]
    table, at = b"", 0
    for segment in (s for task in index["tasks"] for s in task["segments"]):
        size = max(int(segment["bytes"]), 0)
        table += struct.pack("<I", zlib.crc32(payloads[at : at + size]))
        at += size
    return reframe(strict_json.dumps(index), table + digests) + payloads
