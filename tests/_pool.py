"""Files of many made-up tasks of all methods, for the tests of the pool."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

import adapterpack
from adapterpack.adapter import Adapter, Backbone, Branch
from adapterpack.packing.encode import encode_task
from adapterpack.packing.join import join
from adapterpack.runtime.fingerprint import fingerprint
from adapterpack.runtime.load import load_adapter
from tests._vit import DEPTH, EXAMPLES, WIDTH, adapter, branch, lora, one_bit, vit


def file_of(*adapters: Adapter, profile: str = "fast") -> bytes:
    return join([encode_task(made, profile) for made in adapters], adapters[0].backbone)


def task(kind: str, number: int, **changes: Any) -> Adapter:
    """Task `number` of a kind, `kind-number`, of number % 5 + 2 classes; its numbers follow from the number."""
    made = BRANCHES[kind](number) if kind in BRANCHES else EXAMPLES[kind]
    fields = {"classes": number % 5 + 2, "name": f"{kind}-{number}", "backbone": Backbone("small", frozen())}
    return adapter(made, **{**fields, **changes})


@cache
def frozen() -> str:
    """The fingerprint of the small vision transformer."""
    return fingerprint(vit())


def _lora(number: int, rank: int = 4) -> list[Branch]:
    sites = [f"blocks.{i}.attn.qkv[{part}]" for i in range(DEPTH) for part in "qv"]
    return [lora(site, rank=rank, seed=100 * number + 2 * n) for n, site in enumerate(sites)]


def _adaptformer(number: int) -> list[Branch]:
    seeds = [100 * number + i for i in range(DEPTH)]
    return [
        branch(
            f"blocks.{i}.mlp",
            "adaptformer",
            {"down": one_bit(4, WIDTH, seed=seed), "up": one_bit(WIDTH, 4, seed=seed + 50)},
            scale=2.0,
        )
        for i, seed in enumerate(seeds)
    ]


BRANCHES = {
    "lora": _lora,
    "lora-rank-2": lambda number: _lora(number, 2),
    "adaptformer": _adaptformer,
    "everything": lambda number: [b for rows in EXAMPLES.values() for b in rows],
}
KINDS = [*dict.fromkeys([*BRANCHES, *EXAMPLES])]


def alone(data: bytes, name: str, model: nn.Module, images: torch.Tensor, fold: Any = "never") -> torch.Tensor:
    """Logits of one task loaded by itself."""
    with load_adapter(adapterpack.open(data).read(name), model, fold=fold), torch.no_grad():
        out: torch.Tensor = model(images)
    return out


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest logit."""
    assert found.shape == expected.shape
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max())
