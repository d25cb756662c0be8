"""Serving: mixed batches, swaps, first use and memory of a pool, beside PEFT and safetensors on the same backbone."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import save
from safetensors.torch import load_file, save_file
from timm.models import VisionTransformer
from torch import nn

import adapterpack
from adapterpack import Adapter, AdapterPool, Backbone, Branch, Dense, Head, Quantized, Site, Sparse
from adapterpack.quantize import quantize_latent
from adapterpack.runtime.backbone import randomise
from tests.bench.peers import bare, in_the_model
from tests.bench.sizes import packed
from tests.bench.timing import Case, Timed, interleave, table

BLOCKS = 4  # of mixed batches, so that 32 images take seconds; everything else runs on 12
IMAGES, TASKS, RANK, WIDTH = 32, 16, 32, 768


@dataclass(frozen=True, slots=True)
class On:
    """Where and in what a backbone runs.

    Attributes:
        device, dtype: of its parameters.
        blocks: how many it has in mixed batches.
        clock: seconds.
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    blocks: int = BLOCKS
    clock: Callable[[], float] = time.process_time

    def __str__(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def vit(self, blocks: int) -> VisionTransformer:
        """ViT-B/16 with random weights."""
        model = VisionTransformer(embed_dim=WIDTH, depth=blocks, num_heads=12, num_classes=100)
        randomise(model, 0)
        return model.eval().requires_grad_(False).to(self.device, self.dtype)

    def images(self, count: int) -> torch.Tensor:
        return torch.randn(count, 3, 224, 224).to(self.device, self.dtype)

    def peft(self, blocks: int, names: Sequence[str]) -> nn.Module:
        """PEFT's LoRA on the fused qkv, which is what it can adapt."""
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["qkv"], init_lora_weights=False)
        model = get_peft_model(self.vit(blocks), config, adapter_name=names[0], autocast_adapter_dtype=False)
        for name in names[1:]:
            model.add_adapter(name, config, autocast_adapter_dtype=False)
        return model.eval().to(self.device, self.dtype)


CPU = On()


def report(rounds: int) -> str:
    """All tables but that of loading; one thread, CPU time."""
    with _one_thread():
        tables = [mixed(max(3, rounds // 4)), folded(rounds), swaps(rounds), memory()]
    return "\n\n".join(tables)


def first_use_report(rounds: int) -> str:
    """From disk to ready for a batch; one thread, CPU time."""
    with _one_thread():
        return first_use(rounds)


@contextmanager
def _one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the made-up tasks carry no fingerprint
    with torch.no_grad():
        yield


def mixed(rounds: int, on: On = CPU) -> str:
    """One batch in the ways of serving it."""
    model, x = on.vit(on.blocks), on.images(IMAGES)
    pool = AdapterPool(model)
    loras = [packed(task("lora", f"lora-{n}", 10 + n, on.blocks, seed=n), "fast") for n in range(TASKS)]
    others = ("adaptformer", "consolidator", "sparse", "replace")
    made = (task(kind, f"{kind}-{n}", 10 + n, on.blocks, seed=n) for kind in others for n in range(TASKS))
    for data in (*loras, *(packed(one, "fast") for one in made)):
        pool.add(data)
    each = [f"lora-{n % TASKS}" for n in range(IMAGES)]
    kinds = ("lora", "adaptformer", "lora", "consolidator", "lora", "adaptformer", "sparse", "replace")
    many = [f"{kinds[n % TASKS % len(kinds)]}-{n % TASKS}" for n in range(IMAGES)]
    peft = on.peft(on.blocks, [f"lora-{n}" for n in range(TASKS)])
    restore = lambda *_: pool.activate(None)  # noqa: E731
    cases = {
        "folded, one task": Case(lambda: model(x), before=lambda: pool.activate("lora-0"), after=restore),
        "frozen backbone": Case(lambda: model(x)),
        "pool, 1 LoRA task": Case(lambda: pool(x, tasks=["lora-0"] * IMAGES)),
        f"pool, {TASKS} LoRA tasks": Case(lambda: pool(x, tasks=each)),
        f"pool, {TASKS} tasks of 5 methods": Case(lambda: pool(x, tasks=many)),
        f"PEFT adapter_names, {TASKS} LoRA tasks": Case(lambda: peft(x, adapter_names=each)),
        f"split by task, {TASKS} swaps": Case(lambda: _split(pool, x), after=restore),
    }
    if on.device != "cpu":
        captured = AdapterPool(model, cuda_graphs=(IMAGES,))
        for data in loras:
            captured.add(data)
        cases[f"pool with cuda_graphs, {TASKS} LoRA tasks"] = Case(lambda: captured(x, tasks=each))
    timed = interleave(cases, rounds, on.clock)
    peft_ms = timed[f"PEFT adapter_names, {TASKS} LoRA tasks"].ms
    rows = [[k, f"{t.ms:.1f}", str(t), f"{1 / t.ratio:.2f}", f"{t.ms / peft_ms:.2f}"] for k, t in timed.items()]
    columns = [str(on), "ms", "time / folded", "throughput / folded", "time / PEFT's median"]
    heads = "heads of 10 to 25 classes in the pool, none in PEFT"
    return f"{IMAGES} images through ViT-B of {on.blocks} blocks, {heads}\n\n" + table(columns, rows)


def _split(pool: AdapterPool, x: torch.Tensor) -> None:
    """The same batch task by task, each folded in turn."""
    for n in range(TASKS):
        pool.activate(f"lora-{n}")
        pool.model(x[n::TASKS])


def folded(rounds: int, on: On = CPU) -> str:
    """Whether a folded task costs anything while it runs."""
    model, x = on.vit(12), on.images(1)
    pool = AdapterPool(model)
    for kind in ("lora", "replace"):
        pool.add(packed(task(kind, kind, 100, 12), "fast"))
    cases = {"frozen backbone": Case(lambda: model(x), before=lambda: pool.activate(None))}
    for name in pool.tasks:
        cases[f"folded {name}"] = Case(lambda: model(x), before=lambda name=name: pool.activate(name))
    rows = _rows(interleave(cases, rounds, on.clock))
    return "One image through ViT-B\n\n" + table([str(on), "ms", "time / frozen"], rows)


def swaps(rounds: int, on: On = CPU) -> str:
    """From one folded LoRA task to another."""
    model = on.vit(12)
    warm, cold = AdapterPool(model), AdapterPool(model, memory_budget=0)
    made = [task("lora", f"t{n}", 100, 12, seed=n) for n in range(2)]
    for one in made:
        for pool in (warm, cold):
            pool.add(packed(one, "fast"))
    bare, peft = _bare(model, made), on.peft(12, ["t0", "t1"])
    peft.merge_adapter(["t0"])

    def peft_swap() -> None:
        peft.unmerge_adapter()
        peft.set_adapter("t1" if peft.active_adapter == "t0" else "t0")
        peft.merge_adapter()

    def swap(pool: AdapterPool) -> Case:
        return Case(lambda: pool.activate("t1"), lambda: pool.activate("t0"), lambda _: pool.activate(None))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.safetensors"
        save_file({f"{n}.{i}": part.contiguous() for n, job in enumerate(bare) for i, part in enumerate(job[2:])}, path)
        cases = {
            "by hand: copy back, addmm_": Case(lambda: _by_hand(bare), after=lambda _: _back(bare)),
            "by hand, from safetensors": Case(lambda: _from_file(bare, path), after=lambda _: _back(bare)),
            "activate": swap(warm),
            "activate, from packed bytes": swap(cold),
            "activate(None)": Case(lambda: warm.activate(None), before=lambda: warm.activate("t0")),
            "PEFT unmerge, set, merge (inexact)": Case(peft_swap),
        }
        timed = interleave(cases, rounds, on.clock)
    title = f"Swap of LoRA tasks, rank 32 on q and v of ViT-B's 12 blocks, 100 classes, {on}\n\n"
    return title + table(["swap", "ms", "time / by hand"], _rows(timed))


Job = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # rows, what they were, up, down


def _bare(model: nn.Module, made: list[Adapter]) -> list[Job]:
    jobs = []
    for branch in made[0].branches:
        rows = (
            model.get_submodule(branch.site.path)
            .weight.detach()
            .narrow(0, WIDTH * "qkv".index(branch.site.part), WIDTH)
        )
        up, down = (torch.from_numpy(branch.tensors[role].dense()).to(rows) for role in ("up", "down"))
        jobs.append((rows, rows.clone(), up * branch.params["scale"], down))
    return jobs


def _by_hand(jobs: list[Job]) -> None:
    for rows, before, up, down in jobs:
        rows.copy_(before)
        rows.addmm_(up, down)


def _back(jobs: list[Job]) -> None:
    for rows, before, _, _ in jobs:
        rows.copy_(before)


def _from_file(jobs: list[Job], path: Path) -> None:
    found = load_file(path, device=str(jobs[0][0].device))
    for n, (rows, before, _, _) in enumerate(jobs):
        rows.copy_(before)
        rows.addmm_(found[f"{n}.0"], found[f"{n}.1"])


def first_use(rounds: int, on: On = CPU) -> str:
    """From disk to ready for a batch, with the heads that a task may have."""
    made = task("lora", "t", 100, 12)
    tasks = {
        "no head": replace(made, head=None),
        "1-bit head": task("lora-bits", "t", 100, 12),
        "float32 head": made,
    }
    timed = {head: _first_use(one, rounds, on) for head, one in tasks.items()}
    columns = ["way", *(column for head in timed for column in (f"{head}, ms", "time / safetensors"))]
    ways = timed["no head"]
    rows = [[way, *(cell for of in timed.values() for cell in (f"{of[way].ms:.2f}", str(of[way])))] for way in ways]
    what = f"LoRA of rank {RANK} on q and v of ViT-B's 12 blocks at 1 bit, and a head of 100 classes or none"
    return f"From disk to ready: {what}\n\n" + table(columns, rows)


def _first_use(made: Adapter, rounds: int, on: On) -> dict[str, Timed]:
    model = on.vit(12)
    pool = AdapterPool(model)
    peft, config = on.peft(12, ["t0"]), LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["qkv"])
    carrier, tensors = in_the_model(made, model)
    carrier.to(on.device)
    holder = bare(tensors).to(on.device)
    with tempfile.TemporaryDirectory() as folder:
        path, plain, flat = (Path(folder) / name for name in ("t.apk", "t.safetensors", "flat.safetensors"))
        path.write_bytes(packed(made, "fast"))
        plain.write_bytes(save(tensors))
        flat.write_bytes(save({name.replace(".", "_"): values for name, values in tensors.items()}))
        peft.add_adapter("saved", config)
        peft.save_pretrained(folder, selected_adapters=["saved"])

        def remove(_: object) -> None:
            pool.remove("t")

        def use() -> None:
            pool.add(path)
            pool._engine.ready(pool._all_packed(["t"]))

        cases = {
            "safetensors load_file, load_state_dict": Case(
                lambda: carrier.load_state_dict(load_file(plain, device=on.device), strict=False)
            ),
            "the same into parameters without a model": Case(
                lambda: holder.load_state_dict(load_file(flat, device=on.device))
            ),
            "pool.add": Case(lambda: pool.add(path), after=remove),
            "pool.add, inflated": Case(use, after=remove),
            "adapterpack.load, attached": Case(
                lambda: adapterpack.load(path, model, fold="never"), after=lambda loaded: loaded.unload()
            ),
            "PEFT load_adapter, without a head": Case(
                lambda: peft.load_adapter(str(Path(folder) / "saved"), "again"),
                after=lambda _: peft.delete_adapter("again"),
            ),
        }
        return interleave(cases, 4 * rounds, on.clock)  # short ones, so many rounds


def memory() -> str:
    """Resident growth a task, each way in a process of its own."""
    counts = {"packed": 1000, "float32": 100, "bfloat16": 100, "PEFT": 50}
    rows = []
    size = len(packed(task("lora-bits", "t", 100, 12), "fast"))
    for way, count in counts.items():
        code = f"from tests.bench import serving; serving.hold({way!r}, {count})"
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
        each = int(done.stdout.split()[-1]) / count
        rows.append([way, str(count), f"{each:,.0f}", f"{each / size:.2f}", f"{2**30 / each:,.0f}"])
    title = f"Memory: resident growth a waiting task of {size:,} bytes as a file (100 classes, 1 bit throughout)\n\n"
    return title + table(["held as", "tasks", "bytes a task", "/ its file", "tasks a GiB"], rows)


def hold(way: str, count: int) -> None:
    """Run in a child: hold that many tasks and print what the process has grown by."""
    warnings.simplefilter("ignore")
    made = task("lora-bits", "t", 100, 12)
    data, kept = packed(made, "fast"), []
    tensors = [t.dense() for b in made.branches for t in b.tensors.values()] + [made.head.weight.dense()]  # type: ignore[union-attr]
    if way == "PEFT":
        model, config = CPU.peft(12, ["t0"]), LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["qkv"])
        model.add_adapter("first", config)
    else:
        pool = AdapterPool(CPU.vit(12))
        pool.add(data, name="first")
    before = _resident()
    for n in range(count):
        if way == "PEFT":
            model.add_adapter(f"more{n}", config)
        elif way == "packed":
            pool.add(bytearray(data), name=f"more{n}")
        else:
            kept.append([torch.from_numpy(t.copy()).to(getattr(torch, way)) for t in tensors])
    print(_resident() - before)


def _resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/self/status has no VmRSS: this table needs Linux")


def _rows(timed: dict[str, Timed]) -> list[list[str]]:
    return [[name, f"{t.ms:.2f}", str(t)] for name, t in timed.items()]


def task(kind: str, name: str, classes: int, blocks: int, seed: int = 0) -> Adapter:
    """A made-up task of one method, over all blocks."""
    rng = np.random.default_rng(seed)

    def values(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.02, shape).astype(np.float32)

    def bits(*shape: int) -> Quantized:
        return quantize_latent(values(*shape), 1)

    def few(*shape: int) -> Sparse:
        size = int(np.prod(shape))
        where = np.sort(rng.choice(size, size // 100, replace=False)).astype(np.int64)
        return Sparse(shape, where, Dense(values(len(where))))

    def low(out: int) -> dict[str, Quantized]:
        return {"down": bits(RANK, WIDTH), "up": bits(out, RANK)}

    def norm() -> dict[str, Dense]:
        return {"weight": Dense(1 + values(WIDTH)), "bias": Dense(values(WIDTH))}

    shapes = {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH),
              "mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH)}  # fmt: skip
    makers = {
        "lora": lambda i: [("lora", f"attn.qkv[{p}]", low(WIDTH), {"scale": 0.1}) for p in "qv"],
        "adaptformer": lambda i: [("adaptformer", "mlp", low(WIDTH), {"scale": 0.1})],
        "consolidator": lambda i: [
            ("consolidator", at, {"weight": Dense(values(o, n // 96))}, {"groups": 96, "reorder": True})
            for at, (o, n) in shapes.items()
        ],
        "sparse": lambda i: [("sparse", at, {"weight": few(*shape)}, {}) for at, shape in shapes.items()],
        "replace": lambda i: [
            *(("replace", at, {"bias": Dense(values(o))}, {}) for at, (o, _) in shapes.items()),
            *(("replace", f"norm{n}", norm(), {}) for n in (1, 2)),
        ],
    }  # fmt: skip
    branches = tuple(
        Branch(Site.parse(f"blocks.{i}.{at}"), method, params, tensors)
        for i in range(blocks)
        for method, at, tensors, params in makers[kind.split("-")[0]](i)
    )
    head = Head(bits(classes, WIDTH)) if kind == "lora-bits" else Head(Dense(values(classes, WIDTH)))
    return Adapter(name, kind, branches, head, None, None, {}, Backbone("vit_base"))
