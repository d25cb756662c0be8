"""The vectors of the codec `predictive-signs`: each rule of its layout, each part of its model, each way to be wrong.

Their signs come from SHA-256, so they are the same everywhere. Most files are built with parameters that the writer
would not choose, for what they show.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from vectors_adapters import BACKBONE, adapter, at, chosen, numbers, written
from vectors_adapters import dense as dense_tensor
from vectors_bad_payloads import SIGNS
from vectors_build import Json, Vector

from adapterpack import bits as bitstream
from adapterpack.adapter import Adapter, Head
from adapterpack.packing.join import join
from adapterpack.tensors import Quantized, groups_of

Bits = np.ndarray[Any, np.dtype[np.uint8]]
NAME = "predictive-signs"
PAPER: Json = {"group": 0, "levels": "unit", "offset": True, "scale": "float32"}
DEFAULT: Json = {**PAPER, "compression": "none", "join": 1, "lam": 40, "pooled": True, "units": "short"}
SMALL: Json = {**SIGNS, "join": 1, "lam": 40, "pooled": False, "units": "rows"}


def drawn(seed: str, *shape: int, chance: int = 128) -> Bits:
    """Bits that are 1 with a chance of so many in 256."""
    count = int(np.prod(shape))
    data = b"".join(hashlib.sha256(f"{seed} {i}".encode()).digest() for i in range(-(-count // 32)))
    return (np.frombuffer(data[:count], np.uint8) < chance).astype(np.uint8).reshape(shape)


def alike(seed: str, units: int, channels: int, noise: int = 24, common: str = "") -> Bits:
    """Signs [units × channels] of rank one, so many in 256 of them turned: what training makes of a unit's weights.

    Args:
        seed: other signs for another one.
        units, channels: the shape.
        noise: how many are turned.
        common: matrices with the same have the same pattern over the channels.
    """
    outer = drawn(f"unit {seed[:1]}", units, 1) ^ drawn(f"channel {common or seed}", 1, channels)
    return outer ^ drawn(f"noise {seed}", units, channels, chance=noise)


def tensor(codes: Bits, form: Json = PAPER) -> Quantized:
    """Scales 1/4, 2/4, …; offsets −1/8, −2/8, …."""
    steps = np.arange(1, groups_of(codes.size, form["group"]) + 1)
    offset = (-steps / 8).astype(form["scale"]) if form["offset"] else None
    packed = bitstream.pack(np.ascontiguousarray(codes).reshape(-1), 1)
    scale = (steps / 4).astype(form["scale"])
    return Quantized(codes.shape, 1, form["levels"], form["group"], packed, scale, offset)


def pairs(units: int, channels: int, count: int, noise: int = 24, common: bool = False) -> list[Bits]:
    """down, up, down, up, …"""
    found = []
    for n in range(count):
        for kind in ("down", "up"):
            signs = alike(f"{n} {kind}", units, channels, noise, kind if common else "")
            found.append(signs if kind == "down" else signs.T)
    return found


def lora(matrices: Sequence[Bits], form: Json = PAPER) -> Adapter:
    """The pairs as LoRA on the query rows of one block after another."""
    rows = [tensor(codes, form) for codes in matrices]
    sites = [f"blocks.{n}.attn.qkv[q]" for n in range(len(rows) // 2)]
    return adapter(*(at(s, "lora", {"scale": 0.5}, down=rows[2 * n], up=rows[2 * n + 1]) for n, s in enumerate(sites)))


def values(matrices: Sequence[Bits], form: Json = PAPER) -> Adapter:
    """Each matrix at a site of its own; those of one shape are one group and follow one another."""
    return adapter(*(at(f"site{i:03}", "replace", {}, value=tensor(m, form)) for i, m in enumerate(matrices)))


def stored(one: Adapter, **changes: Any) -> bytes:
    """The file with all its signs in this codec, other tensors plain."""

    def choice(planned: Any) -> tuple[str, Json]:
        if planned.form.get("bits") != 1:
            return "raw", {**planned.form, "compression": "none"}
        return NAME, {**DEFAULT, **{k: v for k, v in planned.form.items() if k != "bits"}, **changes}

    return join([chosen(one, choice)], BACKBONE)


def good_signs() -> Iterator[Vector]:
    for rows in (_written, _layouts, _contents, _forms, _models):
        for name, data, why in rows():
            yield Vector(f"predictive-{name}", data, why)


def _written() -> Iterator[tuple[str, bytes, str]]:
    """What the package writes by itself."""
    yield "dim1", written(lora(pairs(1, 96, 12, 40, common=True))), "Hidden dimension 1: twelve pairs joined."
    yield "dim3", written(lora(pairs(3, 768, 2, 24, common=True))), "Hidden dimension 3, two pairs, 768 channels."
    yield "dim8", written(lora(pairs(8, 192, 3))), "Hidden dimension 8, three pairs that learn from each other."
    for classes, channels in ((2, 300), (47, 96), (100, 96), (397, 48)):
        weight = alike(f"head {classes}", classes, channels, 16)
        one = adapter(head=Head(tensor(weight), dense_tensor(numbers(classes))))
        yield f"head-{classes}", written(one), f"A head of {classes} classes at one bit, {channels} channels."
    both = Head(tensor(alike("head", 10, 64)), dense_tensor(numbers(10)))
    task = Adapter("task", "lora", lora(pairs(8, 64, 1)).branches, both, backbone=BACKBONE)
    yield "branches-and-head", written(task), "Branches and head, each a segment with its own parameters."


def _layouts() -> Iterator[tuple[str, bytes, str]]:
    three = lora(pairs(8, 96, 3))
    yield "join-2", stored(three, join=2, lam=90), "Two pairs joined, and the third a stream of its own."
    yield "join-all", stored(three, join=0), "All pairs joined, which yet learn from each other."
    yield "join-64", stored(three, join=64), "More pairs to be joined than there are."
    wide = [alike(f"{n}", 100, 12, 8, "c") for n in range(6)]
    why = "Units joined up to 512: five matrices of 100, split in four, and the sixth."
    yield "join-limit", stored(values(wide), join=0, units="rows"), why
    many = lora(pairs(2, 16, 66, 0, common=True))
    yield "129-matrices", stored(many), "Pairs beyond 128 matrices: a second stream."
    fused = [m for n in range(3) for m in (alike(f"{n}a", 8, 64), alike(f"{n}b", 8, 96).T)]
    yield "other-channels", stored(lora(fused)), "Neighbours of other channels are no pairs: two streams."
    square = [alike(f"{n}", 24, 24) for n in range(5)]
    square[1::2] = [m.T for m in square[1::2]]
    yield (
        "square",
        stored(values(square)),
        "Square matrices: units are rows and columns in turn.",
    )
    both = [alike("a", 8, 64), alike("b", 8, 64), alike("c", 8, 64).T, alike("d", 8, 64).T]
    yield (
        "pair-in-the-middle",
        stored(values(both)),
        "Two lone matrices of either direction in one stream, a pair between.",
    )
    yield "rows", stored(values([*both, alike("e", 96, 16)]), units="rows"), "Rows are the units of all."
    mixed = [alike("a", 8, 64), drawn("b", 7, 40), alike("c", 5, 80), drawn("d", 7, 40), alike("e", 5, 80)]
    yield "mixed", stored(values(mixed), join=0), "A coded stream, a plain one of two matrices, a coded one."
    split = [alike("1", 100, 24, common="c"), alike("2", 100, 24, common="c")]
    yield (
        "join-and-split",
        stored(values(split), join=0, units="rows"),
        "Two matrices joined, then split in two.",
    )
    tall = [alike("1", 520, 12), alike("2", 520, 12)]
    yield "split-520", stored(values(tall), units="rows"), "520 units in five matrices each, never joined."
    whole = [alike("1", 200, 16), alike("2", 200, 16)]
    yield "200-units", stored(values(whole), units="rows"), "Two matrices of 200 units in one stream are not split."


def _contents() -> Iterator[tuple[str, bytes, str]]:
    yield "one-row", stored(values([alike("a", 1, 200)])), "One row: nothing predicts its signs, they are plain."
    column = stored(values([alike("a", 1, 203).T]), join=0)
    yield "one-column", column, "One column, joined with nothing: plain, with pad bits."
    yield "one-sign", stored(values([drawn("a", 1, 1)])), "One sign."
    rows = [alike(f"{n}", 1, 200, common="c") for n in range(9)]
    yield "rows-joined", stored(values(rows), join=0), "Nine rows joined."
    for name, codes in (("plus", np.ones((8, 200), np.uint8)), ("minus", np.zeros((8, 200), np.uint8))):
        yield f"all-{name}", stored(lora([codes, codes.T])), f"All signs {name}."
    board = (np.indices((8, 200)).sum(axis=0) % 2).astype(np.uint8)
    yield "alternating", stored(lora([board, board.T])), "Alternating signs."
    rows = [drawn("a", 8, 200), drawn("b", 200, 8)]
    yield "random", stored(lora(rows)), "Random signs: coding would not shrink them, so they are plain."
    yield "more-units-than-channels", stored(values([alike("a", 120, 9)]), units="rows"), "120 units, 9 channels."
    joined = lora(pairs(8, 12, 6, common=True))
    yield "joined-beyond-channels", stored(joined, join=0), "48 units joined, 12 channels."
    for channels in (1, 2, 3, 5):
        one = values([alike("a", 100, channels, 0)])
        yield f"channels-{channels}", stored(one, units="rows"), f"100 units, {channels} channels."
    far = values([alike(f"{n}", 1, 4096, 8, "c") for n in range(3)])
    yield "channels-4096", stored(far, join=0), "4,096 channels, the most."


def _forms() -> Iterator[tuple[str, bytes, str]]:
    grouped = {"group": 32, "levels": "unit", "offset": False, "scale": "float16"}
    one = lora(pairs(8, 96, 1), grouped)
    yield "groups", stored(one), "Groups of 32 weights, float16 scales, no offset."
    yield "groups-zstd", stored(one, compression="zstd"), "The same, scales in byte planes; the words stay as they are."
    other = lora(pairs(8, 96, 1), {**PAPER, "levels": "normal-l1"})
    yield "normal-l1", stored(other, compression="zstd"), "The codebook normal-l1."


def _models() -> Iterator[tuple[str, bytes, str]]:
    two = lora(pairs(20, 64, 2, 30))
    for lam in (1, 255):
        yield f"lam-{lam}", stored(two, lam=lam), f"λ {lam}, an end of its range; weights change after units 7, 15, 19."
    yield "not-pooled", stored(two, pooled=False), "Pairs that do not learn from each other."
    alone = values([alike(f"{n}", 10, 96) for n in range(3)])
    yield "pooled-alone", stored(alone), "Three lone matrices: nothing to pool with."
    yield "pooled-300", stored(lora(pairs(8, 300, 1))), "300 channels: partners count less from the 129th on."
    why = "Three patterns, λ 1 and a few turned signs: predictions reach every bound."
    yield "bounds", stored(values([_of_rank_3()]), lam=1, units="rows"), why
    zero = values([with_zero_word()])
    yield "zero-word", stored(zero, units="rows"), "Words that end in one of zeros, as the rule for the last word asks."


def _of_rank_3() -> Bits:
    patterns = drawn("pattern", 3, 40)[np.arange(40) * 7 % 3]
    return patterns ^ drawn("unit", 40, 1) ^ drawn("noise", 40, 40, chance=4)


def with_zero_word() -> Bits:
    """Signs whose words end in one of zeros; found by trying."""
    return alike("3", 10, 24)
