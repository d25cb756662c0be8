"""One batch of many tasks: every row against its task alone, for all methods, dtypes and ways to multiply."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models import VisionTransformer
from torch import nn

from adapterpack import AdapterPool, UnsupportedAdapterError
from adapterpack.errors import Reason
from adapterpack.methods import METHODS
from adapterpack.runtime.pool.parts import Segment
from adapterpack.runtime.pool.station import Batch
from adapterpack.runtime.pool.twin import Twin
from tests._pool import BRANCHES, KINDS, alone, file_of, relative, task
from tests._threads import one_thread  # noqa: F401
from tests._vit import WIDTH, adapter, branch, dense, images, same, snapshot, sparse, vit

TWICE = [True, False]


def pool_of(model: nn.Module, names: list[tuple[str, int]], *, gather: bool = False, **options: Any) -> AdapterPool:
    pool = AdapterPool(model, **options)
    pool._engine.gather = gather
    for kind, number in names:
        pool.add(file_of(task(kind, number)))
    return pool


@pytest.mark.parametrize("gather", TWICE)
def test_32_images_of_16_tasks(gather: bool) -> None:
    """All kinds, five class counts, in an order that jumps: each row is its task's own."""
    names = [(KINDS[n % len(KINDS)], n) for n in range(16)]
    model, x = vit(), images(32)
    before, pool = snapshot(model), pool_of(model, names, gather=gather)
    order = [7 * i % 16 for i in range(32)]
    tasks = ["{}-{}".format(*names[i]) for i in order]
    found = pool(x, tasks=tasks)
    assert {len(row) for row in found} == {2, 3, 4, 5, 6} and len({kind for kind, _ in names}) >= 4
    for row, i, name in zip(range(32), order, tasks):
        data = file_of(task(*names[i]))
        assert relative(found[row], alone(data, name, model, x[row : row + 1])[0]) < 2e-6, name
        assert relative(found[row], alone(data, name, model, x[row : row + 1], "auto")[0]) < 1e-5, name
    assert same(snapshot(model), before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_one_task_is_that_task_attached(kind: str) -> None:
    """To the bit, but for a sparse update, which is added to the weight, and a bias, whose difference is added."""
    model, x = vit(), images(3)
    found = torch.stack(pool_of(model, [(kind, 1)])(x, tasks=[f"{kind}-1"] * 3))
    expected = alone(file_of(task(kind, 1)), f"{kind}-1", model, x)
    if kind in ("sparse", "replace", "everything"):
        assert relative(found, expected) < 2e-6
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("site", ["blocks.0.attn.qkv[v]", "blocks.1.mlp.fc1", "blocks.2.norm1", "blocks.0.ls1.gamma"])
def test_other_parameters_are_those_of_the_folded_task(site: str) -> None:
    """Weights with a sparse update, and norms, scales and tokens that are replaced: to the bit."""
    model, x = vit(init_values=0.1), images(3)
    out = 4 * WIDTH if "fc1" in site else WIDTH
    if "norm" in site:
        tuned = branch(site, "replace", {"weight": dense(out), "bias": dense(out, seed=1)})
    elif "gamma" in site:
        tuned = branch(site, "replace", {"value": dense(out)})
    else:
        tuned = branch(site, "sparse", {"weight": sparse(out, WIDTH), "bias": sparse(out)})
    data, pool = file_of(adapter([tuned], model)), AdapterPool(model)
    pool.add(data)
    found = torch.stack(pool(x, tasks=["toy"] * 3))
    assert torch.equal(found, alone(data, "toy", model, x, "always"))


def test_inference_mode_leaves_nothing_behind() -> None:
    """What is made inside it, memory for copies included, is used outside as well."""
    model, x = vit(), images(2)
    pool = pool_of(model, [("everything", 1), ("sparse", 2)])
    with torch.inference_mode():
        inside = pool(x, tasks=["everything-1", "sparse-2"])
        pool.activate("sparse-2")
    outside = pool(x, tasks=["everything-1", "sparse-2"])
    assert all(torch.equal(a, b) for a, b in zip(inside, outside))
    pool.activate("everything-1")
    pool.activate(None)
    assert all(torch.equal(a, b) for a, b in zip(pool(x, tasks=["everything-1", "sparse-2"]), outside))


def test_every_method_is_among_the_kinds() -> None:
    assert set(KINDS) >= set(METHODS)


@pytest.mark.parametrize("gather", TWICE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype, gather: bool) -> None:
    """Within a few roundings of the same rows in float32."""
    names = [(kind, n) for n, kind in enumerate(KINDS)]
    tasks, x = [f"{kind}-{n}" for kind, n in names], images(len(names))
    model = vit().to(dtype)
    pool = pool_of(model, names, gather=gather, check_fingerprint=dtype == torch.float64)
    before = snapshot(model)
    found = pool(x, tasks=tasks)
    expected = pool_of(vit(), names)(x, tasks=tasks)
    limit = {torch.bfloat16: 0.08, torch.float16: 0.01, torch.float64: 1e-5}[dtype]
    for name, row, plain in zip(tasks, found, expected):
        assert row.dtype == dtype and relative(row, plain) < limit, name
        pool.activate(name)
    assert all(torch.equal(a, b) for a, b in zip(pool(x, tasks=tasks), found))
    pool.activate(None)
    assert same(snapshot(model), before)


def test_the_active_task_changes_no_row() -> None:
    names = [(kind, n) for n, kind in enumerate(KINDS)]
    model, tasks, x = vit(), [f"{kind}-{n}" for kind, n in names], images(len(KINDS))
    pool = pool_of(model, names)
    expected = pool(x, tasks=tasks)
    for name in tasks:
        pool.activate(name)
        active = snapshot(model)
        assert all(torch.equal(a, b) for a, b in zip(pool(x, tasks=tasks), expected)), name
        assert pool.active == name and same(snapshot(model), active)


def test_rows_do_not_depend_on_their_order() -> None:
    """Sorted rows are the same rows, wherever the caller puts them."""
    names = [(kind, n) for n, kind in enumerate(KINDS)]
    tasks, x = [f"{kind}-{n}" for kind, n in names], images(len(names))
    pool = pool_of(vit(), names)
    expected = pool(x, tasks=tasks)
    order = torch.randperm(len(tasks), generator=torch.Generator().manual_seed(3)).tolist()
    found = pool(x[order], tasks=[tasks[i] for i in order])
    assert all(torch.equal(row, expected[i]) for row, i in zip(found, order))


@pytest.mark.parametrize("gather", TWICE)
def test_products_of_different_forms(gather: bool) -> None:
    """Ranks 4 and 2, and a task with low-rank products at other sites, beside each other."""
    names = [("lora", 0), ("lora-rank-2", 1), ("lora", 2), ("everything", 3), ("lora-rank-2", 4), ("adaptformer", 5)]
    tasks, x = ["{}-{}".format(*name) for name in names for _ in range(2)], images(12)
    model = vit()
    found = pool_of(model, names, gather=gather)(x, tasks=tasks)
    for i, name in enumerate(tasks):
        data = file_of(task(*names[i // 2]))
        assert relative(found[i], alone(data, name, model, x[i : i + 1])[0]) < 2e-6, name


def test_gathering_launches_few_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """One product down for q and v of all tasks together, one up for each, in every block."""
    names = [("lora", n) for n in range(4)]
    pool, calls = pool_of(vit(), names, gather=True), {"bmm": 0, "baddbmm_": 0}
    bmm, up = torch.bmm, torch.Tensor.baddbmm_

    def counted_bmm(*args: Any) -> torch.Tensor:
        calls["bmm"] += 1
        return bmm(*args)

    def counted_up(*args: Any) -> torch.Tensor:
        calls["baddbmm_"] += 1
        return up(*args)

    monkeypatch.setattr(torch, "bmm", counted_bmm)
    monkeypatch.setattr(torch.Tensor, "baddbmm_", counted_up)
    pool(images(8), tasks=[f"lora-{n % 4}" for n in range(8)])
    assert calls == {"bmm": 3, "baddbmm_": 6}


def test_gathered_tasks_are_not_held_twice() -> None:
    sizes = []
    for gather in TWICE:
        pool = pool_of(vit(), [("lora", 1)], gather=gather)
        pool(images(1), tasks=["lora-1"])
        (ready,) = pool._engine.cache._kept.values()
        tensors = [t for part in ready.parts.values() for gain in part.gains for t in gain.tensors.values()]
        tensors += ready.head.values()
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        assert sum(storages.values()) == ready.nbytes
        sizes.append(ready.nbytes)
    assert sizes[0] == sizes[1]


class Variant(VisionTransformer):
    """A subclass, as users make them."""


@pytest.mark.parametrize(
    "changes",
    [
        {"init_values": 0.1},
        {"class_token": False, "global_pool": "avg", "fc_norm": True},
        {"reg_tokens": 2, "no_embed_class": True},
        {"qk_norm": True, "pre_norm": True},
        {"qkv_bias": False, "proj_bias": False},
        {"global_pool": "map", "class_token": False},
        {"dynamic_img_size": True},
    ],
)
def test_variants_of_the_backbone(changes: dict[str, Any]) -> None:
    model, x = vit(**changes), images(4)
    tuned = [
        branch(f"blocks.{i}.{name}", "replace", {"weight": dense(WIDTH, seed=i), "bias": dense(WIDTH, seed=9 + i)})
        for i in range(3)
        for name in ("norm1", "norm2")
    ]
    tuned.append(branch("pos_embed", "sparse", {"value": sparse(*model.pos_embed.shape)}))
    if "init_values" in changes:
        tuned.append(branch("blocks.0.ls1.gamma", "replace", {"value": dense(WIDTH, seed=30)}))
    if "reg_tokens" in changes:
        tuned.append(branch("reg_token", "replace", {"value": dense(1, 2, WIDTH, seed=31)}))
    if changes.get("global_pool") == "map":
        tuned.append(branch("attn_pool.latent", "replace", {"value": dense(1, 1, WIDTH, seed=32)}))
        tuned.append(branch("attn_pool.norm", "sparse", {"bias": sparse(WIDTH, seed=33)}))
    names = {"tuned": tuned, "lora": BRANCHES["lora"](1), "both": [*tuned, *BRANCHES["lora"](2)]}
    pool = AdapterPool(model)
    for n, (name, branches) in enumerate(names.items()):
        pool.add(file_of(adapter(branches, model, name=name, classes=3 + n)))
    tasks = ["both", "lora", "tuned", "both"]
    found = pool(x, tasks=tasks)
    for i, name in enumerate(tasks):
        data = file_of(adapter(names[name], model, name=name, classes=3 + list(names).index(name)))
        assert relative(found[i], alone(data, name, model, x[i : i + 1])[0]) < 5e-6, name


def test_a_subclass_and_methods_bound_to_it() -> None:
    """A method that somebody bound to a module is bound to the twin's module there."""
    model = vit()
    model.__class__ = Variant
    block, calls = model.blocks[1], []
    plain = type(block).forward

    def spy(self: nn.Module, *args: Any, **more: Any) -> torch.Tensor:
        calls.append(self)
        return plain(self, *args, **more)

    block.forward = spy.__get__(block)
    pool, x = pool_of(model, [("everything", 1)]), images(2)
    found = torch.stack(pool(x, tasks=["everything-1"] * 2))
    assert calls and block not in calls
    assert relative(found, alone(file_of(task("everything", 1)), "everything-1", vit(), x)) < 2e-6


def test_hooks_and_training_mode_of_the_model_stay_its_own() -> None:
    model, x = vit(drop_rate=0.5), images(2)
    seen: list[int] = []
    model.blocks[0].register_forward_hook(lambda *_: seen.append(1))
    pool = pool_of(model, [("lora", 1)])
    expected = pool(x, tasks=["lora-1"] * 2)
    model.train()
    assert all(torch.equal(a, b) for a, b in zip(pool(x, tasks=["lora-1"] * 2), expected))
    assert not seen and model.training
    trained = pool_of(model, [("lora", 1)])  # made from a model that trains, it answers the same
    assert all(torch.equal(a, b) for a, b in zip(trained(x, tasks=["lora-1"] * 2), expected))


def test_gradient_checkpointing_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks for the state of random numbers, which the device may not tell while a graph is captured."""
    model, x = vit(), images(2)
    model.set_grad_checkpointing(True)
    pool, expected = pool_of(model, [("lora", 1)]), alone(file_of(task("lora", 1)), "lora-1", vit(), x)

    def ask() -> torch.Tensor:
        raise AssertionError("asked for the state of random numbers")

    monkeypatch.setattr(torch, "get_rng_state", ask)
    found = torch.stack(pool(x, tasks=["lora-1"] * 2))
    assert relative(found, expected) < 2e-6 and model.grad_checkpointing


def test_rows_that_are_no_rows() -> None:
    """A module that does not see a batch is refused, not answered wrongly."""
    twin = Twin(vit())
    station = twin.station(twin.model.blocks[0].norm1)
    with pytest.raises(UnsupportedAdapterError, match="gets 5 rows for 2 images") as error, torch.no_grad():
        twin._running.batch = Batch([Segment(0, 2, {})], {})
        station(torch.zeros(5, 3, WIDTH))
    assert error.value.reason == Reason.UNSUPPORTED_MODEL.value


def test_images_of_any_dtype_and_gradients_are_off() -> None:
    pool, x = pool_of(vit(), [("lora", 1)]), images(2)
    plain = pool(x, tasks=["lora-1"] * 2)
    assert not plain[0].requires_grad and not plain[0].is_inference()
    plain[0].add_(0)
    for found in (pool(x.double(), tasks=["lora-1"] * 2), pool(x.clone().requires_grad_(), tasks=["lora-1"] * 2)):
        assert all(torch.equal(a, b) for a, b in zip(found, plain))


def test_under_autocast() -> None:
    names = [(kind, n) for n, kind in enumerate(KINDS)]
    tasks, x = [f"{kind}-{n}" for kind, n in names], images(len(names))
    pool = pool_of(vit(), names)
    expected = pool(x, tasks=tasks)
    with torch.autocast("cpu", torch.bfloat16):
        found = pool(x, tasks=tasks)
    assert max(relative(a, b) for a, b in zip(found, expected)) < 0.1
