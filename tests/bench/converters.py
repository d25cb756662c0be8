"""Bytes: a LoRA folder that PEFT saved beside the `.apk` it becomes, at every number of bits, and what each costs."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from timm.models import VisionTransformer

import adapterpack
from adapterpack.exchange import pack
from tests.bench.timing import table

BITS = (32, 16, 8, 4, 2, 1)
RANK, CLASSES = 8, 100


def report() -> str:
    """A row for each number of bits; the head keeps float32, which the last row changes too."""
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder = Path(name) / "peft"
        model, expected, images = _saved(folder)
        stored = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".json"))
        head = 4 * (CLASSES * 768 + CLASSES)
        rows = [["PEFT folder", "float32", f"{stored:,}", f"{stored - head:,}", "1.000", "", "", ""]]
        cases: list[dict[str, Any]] = [{"bits": bits} for bits in BITS]
        cases += [{"bits": bits, "group": 128} for bits in (4, 1)] + [{"bits": 1, "head_bits": 4}]
        for case in cases:
            rows.append(_row(case, folder, Path(name) / "x.apk", model, expected, images, stored))
    columns = ["form", "bits", "bytes", "without head", "of PEFT's", "error, median", "error, largest", "logits"]
    title = f"Bytes of one LoRA of rank {RANK} on qkv and fc1 of a ViT-B/16 with {CLASSES} classes, saved by PEFT\n"
    note = "(errors relative to the norm of a matrix, and of the logits; random numbers, untrained)\n\n"
    return title + note + table(columns, rows)


def _saved(folder: Path) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """A frozen model, and the logits that PEFT's own model gives with the adapter that the folder holds."""
    torch.manual_seed(0)
    model = VisionTransformer(num_classes=CLASSES).eval()
    fresh = VisionTransformer(num_classes=CLASSES).eval()
    fresh.load_state_dict(model.state_dict())
    config = peft.LoraConfig(r=RANK, lora_alpha=16, target_modules=["qkv", "fc1"], modules_to_save=["head"])
    made = peft.get_peft_model(model, config).eval()
    for parameter_name, value in made.named_parameters():
        if "lora_B" in parameter_name:
            value.normal_(std=0.02)
    images = torch.rand(4, 3, 224, 224)
    expected = made(images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.save_pretrained(folder)
    return fresh, expected, images


def _row(
    case: dict[str, Any],
    folder: Path,
    out: Path,
    model: torch.nn.Module,
    expected: torch.Tensor,
    images: torch.Tensor,
    stored: int,
) -> list[str]:
    summary = pack(folder, out, task="cifar", force=True, **case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no fingerprint: the backbone has no file
        with adapterpack.load(out, model):
            found = model(images)
    size = out.stat().st_size
    head = summary.sizes["tasks"][0]["bytes_by_part"]["head"]
    errors = [cost.relative_error for cost in summary.costs if not cost.tensor.startswith("head")]
    words = f"{case['bits']}" + (f", group {case['group']}" if "group" in case else "")
    words += f", head {case['head_bits']}" if "head_bits" in case else ""
    off = float((found - expected).norm() / expected.norm())
    middle, largest = (f"{np.median(errors):.4f}", f"{max(errors):.4f}") if errors else ("0", "0")
    return [".apk", words, f"{size:,}", f"{size - head:,}", f"{size / stored:.3f}", middle, largest, f"{off:.1e}"]
