"""The bad vectors: at least one for every item of "What a reader refuses" in spec/README.md that a file can show."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vectors_adapters import adapter, at, dense, lora, numbers, written
from vectors_bad_frame import begin, encoding, frame
from vectors_bad_payloads import payloads
from vectors_bad_text import json_text, numbers_in_json
from vectors_build import Json, Parts, Row, Vector, edited, in_group, in_task, take_apart, to, with_frame, with_text

from adapterpack.adapter import DataSettings, Head


def base() -> Parts:
    """A small good file: LoRA in two blocks, a head, class names, data settings."""
    branches = lora(dense(numbers(1, 8)), dense(numbers(8, 1)))
    head = Head(dense(numbers(2, 8)), dense(numbers(2)))
    data = DataSettings((3, 32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return take_apart(written(adapter(*branches, head=head, labels=("cat", "dog"), data=data), "fast"))


def bad() -> Iterator[Vector]:
    for rows in (begin, frame, encoding, json_text, numbers_in_json, _fields, _counts, _names, _shapes, _together):
        for name, reason, data, why, source in rows(base()):
            yield Vector(name, data, why, source, reason)
    for name, reason, data, why, source in (*_methods(base()), *payloads()):
        yield Vector(name, data, why, source, reason)


def _fields(b: Parts) -> Iterator[Row]:
    i17 = "item 17: fastsafetensors#96"
    yield "index-array", "bad-field", with_text(b, b"[]"), "The index is an array.", i17
    yield "index-null", "bad-field", with_text(b, b"null"), "The index is null.", i17
    for name, change, what in (
        ("task-null", lambda i: i["tasks"].__setitem__(0, None), "A task is null."),
        ("tasks-object", to(tasks={}), "The tasks are an object."),
        ("tasks-empty", to(tasks=[]), "There is no task."),
        ("metadata-null", in_task(to(metadata=None)), "The metadata are null."),
        ("backbone-null", to(backbone=None), "The backbone is null."),
        ("params-array", in_group(to(params=[])), "Settings are an array."),
        ("head-empty", in_task(to(head={})), "A head without tensors."),
        ("tensors-empty", in_group(to(tensors={})), "A group without tensors."),
        ("skip-number", in_task(lambda t: t["segments"][0].update(skip=0)), "A number where a boolean is due."),
        ("row-null", in_group(lambda g: g["tensors"].update(up=None)), "A tensor's row is null."),
        ("segment-text", in_task(lambda t: t["segments"].__setitem__(0, "raw")), "A segment is text."),
        ("site-number", in_group(to(sites=[1])), "A site is a number."),
        ("requires-number", to(requires=[1]), "A feature's name is a number."),
        ("requires-array", to(requires=[["a"]]), "A feature's name is an array."),
        ("fingerprint-short", to(backbone={"fingerprint": "sha256:00"}), "A fingerprint of two digits."),
        ("fingerprint-md5", to(backbone={"fingerprint": "md5:" + 64 * "0"}), "Another algorithm."),
        ("fingerprint-case", to(backbone={"fingerprint": "sha256:" + 64 * "A"}), "Upper-case digits."),
        ("data-2-sizes", in_task(lambda t: t["data"].update(input_size=[3, 32])), "An input of two dimensions."),
        ("data-channels", in_task(lambda t: t["data"].update(mean=[0.5])), "One mean for three channels."),
        ("data-std-0", in_task(lambda t: t["data"].update(std=[0.5, 0.0, 0.5])), "A deviation of zero."),
        ("data-size-0", in_task(lambda t: t["data"].update(input_size=[3, 0, 32])), "An image without height."),
        ("labels-count-0", in_task(lambda t: t["labels"].update(count=0)), "No class names."),
        ("labels-segment-negative", in_task(lambda t: t["labels"].update(segment=-1)), "A segment before the first."),
        ("segment-negative", in_group(lambda g: g["tensors"]["up"].update(segment=-1)), "A segment before the first."),
        ("data-crop", in_task(lambda t: t["data"].update(crop_pct=1.5)), "A crop larger than the image."),
    ):
        yield name, "bad-field", edited(b, change), what, i17
    for name, change, what in (
        ("no-backbone", lambda i: i.pop("backbone"), "No backbone."),
        ("no-tasks", lambda i: i.pop("tasks"), "No tasks."),
        ("no-name", in_task(lambda t: t.pop("name")), "A task without a name."),
        ("no-segments", in_task(lambda t: t.pop("segments")), "A task without segments."),
        ("no-shape", in_group(lambda g: g["tensors"]["up"].pop("shape")), "A tensor without a shape."),
        ("no-mean", in_task(lambda t: t["data"].pop("mean")), "Data settings without a mean."),
    ):
        yield name, "missing-field", edited(b, change), what, "item 17"
    for name, change in (
        ("top", to(extra=1)),
        ("backbone", lambda i: i["backbone"].update(url="")),
        ("task", in_task(to(licence="MIT"))),
        ("segment", in_task(lambda t: t["segments"][0].update(offset=0))),
        ("row", in_group(lambda g: g["tensors"]["up"].update(dtype="f32"))),
        ("upper-case-x", to(**{"X-note": 1})),
    ):
        yield f"unknown-field-{name}", "unknown-field", edited(b, change), "A field that is unknown.", "item 17"
    feature = edited(b, to(requires=["rotation"]))
    yield "requires-unknown", "unknown-feature", feature, "A feature that must be understood.", "item 4: zarr"


def _counts(b: Parts) -> Iterator[Row]:
    i19 = "item 19: ggml"

    def many_groups(index: Json, count: int, sites: int) -> None:
        row = {"shape": [1], "segment": 0}
        names = sorted(f"blocks.*.site{i}" for i in range(sites))
        group = {"method": "replace", "params": {}, "sites": names, "blocks": [0, 10_000], "tensors": {"value": row}}
        index["tasks"][0]["groups"] = [group] * count

    one, several = edited(b, lambda i: many_groups(i, 1, 7)), edited(b, lambda i: many_groups(i, 40, 6))
    yield "tensors-70000", "limit-exceeded", one, "A group of 70,000 tensors.", i19
    yield "tensors-2400000", "limit-exceeded", several, "Groups of 60,000 tensors each, 40 of them.", i19
    task = {"groups": [], "method": "m", "name": "t", "segments": []}
    tasks = with_frame(b, index={"backbone": {}, "tasks": [task] * 4097}, payloads=[], digests=[])
    yield "tasks-4097", "limit-exceeded", tasks, "One task more than allowed.", i19
    long = edited(b, in_task(to(metadata={"a": "b" * 65_537})))
    yield "string-long", "limit-exceeded", long, "A text of 65,537 characters.", "item 17"
    number = edited(b, in_group(lambda g: g["tensors"]["up"].update(segment=65_536)))
    yield "segment-65536", "limit-exceeded", number, "A segment number beyond all segments.", "item 18"
    number = edited(b, in_task(lambda t: t["labels"].update(segment=65_536)))
    yield "labels-segment-65536", "limit-exceeded", number, "A segment number beyond all segments.", "item 18"


def _names(b: Parts) -> Iterator[Row]:
    i20 = "item 20: zarr node names, DDUF"
    rows: tuple[tuple[str, str, str], ...] = (
        ("empty", "", "A task without a name."),
        ("256", "é" * 128, "A name of 256 bytes."),
        ("dots", "..", "A name that is a path."),
        ("hidden", ".task", "A name that begins with a dot."),
        ("slash", "../../etc/passwd", "A name that is a path."),
        ("backslash", "a\\b", "A name that is a path elsewhere."),
    )
    for name, value, why in rows:
        yield f"task-name-{name}", "bad-name", edited(b, in_task(to(name=value))), why, i20
    codec = edited(b, in_task(lambda t: t["segments"][0].update(codec="")))
    yield "codec-name-empty", "bad-name", codec, "A codec without a name.", i20
    for name, change, why in (
        ("method", in_task(to(method="")), "A method without a name."),
        ("group-method", in_group(to(method="")), "A method without a name."),
        ("backbone", to(backbone={"name": ""}), "A backbone whose name is empty."),
        ("interpolation", in_task(lambda t: t["data"].update(interpolation="")), "An interpolation without a name."),
    ):
        yield f"name-empty-{name}", "bad-name", edited(b, change), why, i20
    for i, site in enumerate(("blocks.*.attn..qkv", "blocks.*.attn.qkv[x]", "blocks.*.", "blocks.*." + "a" * 250)):
        yield f"site-{i}", "bad-name", edited(b, in_group(to(sites=[site]))), "No site.", i20
    fields: tuple[tuple[str, Json, str], ...] = (
        ("sites-unsorted", {"sites": ["blocks.*.b", "blocks.*.a"]}, "Sites out of order."),
        ("sites-twice", {"sites": ["blocks.*.a", "blocks.*.a"]}, "A site twice in a group."),
        ("sites-none", {"sites": []}, "No sites."),
        ("sites-without-star", {"sites": ["blocks.0.attn.qkv[q]"]}, "Blocks, but a site without a star."),
        ("sites-two-stars", {"sites": ["blocks.*.*"]}, "Two stars."),
        ("blocks-odd", {"blocks": [0, 2, 4]}, "A range without an end."),
        ("blocks-descending", {"blocks": [2, 0]}, "A range that ends before it begins."),
        ("blocks-touching", {"blocks": [0, 1, 1, 2]}, "Two ranges that are one."),
        ("blocks-negative", {"blocks": [-1, 2]}, "A block before the first."),
        ("blocks-empty", {"blocks": []}, "Blocks, but none."),
    )
    for name, change, why in fields:
        yield name, "bad-field", edited(b, in_group(to(**change))), why, "item 17"
    yield (
        "blocks-10001",
        "limit-exceeded",
        edited(b, in_group(to(blocks=[10_000, 10_001]))),
        "A block too many.",
        "item 18",
    )
    star = edited(b, in_group(lambda g: g.pop("blocks")))
    yield "sites-star-without-blocks", "bad-field", star, "A star, but no blocks.", "item 17"
    twice = edited(b, in_task(lambda t: t["groups"].append(t["groups"][0])))
    yield "branch-twice", "duplicate-name", twice, "Two equal branches at one site.", "item 13: gguf duplicate tensors"
    i20 = "item 20"
    for name, second in (("tasks-one-name", "é"), ("tasks-one-name-decomposed", "e\u0301")):
        yield name, "duplicate-name", _two_tasks(b, "é", second), "Two tasks of one name.", i20


def _two_tasks(b: Parts, first: str, second: str) -> bytes:
    assert isinstance(b.index, dict)
    tasks = [{**b.index["tasks"][0], "name": name} for name in (first, second)]
    return with_frame(b, index={**b.index, "tasks": tasks}, payloads=b.payloads * 2, digests=b.digests * 2)


def _shapes(b: Parts) -> Iterator[Row]:
    def shaped(shape: list[Any]) -> bytes:
        return edited(b, in_group(lambda g: g["tensors"]["up"].update(shape=shape)))

    yield "dimensions-9", "limit-exceeded", shaped([1] * 9), "Nine dimensions.", "item 21: gguf n_dims"
    yield "dimension-0", "bad-field", shaped([0, 1]), "A dimension of zero.", "item 21: safetensors#205, #221, #226"
    yield "dimension-float", "bad-field", shaped([8.0, 1]), "A dimension with a decimal point.", "item 14"
    yield "dimension-true", "bad-field", shaped([8, True]), "A boolean for a dimension.", "item 14"
    wrap = shaped([1 << 32, 1 << 32])
    yield (
        "elements-2-64",
        "limit-exceeded",
        wrap,
        "A product that is 0 in 64 bits.",
        "item 21: gguf dims_product_no_uint64_wraparound",
    )
    wrapped = shaped([(1 << 32) + 1, (1 << 32) - 1, 8])
    yield "elements-wrapped", "limit-exceeded", wrapped, "A product that is small and negative in 64 bits.", "item 21"
    beyond = shaped([(1 << 40) + 1])
    yield "elements-2-40", "limit-exceeded", beyond, "One element more than allowed.", "item 21"


def _together(b: Parts) -> Iterator[Row]:
    i27 = "item 27"
    for name, change, why in (
        ("head-no-weight", in_task(lambda t: t["head"].pop("weight")), "A head without a weight."),
        ("head-flat", in_task(lambda t: t["head"]["weight"].update(shape=[16])), "A head's weight of one dimension."),
        ("head-bias-3", in_task(lambda t: t["head"]["bias"].update(shape=[3])), "A bias for three of two classes."),
        ("head-role", in_task(lambda t: t["head"].update(scale={"shape": [2], "segment": 1})), "A role no head has."),
    ):
        yield name, "bad-shape", edited(b, change), why, i27
    three = edited(b, in_task(lambda t: t["labels"].update(count=3)))
    yield "labels-3-for-2", "bad-labels", three, "Three class names for two classes.", i27
    headless = edited(b, in_task(lambda t: t.pop("head")))
    yield "labels-without-head", "bad-labels", headless, "Class names without a head.", i27
    nothing = edited(b, in_task(lambda t: [t.pop("head"), t.pop("labels"), t.update(groups=[], segments=[])]))
    yield "task-of-nothing", "bad-field", nothing, "A task with neither groups nor head.", "item 17"
    i9 = "item 9: safetensors attempts 2 to 4"
    extra = {"bytes": 0, "codec": "raw", "params": {"compression": "none", "dtype": "float32"}}
    for name, change, why in (
        ("segment-missing", in_group(lambda g: g["tensors"]["up"].update(segment=9)), "A segment that does not exist."),
        ("segment-unused", in_task(lambda t: t["segments"].append(extra)), "A segment that nothing uses."),
        ("segment-shared", in_task(lambda t: t["head"]["bias"].update(segment=0)), "Head and adapter in one segment."),
        ("segment-skipped", in_task(lambda t: t["segments"][0].update(skip=True)), "A segment used and skipped."),
        ("segment-of-labels", in_task(lambda t: t["segments"][0].update(codec="labels")), "Tensors as class names."),
        ("labels-of-tensors", in_task(lambda t: t["segments"][2].update(codec="raw")), "Class names as tensors."),
        (
            "labels-skipped",
            in_task(lambda t: [t.pop("labels"), t["segments"][2].update(skip=True)]),
            "Class names skipped.",
        ),
    ):
        yield name, "segment-reference", edited(b, change), why, i9


def _gelu(tap: str) -> dict[str, Any]:
    return {"nonlinearity": "gelu", "scale": 1.0, "tap": tap}


def _methods(b: Parts) -> Iterator[Row]:
    i22, i27 = "item 22", "item 27"
    yield "method-none", "unknown-method", edited(b, in_group(to(method="none-such"))), "A method that is unknown.", i22
    for name, params in (
        ("missing", {}),
        ("unknown", {"scale": 1.0, "alpha": 16.0}),
        ("int", {"scale": 1}),
        ("beyond-float32", {"scale": 3.5e38}),
        ("null", {"scale": None}),
    ):
        data = edited(b, in_group(to(params=params)))
        yield f"setting-{name}", "bad-parameter", data, f"A scale that is {name}, or another setting.", i22
    rows = {
        "adaptformer-widths": ("adaptformer", {"scale": 1.0}, [2, 8], [6, 2]),
        "adapter-widths": ("adapter", _gelu("output"), [2, 8], [6, 2]),
        "lora-ranks": ("lora", {"scale": 1.0}, [2, 8], [8, 3]),
        "lora-flat": ("lora", {"scale": 1.0}, [2, 8], [16]),
    }
    for name, (method, params, down, up) in rows.items():
        tensors = {"down": dense(numbers(*down)), "up": dense(numbers(*up))}
        yield name, "bad-shape", _unchecked(method, params, tensors), "Shapes that do not belong together.", i27
    pair = {"down": dense(numbers(2, 8)), "up": dense(numbers(8, 2))}
    tap = _unchecked("adapter", _gelu("beside"), pair)
    yield "adapter-tap", "bad-parameter", tap, "A tap that does not exist.", i22
    swish = _unchecked("adapter", {**_gelu("output"), "nonlinearity": "swish"}, pair)
    yield "adapter-nonlinearity", "bad-parameter", swish, "A nonlinearity by another name than the page's.", i22
    bare = _unchecked("adapter", {"scale": 1.0, "tap": "output"}, pair)
    yield "adapter-no-nonlinearity", "bad-parameter", bare, "No nonlinearity.", i22
    flat = {"down": dense(numbers(2, 8)), "up": dense(numbers(6, 2))}
    yield "adapter-sum", "bad-shape", _unchecked("adapter", _gelu("sum"), flat), "It reads 8 features, gives 6.", i27
    biased = _unchecked("adaptformer", {"scale": 1.0}, {**pair, "up_bias": dense(numbers(7))})
    yield "adaptformer-bias", "bad-shape", biased, "A bias of another length.", i27
    weight = {"weight": dense(numbers(8, 2))}
    for name, groups in (("consolidator-3-groups", 3), ("consolidator-0-groups", 0)):
        data = _unchecked("consolidator", {"groups": groups, "reorder": False}, weight)
        yield name, "bad-shape", data, f"{groups} groups of 8 rows.", i27
    number = _unchecked("consolidator", {"groups": 2, "reorder": 0}, weight)
    yield "consolidator-reorder", "bad-parameter", number, "A number where a boolean is due.", i22
    missing = _unchecked("lora", {"scale": 1.0}, {"down": pair["down"]})
    yield "role-missing", "missing-field", missing, "A LoRA without its up matrix.", i27
    unknown = _unchecked("lora", {"scale": 1.0}, {**pair, "down_bias": dense(numbers(2))})
    yield "role-unknown", "unknown-field", unknown, "A LoRA with a bias.", i27


def _unchecked(method: str, params: Json, tensors: Json) -> bytes:
    """A file of one branch that its method would not allow: written as replacements, then renamed."""
    roles = dict(zip(("bias", "value", "weight"), sorted(tensors)))
    stand_in = {role: tensors[name] for role, name in roles.items()}
    parts = take_apart(written(adapter(at("site", "replace", {}, **stand_in)), "fast"))
    assert isinstance(parts.index, dict)
    group = parts.index["tasks"][0]["groups"][0]
    group.update(method=method, params=params, tensors={roles[role]: row for role, row in group["tensors"].items()})
    return parts.build()
