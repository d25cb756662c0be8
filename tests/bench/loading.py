"""Time from file to applied: `.apk` against safetensors, for every method and dimension, one thread, CPU time."""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
import zstandard
from safetensors.numpy import save
from safetensors.torch import load, load_file
from torch import nn

import adapterpack
from adapterpack import Adapter
from adapterpack.container.digest import checksum
from adapterpack.runtime.backbone import create_backbone
from adapterpack.stacks import stack_of
from tests.bench.inputs import DIMS, METHODS, example, published, read
from tests.bench.peers import bare, in_the_model
from tests.bench.sizes import packed
from tests.bench.timing import Case, Timed, interleave, table

BACKBONE = "vit_base_patch16_224.orig_in21k"


def report(rounds: int) -> str:
    """The load table: milliseconds and ratios to safetensors float32 `load_file` + `load_state_dict`."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # published files carry no fingerprint
    model = create_backbone(BACKBONE, pretrained=False).model
    rows, folds = [], []
    for method in METHODS:
        for dim in DIMS:
            timed = measure(example(method, dim), model, rounds)
            beside = f"{timed['attach fast'].ms / timed['safetensors f32, bare'].ms:.2f}"
            figures = [str(timed[case]) for case in _SHOWN]
            small = f"{timed['attach small'].ms:.1f}"
            rows.append([f"{method} {dim}", f"{timed[_REFERENCE].ms:.2f}", *figures, beside, small])
            if "folded" in timed:
                folds.append(_fold_row(f"{method} {dim}", timed))
    text = table(["method dim", "st f32, ms", *_SHOWN, "attach fast / st f32 bare", "attach small, ms"], rows)
    title = (
        "Load, CPU time as ratios to safetensors float32 load_file + load_state_dict into the ViT with the adapter's "
        "modules in it; bare: into parameters with no model around them. Median [quartiles]\n\n"
    )
    fold = table(["method dim", "bare fold, ms", "attach, ms", "folded, ms", "folded / (attach + bare fold)"], folds)
    folded = "Folded load against an attached load plus the bare fold (keep rows, addmm_)\n\n" + fold
    return "\n\n".join([title + text, *every_file(model, rounds), folded])


def every_file(model: nn.Module, rounds: int) -> list[str]:
    """The attached load of all published adapters, which differ in their heads; nothing where there are none."""
    rows = []
    for method in METHODS:
        for dim in DIMS:
            found = [_of_file(path, model, rounds) for path in published(method, dim)]
            if found:
                shown = [_spread([ratios[case] for ratios in found]) for case in _EVERY[1:]]
                rows.append([f"{method} {dim}", f"{len(found)}", *shown])
    title = (
        "Load of every published adapter, as ratios to safetensors float32 into the ViT. "
        "Median over the files [lowest, highest]\n\n"
    )
    return [title + table(["method dim", "files", *_EVERY[1:]], rows)] if rows else []


def _of_file(path: Path, model: nn.Module, rounds: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        cases = _cases(read(path), model, Path(folder))
        timed = interleave({name: cases[name] for name in _EVERY}, 2 * rounds)
    return {name: one.ratio for name, one in timed.items()}


def _spread(values: list[float]) -> str:
    return f"{median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


_REFERENCE = "safetensors f32"
_LONG = ("attach small", "folded", "bare fold")
_EVERY = (_REFERENCE, "safetensors f32, bare", "safetensors f16", "attach fast", "floor", "verify fast")
_SHOWN = (
    "safetensors f32, bare",
    "safetensors f16",
    "safetensors f32 + zstd",
    "attach fast",
    "floor",
    "inspect",
    "verify fast",
)


def _fold_row(name: str, timed: dict[str, Timed]) -> list[str]:
    parts = timed["bare fold"].ms + timed["attach"].ms
    figures = [f"{timed[c].ms:.2f}" for c in ("bare fold", "attach", "folded")]
    return [name, *figures, f"{timed['folded'].ms / parts:.2f}"]


def measure(adapter: Adapter, model: nn.Module, rounds: int) -> dict[str, Timed]:
    """All ways to load one adapter: what takes a few milliseconds apart from what takes many times that, after which
    everything else takes several times what it does otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        cases = _cases(adapter, model, Path(folder))
        short = {name: case for name, case in cases.items() if name not in _LONG}
        long = {"attach": cases["attach fast"], **{name: cases[name] for name in _LONG if name in cases}}
        return {**interleave(long, rounds), **interleave(short, 4 * rounds)}


def _cases(adapter: Adapter, model: nn.Module, folder: Path) -> dict[str, Case]:
    vit, tensors = in_the_model(adapter, model)
    holder = bare(tensors)
    paths = {name: folder / name for name in ("f32", "f16", "f32z", "small.apk", "fast.apk")}
    paths["f32"].write_bytes(save(tensors))
    paths["f16"].write_bytes(save({k: v.astype(np.float16) for k, v in tensors.items()}))
    paths["f32z"].write_bytes(zstandard.compress(paths["f32"].read_bytes(), 19))
    for profile in ("small", "fast"):
        paths[f"{profile}.apk"].write_bytes(packed(adapter, profile))

    def state(load_tensors: Callable[[], dict[str, torch.Tensor]]) -> Case:
        return Case(lambda: vit.load_state_dict(load_tensors(), strict=False))

    def into_bare() -> object:
        return holder.load_state_dict({k.replace(".", "_"): v for k, v in load_file(paths["f32"]).items()})

    def applied(profile: str, fold: str) -> Case:
        path = paths[f"{profile}.apk"]
        return Case(lambda: adapterpack.load(path, model, fold=fold), after=lambda loaded: loaded.unload())

    cases = {
        _REFERENCE: state(lambda: load_file(paths["f32"])),
        "safetensors f32, bare": Case(into_bare),
        "safetensors f16": state(lambda: load_file(paths["f16"])),
        "safetensors f32 + zstd": state(lambda: load(zstandard.decompress(paths["f32z"].read_bytes()))),
        "attach fast": applied("fast", "never"),
        "floor": _floor(adapter, paths["fast.apk"]),
        "attach small": applied("small", "never"),
        "inspect": Case(lambda: adapterpack.open(paths["small.apk"])),
        "verify fast": Case(lambda: list(adapterpack.open(paths["fast.apk"]).verify())),
    }
    if all(branch.method == "lora" for branch in adapter.branches):
        cases["folded"] = applied("fast", "always")
        cases["bare fold"] = _bare_fold(adapter, model)
    return cases


def _floor(adapter: Adapter, path: Path) -> Case:
    """The least that a checked load costs: read, CRC-32, SHA-256, and write every weight once; no index, no model."""
    roles = adapter.branches[0].tensors
    stacks = [stack for role in roles if (stack := stack_of([b.tensors[role] for b in adapter.branches])) is not None]

    def run() -> object:
        data = path.read_bytes()
        checksum(data)
        hashlib.sha256(data).digest()
        head = None if adapter.head is None else adapter.head.weight.dense().copy()
        return [stack.inflate() for stack in stacks], head

    return Case(run)


def _bare_fold(adapter: Adapter, model: nn.Module) -> Case:
    """The least that folding costs: keep the touched rows, add the product in place."""
    jobs = []
    for branch in adapter.branches:
        weight = model.get_submodule(branch.site.path).weight.detach()
        third = weight.shape[0] // 3
        start = "qkv".index(branch.site.part) * third
        up, down = (torch.from_numpy(branch.tensors[role].dense()) for role in ("up", "down"))
        jobs.append((weight[start : start + third], up * branch.params["scale"], down))

    def run() -> list[torch.Tensor]:
        kept = []
        for rows, up, down in jobs:
            kept.append(rows.clone())
            rows.addmm_(up, down)
        return kept

    def undo(kept: object) -> None:
        for (rows, _, _), before in zip(jobs, kept):  # type: ignore[call-overload]
            rows.copy_(before)

    return Case(run, after=undo)
