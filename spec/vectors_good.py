"""The good vectors: every codec, form, compression, method and optional field, in files of at most 4 KB."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from vectors_adapters import BACKBONE, adapter, at, coded, dense, forced, lora, numbers, repeated, written
from vectors_build import Parts, Vector, edited, take_apart, with_frame, with_text

from adapterpack.adapter import Adapter, Backbone, DataSettings, Head
from adapterpack.container import deflate, digest, strict_json
from adapterpack.methods._nonlinear import NONLINEARITIES
from adapterpack.packing.encode import encode_task
from adapterpack.packing.join import join
from adapterpack.quantize import quantize
from adapterpack.tensors import Dense, Quantized, Sparse

COMPRESSIONS = ("none", "zstd")
DTYPES = ("float32", "float16", "bfloat16")
QUANTIZED = (  # bits, codebook, group, offset, dtype of scales
    (1, "unit", 0, True, "float32"),
    (1, "normal-l1", 0, True, "float32"),
    (1, "unit", 128, False, "float16"),
    (1, "unit", 32, True, "float16"),
    (2, "normal-l1", 0, True, "float32"),
    (2, "normal-l1", 128, False, "float16"),
    (3, "normal-l1", 8, True, "float32"),
    (4, "normal-l1", 32, False, "float32"),
    (5, "normal-l1", 16, True, "float16"),
    (6, "normal-l1", 0, False, "float16"),
    (7, "normal-l1", 64, True, "float32"),
    (8, "normal-l1", 0, True, "float32"),
    (8, "normal-l1-500", 0, True, "float32"),
    (8, "normal-l1", 128, False, "float16"),
)


def worked() -> bytes:
    """The file that spec/README.md takes apart byte by byte."""
    pair = {"down": coded((1, 8), 1, "unit", 0, True, "float32"), "up": coded((8, 1), 1, "unit", 0, True, "float32")}
    branches = tuple(at(f"blocks.{n}.attn.qkv[q]", "lora", {"scale": 0.5}, **pair) for n in range(2))
    return written(Adapter("t", "lora", branches, backbone=Backbone("vit")), "fast")


def good() -> Iterator[Vector]:
    yield Vector("worked-example", worked(), "The worked example of the page.")
    yield from _codecs()
    yield from _values()
    yield from _sparse()
    yield from _methods()
    yield from _tasks()
    yield from _liberties()


def _codecs() -> Iterator[Vector]:
    for compression in COMPRESSIONS:
        fill = numbers if compression == "none" else repeated
        for dtype in DTYPES:
            branches = lora(dense(fill(3, 24), dtype), dense(fill(24, 3), dtype))
            data = join([forced(adapter(*branches), compression)], BACKBONE)
            yield Vector(f"raw-{dtype}-{compression}", data, f"Codec raw, {dtype}, compression {compression}.")
        for bits, levels, group, offset, scale in QUANTIZED:
            form = bits, levels, group, offset, scale
            branches = lora(coded((3, 50), *form), coded((50, 3), *form), parts="q")
            data = join([forced(adapter(*branches), compression)], BACKBONE)
            codec = "signs" if bits == 1 else f"codebook-{bits}"
            name = f"{codec}-{levels}-g{group}-{'offset' if offset else 'plain'}-{scale}-{compression}"
            why = f"{bits} bit(s), codebook {levels}, group {group}, offset {offset}, {scale} scales, {compression}."
            yield Vector(name, data, why)


def _values() -> Iterator[Vector]:
    """Numbers at the edges of what may be stored."""
    edges = np.array([0x00000000, 0x80000000, 1, 0x80000001, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0xFF7FFFFF], np.uint32)
    half = np.array([0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x0400, 0x7BFF, 0xFBFF], np.uint16)
    brain = np.array([0x0000, 0x8000, 0x0001, 0x8001, 0x007F, 0x0080, 0x7F7F, 0xFF7F], np.uint16)
    rows = {"float32": Dense(edges.view(np.float32)), "float16": Dense(half.view(np.float16), "float16")}
    rows["bfloat16"] = Dense(brain, "bfloat16")
    for compression in COMPRESSIONS:
        branches = [at(f"site{i}", "replace", {}, value=tensor) for i, tensor in enumerate(rows.values())]
        data = join([forced(adapter(*branches), compression)], BACKBONE)
        yield Vector(
            f"edges-{compression}", data, "Both zeros, smallest and largest subnormals, smallest and largest numbers."
        )
    tiny = Quantized(
        (9,), 1, "unit", 8, np.array([0x55, 1], np.uint8), np.array([1, 0], np.uint32).view(np.float32), None
    )
    yield Vector(
        "scale-zero-and-subnormal",
        written(adapter(at("site", "replace", {}, value=tiny)), "fast"),
        "A scale may be zero or subnormal; a last group of one weight.",
    )
    one = [
        at("a", "replace", {}, value=dense(numbers(1))),
        at("b", "replace", {}, value=coded((1, 1), 3, "normal-l1", 0, True, "float32")),
        at("c", "replace", {}, value=dense(numbers())),
    ]
    yield Vector(
        "one-element", written(adapter(*one), "fast"), "Tensors of one element, one of them without dimensions."
    )
    eight = at("a", "replace", {}, value=dense(numbers(1, 2, 1, 2, 1, 2, 1, 2)))
    yield Vector("eight-dimensions", written(adapter(eight), "fast"), "A tensor of eight dimensions, the most allowed.")
    wide = at("a", "replace", {}, value=coded((100,), 2, "normal-l1", 65_536, True, "float16"))
    yield Vector("group-larger-than-tensor", written(adapter(wide), "fast"), "A group larger than its tensor.")


def _sparse() -> Iterator[Vector]:
    where = np.array([0, 1, 5, 130, 131, 250, 399], np.int64)
    forms: dict[str, Any] = {f"raw-{dtype}": dense(numbers(7), dtype) for dtype in DTYPES}
    forms["signs"] = coded((7,), 1, "unit", 0, True, "float32")
    forms["codebook-4"] = coded((7,), 4, "normal-l1", 8, False, "float16")
    for compression in COMPRESSIONS:
        for name, values in forms.items():
            branch = at("blocks.1.mlp.fc1", "sparse", {}, weight=Sparse((20, 20), where, values))
            data = join([forced(adapter(branch), compression)], BACKBONE)
            yield Vector(f"sparse-{name}-{compression}", data, f"Codec sparse, values {name}, {compression}.")
        none = Sparse((4, 4), where[:0], dense(numbers(0)))
        full = Sparse((2, 3), np.arange(6), dense(numbers(6)))
        branches = [at(f"site{i}", "sparse", {}, value=t) for i, t in enumerate((none, full, none))]
        data = join([forced(adapter(*branches), compression)], BACKBONE)
        yield Vector(f"sparse-empty-{compression}", data, "Sparse tensors without an entry beside a full one.")
    lonely = at("site", "sparse", {}, value=Sparse((4, 4), where[:0], dense(numbers(0))))
    yield Vector("sparse-nothing", written(adapter(lonely), "fast"), "One sparse tensor without an entry.")
    far = Sparse((1 << 20, 1 << 10), np.array([3, (1 << 30) - 1], np.int64), dense(numbers(2)))
    yield Vector(
        "sparse-far", written(adapter(at("site", "sparse", {}, value=far))), "Entries 2^30 apart: Rice parameter 28."
    )


PARTS = ("attn", "mlp")


def _bent(nonlinearity: str, tap: str) -> dict[str, Any]:
    return {"nonlinearity": nonlinearity, "scale": 1.0, "tap": tap}


def _methods() -> Iterator[Vector]:
    down, up, four, eight = dense(numbers(2, 8)), dense(numbers(8, 2)), dense(numbers(2)), dense(numbers(8))
    both = {"down": down, "up": up, "down_bias": four, "up_bias": eight}
    rows = {
        "adaptformer": [at(f"blocks.{n}.mlp", "adaptformer", {"scale": 0.1}, down=down, up=up) for n in range(3)],
        "adaptformer-biases": [at("blocks.0.mlp", "adaptformer", {"scale": 1.0}, **both)],
        "adapter-output": [at("blocks.0.attn.proj", "adapter", _bent("gelu", "output"), **both)],
        "adapter-input": [at("blocks.0.attn.proj", "adapter", _bent("gelu", "input"), down=down, up=up)],
        "adapter-residual": [at("blocks.0.mlp", "adapter", _bent("silu", "residual"), **both)],
        "adapter-sum": [at(f"blocks.{n}.{p}", "adapter", _bent("relu", "sum"), **both) for n in (0, 1) for p in PARTS],
        "adapter-nonlinearities": [
            at(f"blocks.{n}.mlp.fc2", "adapter", _bent(name, "output"), **both) for n, name in enumerate(NONLINEARITIES)
        ],
        "consolidator": [
            at(
                "blocks.0.mlp.fc1",
                "consolidator",
                {"groups": g, "reorder": g == 4},
                weight=dense(numbers(8, 2)),
                bias=eight,
            )
            for g in (2, 4)
        ],
        "replace": [
            at("norm", "replace", {}, weight=eight, bias=eight),
            at("cls_token", "replace", {}, value=dense(numbers(1, 1, 8))),
        ],
        "sparse-method-dense": [at("blocks.0.attn.qkv[k]", "sparse", {}, weight=dense(numbers(8, 8)), bias=eight)],
        "lora-mixed-forms": [
            at(
                "blocks.0.attn.qkv[q]",
                "lora",
                {"scale": 1e-05},
                down=down,
                up=coded((8, 2), 1, "unit", 0, True, "float32"),
            ),
            at("blocks.1.attn.qkv[q]", "lora", {"scale": -2e16}, down=down, up=up),
        ],
        "blocks-with-gaps": [
            at(f"blocks.{n}.attn.qkv[{part}]", "lora", {"scale": 1.0}, down=down, up=up)
            for n in (0, 1, 4, 9999)
            for part in "qkv"
        ],
    }
    for name, branches in rows.items():
        yield Vector(f"method-{name}", written(adapter(*branches)), f"Methods: {name.replace('-', ' ')}.")


def _tasks() -> Iterator[Vector]:
    weight, bias = dense(numbers(3, 8)), dense(numbers(3))
    names = ("Bär", "ねこ", "گل\u200cسرخ")
    data = DataSettings((3, 32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", 0.875, "center")
    one = adapter(*lora(dense(numbers(1, 8)), dense(numbers(8, 1))))
    yield Vector("head-none", written(one), "A task without a head.")
    yield Vector("head-only", written(adapter(head=Head(weight, bias))), "A task that is nothing but a head.")
    yield Vector("head-without-bias", written(replace(one, head=Head(weight))), "A head without a bias.")
    small = Head(quantize(numbers(3, 8), 4, 8), dense(numbers(3), "float16"))
    yield Vector("head-of-4-bits", written(replace(one, head=small)), "A head of 4 bits with a float16 bias.")
    full = replace(one, head=Head(weight, bias), labels=names, data=data, metadata={"accuracy": 0.5, "a": [None, True]})
    yield Vector(
        "everything",
        written(full, "fast"),
        "Head, class names beyond ASCII with a joiner that Persian needs, data settings, metadata.",
    )
    many = tuple(f"class {i}" for i in range(40))
    labelled = replace(one, head=Head(dense(numbers(40, 4))), labels=many)
    yield Vector("labels-compressed", written(labelled), "Class names in a zstd frame.")
    deep: Any = 1
    for _ in range(12):
        deep = [deep]
    yield Vector("depth-16", written(replace(one, metadata={"deep": deep})), "JSON nested sixteen deep, the most.")
    numbers_of_json = {"big": (1 << 53) - 1, "small": 1 - (1 << 53), "float": 1e300, "zero": -0.0, "text": '"\\/'}
    yield Vector(
        "json-numbers",
        written(replace(one, metadata=numbers_of_json)),
        "The largest integers, a negative zero, escapes.",
    )
    yield Vector("name-255", written(replace(one, name="é" * 127 + "x")), "A name of 255 bytes.")
    three = [
        encode_task(replace(one_of, name=name), "small") for name, one_of in (("a", full), ("b", one), ("c", full))
    ]
    yield Vector("bundle-of-3", join(three, BACKBONE), "Three tasks, two of one digest.")
    yield Vector("backbone-unknown", join([encode_task(one, "small")], Backbone()), "Neither name nor fingerprint.")


def _liberties() -> Iterator[Vector]:
    """What a reader must accept although this writer does not write it."""
    base = take_apart(
        written(adapter(*lora(dense(numbers(1, 8)), dense(numbers(8, 1))), head=Head(dense(numbers(2, 8)))), "fast")
    )

    def notes(index: dict[str, Any]) -> None:
        task = index["tasks"][0]
        rows = [*task["groups"][0]["tensors"].values(), *task["head"].values()]
        for place in (index, index["backbone"], task, task["groups"][0], *task["segments"], *rows):
            place["x-note"] = {"anything": [1, None]}

    yield Vector("ignorable-fields", edited(base, notes), "Fields whose names begin with x- are skipped, everywhere.")
    skipped = copy.deepcopy(base)
    assert isinstance(skipped.index, dict)
    row = {"bytes": 5, "codec": "of-the-future", "params": {"any": [1]}, "skip": True}
    skipped.index["tasks"][0]["segments"].append(row)
    skipped.payloads.append(b"12345")
    yield Vector("skipped-segment", skipped.build(), "A segment of an unknown codec, marked to be skipped.")
    yield Vector("newer-minor", with_frame(base, version=(1, 9)), "A newer minor version that asks for nothing new.")
    yield Vector(
        "requires-nothing", edited(base, lambda i: i.update(requires=[])), "An empty list of required features."
    )
    loose = (
        b" "
        + strict_json.dumps(base.index).replace(b'"method"', b'"m\\u0065thod"').replace(b'":', b'" :\n\t ')
        + b"\r\n"
    )
    yield Vector("loose-text", with_text(base, loose), "White space and escapes that the canonical spelling avoids.")
    yield from _other_compressors(base)
    explicit = copy.deepcopy(base)
    assert isinstance(explicit.index, dict)
    group = explicit.index["tasks"][0]["groups"][0]
    group["sites"] = sorted(site.replace("*", str(n)) for site in group["sites"] for n in range(2))
    del group["blocks"]
    explicit.digests = [_digest_of(explicit)]
    yield Vector(
        "sites-spelled-out", explicit.build(), "Sites listed without a pattern: another description, another digest."
    )


def _other_compressors(base: Parts) -> Iterator[Vector]:
    text = strict_json.dumps(base.index)
    packer = zlib.compressobj(9, wbits=-15, zdict=deflate.DICTIONARY)
    yield Vector(
        "index-by-zlib",
        with_frame(base, deflated=packer.compress(text) + packer.flush()),
        "An index deflated by another encoder with the dictionary.",
    )
    size = len(text)
    stored = b"\x01" + size.to_bytes(2, "little") + (size ^ 0xFFFF).to_bytes(2, "little") + text
    yield Vector("index-stored", with_frame(base, deflated=stored), "An index in a stored block.")


def _digest_of(parts: Parts) -> bytes:
    """The digest of a file of one task with dense tensors, from its index: payloads of codec raw are their content."""
    assert isinstance(parts.index, dict)
    task = parts.index["tasks"][0]
    forms = [{"dtype": segment["params"]["dtype"]} for segment in task["segments"]]

    def rows(tensors: dict[str, Any]) -> dict[str, Any]:
        return {r: {"form": forms[row["segment"]], "shape": row["shape"]} for r, row in tensors.items()}

    groups = [{**group, "tensors": rows(group["tensors"])} for group in task["groups"]]
    description = {"data": task.get("data"), "groups": groups, "head": rows(task["head"]), "labels": None}
    return digest.digest(strict_json.dumps(description), [memoryview(b"".join(parts.payloads))])
