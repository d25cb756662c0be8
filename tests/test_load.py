"""Loading into a live model: against the papers' forward written out, over every method, variant and dtype."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import VisionTransformer
from torch import nn

from adapterpack.adapter import Backbone, Head
from adapterpack.errors import AdapterPackError, BackboneMismatchError, CallError, UnsupportedAdapterError
from adapterpack.methods import METHODS
from adapterpack.runtime import load as load_module
from adapterpack.runtime.attach import attached_sites
from adapterpack.runtime.load import MissingFingerprintWarning, load_adapter
from adapterpack.tensors import Dense, Quantized
from tests._vit import (
    DEPTH,
    EXAMPLES,
    WIDTH,
    adapter,
    adaptformer,
    branch,
    close,
    dense,
    images,
    lora,
    lora_qv,
    one_bit,
    same,
    snapshot,
    sparse,
    vit,
)

MODES = ["auto", "never"]


def weights_of(tensor: Any) -> torch.Tensor:
    """mean ± 0.6744898·deviation, or the numbers themselves: the papers' own reading of a file."""
    if isinstance(tensor, Dense):
        return torch.from_numpy(tensor.data.copy())
    assert isinstance(tensor, Quantized) and tensor.bits == 1
    bits = [(int(tensor.packed[i // 8]) >> (i % 8)) & 1 for i in range(tensor.entries)]
    signs = torch.tensor(bits, dtype=torch.float64).reshape(tensor.shape) * 2 - 1
    return (signs * 0.67448975 * float(tensor.scale[0]) + float(tensor.offset[0])).float()


def paper_forward(model: VisionTransformer, made: Any, x: torch.Tensor) -> torch.Tensor:
    """LoRA on q and v before the heads are split; AdaptFormer on x before norm2, beside the MLP; the task's head."""
    by_site = {(str(b.site)): b for b in made.branches}

    def low_rank(site: str, h: torch.Tensor, act: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor | float:
        if site not in by_site:
            return 0.0
        b = by_site[site]
        hidden = act(F.linear(h, weights_of(b.tensors["down"])))
        return b.params["scale"] * F.linear(hidden, weights_of(b.tensors["up"]))

    tokens = model.patch_embed(x)
    h = torch.cat([model.cls_token.expand(len(x), -1, -1), tokens], dim=1) + model.pos_embed
    for i, block in enumerate(model.blocks):
        n = block.norm1(h)
        q, k, v = F.linear(n, block.attn.qkv.weight, block.attn.qkv.bias).split(WIDTH, dim=-1)
        q = q + low_rank(f"blocks.{i}.attn.qkv[q]", n, lambda z: z)
        v = v + low_rank(f"blocks.{i}.attn.qkv[v]", n, lambda z: z)
        q, k, v = (z.reshape(len(x), -1, 3, WIDTH // 3).transpose(1, 2) for z in (q, k, v))
        scores = (q @ k.transpose(-2, -1)) / (WIDTH // 3) ** 0.5
        h = h + block.attn.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(len(x), -1, WIDTH))
        h = h + block.mlp(block.norm2(h)) + low_rank(f"blocks.{i}.mlp", h, F.relu)
    out = model.norm(h)[:, 0]
    return F.linear(out, weights_of(made.head.weight), weights_of(made.head.bias))


@pytest.mark.parametrize("fold", MODES)
@pytest.mark.parametrize(
    "branches", [lora_qv(), adaptformer(), lora_qv() + adaptformer()], ids=["lora", "adaptformer", "both"]
)
def test_logits_are_the_papers(branches: list[Any], fold: Any) -> None:
    model, x = vit(), images()
    made = adapter(branches, model)
    with torch.no_grad():
        expected, plain = paper_forward(model, made, x), model(x)
        with load_adapter(made, model, fold=fold):
            assert close(model(x), expected)
        assert torch.equal(model(x), plain)
    assert not close(paper_forward(model, adapter([], model), x).detach(), expected, 1e-2)  # the branches matter


@pytest.mark.parametrize("fold", MODES)
@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_unloads_to_the_bit(name: str, fold: Any) -> None:
    model, x = vit(drop_path_rate=0.1), images()
    made, before = adapter(EXAMPLES[name], model), snapshot(model)
    plain = model(x)
    for _ in range(2):
        loaded = load_adapter(made, model, fold=fold)
        assert model(x).shape == (2, 4) and loaded.classes == 4 and loaded.task == "toy"
        assert set(loaded.folded) | set(loaded.attached) == {str(b.site) for b in made.branches}
        if fold == "never" or not METHODS[name].foldable:
            assert not loaded.folded
        loaded.unload()
        loaded.unload()
        assert same(snapshot(model), before)
    assert torch.equal(model(x), plain)


@pytest.mark.parametrize("name", sorted(n for n in METHODS if METHODS[n].foldable))
def test_folded_and_attached_agree(name: str) -> None:
    model, x = vit(), images()
    made = adapter(EXAMPLES[name], model)
    with torch.no_grad():
        with load_adapter(made, model, fold="always") as loaded:
            folded = model(x)
            assert not loaded.attached
        with load_adapter(made, model, fold="never"):
            attached = model(x)
    assert close(attached, folded)


def test_everything_at_once_unloads_to_the_bit() -> None:
    model, x = vit(), images()
    made = adapter([b for rows in EXAMPLES.values() for b in rows], model)
    before = snapshot(model)
    with torch.no_grad():
        with load_adapter(made, model):
            folded = model(x)
        assert same(snapshot(model), before)
        with load_adapter(made, model, fold="never"):
            attached = model(x)
    assert same(snapshot(model), before) and close(attached, folded)


def test_overlapping_branches_at_one_site() -> None:
    """A replacement comes first, the additions go on top of it, and an adapter reads the sum."""
    model = vit()
    site = "blocks.0.mlp.fc1"
    new, added = dense(192, seed=4), sparse(192, seed=5)
    made = adapter([branch(site, "sparse", {"bias": added}), branch(site, "replace", {"bias": new})], model)
    expected = torch.from_numpy(new.data + added.dense())
    for fold in MODES:
        before = snapshot(model)
        with load_adapter(made, model, fold=fold):
            h = torch.randn(2, 3, WIDTH)
            found = model.blocks[0].mlp.fc1(h)
            assert torch.allclose(found, F.linear(h, model.blocks[0].mlp.fc1.weight, expected), atol=1e-5)
        assert same(snapshot(model), before)


VARIANTS: dict[str, Callable[[], nn.Module]] = {
    "no-qkv-bias": lambda: vit(qkv_bias=False),
    "registers": lambda: vit(reg_tokens=4, no_embed_class=True, init_values=0.1),
    "average-pool": lambda: vit(global_pool="avg", class_token=False),
    "fc-norm": lambda: vit(global_pool="avg", fc_norm=True),
    "clip": lambda: vit(pre_norm=True),
    "qk-norm": lambda: vit(qk_norm=True),
    "attention-pool": lambda: vit(global_pool="map", class_token=False),
    "no-head": lambda: vit(num_classes=0),
    "dynamic": lambda: vit(dynamic_img_size=True),
    "drop-path": lambda: vit(drop_path_rate=0.2),
}


@pytest.mark.parametrize("fold", MODES)
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_variants(variant: str, fold: Any) -> None:
    model, x = VARIANTS[variant](), images()
    made, before = adapter(lora_qv() + adaptformer(), model), snapshot(model)
    reference = copy.deepcopy(model)
    with torch.no_grad():
        install_by_hand(reference, made)
        expected = reference(x)
        with load_adapter(made, model, fold=fold):
            assert close(model(x), expected)
    assert same(snapshot(model), before)


class HandBlock(nn.Module):
    """timm's block with an AdaptFormer written into it."""

    def __init__(self, block: Any, made: Any) -> None:
        super().__init__()
        self.block, self.scale = block, made.params["scale"]
        self.down, self.up = weights_of(made.tensors["down"]), weights_of(made.tensors["up"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b = self.block
        x = x + b.ls1(b.attn(b.norm1(x)))
        return x + b.ls2(b.mlp(b.norm2(x))) + self.scale * F.linear(F.relu(F.linear(x, self.down)), self.up)


def install_by_hand(model: Any, made: Any) -> None:
    for b in made.branches:
        index, up, down = b.site.block, weights_of(b.tensors["up"]), weights_of(b.tensors["down"])
        if b.method == "lora":
            first = "qkv".index(b.site.part) * WIDTH
            model.blocks[index].attn.qkv.weight[first : first + WIDTH] += b.params["scale"] * up @ down
        else:
            model.blocks[index] = HandBlock(model.blocks[index], b)
    model.head = nn.Linear(WIDTH, 4)
    model.head.weight.copy_(weights_of(made.head.weight))
    model.head.bias.copy_(weights_of(made.head.bias))


@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224", "deit_small_patch16_224", "deit3_small_patch16_224", "vit_small_patch14_reg4_dinov2",
     "vit_base_patch16_clip_224", "vit_base_patch16_siglip_224"],
)  # fmt: skip
def test_timm_models(name: str) -> None:
    model = timm.create_model(name, depth=2, img_size=32 if "14" not in name else 28, num_classes=5).eval()
    width = model.embed_dim
    tensors = {"down": one_bit(2, width), "up": one_bit(width, 2, seed=1)}
    branches = [branch(f"blocks.{i}.attn.qkv[{p}]", "lora", tensors, scale=0.1) for i in range(2) for p in "qv"]
    branches.append(branch("blocks.1.mlp", "adaptformer", tensors, scale=0.1))
    made = adapter(branches, model, head=Head(one_bit(3, width)))
    before, x = snapshot(model), images(1, model.patch_embed.img_size[0])
    with torch.no_grad():
        with load_adapter(made, model):
            folded = model(x)
        with load_adapter(made, model, fold="never"):
            assert close(model(x), folded)
    assert folded.shape == (1, 3) and same(snapshot(model), before)


class SeparateAttention(nn.Module):
    """Attention with one projection each for q, k and v, as HuggingFace and some timm models have it."""

    def __init__(self, dim: int, num_heads: int = 3, qkv_bias: bool = True, **_: Any) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj, self.proj = (nn.Linear(dim, dim, bias=qkv_bias) for _ in range(4))

    def forward(self, x: torch.Tensor, attn_mask: Any = None, is_causal: bool = False) -> torch.Tensor:
        parts = (
            p(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.proj(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("fold", MODES)
def test_separate_projections_match_the_fused_one(fold: Any) -> None:
    fused, x = vit(), images()
    split = vit(attn_layer=SeparateAttention)
    split.load_state_dict({k: v for k, v in fused.state_dict().items() if "qkv" not in k}, strict=False)
    with torch.no_grad():
        for one, other in zip(fused.blocks, split.blocks):
            for i, name in enumerate(("q_proj", "k_proj", "v_proj")):
                rows = slice(i * WIDTH, (i + 1) * WIDTH)
                getattr(other.attn, name).weight.copy_(one.attn.qkv.weight[rows])
                getattr(other.attn, name).bias.copy_(one.attn.qkv.bias[rows])
        before = snapshot(split)
        with load_adapter(adapter(lora_qv(), fused), fused), load_adapter(adapter(lora_qv(), split), split, fold=fold):
            assert close(split(x), fused(x))
    assert same(snapshot(split), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("fold", MODES)
def test_dtypes(dtype: torch.dtype, fold: Any) -> None:
    model = vit().to(dtype)
    made, before = adapter([b for rows in EXAMPLES.values() for b in rows], model), snapshot(model)
    with torch.no_grad(), load_adapter(made, model, fold=fold):
        logits = model(images().to(dtype))
        assert logits.dtype == dtype and logits.isfinite().all()
    assert same(snapshot(model), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_folds_in_float32_and_rounds_once(dtype: torch.dtype) -> None:
    model = vit().to(dtype)
    weight = model.blocks[0].mlp.fc1.weight
    b = lora("blocks.0.mlp.fc1", out=4 * WIDTH, seed=3, scale=0.1)
    delta = (weights_of(b.tensors["up"]) * 0.1) @ weights_of(b.tensors["down"])
    expected = (weight.float() + delta).to(dtype)
    with load_adapter(adapter([b], model), model):
        differ = (weight != expected).float().mean()
        assert differ < 0.02 and torch.allclose(weight.float(), expected.float(), rtol=2e-2)  # ties of one ulp at most


@pytest.mark.parametrize("fold", MODES)
@pytest.mark.parametrize("context", ["inference", "autocast", "inference-model"])
def test_contexts(context: str, fold: Any) -> None:
    x = images()
    with torch.inference_mode(context == "inference-model"):
        model = vit()
    before = snapshot(model)
    made = adapter([b for rows in EXAMPLES.values() for b in rows], model)
    with torch.no_grad(), load_adapter(made, model, fold=fold):
        expected = model(x)
    scope = torch.autocast("cpu", dtype=torch.bfloat16) if context == "autocast" else torch.inference_mode()
    with scope:
        loaded = load_adapter(made, model, fold=fold)
    with torch.no_grad():
        assert torch.equal(model(x), expected)  # loading itself is done in full precision
    with scope:
        assert close(model(x).float(), expected, 0.1 if context == "autocast" else 1e-6)
        loaded.unload()
    assert same(snapshot(model), before)
    if context == "inference":
        assert not model.head.weight.is_inference()


@pytest.mark.parametrize("name", sorted(METHODS))
def test_gradients_flow_to_the_input(name: str) -> None:
    model = vit().requires_grad_(False)
    made = adapter(EXAMPLES[name], model)
    with load_adapter(made, model, fold="never"):
        x = images().double().requires_grad_()
        model.double()
        loss = model(x).square().sum()
        (grad,) = torch.autograd.grad(loss, x)
        step = torch.zeros_like(x)
        step[0, 1, 5, 7] = 1e-6
        with torch.no_grad():
            slope = (model(x + step).square().sum() - model(x - step).square().sum()) / 2e-6
        assert torch.allclose(grad[0, 1, 5, 7], slope, rtol=1e-4, atol=1e-8)


def test_a_trainable_backbone_can_run_under_autograd() -> None:
    model = vit()
    with load_adapter(adapter(lora_qv() + adaptformer(), model), model, fold="never"):
        model(images()).sum().backward()
    assert model.blocks[0].attn.qkv.weight.grad is not None


def test_threads_do_not_mix_their_residual_streams() -> None:
    model = vit()
    with load_adapter(adapter(adaptformer(), model), model), torch.no_grad():
        batches = [images() * (i + 1) for i in range(4)]
        expected = [model(x) for x in batches]
        found: dict[int, list[torch.Tensor]] = {i: [] for i in range(4)}

        def work(i: int) -> None:
            with torch.no_grad():
                found[i] = [model(batches[i]) for _ in range(20)]

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(len(found[i]) == 20 and all(torch.equal(y, expected[i]) for y in found[i]) for i in range(4))


def test_a_copy_of_a_loaded_model_works_and_is_marked() -> None:
    model, x = vit(), images()
    made = adapter(lora_qv() + adaptformer(), model)
    with load_adapter(made, model, fold="never"), torch.no_grad():
        twin = copy.deepcopy(model)
        assert torch.equal(twin(x), model(x))
        with pytest.raises(UnsupportedAdapterError, match="already") as error:
            load_adapter(made, twin, check_fingerprint=False)
        assert error.value.reason == "already-loaded"


def test_compiled_model_sees_a_fold_and_refuses_hooks() -> None:
    model, x = vit(), images()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        plain = compiled(x)
        made = adapter(lora_qv(), model)
        with load_adapter(made, model):
            expected = model(x)
        with load_adapter(made, compiled):
            assert torch.equal(compiled(x), expected)
        assert torch.equal(compiled(x), plain)
    with pytest.raises(UnsupportedAdapterError, match=r"blocks\.0\.mlp") as error:
        load_adapter(adapter(adaptformer(), model), compiled)
    assert error.value.reason == "unsupported-model"


@pytest.mark.parametrize("part", ["", "blocks.1", "blocks.1.mlp", "blocks.1.norm2", "blocks.1.drop_path2"])
def test_a_model_compiled_in_place_refuses_hooks(part: str) -> None:
    model = vit()
    model.get_submodule(part).compile(backend="eager")
    with pytest.raises(UnsupportedAdapterError, match="compiled") as error:
        load_adapter(adapter(adaptformer(), model), model)
    assert error.value.reason == "unsupported-model" and attached_sites(model) == []
    with load_adapter(adapter(lora_qv(), model), model):
        pass


@pytest.mark.parametrize(
    ("part", "rows", "layer"),
    [
        ("blocks.1", lora_qv(), None),
        ("blocks.1.attn.qkv", lora_qv(), None),
        ("blocks.1.mlp.fc1", [lora("blocks.1.mlp.fc1", out=4 * WIDTH)], None),
        ("blocks.1.attn.v_proj", lora_qv(), SeparateAttention),
    ],
)
def test_a_layer_compiled_in_place_refuses_hooks(part: str, rows: Any, layer: Any) -> None:
    model = vit() if layer is None else vit(attn_layer=layer)
    model.get_submodule(part).compile(backend="eager")
    with pytest.raises(UnsupportedAdapterError, match="compiled") as error:
        load_adapter(adapter(rows), model, fold="never", check_fingerprint=False)
    assert error.value.reason == "unsupported-model" and attached_sites(model) == []


@pytest.mark.parametrize("training", [False, True])
def test_the_head_is_in_the_models_mode(training: bool) -> None:
    model = vit().train(training)
    with load_adapter(adapter(lora_qv(), head=Head(dense(3, WIDTH))), model, check_fingerprint=False):
        assert {module.training for module in model.modules()} == {training}


def test_hooks_that_others_add_meanwhile_stay() -> None:
    model, seen = vit(), []
    loaded = load_adapter(adapter([*lora_qv(), *adaptformer()]), model, fold="never", check_fingerprint=False)
    for block in model.blocks:
        block.attn.qkv.register_forward_hook(lambda *_: seen.append("qkv"))
        block.drop_path2.register_forward_hook(lambda *_: seen.append("end"))
    assert len(attached_sites(model)) == len(loaded.attached)
    loaded.unload()
    with torch.no_grad():
        model(images())
    assert sorted(seen) == ["end"] * DEPTH + ["qkv"] * DEPTH


def test_a_device_that_is_not_there() -> None:
    model = vit()
    for device in ("nowhere", "meta"):
        with pytest.raises(CallError) as error:
            load_adapter(adapter(lora_qv(), model), model, device=device)
        assert error.value.reason == "bad-call"


def test_a_model_without_numbers() -> None:
    model = vit()
    made = adapter(lora_qv(), model)
    with pytest.raises(UnsupportedAdapterError, match="meta") as error:
        load_adapter(made, model.to("meta"), check_fingerprint=False)
    assert error.value.reason == "unsupported-model"


def test_convpass_counts_the_tokens_before_the_patches() -> None:
    (branch,) = EXAMPLES["convpass"][:1]
    model = vit(reg_tokens=2)
    with pytest.raises(UnsupportedAdapterError, match="1 tokens before the patches, the model has 3") as error:
        load_adapter(adapter([branch], model), model)
    assert error.value.reason == "site-shape"


def test_head_in_and_out() -> None:
    model = vit()
    head = model.head
    made = adapter([], model, head=Head(one_bit(11, WIDTH)), labels=tuple("abcdefghijk"))
    loaded = load_adapter(made, model)
    assert (
        model.num_classes == loaded.classes == 11 and model.head.bias is None and loaded.labels == tuple("abcdefghijk")
    )
    assert torch.allclose(model.head.weight, weights_of(made.head.weight), atol=1e-6)
    loaded.unload()
    assert model.head is head and model.num_classes == 7
    headless = adapter(lora_qv(), model, classes=0)
    with load_adapter(headless, model) as loaded:
        assert model.head is head and loaded.classes == 7


@pytest.mark.parametrize("fold", MODES)
def test_moved_and_cast_between_load_and_unload(fold: Any) -> None:
    """What was kept goes back into the parameters as they are now."""
    model = vit()
    expected = copy.deepcopy(model).bfloat16().state_dict()
    loaded = load_adapter(adapter(lora_qv() + EXAMPLES["sparse"], model), model, fold=fold)
    model.bfloat16()
    assert model(images().bfloat16()).isfinite().all()
    loaded.unload()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


# What is refused. Each row: what makes the adapter, the reason, and a name that the message must hold.
REFUSED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "no-such-block": (lambda: [lora("blocks.9.attn.qkv[q]")], "missing-site", r"blocks\.9\.attn.*3 blocks"),
    "no-such-module": (lambda: [lora("blocks.0.attn.gate")], "missing-site", r"blocks\.0\.attn\.gate"),
    "part-of-fc1": (lambda: [lora("blocks.0.mlp.fc1[q]")], "missing-site", "fc1"),
    "the-head": (lambda: [lora("head", out=7)], "missing-site", "head"),
    "wrong-width": (lambda: [lora("blocks.1.attn.qkv[v]", inward=64)], "site-shape", r"blocks\.1\.attn\.qkv\[v\]"),
    "wrong-rows": (lambda: [lora("blocks.1.attn.qkv", out=WIDTH)], "site-shape", r"blocks\.1\.attn\.qkv"),
    "ranks-differ": (
        lambda: [branch("blocks.0.attn.proj", "lora", {"down": dense(2, 48), "up": dense(48, 3)}, scale=1.0)],
        "site-shape",
        "down has 2 rows",
    ),
    "residual-elsewhere": (
        lambda: [branch("blocks.0.attn.proj", "adaptformer", adaptformer(1)[0].tensors, scale=1.0)],
        "missing-site",
        r"blocks\.N\.mlp",
    ),
    "residual-no-block": (
        lambda: [branch("blocks.7.mlp", "adaptformer", adaptformer(1)[0].tensors, scale=1.0)],
        "missing-site",
        "3 blocks",
    ),
    "residual-width": (
        lambda: [branch("blocks.0.mlp", "adaptformer", {"down": dense(2, 64), "up": dense(64, 2)}, scale=1.0)],
        "site-shape",
        r"blocks\.0\.mlp.*64",
    ),
    "unused-tensor": (
        lambda: [branch("norm", "lora", {"down": dense(2, 48), "up": dense(48, 2), "gate": dense(1)}, scale=1.0)],
        "unmapped-tensor",
        "gate",
    ),
    "missing-tensor": (lambda: [branch("norm", "lora", {"up": dense(48, 2)}, scale=1.0)], "missing-tensor", "down"),
    "no-tensors": (lambda: [branch("norm", "replace", {})], "missing-tensor", "norm"),
    "unknown-setting": (
        lambda: [branch("norm", "replace", {"bias": dense(48)}, scale=1.0)],
        "bad-parameter",
        "scale is unknown",
    ),
    "missing-setting": (
        lambda: [branch("blocks.0.attn.proj", "lora", {"down": dense(2, 48), "up": dense(48, 2)})],
        "bad-parameter",
        "scale is missing",
    ),
    "setting-of-another-type": (
        lambda: [branch("blocks.0.attn.proj", "lora", {"down": dense(2, 48), "up": dense(48, 2)}, scale=[])],
        "bad-parameter",
        r"scale is \[\]",
    ),
    "scale-that-is-no-number": (
        lambda: [branch("blocks.0.attn.proj", "lora", {"down": dense(2, 48), "up": dense(48, 2)}, scale=float("nan"))],
        "bad-parameter",
        "scale is nan",
    ),
    "nonlinearity-of-another-name": (
        lambda: [
            branch(
                "blocks.0.mlp.fc2",
                "adapter",
                {"down": dense(3, 48), "up": dense(48, 3)},
                scale=1.0,
                tap="output",
                nonlinearity="swish",
            )
        ],
        "bad-parameter",
        "swish.*expected .*silu",
    ),
    "unknown-method": (lambda: [branch("norm", "none-such", {"bias": dense(48)})], "unknown-method", "none-such"),
    "bare-parameter": (lambda: [branch("cls_token", "replace", {"value": dense(48)})], "site-shape", "cls_token"),
    "no-such-parameter": (lambda: [branch("norm", "replace", {"value": dense(48)})], "missing-site", "value at norm"),
    "replaced-twice": (
        lambda: [
            branch("norm", "replace", {"bias": dense(48)}),
            branch("norm", "replace", {"bias": dense(48, seed=1)}),
        ],
        "duplicate-name",
        "norm",
    ),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
@pytest.mark.parametrize("fold", MODES)
def test_refused_by_name_and_untouched(case: str, fold: Any) -> None:
    make, reason, name = REFUSED[case]
    model = vit()
    before = snapshot(model)
    made = adapter([*lora_qv(), *make()], model)
    with pytest.raises(AdapterPackError, match=f"(?s){name}") as error:
        load_adapter(made, model, fold=fold)
    assert error.value.reason == reason
    assert same(snapshot(model), before)


def test_bad_heads_and_labels() -> None:
    model = vit()
    before = snapshot(model)
    rows: list[tuple[dict[str, Any], str]] = [
        ({"head": Head(one_bit(4, 64))}, "site-shape"),
        ({"head": Head(dense(48))}, "site-shape"),
        ({"head": Head(one_bit(4, 48), dense(5))}, "site-shape"),
        ({"labels": ("a", "b")}, "bad-labels"),
    ]
    for changes, reason in rows:
        with pytest.raises(UnsupportedAdapterError, match=r"head|labels") as error:
            load_adapter(adapter(lora_qv(), model, **changes), model)
        assert error.value.reason == reason and same(snapshot(model), before)


def test_bias_where_the_model_has_none() -> None:
    """It cannot be folded or replaced, but a branch can run beside the layer."""
    model, x = vit(qkv_bias=False), images()
    made = adapter([EXAMPLES["consolidator"][0]], model)
    before = snapshot(model)
    with load_adapter(made, model) as loaded:
        assert loaded.attached == ("blocks.0.attn.qkv",) and model(x).shape == (2, 4)
    with pytest.raises(UnsupportedAdapterError, match=r"blocks\.0\.attn\.qkv") as error:
        load_adapter(made, model, fold="always")
    assert error.value.reason == "not-foldable"
    with pytest.raises(UnsupportedAdapterError, match=r"no bias at blocks\.1\.attn\.qkv\[q\]") as error:
        load_adapter(adapter([branch("blocks.1.attn.qkv[q]", "replace", {"bias": dense(WIDTH)})], model), model)
    assert error.value.reason == "missing-site" and same(snapshot(model), before)


def test_always_names_what_cannot_be_folded() -> None:
    model = vit()
    before = snapshot(model)
    with pytest.raises(UnsupportedAdapterError, match=r"adaptformer at blocks\.0\.mlp and 2 more") as error:
        load_adapter(adapter(lora_qv() + adaptformer(), model), model, fold="always")
    assert error.value.reason == "not-foldable" and same(snapshot(model), before)


def test_bad_fold_is_the_callers_fault() -> None:
    model = vit()
    with pytest.raises(CallError, match="fold"):
        load_adapter(adapter([], model), model, fold="yes")  # type: ignore[arg-type]


def test_models_that_are_refused() -> None:
    distilled = timm.create_model("deit_tiny_distilled_patch16_224", depth=1)
    parallel = vit(block_fn=timm.models.vision_transformer.ResPostBlock)
    made = adapter(adaptformer(1), vit())
    for model, text in (
        (nn.Linear(3, 3), "Linear"),
        (distilled, "two heads"),
        (nn.DataParallel(vit()), "model.module"),
    ):
        with pytest.raises(UnsupportedAdapterError, match=text) as error:
            load_adapter(made, model)
        assert error.value.reason == "unsupported-model"
    with pytest.raises(UnsupportedAdapterError, match="ResPostBlock") as error:
        load_adapter(made, parallel)
    assert error.value.reason == "unsupported-model"


def test_fingerprints() -> None:
    model = vit()
    made = adapter(lora_qv(), model)
    before = snapshot(model)
    with pytest.raises(BackboneMismatchError, match="small") as error:
        load_adapter(adapter(lora_qv(), model, backbone=Backbone("small", "sha256:" + "0" * 64)), model)
    assert error.value.reason == "fingerprint-mismatch" and same(snapshot(model), before)
    with torch.no_grad():
        model.blocks[0].norm1.weight[3] += 1e-6
    with pytest.raises(BackboneMismatchError):
        load_adapter(made, model)
    load_adapter(made, model, check_fingerprint=False).unload()


def test_missing_fingerprint_warns() -> None:
    model = vit()
    with pytest.warns(MissingFingerprintWarning, match="toy"):
        load_adapter(adapter([]), model).unload()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_adapter(adapter([]), model, check_fingerprint=False).unload()


def test_second_load_is_refused_until_unloaded() -> None:
    model = vit()
    made = adapter(lora_qv(), model)
    loaded = load_adapter(made, model)
    with pytest.raises(UnsupportedAdapterError, match="toy") as error:
        load_adapter(made, model)
    assert error.value.reason == "already-loaded"
    loaded.unload()
    load_adapter(made, model).unload()


@pytest.mark.parametrize("fold", MODES)
@pytest.mark.parametrize("after", [1, 5, 12])
def test_failure_half_way_rolls_back(monkeypatch: pytest.MonkeyPatch, fold: Any, after: int) -> None:
    model = vit()
    made, before = adapter([b for rows in EXAMPLES.values() for b in rows], model), snapshot(model)
    done = 0
    real = load_module.apply_step

    def failing(*args: Any) -> None:
        nonlocal done
        done += 1
        real(*args)
        if done == after:
            raise MemoryError

    monkeypatch.setattr(load_module, "apply_step", failing)
    with pytest.raises(CallError, match="memory") as error:
        load_adapter(made, model, fold=fold)
    assert error.value.reason == "out-of-memory" and done == after
    assert same(snapshot(model), before)


def test_a_write_that_fails_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    from adapterpack.runtime import fold as fold_module

    model = vit()
    made, before = adapter(lora_qv(), model), snapshot(model)
    real = fold_module.write

    def failing(target: torch.Tensor, delta: Any, *, replaces: bool) -> None:
        real(target, delta, replaces=replaces)
        raise KeyboardInterrupt

    monkeypatch.setattr(fold_module, "write", failing)
    with pytest.raises(KeyboardInterrupt):
        load_adapter(made, model)
    assert same(snapshot(model), before)


def test_hundred_mixed_swaps() -> None:
    model = vit()
    tasks = [adapter([b for b in EXAMPLES[name]], model) for name in sorted(METHODS)]
    before = snapshot(model)
    for i in range(100):
        load_adapter(tasks[i % len(tasks)], model, fold=MODES[i // len(tasks) % 2]).unload()  # type: ignore[arg-type]
    assert same(snapshot(model), before)


def test_device_moves_the_model_after_the_checks() -> None:
    model = vit()
    with pytest.raises(UnsupportedAdapterError):
        load_adapter(adapter([lora("nowhere")], model), model, device="meta")
    assert model.head.weight.device.type == "cpu"
    load_adapter(adapter(lora_qv(), model), model, device="cpu").unload()


def test_writing_is_in_full_precision_and_without_gradients() -> None:
    model = vit()
    a = torch.rand(4, 4, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16), load_module.writing(model):
        product = a @ a
    assert product.dtype == torch.float32 and not product.requires_grad


def test_depth_constant_matches() -> None:
    assert len(vit().blocks) == DEPTH
