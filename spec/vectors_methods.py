"""The vectors of the methods that change what a module does: affine, dora; and of convpass, which runs beside one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vectors_adapters import BACKBONE, adapter, at, dense, forced, lora, numbers, written
from vectors_build import Vector

from adapterpack.adapter import Branch
from adapterpack.packing.join import join


def good_methods() -> Iterator[Vector]:
    factor, shift = dense(numbers(8)), dense(numbers(8, start=8))
    rows: dict[str, tuple[list[Branch], str]] = {
        "affine": (
            [
                at("blocks.0.attn.qkv[k]", "affine", {"tap": "output"}, factor=factor),
                at("blocks.0.mlp.fc2", "affine", {"tap": "input"}, factor=dense(numbers(32))),
                *(at(f"blocks.{n}.norm1", "affine", {"tap": "output"}, factor=factor, shift=shift) for n in range(3)),
            ],
            "Outputs multiplied, and shifted as well; an input multiplied.",
        ),
        "affine-and-lora": (
            [*lora(dense(numbers(2, 8)), dense(numbers(8, 2))), *_scaled_rows()],
            "Two methods at one site: what comes first is fixed by the methods, not by the file.",
        ),
        "dora": ([at(f"blocks.{n}.attn.proj", "dora", {"scale": 2.0}, **_dora()) for n in range(2)], "DoRA."),
        "fact": (
            [
                at("blocks.0.mlp.fc1", "fact", {"scale": 2.0}, **_fact(4, 1)),
                at("blocks.0.mlp.fc2", "fact", {"scale": 2.0}, **_fact(1, 4)),
                *(at(f"blocks.0.attn.qkv[{part}]", "fact", {"scale": 2.0}, **_fact(1, 1)) for part in "kqv"),
            ],
            "Three factors: one block, four blocks of rows, four of columns.",
        ),
        "convpass": (
            [
                at(f"blocks.0.{part}", "convpass", {"scale": 0.5, "prefix": 1}, **_convpass())
                for part in ("attn", "mlp")
            ],
            "Convpass without biases.",
        ),
        "convpass-biases": (
            [at("blocks.0.mlp", "convpass", {"scale": 1.0, "prefix": 0}, **_convpass(), **_biases())],
            "Convpass with its biases, and no token before the grid.",
        ),
    }
    for name, (branches, why) in rows.items():
        yield Vector(f"method-{name}", written(adapter(*branches)), why)


def _scaled_rows() -> list[Branch]:
    return [at(f"blocks.0.attn.qkv[{part}]", "affine", {"tap": "output"}, factor=dense(numbers(8))) for part in "qv"]


def _dora() -> dict[str, Any]:
    return {"down": dense(numbers(2, 8)), "up": dense(numbers(8, 2)), "magnitude": dense(numbers(8))}


def _fact(down: int, across: int) -> dict[str, Any]:
    return {"down": dense(numbers(3, 8)), "core": dense(numbers(2 * down, 3 * across)), "up": dense(numbers(8, 2))}


def _convpass() -> dict[str, Any]:
    return {"down": dense(numbers(2, 8)), "conv": dense(numbers(2, 2, 3, 3)), "up": dense(numbers(8, 2))}


def _biases() -> dict[str, Any]:
    return {"down_bias": dense(numbers(2)), "conv_bias": dense(numbers(2, start=2)), "up_bias": dense(numbers(8))}


def bad_methods() -> Iterator[Vector]:
    i22, i27 = "item 22", "item 27"
    factor, two = {"factor": dense(numbers(8))}, {"factor": dense(numbers(8)), "shift": dense(numbers(8))}
    rows: list[tuple[str, str, str, Any, Any, str, str]] = [
        ("affine-tap", "bad-parameter", "affine", {"tap": "residual"}, factor, "A tap that affine has not.", i22),
        ("affine-scale", "bad-parameter", "affine", {"tap": "output", "scale": 1.0}, factor, "A scale too many.", i22),
        (
            "affine-shift-alone",
            "missing-field",
            "affine",
            {"tap": "output"},
            {"shift": two["shift"]},
            "No factor.",
            i27,
        ),
        ("affine-shifted-input", "bad-shape", "affine", {"tap": "input"}, two, "An input is not shifted.", i27),
        ("affine-matrix", "bad-shape", "affine", {"tap": "output"}, {"factor": dense(numbers(8, 1))}, "A matrix.", i27),
        (
            *("affine-shift-7", "bad-shape", "affine", {"tap": "output"}),
            *({**factor, "shift": dense(numbers(7))}, "A shift of another length.", i27),
        ),
        (
            *("dora-magnitude-7", "bad-shape", "dora", {"scale": 1.0}),
            *({**_dora(), "magnitude": dense(numbers(7))}, "Seven lengths of eight rows.", i27),
        ),
        (
            *("dora-no-magnitude", "missing-field", "dora", {"scale": 1.0}),
            *({k: v for k, v in _dora().items() if k != "magnitude"}, "A LoRA that calls itself DoRA.", i27),
        ),
        (
            *("fact-core", "bad-shape", "fact", {"scale": 1.0}),
            *({**_fact(1, 1), "core": dense(numbers(3, 3))}, "Three rows of blocks that have two.", i27),
        ),
        (
            *("convpass-5x5", "bad-shape", "convpass", {"scale": 1.0, "prefix": 1}),
            *({**_convpass(), "conv": dense(numbers(2, 2, 5, 5))}, "A convolution of another size.", i27),
        ),
        (
            *("convpass-conv-bias", "bad-shape", "convpass", {"scale": 1.0, "prefix": 1}),
            *({**_convpass(), "conv_bias": dense(numbers(3))}, "A bias of another length.", i27),
        ),
        (
            *("convpass-prefix", "bad-shape", "convpass", {"scale": 1.0, "prefix": -1}),
            *(_convpass(), "A negative number of tokens.", i27),
        ),
        (
            *("convpass-prefix-float", "bad-parameter", "convpass", {"scale": 1.0, "prefix": 1.0}),
            *(_convpass(), "Half a token might come next.", i22),
        ),
    ]
    for name, reason, method, params, tensors, why, source in rows:
        data = join([forced(adapter(at("site", method, params, **tensors)), "none")], BACKBONE)
        yield Vector(name, data, why, source, reason)
