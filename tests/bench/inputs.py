"""What the benchmarks run on: the published adapters where they are, else random ones of the same shapes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from adapterpack import Adapter, Backbone, Branch, DataSettings, Dense, Head, Quantized, Site
from adapterpack.converters import CONVERTERS
from adapterpack.converters._base import Hints
from adapterpack.quantize import quantize_latent

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("adaptformer", "adaptformer-bihead", "lora", "lora-bihead")
DIMS = (1, 32)


def published_folder() -> Path | None:
    """The folder of published PETL-ViT adapters, or None."""
    path = Path(os.environ.get("ADAPTERPACK_PETL_VIT", ROOT.parent / "shared" / "data" / "petl-vit"))
    return path if path.is_dir() else None


def published(method: str, dim: int) -> Iterator[Path]:
    """All published files of one method and dimension."""
    folder = published_folder()
    if folder is not None:
        yield from sorted((folder / method).glob(f"*-dim{dim}.bin"))


def example(method: str, dim: int) -> Adapter:
    """The published cifar adapter, or one like it."""
    folder = published_folder()
    if folder is not None:
        return read(folder / method / f"cifar-bit1-dim{dim}.bin")
    return random_adapter(method, dim)


def read(path: Path) -> Adapter:
    """A published adapter."""
    return CONVERTERS["petl-vit"].read(path, Hints()).adapter


def random_adapter(method: str, dim: int, classes: int = 100) -> Adapter:
    """A ViT-B/16 adapter of random latents: the right sizes, nothing to compress."""
    rng = np.random.default_rng(0)

    def matrix(*shape: int) -> Quantized:
        return quantize_latent(rng.normal(0, 0.03, shape).astype(np.float32), 1)

    lora = method.startswith("lora")
    places = [("attn.qkv", part) for part in "qv"] if lora else [("mlp", "")]
    branches = tuple(
        Branch(
            Site(f"blocks.{i}.{path}", part),
            "lora" if lora else "adaptformer",
            {"scale": 0.1},
            {"down": matrix(dim, 768), "up": matrix(768, dim)},
        )
        for i in range(12)
        for path, part in places
    )
    weight = Dense(rng.normal(0, 0.03, (classes, 768)).astype(np.float32))
    float_head = Head(weight, Dense(np.zeros(classes, np.float32)))
    head = Head(matrix(classes, 768)) if method.endswith("bihead") else float_head
    name = Backbone("vit_base_patch16_224.orig_in21k")
    return Adapter("cifar", method.split("-")[0], branches, head, None, DataSettings(), {}, name)
