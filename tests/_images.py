"""Small image folders, and a backbone on disk, for the tests of training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import save_file

from tests._vit import vit

SIDE = 16
KWARGS = {"img_size": SIDE, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 0}


def backbone(folder: Path) -> Path:
    """A ViT of 24 features and 2 blocks on 16×16 images."""
    path = folder / "tiny.safetensors"
    save_file(vit(**KWARGS).state_dict(), path)
    path.with_suffix(".json").write_text(json.dumps({"timm_kwargs": KWARGS, "mean": [0.5] * 3, "std": [0.5] * 3}))
    return path


def picture(label: int, seed: int) -> np.ndarray:
    """A bright quarter whose place is the label, in noise: uint8 [side, side, 3]."""
    pixels = np.random.default_rng((label, seed)).integers(0, 90, (SIDE, SIDE, 3), dtype=np.uint8)
    half = SIDE // 2
    row, column = divmod(label, 2)
    pixels[row * half : (row + 1) * half, column * half : (column + 1) * half] += 120
    return pixels


def folder(root: Path, *, train: int = 12, val: int = 4, test: int = 5, classes: int = 3) -> Path:
    """An image folder with so many images a class."""
    for offset, (split, count) in enumerate((("train", train), ("val", val), ("test", test))):
        for label in range(classes if count else 0):
            place = root / split / f"class {label}"
            place.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(picture(label, 1000 * offset + i)).save(place / f"{i}.png")
    return root


def arrays(count: int = 12, classes: int = 3) -> dict[str, np.ndarray]:
    """The plain `.npz` form: half trains, a quarter validates, a quarter tests."""
    labels = np.arange(count * classes) % classes
    images = np.stack([picture(int(label), i) for i, label in enumerate(labels)])
    split = np.array([(0, 0, 1, 2)[i // classes % 4] for i in range(len(labels))])
    return {"images": images, "labels": labels, "split": split}
