"""SPT's mask files: the published ones are consistent with the method's counts; altered ones are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterpack.converters.spt_mask import FIELDS, SptMask, parse_mask
from adapterpack.errors import AdapterPackError

# (in, out) of ViT-B/16's operations
SIZES = {"q": (768, 768), "k": (768, 768), "v": (768, 768), "proj": (768, 768), "fc1": (768, 3072), "fc2": (3072, 768)}


def test_published_masks(spt_masks: Path) -> None:
    pytest.importorskip("torch")
    from adapterpack.converters.checkpoint import read_spt_mask

    files = sorted(spt_masks.glob("*/*/*.pth"))
    assert len(files) == 24
    for path in files:
        mask = read_spt_mask(path)
        variant = path.parts[-3]
        shapes = [SIZES[name.rpartition(".")[2]] for name in mask.structured]
        matrices = sum(8 * (i + o) if variant == "lora" else 2 * o * 8 + 8 + o for i, o in shapes)
        vectors = sum(3072 if "fc1" in name else 768 for name in mask.vectors)
        assert mask.structured_params == matrices + vectors
        assert mask.params == pytest.approx((len(mask.indexes) + mask.structured_params + 768) / 1e6, rel=1e-6)
        assert not set(mask.shapes) & {f"{name}.weight" for name in mask.structured}
        check_positions(mask)


def check_positions(mask: SptMask) -> None:
    """The positions per tensor, put back into the concatenation one after another, are the file's indexes."""
    found, start = [], 0
    positions = mask.positions()
    for name, shape in mask.shapes.items():
        size = int(np.prod(shape))
        at = positions.get(name, np.zeros(0, np.int64))
        assert name not in positions or len(at)
        assert not len(at) or (at[0] >= 0 and at[-1] < size)
        found.append(at + start)
        start += size
    assert np.array_equal(np.concatenate(found), mask.indexes)


def good() -> dict[str, Any]:
    return {
        "unstructured_name_shapes": {"blocks.0.attn.q.weight": (2, 3), "norm.bias": (4,)},
        "unstructured_name_shapes_int": {"blocks.0.attn.q.weight": np.int64(6), "norm.bias": np.int64(4)},
        "unstructured_indexes": np.array([0, 5, 6, 9]),
        "unstructured_params": np.array(4.0, np.float32),
        "structured_params": 12,
        "params": np.array(0.1, np.float32),
        "tuned_matrices": [[0, 1, 0, 0, 0, 1]],
        "tuned_vectors": ["norm.weight"],
    }


def test_a_small_mask() -> None:
    mask = parse_mask(good(), "x")
    assert {name: at.tolist() for name, at in mask.positions().items()} == {
        "blocks.0.attn.q.weight": [0, 5],
        "norm.bias": [0, 3],
    }
    assert mask.structured == ("blocks.0.attn.k", "blocks.0.mlp.fc2")
    assert good().keys() == FIELDS


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"unstructured_indexes": np.array([0, 5, 5, 9])}, "bad-positions"),
        ({"unstructured_indexes": np.array([0, 5, 6, 10])}, "bad-positions"),
        ({"unstructured_indexes": np.array([-1, 5, 6, 9])}, "bad-positions"),
        ({"unstructured_indexes": np.array([0, 5, 6])}, "bad-source"),
        ({"unstructured_indexes": np.array([0.0, 5, 6, 9])}, "bad-source"),
        ({"unstructured_indexes": [0, 5, 6, 9]}, "bad-source"),
        ({"unstructured_params": "4"}, "bad-source"),
        ({"unstructured_params": float("nan")}, "bad-source"),
        ({"unstructured_name_shapes": {"norm.bias": (4,)}}, "bad-source"),
        ({"unstructured_name_shapes": {"blocks.0.attn.q.weight": (2, 4), "norm.bias": (4,)}}, "bad-source"),
        ({"tuned_matrices": [[0, 1]]}, "bad-source"),
        ({"tuned_matrices": [[0, 1, 2, 0, 0, 0]]}, "bad-source"),
        ({"tuned_matrices": None}, "bad-source"),
        ({"tuned_vectors": ["norm.bias"]}, "bad-source"),
        ({"tuned_vectors": ["a", "a"]}, "bad-source"),
        ({"tuned_vectors": [1]}, "bad-source"),
        ({"more": 1}, "bad-source"),
    ],
)
def test_altered_masks(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(AdapterPackError) as caught:
        parse_mask(good() | change, "x")
    assert caught.value.reason == reason
