"""Training in a model: what is trained, what comes out, that it loads to the same logits, and that nothing stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

import adapterpack
from adapterpack.adapter import Adapter, Backbone, DataSettings
from adapterpack.converters.checkpoint import load_run, save_run
from adapterpack.converters.spt_mask import SptMask
from adapterpack.errors import CallError, UnsupportedAdapterError
from adapterpack.methods import METHODS
from adapterpack.runtime.fingerprint import fingerprint
from adapterpack.runtime.load import load_adapter
from adapterpack.tensors import Quantized, Sparse
from adapterpack.train.bank import Bank
from adapterpack.train.branch import AdaptFormer, Bottleneck, Lora, drop_path
from adapterpack.train.consolidator import Grouped
from adapterpack.train.recipe import recipe_for
from adapterpack.train.spt import site_of
from adapterpack.train.trainee import Trainee
from tests._threads import one_thread  # noqa: F401
from tests._vit import DEPTH, WIDTH, close, images, same, snapshot, vit

OPERATIONS = ("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2")


def mask(depth: int = DEPTH, width: int = WIDTH) -> SptMask:
    """Every kind of choice: modules on v, proj and fc2, whole vectors, entries on q, fc1, biases and a norm."""
    shapes: dict[str, tuple[int, ...]] = {}
    vectors = ["blocks.0.attn.q.bias", "blocks.1.norm2.weight", "blocks.0.mlp.fc2.bias", "norm.bias"]
    for i in range(depth):
        for name in OPERATIONS:
            outward, inward = {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}.get(name, (width, width))
            if name not in ("attn.v", "attn.proj", "mlp.fc2"):
                shapes[f"blocks.{i}.{name}.weight"] = (outward, inward)
            if f"blocks.{i}.{name}.bias" not in vectors:
                shapes[f"blocks.{i}.{name}.bias"] = (outward,)
        shapes[f"blocks.{i}.norm1.weight"] = (width,)
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    chosen = np.sort(np.random.default_rng(0).choice(total, total // 50, replace=False)).astype(np.int64)
    rows = tuple(tuple(name in ("attn.v", "attn.proj", "mlp.fc2") for name in OPERATIONS) for _ in range(depth))
    return SptMask(shapes, chosen, rows, tuple(vectors), 0, 0.0)


def trainee(method: str, model: nn.Module, **changes: Any) -> Trainee:
    base: dict[str, Any] = {"drop_path": 0.1}
    if method in ("lora", "adaptformer"):
        base |= {"dim": 4, "scale": 2.0}
    if method.startswith("spt"):
        base |= {"dim": 3}
    torch.manual_seed(0)
    recipe = recipe_for(method, {**base, **changes})
    return Trainee(model, recipe, 5, mask() if method.startswith("spt") else None)


def steps(found: Trainee, count: int = 2, lr: float = 1e-2) -> None:
    optimizer = torch.optim.AdamW(found.groups(), lr=lr)
    labels = torch.tensor([0, 1, 2, 3])
    found.train()
    for _ in range(count):
        optimizer.zero_grad()
        functional.cross_entropy(found(images(4)), labels).backward()
        optimizer.step()
    found.eval()


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    out: torch.Tensor = model(images(4))
    return out.clone()


ALL = ("lora", "adaptformer", "consolidator", "spt-lora", "spt-adapter", "linear", "bias")


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 32])
@pytest.mark.parametrize("method", ALL)
def test_train_checkpoint_pack_load(method: str, bits: int, tmp_path: Path) -> None:
    model = vit()
    before, known = snapshot(model), fingerprint(model)
    found = trainee(method, model, bits=bits, head_bits=1 if bits == 1 else 32)
    start = found.snapshot()
    steps(found)
    moved = found.snapshot()
    assert all(not torch.equal(start[name], moved[name]) for name in start)
    expected = logits(found)
    adapter = found.adapter("toy", labels=tuple("abcde"), data=DataSettings(), backbone=Backbone("small", known))
    found.close()
    assert same(before, snapshot(model))
    save_run(adapter, tmp_path / "run.ckpt", force=False)
    torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert load_run(tmp_path / "run.ckpt")[0].same_as(adapter)
    adapterpack.pack(tmp_path / "run.ckpt", tmp_path / "toy.apk")
    assert adapterpack.open(tmp_path / "toy.apk").read().same_as(adapter)
    for fold in ("auto", "never"):
        with adapterpack.load(tmp_path / "toy.apk", model, fold=fold):
            assert close(logits(model), expected, 2e-6), f"fold {fold}"
    assert same(before, snapshot(model))


@pytest.mark.parametrize("bits", [1, 4, 32])
@pytest.mark.parametrize("method", ["lora", "adaptformer"])
def test_attached_logits_are_the_trained_models_to_the_bit(method: str, bits: int) -> None:
    model = vit()
    found = trainee(method, model, bits=bits)
    steps(found)
    expected, adapter = logits(found), found.adapter("toy")
    found.close()
    with load_adapter(adapter, model, fold="never", check_fingerprint=False):
        assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_quantized_weights_are_those_of_the_forward_pass(bits: int) -> None:
    found = trainee("lora", vit(), bits=bits)
    steps(found)
    found.at.refresh()
    for branch in found.at.branches:
        kept, used = branch.export().tensors, branch.tensors()
        assert isinstance(kept["down"], Quantized)
        assert kept["down"].dense().tobytes() == used["down"].detach().numpy().tobytes()
        scaled = kept["up"].dense() * np.float32(2.0)
        assert scaled.tobytes() == used["up"].detach().numpy().tobytes()


def test_what_each_method_trains() -> None:
    sites = {
        method: {(str(b.site), b.method) for b in trainee(method, vit(), bits=32).adapter("x").branches}
        for method in ALL
    }
    assert sites["lora"] == {(f"blocks.{i}.attn.qkv[{p}]", "lora") for i in range(DEPTH) for p in "qv"}
    assert sites["adaptformer"] == {(f"blocks.{i}.mlp", "adaptformer") for i in range(DEPTH)}
    assert sites["linear"] == set()
    linears = [f"blocks.{i}.{n}" for i in range(DEPTH) for n in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    norms = ["norm", *(f"blocks.{i}.norm{k}" for i in range(DEPTH) for k in (1, 2))]
    assert sites["consolidator"] == {(s, "consolidator") for s in linears} | {(s, "replace") for s in linears + norms}
    assert sites["bias"] == {(s, "replace") for s in [*linears, *norms, "patch_embed.proj"]}


def test_spt_trains_what_the_mask_says() -> None:
    chosen = mask()
    branches = trainee("spt-lora", vit()).adapter("x").branches
    by_method: dict[str, dict[str, Any]] = {"lora": {}, "sparse": {}, "replace": {}}
    for branch in branches:
        by_method[branch.method][str(branch.site)] = branch.tensors
    assert set(by_method["lora"]) == {site_of(name) for name in chosen.structured}
    vectors = {(site_of(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in chosen.vectors}
    replaced = {(site, role) for site, tensors in by_method["replace"].items() for role in tensors}
    assert replaced == vectors | {("cls_token", "value")}
    entries = {name: found for name, found in chosen.positions().items() if "norm" not in name}
    kept = {(site, role): t for site, tensors in by_method["sparse"].items() for role, t in tensors.items()}
    assert len(kept) == len(entries) and any("norm" in name for name in chosen.positions())
    for name, positions in entries.items():
        tensor = kept[site_of(name.rpartition(".")[0]), name.rpartition(".")[2]]
        assert isinstance(tensor, Sparse) and (tensor.positions == positions).all()
        assert tensor.shape == tuple(chosen.shapes[name])


def test_spt_starts_as_the_public_code_does() -> None:
    model = vit()
    found = trainee("spt-adapter", model)
    for branch in found.adapter("x").branches:
        if branch.method == "adapter":
            assert 0.01 < branch.tensors["up"].dense().std() < 0.03
            assert not branch.tensors["up_bias"].dense().any()
            assert branch.params["tap"] == ("input" if str(branch.site).endswith("proj") else "output")
        if branch.method == "sparse":
            assert not any(tensor.dense().any() for tensor in branch.tensors.values())


def test_few_sparse_entries_stay_in_float32() -> None:
    forms = [t for b in trainee("spt-lora", vit(), bits=1).adapter("x").branches for t in b.tensors.values()]
    values = [t.values for t in forms if isinstance(t, Sparse)]
    assert all(isinstance(v, Quantized) == (v.entries >= 16) for v in values)
    assert {isinstance(v, Quantized) for v in values} == {True, False}


@pytest.mark.parametrize("kind", [Lora, AdaptFormer, Bottleneck, Grouped])
def test_in_evaluation_a_branch_is_its_methods_formula(kind: Any) -> None:
    shapes: dict[str, tuple[int, ...]] = {"down": (3, 12), "up": (12, 3)}
    name, site, params = "lora", "blocks.0.attn.proj", {"scale": 1.0}
    if kind is AdaptFormer:
        name, site = "adaptformer", "blocks.0.mlp"
    if kind is Bottleneck:
        name, params = "adapter", {"nonlinearity": "gelu", "scale": 1.0, "tap": "output"}
        shapes |= {"down_bias": (3,), "up_bias": (12,)}
    if kind is Grouped:
        name, params, shapes = "consolidator", {"groups": 4, "reorder": True}, {"weight": (8, 3), "bias": (8,)}
    bank = Bank()
    torch.manual_seed(1)
    starts = {role: (torch.randn(shape), 32) for role, shape in shapes.items()}
    branch = kind(site, name, params, bank, starts, hidden_drop=0.5, input_drop=0.5, path_drop=0.5)
    bank.seal(torch.device("cpu"))
    bank.eval().refresh()
    x = torch.randn(64, 5, 12)
    assert torch.allclose(branch.gain(x), METHODS[name].branch(x, branch.tensors(), params), atol=1e-5)
    assert not torch.equal(bank.train() and branch.gain(x), branch.gain(x))


def test_drop_path_keeps_the_mean() -> None:
    torch.manual_seed(0)
    out = drop_path(torch.ones(4000, 2, 3), 0.2, training=True)
    assert set(out.unique().tolist()) == {0.0, 1.25} and abs(out.mean() - 1) < 0.03
    assert (out == out[:, :1, :1]).all()


def test_adaptformer_is_outside_drop_path() -> None:
    model = vit()
    found = trainee("adaptformer", model, drop_path=0.9, bits=32, dropout=0.0)
    with torch.no_grad():
        for parameter in found.bank.latents.values():
            parameter.fill_(0.05)
    block = model.blocks[-1]
    x = torch.rand(64, 3, WIDTH)
    found.train()
    found.at.refresh()
    with torch.no_grad():
        gained = block(x) - x
    assert (gained.abs().amax(dim=(1, 2)) > 0).all()  # a dropped block leaves the adapter's share


def test_several_branches_of_one_support_are_summed_then_quantized() -> None:
    model = vit()
    found = trainee("consolidator", model, bits=1, groups=(24, 24, 12))
    for branch in found.adapter("x").branches:
        if branch.method == "consolidator":
            assert branch.params["groups"] == 12 and isinstance(branch.tensors["weight"], Quantized)
    joined = trainee("consolidator", vit(), bits=32, groups=(24, 24, 12)).adapter("x").branches
    assert [b.params["groups"] for b in joined if b.method == "consolidator"] == [12] * (4 * DEPTH)
    apart = trainee("consolidator", vit(), bits=1, groups=(24, 12), reorder=True).adapter("x")
    assert {b.params["groups"] for b in apart.branches if b.method == "consolidator"} == {12, 24}


@pytest.mark.parametrize("reorder", [True, False])
@pytest.mark.parametrize("groups", [(24,), (24, 12), (6, 4, 24), (24, 16)])
def test_consolidated_branches_equal_the_trained_module(groups: tuple[int, ...], reorder: bool) -> None:
    model = vit()
    found = trainee("consolidator", model, groups=groups, reorder=reorder)
    with torch.no_grad():
        for parameter in found.bank.latents.values():
            parameter.normal_(std=0.3)
    found.eval()
    expected, adapter = logits(found), found.adapter("x")
    found.close()
    for fold in ("never", "always"):
        with load_adapter(adapter, model, fold=fold, check_fingerprint=False):
            assert close(logits(model), expected, 1e-5)


def test_consolidator_counts_on_vit_b() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224")
        found = Trainee(model, recipe_for("consolidator", {"groups": (384,)}), 10)
        handles = [branch._handles["weight"] for branch in found.at.branches]
        weights = sum(found.bank.latents[handle.key][handle.row].numel() for handle in handles)
        rest = {str(place.site): 0 for place, _, _ in found.at._whole}
        for place, _, parameter in found.at._whole:
            rest[str(place.site)] += parameter.numel()
        norms = sum(count for site, count in rest.items() if "norm" in site)
    assert (weights, sum(rest.values()) - norms, norms) == (221_184, 82_944, 38_400)
    assert not any(site.startswith("patch") for site in rest)


def test_lora_parameters_on_vit_b() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224")
        found = Trainee(model, recipe_for("lora", {"dim": 8, "bits": 32}), 10)
        assert sum(p.numel() for p in found.bank.parameters()) == 36_864 * 8


def test_weight_decay_spares_vectors_where_the_paper_does() -> None:
    groups = trainee("consolidator", vit()).groups()
    assert [group["weight_decay"] for group in groups] == [1e-2, 0.0]
    assert all(p.ndim > 1 for p in groups[0]["params"])
    assert len(trainee("lora", vit()).groups()) == 1
    for method, spared in (("spt-lora", {"cls_token"}), ("full", {"cls_token", "pos_embed"})):
        model = vit()
        plain = {id(p) for p in trainee(method, model).groups()[1]["params"]}
        assert {name for name, p in model.named_parameters() if p.ndim > 1 and id(p) in plain} == spared


def test_full_fine_tuning_leaves_the_model_as_it_was() -> None:
    model = vit()
    before = snapshot(model)
    found = trainee("full", model)
    steps(found)
    assert not torch.equal(model.blocks[0].mlp.fc1.weight, before["values"]["blocks.0.mlp.fc1.weight"])
    found.close()
    assert same(before, snapshot(model))


def test_a_failed_attachment_leaves_the_model_as_it_was() -> None:
    model = vit()
    before = snapshot(model)
    with pytest.raises(CallError, match="7 groups do not divide"):
        trainee("consolidator", model, groups=(7,))
    assert same(before, snapshot(model))
    with pytest.raises(CallError, match="mask"):
        Trainee(model, recipe_for("spt-lora", {}), 5)
    with pytest.raises(UnsupportedAdapterError, match="2 blocks"):
        Trainee(model, recipe_for("spt-lora", {}), 5, mask(depth=2))
    with pytest.raises(UnsupportedAdapterError, match="shape"):
        Trainee(model, recipe_for("spt-lora", {}), 5, mask(width=24))
    assert same(before, snapshot(model))


def test_newer_timm_blocks() -> None:
    """Layer scale, query and key norms, and a fused or plain attention."""
    for changes in ({"init_values": 1e-1}, {"qk_norm": True}, {"class_token": False, "global_pool": "avg"}):
        model = vit(**changes)
        found = trainee("lora", model)
        steps(found, 1)
        expected, adapter = logits(found), found.adapter("x")
        found.close()
        with load_adapter(adapter, model, check_fingerprint=False):
            assert close(logits(model), expected, 1e-5)


def test_an_adapter_of_a_run_says_what_it_is() -> None:
    found: Adapter = trainee("lora", vit()).adapter("toy", metadata={"training": {"epoch": 3}})
    assert (found.name, found.method, found.metadata) == ("toy", "lora", {"training": {"epoch": 3}})
