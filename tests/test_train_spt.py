"""SPT: sensitivities against an independent computation, the budget rule written out, and the published masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from adapterpack.converters.checkpoint import read_spt_mask
from adapterpack.converters.spt_mask import OPERATIONS, SptMask
from adapterpack.errors import CallError, CorruptFileError
from adapterpack.runtime.load import load_adapter
from adapterpack.tensors import Sparse
from adapterpack.train.budget import module_size, split_budget
from adapterpack.train.recipe import recipe_for
from adapterpack.train.sensitivity import describe_mask, make_mask, save_mask, sensitivities
from adapterpack.train.spt import site_of
from adapterpack.train.trainee import Trainee
from tests._threads import one_thread  # noqa: F401
from tests._vit import DEPTH, WIDTH, close, images, same, snapshot, vit

PLAIN = {"drop_path": 0.0, "dropout": 0.0, "dim": 3}


def batches(count: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(4)
    return [
        (torch.rand(4, 3, 32, 32, generator=generator), torch.randint(0, 5, (4,), generator=generator))
        for _ in range(count)
    ]


def measured(model: nn.Module) -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    return dict(sensitivities(model, batches(), 5, recipe_for("spt-lora", PLAIN), step=lambda: None))


def test_sensitivities_are_sums_of_squared_batch_gradients() -> None:
    model = vit()
    before = snapshot(model)
    found = measured(model)
    assert same(before, snapshot(model))
    torch.manual_seed(0)
    other = vit()
    torch.manual_seed(0)
    other.head = nn.Linear(WIDTH, 5)
    torch.manual_seed(0)
    nn.init.trunc_normal_(other.head.weight, std=0.02)
    nn.init.zeros_(other.head.bias)
    other.train()
    expected = {name: torch.zeros_like(p) for name, p in other.named_parameters()}
    for x, y in batches():
        other.zero_grad()
        functional.cross_entropy(other(x), y).backward()
        for name, parameter in other.named_parameters():
            expected[name] += parameter.grad**2
    for i in range(DEPTH):
        for role in ("weight", "bias"):
            fused = expected[f"blocks.{i}.attn.qkv.{role}"]
            for number, part in enumerate("qkv"):
                rows = fused[number * WIDTH : (number + 1) * WIDTH]
                assert np.allclose(found[f"blocks.{i}.attn.{part}.{role}"], rows.numpy(), rtol=1e-4, atol=1e-12)
    for name in ("blocks.1.mlp.fc2.weight", "blocks.2.norm1.bias", "norm.weight", "blocks.0.attn.proj.bias"):
        assert np.allclose(found[name], expected[name].numpy(), rtol=1e-4, atol=1e-12)
    assert not any(name.startswith(("head", "cls_token", "pos_embed", "patch_embed")) for name in found)
    assert list(found)[:6] == [f"blocks.0.{n}" for n in (
        "norm1.weight", "norm1.bias", "attn.q.weight", "attn.q.bias", "attn.k.weight", "attn.k.bias")]  # fmt: skip


def by_hand(
    found: dict[str, np.ndarray], tau: int, kind: str, rank: int
) -> tuple[dict[str, np.ndarray], int, set[str]]:
    """Marked entries by tensor, the total, and what is structured, for one threshold."""
    names = list(found)
    flat = np.concatenate([found[n].reshape(-1) for n in names])
    marked = np.zeros(len(flat), bool)
    marked[np.argsort(-flat, kind="stable")[:tau]] = True
    total, structured, start = 0, set(), 0
    parts = {}
    for name in names:
        mine = marked[start : start + found[name].size]
        start += found[name].size
        parts[name] = np.flatnonzero(mine)
        if found[name].ndim == 1:
            whole, cost = mine.sum() >= found[name].size / 5, found[name].size
        else:
            out, inward = found[name].shape
            cost = inward * rank + rank * out if kind == "lora" else 2 * out * rank + rank + out
            whole = mine.sum() >= cost / 10
        total += cost if whole else int(mine.sum())
        if whole:
            structured.add(name)
    return parts, total, structured


@pytest.mark.parametrize("kind", ["lora", "adapter"])
@pytest.mark.parametrize("budget", [0.001, 0.004, 0.012])
def test_budget_rule(kind: str, budget: float) -> None:
    found = measured(vit())
    size = sum(values.size for values in found.values())
    step = max(1, round(20_000 * size / 85_056_000))
    taus = [t for t in range(step, step * 79 + 1, step) if t <= size]
    totals = {tau: by_hand(found, tau, kind, 3)[1] + WIDTH for tau in taus}
    tau = min(reversed(taus), key=lambda t: abs(totals[t] - budget * 1e6))
    parts, total, structured = by_hand(found, tau, kind, 3)
    mask = split_budget(found, budget, kind=kind, rank=3, token=WIDTH)
    assert set(mask.vectors) == {name for name in structured if found[name].ndim == 1}
    assert set(mask.structured) == {name.removesuffix(".weight") for name in structured if found[name].ndim == 2}
    assert round(mask.params * 1e6) == total + WIDTH
    positions = mask.positions()
    for name in found:
        if name not in structured:
            assert (positions.get(name, np.zeros(0)) == parts[name]).all()


def test_of_two_thresholds_equally_near_the_larger_is_taken() -> None:
    found = {f"blocks.{i}.norm1.bias": np.full(100, 1.0 - 0.1 * i, np.float32) for i in range(4)}
    found["norm.weight"] = np.linspace(0.5, 0.1, 600, dtype=np.float32)
    # 19 entries cost 19, a twentieth makes the vector whole: 59.5 is as near to 19 as to 100
    assert 59.5 / 1e6 * 1e6 == 59.5
    assert round(split_budget(found, 59.5 / 1e6, kind="lora", rank=2, token=0).params * 1e6) == 100


def test_sizes_of_modules_are_the_papers() -> None:
    assert module_size("lora", (768, 768), 8) == 12_288 and module_size("lora", (3072, 768), 8) == 30_720
    assert module_size("adapter", (768, 768), 8) == 13_064 and module_size("adapter", (3072, 768), 8) == 52_232


def test_a_larger_budget_gives_more() -> None:
    found = measured(vit())
    totals = [split_budget(found, b, kind="lora", rank=3, token=0).params for b in (0.001, 0.004, 0.01, 0.02)]
    assert totals == sorted(totals)
    with pytest.raises(CallError, match="comes near"):
        split_budget(found, 1e-6, kind="lora", rank=3, token=WIDTH)
    found["norm.bias"][0] = np.nan
    with pytest.raises(CallError, match="no number"):
        split_budget(found, 0.004, kind="lora", rank=3, token=0)


def test_a_mask_of_ours_reads_as_a_published_one(tmp_path: Path) -> None:
    model = vit()
    found = measured(model)
    mask = make_mask(model, found, recipe_for("spt-lora", {**PLAIN, "budget": 0.008}), "lora")
    save_mask(mask, tmp_path / "param_req_0.008.pth", force=False)
    torch.load(tmp_path / "param_req_0.008.pth", weights_only=True)
    again = read_spt_mask(tmp_path / "param_req_0.008.pth")
    assert dict(again.shapes) == dict(mask.shapes) and list(again.shapes) == list(mask.shapes)
    assert (again.indexes == mask.indexes).all() and again.matrices == mask.matrices
    assert again.vectors == mask.vectors and again.structured_params == mask.structured_params
    about = describe_mask(mask)
    assert about["parameters"] == mask.structured_params + len(mask.indexes) + WIDTH
    with pytest.raises(CallError, match="exists"):
        save_mask(mask, tmp_path / "param_req_0.008.pth", force=False)


@pytest.mark.parametrize("kind", ["lora", "adapter"])
@pytest.mark.parametrize(("bits", "pool"), [(1, "token"), (32, "token"), (1, "avg")])
def test_a_mask_of_ours_trains_and_folded_equals_attached(kind: str, bits: int, pool: str) -> None:
    model = vit(global_pool=pool, class_token=pool == "token")
    recipe = recipe_for(f"spt-{kind}", {**PLAIN, "budget": 0.012, "bits": bits})
    mask = make_mask(model, measured(model), recipe, kind)
    assert mask.structured and mask.vectors and len(mask.indexes)
    found = Trainee(model, recipe, 5, mask)
    optimizer = torch.optim.AdamW(found.groups(), lr=1e-2)
    for x, y in batches(2):
        optimizer.zero_grad()
        functional.cross_entropy(found.train()(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        expected = found.eval()(images()).clone()
    adapter = found.adapter("x")
    found.close()
    for fold in ("auto", "never"):
        with load_adapter(adapter, model, fold=fold, check_fingerprint=False), torch.no_grad():
            assert close(model(images()), expected, 2e-6)


@pytest.fixture(scope="module")
def base() -> nn.Module:
    """ViT-B/16 in everything but the number of its tokens."""
    with torch.random.fork_rng():
        return vit(img_size=32, patch_size=16, embed_dim=768, depth=12, num_heads=12, weight_init="skip")


def published(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*/*/param_req_*.pth"))
    assert len(found) == 24
    return found


def test_all_published_masks_attach(spt_masks: Path, base: nn.Module) -> None:
    known = list(base.parameters())
    for path in published(spt_masks):
        kind = path.parts[-3]
        mask = read_spt_mask(path)
        found = Trainee(base, recipe_for(f"spt-{kind}", {"bits": 1}), 5, mask)
        found.bank.refresh()
        branches = found.adapter("x").branches
        found.close()
        entries = {name: at for name, at in mask.positions().items() if "norm" not in name}
        kept = [t for b in branches if b.method == "sparse" for t in b.tensors.values() if isinstance(t, Sparse)]
        assert sum(t.entries for t in kept) == sum(map(len, entries.values()))
        modules = {str(b.site) for b in branches if b.method in ("lora", "adapter")}
        assert modules == {site_of(name) for name in mask.structured}
        vectors = sum(len(b.tensors) for b in branches if b.method == "replace")
        assert vectors == len(mask.vectors) + 1
        assert {b.method for b in branches} - {"sparse", "replace"} <= {"lora" if kind == "lora" else "adapter"}
    assert all(one is other for one, other in zip(known, base.parameters()))


@pytest.mark.parametrize("kind", ["lora", "adapter"])
def test_a_published_mask_trains(kind: str, spt_masks: Path, base: nn.Module) -> None:
    mask = read_spt_mask(spt_masks / kind / "cifar" / "param_req_0.4.pth")
    found = Trainee(base, recipe_for(f"spt-{kind}", {"bits": 1}), 5, mask)
    start = found.snapshot()
    optimizer = torch.optim.AdamW(found.groups(), lr=1e-3)
    x, y = batches(1)[0]
    functional.cross_entropy(found.train()(x), y).backward()
    optimizer.step()
    moved = found.snapshot()
    assert all(not torch.equal(start[name], moved[name]) for name in start)
    with torch.no_grad():
        expected = found.eval()(x).clone()
    adapter = found.adapter("x")
    found.close()
    with load_adapter(adapter, base, check_fingerprint=False), torch.no_grad():
        assert close(base(x), expected, 1e-4)


def test_published_totals_follow_the_rule(spt_masks: Path) -> None:
    """What a mask says it costs is what the rule counts: entries, modules, whole vectors, class token."""
    for path in published(spt_masks):
        mask: SptMask = read_spt_mask(path)
        kind = path.parts[-3]
        cost = 0
        for name in mask.structured:
            shape = {"mlp.fc1": (3072, 768), "mlp.fc2": (768, 3072)}.get(name.split(".", 2)[2], (768, 768))
            cost += module_size(kind, shape, 8)
        cost += sum(3072 if name.endswith("fc1.bias") else 768 for name in mask.vectors)
        assert cost == mask.structured_params
        assert round(mask.params * 1e6) == cost + len(mask.indexes) + 768
        for name, positions in mask.positions().items():
            limit = module_size(kind, mask.shapes[name], 8) / 10 if len(mask.shapes[name]) == 2 else None  # type: ignore[arg-type]
            assert len(positions) < (limit if limit is not None else mask.shapes[name][0] / 5)
        assert len(mask.matrices[0]) == len(OPERATIONS)


def test_a_damaged_mask_is_refused(tmp_path: Path) -> None:
    torch.save({"params": torch.tensor(1.0)}, tmp_path / "param_req_1.pth")
    with pytest.raises(CorruptFileError, match="expected exactly the fields"):
        read_spt_mask(tmp_path / "param_req_1.pth")
