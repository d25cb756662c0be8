"""The adapters in `fixtures/`: one trained LoRA in each outside form, all of which become the same `.apk`."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import adapterpack
from adapterpack.exchange import pack
from adapterpack.runtime.backbone import create_backbone
from adapterpack.tensors import Quantized

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
FORMS = ("digits.ckpt", "digits.bin", "digits.safetensors", "digits-petl-names.pth")


def test_readme_lists_every_file_with_its_hash() -> None:
    text = (FIXTURES / "README.md").read_text("utf-8")
    for path in FIXTURES.iterdir():
        if path.is_file() and path.suffix not in (".py", ".md"):
            assert f"`{path.name}`" in text
            assert hashlib.sha256(path.read_bytes()).hexdigest() in re.findall(r"[0-9a-f]{64}", text), path.name


def packed(form: str, folder: Path) -> adapterpack.Adapter:
    out = folder / f"{form}.apk"
    settings: dict[str, Any] = {"width": 192, "depth": 9} if form == "digits.bin" else {}
    pack(FIXTURES / form, out, settings=settings)
    return adapterpack.open(out).read()


def test_every_form_holds_the_same_weights(tmp_path: Path) -> None:
    first, *others = [packed(form, tmp_path) for form in FORMS]
    assert first.method == "lora" and len(first.branches) == 18
    assert all(isinstance(t, Quantized) and t.bits == 1 for b in first.branches for t in b.tensors.values())
    for other in others:
        assert first.sites.keys() == other.sites.keys()
        for mine, theirs in zip(first.branches, other.branches):
            assert mine.params == theirs.params
            for role, tensor in mine.tensors.items():
                assert np.array_equal(tensor.dense(), theirs.tensors[role].dense())
        assert first.head is not None and other.head is not None
        assert np.array_equal(first.head.weight.dense(), other.head.weight.dense())


@pytest.mark.filterwarnings("ignore:.* does not say which backbone:UserWarning")
@pytest.mark.parametrize("fold", ["auto", "never"])
def test_it_reads_digits(tmp_path: Path, fold: Any) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    found = datasets.load_digits()
    pack(FIXTURES / "digits.ckpt", tmp_path / "digits.apk")
    made = create_backbone(FIXTURES / "backbone.safetensors")
    with adapterpack.load(tmp_path / "digits.apk", made.model, fold=fold) as loaded, torch.no_grad():
        assert loaded.data is not None
        pixels = torch.from_numpy(found.images[:200] / 16).float()[:, None].expand(-1, 3, -1, -1)
        images = torch.nn.functional.interpolate(pixels, loaded.data.input_size[1:], mode="bicubic").clamp(0, 1)
        mean, std = (torch.tensor(v)[:, None, None] for v in (loaded.data.mean, loaded.data.std))
        best = made.model((images - mean) / std).argmax(dim=1).numpy()
    assert (best == found.target[:200]).mean() > 0.75
