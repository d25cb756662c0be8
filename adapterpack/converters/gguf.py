"""GGUF LoRA: an adapter's low-rank pairs as llama.cpp's adapter files hold them; written, not read.

Tensors are `<name>.lora_a` [rank, in] and `<name>.lora_b` [out, rank], the names those of llama.cpp's vision towers;
1-bit matrices whose numbers a Q1_0 block can hold are written as such blocks, all others exactly in F16 or F32.
Source: llama.cpp, `llama-adapter.cpp` (what its loader reads) and `gguf-py/gguf/constants.py` (names, numbers).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adapterpack._files import refuse_existing, write_atomic
from adapterpack.adapter import Adapter, Branch
from adapterpack.codecs.signs import to_q1_0
from adapterpack.converters._lost import left_out, written_out
from adapterpack.errors import CallError, Reason, UnsupportedAdapterError
from adapterpack.tensors import Dense, Quantized, Tensor

ARCHITECTURE = "clip"  # llama.cpp's word for the vision towers that these names belong to
BLOCK = 128  # weights of a Q1_0 block
NAMES = {
    "blocks.*.attn.qkv": "attn_qkv",
    "blocks.*.attn.qkv[q]": "attn_q",
    "blocks.*.attn.qkv[k]": "attn_k",
    "blocks.*.attn.qkv[v]": "attn_v",
    "blocks.*.attn.proj": "attn_out",
    "blocks.*.mlp.fc1": "ffn_up",
    "blocks.*.mlp.fc2": "ffn_down",
}


class Item(NamedTuple):
    """One tensor to be written: numbers, or the bytes of Q1_0 blocks as rows."""

    name: str
    array: NDArray[Any]
    blocks: bool


@dataclass(frozen=True, slots=True)
class Gguf:
    """`.gguf` of the type `adapter`."""

    name: str = "gguf"

    def write(self, adapter: Adapter, out: Path, *, force: bool) -> tuple[Path, ...]:
        """Write the LoRA of an adapter.

        `adapter.lora.alpha` is scale times rank where that is one number for all branches; where it is not, it is 0,
        which readers take for a scale of 1, and `lora_b` holds the scale.

        Raises:
            UnsupportedAdapterError: `not-expressible`: another method, a site without a name in GGUF, two branches at
                one site.
            CallError: `file-exists`; `missing-extra` without the `gguf` package.
        """
        items, alpha = items_of(adapter), _alpha(adapter.branches)
        refuse_existing(out, force=force)
        write_atomic(out, _bytes(_facts(adapter, alpha), items), force=force)
        return (out,)

    def lost(self, adapter: Adapter) -> tuple[str, ...]:
        """See `Lossy.lost`."""
        items = items_of(adapter)
        tensors = [branch.tensors[role] for branch in adapter.branches for role in ("down", "up")]
        plain = [t for t, item in zip(tensors, items) if not item.blocks and item.array.dtype != np.float16]
        kept = sum(item.blocks for item in items)
        notes = (f"{kept} of {len(items)} matrices are Q1_0 blocks, to the bit",) if kept else ()
        return (*left_out(adapter, ("labels", "data", "fingerprint", "forms")), *written_out(plain), *notes)


def items_of(adapter: Adapter) -> list[Item]:
    """The tensors in file order, `down` and `up` of each branch in turn.

    Raises:
        UnsupportedAdapterError: `not-expressible`.
    """
    if not adapter.branches:
        raise _impossible("an adapter without branches", "")
    shared = _alpha(adapter.branches) != 0
    items: list[Item] = []
    for branch in adapter.branches:
        stem = _name(branch)
        factor = 1.0 if shared else float(branch.params["scale"])
        items += [
            _item(f"{stem}.weight.lora_a", branch.tensors["down"], 1.0),
            _item(f"{stem}.weight.lora_b", branch.tensors["up"], factor),
        ]
    names = [item.name for item in items]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise _impossible("two branches at one site", twice)
    return items


def _alpha(branches: Sequence[Branch]) -> float:
    """scale · rank where all branches have one and the same, and float32 gives the scale back; else 0."""
    found = {(float(b.params.get("scale", 0.0)), int(b.tensors["down"].shape[0])) for b in branches if _is_lora(b)}
    products = {scale * rank for scale, rank in found}
    (alpha,) = products if len(products) == 1 else (0.0,)
    exact = all(np.float32(alpha) / np.float32(rank) == np.float32(scale) for scale, rank in found)
    return alpha if exact else 0.0


def _is_lora(branch: Branch) -> bool:
    return branch.method == "lora"


def _name(branch: Branch) -> str:
    site = branch.site
    if not _is_lora(branch):
        raise _impossible(f"the method {branch.method}", str(site))
    if site.pattern not in NAMES or site.block is None:
        raise _impossible(f"a LoRA at {site}", str(site))
    return f"v.blk.{site.block}.{NAMES[site.pattern]}"


def _item(name: str, tensor: Tensor, factor: float) -> Item:
    blocks = blocks_of(tensor) if factor == 1 else None
    if blocks is not None:
        return Item(name, np.frombuffer(blocks, np.uint8).reshape(tensor.shape[0], -1), True)
    if isinstance(tensor, Dense) and tensor.dtype == "float16" and factor == 1:
        return Item(name, np.ascontiguousarray(tensor.data), False)
    return Item(name, np.ascontiguousarray(tensor.dense() * np.float32(factor)), False)


def blocks_of(tensor: Tensor) -> bytes | None:
    """Q1_0 blocks of exactly the tensor's values, or None where there are none.

    Besides the form that `to_q1_0` takes, that is any group of a multiple of 128 weights, and one group for the tensor,
    as long as float16 holds the scales.
    """
    if not isinstance(tensor, Quantized) or tensor.bits != 1 or tensor.levels != "unit" or tensor.offset is not None:
        return None
    if not tensor.shape or not tensor.entries or tensor.shape[-1] % BLOCK or tensor.group % BLOCK:
        return None
    with np.errstate(over="ignore"):
        half = tensor.scale.astype(np.float16)
    if not np.array_equal(half.astype(np.float32), tensor.scale.astype(np.float32)):
        return None
    group = np.arange(tensor.entries // BLOCK) * BLOCK // (tensor.group or tensor.entries)
    return to_q1_0(Quantized(tensor.shape, 1, "unit", BLOCK, tensor.packed, half[group], None))


def _facts(adapter: Adapter, alpha: float) -> dict[str, Any]:
    """The keys of the file; those that begin `adapterpack.` are ours and nobody else needs them."""
    backbone = adapter.backbone
    facts: dict[str, Any] = {
        "general.type": "adapter",
        "general.name": adapter.name,
        "adapter.type": "lora",
        "adapter.lora.alpha": alpha,
        "adapterpack.labels": list(adapter.labels or ()),
        "adapterpack.data": json.dumps(asdict(adapter.data), sort_keys=True) if adapter.data else "",
        "adapterpack.backbone": backbone.name,
        "adapterpack.fingerprint": backbone.fingerprint or "",
    }
    return {key: value for key, value in facts.items() if value not in ("", [])}


def _bytes(facts: Mapping[str, Any], items: list[Item]) -> bytes:
    """The file; the library writes to a path only, so that is one of a folder that goes away."""
    try:
        from gguf import GGMLQuantizationType, GGUFWriter  # optional: only this form needs it
    except ImportError as error:
        hint = "pip install 'adapterpack[export]'"
        raise CallError("the form gguf needs the gguf package", Reason.MISSING_EXTRA, hint=hint) from error
    with TemporaryDirectory() as folder:
        path = Path(folder) / "lora.gguf"
        writer = GGUFWriter(path, ARCHITECTURE)
        for key, value in facts.items():
            if isinstance(value, float):
                writer.add_float32(key, value)
            elif isinstance(value, list):
                writer.add_array(key, value)
            else:
                writer.add_string(key, value)
        for item in items:
            raw = GGMLQuantizationType.Q1_0 if item.blocks else None
            writer.add_tensor(item.name, item.array, raw_dtype=raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def _impossible(what: str, where: str) -> UnsupportedAdapterError:
    hint = f"a GGUF adapter holds LoRA at {', '.join(NAMES)}; write --to safetensors or checkpoint instead"
    return UnsupportedAdapterError(f"GGUF has no place for {what}", Reason.NOT_EXPRESSIBLE, where, hint)
