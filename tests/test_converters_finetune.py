"""Whole fine-tuned models: what training changed, kept in each form, against the model itself and textbook formulas."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

import adapterpack
from adapterpack.converters import recognise
from adapterpack.converters._base import Hints, Imported
from adapterpack.converters._report import Extracted
from adapterpack.converters.finetune import How, parse_how, stored_bytes
from adapterpack.converters.state_dict import adapter_from
from adapterpack.errors import AdapterPackError, CallError
from adapterpack.runtime.load import load_adapter
from adapterpack.tensors import Dense, Quantized, Sparse
from adapterpack_cli.main import main
from tests._vit import DEPTH, WIDTH, array, close, images, same, snapshot, vit

State = dict[str, NDArray[np.float32]]
FOLDS = ("auto", "never")


def state_of(model: nn.Module) -> State:
    return {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}


BASE = state_of(vit())


def tuned(kind: str) -> State:
    """A model after one of three kinds of training: everything; a rank of 2 in every matrix; a few entries."""
    state = {name: value.copy() for name, value in BASE.items()}
    for n, (name, value) in enumerate(state.items()):
        noise = array(*value.shape, seed=n, spread=0.02)
        if value.ndim != 2:
            value += noise if kind != "few" or value.ndim < 2 else 0
        elif kind == "full" or name.startswith("head"):
            value += noise
        elif kind == "rank 2":
            value += array(len(value), 2, seed=n) @ array(2, value.shape[1], seed=n) * np.float32(0.3)
        else:
            value.reshape(-1)[:: 50 + n] += np.float32(0.5)
    return state


def read(state: State, how: str, **settings: Any) -> Imported:
    return adapter_from(state, {"as": how, **settings}, Hints(backbone=BASE), "run")


def logits(state: State) -> torch.Tensor:
    model = vit()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    with torch.no_grad():
        found: torch.Tensor = model(images())
    return found


def rebuilt(imported: Imported) -> State:
    """The model that the adapter gives: folded, read back out of the live model."""
    model = vit()
    load_adapter(imported.adapter, model, check_fingerprint=False)
    return state_of(model)


def rows(imported: Imported) -> dict[str, Extracted]:
    return {row.tensor: row for row in imported.matrices}


def measured(state: State, again: State, name: str) -> float:
    gap = state[name].astype(np.float64) - BASE[name]
    return float(np.linalg.norm(state[name].astype(np.float64) - again[name]) / np.linalg.norm(gap))


@pytest.mark.parametrize("how", ["sparse", "lowrank:48"])
@pytest.mark.parametrize("kind", ["full", "rank 2", "few"])
@pytest.mark.parametrize("fold", FOLDS)
def test_forms_that_lose_nothing_give_the_tuned_models_logits(how: str, kind: str, fold: Any) -> None:
    state, model = tuned(kind), vit()
    before = snapshot(model)
    with load_adapter(read(state, how).adapter, model, fold=fold, check_fingerprint=False), torch.no_grad():
        assert close(model(images()), logits(state))
    assert same(snapshot(model), before)
    assert not close(logits(BASE), logits(state))


@pytest.mark.parametrize("how", ["sparse", "lowrank:3", "bitdelta", "bitdelta:32", "auto"])
@pytest.mark.parametrize("kind", ["full", "rank 2", "few"])
def test_the_report_is_what_a_fold_gives(how: str, kind: str) -> None:
    state = tuned(kind)
    imported = read(state, how)
    again, found = rebuilt(imported), rows(imported)
    changed = [name for name in state if not np.array_equal(state[name], BASE[name]) and not name.startswith("head.")]
    assert list(found) == changed
    for name, row in found.items():
        assert row.shape == state[name].shape and 0 <= row.kept_energy <= 1
        np.testing.assert_allclose(row.relative_error, measured(state, again, name), rtol=0, atol=1e-5)
        np.testing.assert_allclose(row.kept_energy, 1 - row.relative_error**2, rtol=0, atol=1e-6)
        if row.form == "exact" or state[name].ndim < 2:
            assert row.form == "exact" and np.array_equal(again[name], state[name]) and row.relative_error == 0
    assert np.array_equal(again["head.weight"], state["head.weight"])


def test_low_rank_is_the_truncated_singular_value_decomposition() -> None:
    state = tuned("full")
    found = rows(read(state, "lowrank:5"))
    for name in ("blocks.0.attn.qkv.weight", "blocks.1.mlp.fc2.weight", "blocks.2.attn.proj.weight"):
        gap = state[name].astype(np.float64) - BASE[name]
        values = np.linalg.svd(gap, compute_uv=False)
        share = float((values[:5] ** 2).sum() / (values**2).sum())
        assert found[name].form == "lowrank:5"
        np.testing.assert_allclose(found[name].kept_energy, share, rtol=0, atol=1e-4)
        assert found[name].bytes == 4 * 5 * sum(gap.shape)
    assert found["pos_embed"].form == found["patch_embed.proj.weight"].form == "exact"


def test_a_low_rank_is_found_and_no_higher_one() -> None:
    imported = read(tuned("rank 2"), "auto")
    forms = {row.tensor: row.form for row in imported.matrices if row.tensor.endswith(("qkv.weight", "fc1.weight"))}
    assert len(forms) == 2 * DEPTH and set(forms.values()) == {"lowrank:2"}
    assert max(row.relative_error for row in imported.matrices if row.form == "lowrank:2") < 1e-4


@pytest.mark.parametrize("group", [0, 32])
def test_bitdelta_is_the_sign_and_the_mean_magnitude(group: int) -> None:
    """Liu et al. 2024, equation 3: α·sign(Δ) with α the mean of |Δ|, here of a matrix or of each group."""
    state = tuned("full")
    imported = read(state, f"bitdelta:{group}" if group else "bitdelta")
    branch = next(b for b in imported.adapter.branches if str(b.site) == "blocks.1.mlp.fc1" and "weight" in b.tensors)
    name = "blocks.1.mlp.fc1.weight"
    gap = state[name] - BASE[name]
    parts = gap.reshape(-1, group or gap.size)
    alpha = np.abs(parts).mean(axis=1, dtype=np.float64).astype(np.float16 if group else np.float32)
    expected = (np.where(parts > 0, 1, -1) * alpha[:, None].astype(np.float32)).reshape(gap.shape)
    tensor = branch.tensors["weight"]
    assert branch.method == "sparse" and isinstance(tensor, Quantized) and tensor.bits == 1 and tensor.offset is None
    np.testing.assert_allclose(tensor.dense(), expected, rtol=1e-3 if group else 1e-6)
    assert rows(imported)[name].bytes == gap.size // 8 + (2 * gap.size // group if group else 4)


def test_of_normal_noise_signs_keep_two_over_pi() -> None:
    found = rows(read(tuned("full"), "bitdelta"))["blocks.0.mlp.fc1.weight"]
    assert abs(found.kept_energy - 2 / np.pi) < 0.02


def test_auto_by_its_rule() -> None:
    few, full = rows(read(tuned("few"), "auto")), rows(read(tuned("full"), "auto"))
    assert {row.form for name, row in few.items() if name.endswith("c1.weight")} == {"sparse"}
    assert {row.form for name, row in full.items() if name.endswith(("c1.weight", "pos_embed"))} == {"bitdelta"}
    for found in (few, full):
        assert all(row.form == "exact" for row in found.values() if max(row.shape) == np.prod(row.shape))


def test_sparse_of_everything_is_the_new_values() -> None:
    """Positions of all entries would cost more than the entries."""
    found = rows(read(tuned("full"), "sparse"))
    assert {row.form for row in found.values()} == {"exact"}
    assert found["blocks.0.attn.qkv.weight"].bytes == 4 * 3 * WIDTH * WIDTH


def test_what_is_equal_is_dropped_and_counted() -> None:
    state = {**BASE, "blocks.1.mlp.fc1.weight": tuned("full")["blocks.1.mlp.fc1.weight"]}
    imported = read(state, "auto")
    assert [str(branch.site) for branch in imported.adapter.branches] == ["blocks.1.mlp.fc1"]
    assert imported.notes == (f"{len(BASE) - 3} tensors equal the backbone's",)
    assert imported.adapter.method == "finetune"


@given(st.integers(0, 2**16), st.integers(1, 12), st.integers(1, 12))
def test_entries_of_any_difference(seed: int, out: int, inward: int) -> None:
    """Sparse differences and new values come back as float32 sums can give them."""
    rng = np.random.default_rng(seed)
    base = {"norm.weight": np.zeros(3, np.float32), "blocks.0.mlp.fc1.weight": array(out, inward, seed=seed)}
    state = {name: value.copy() for name, value in base.items()}
    which = rng.random((out, inward)) < 0.3
    state["blocks.0.mlp.fc1.weight"][which] += array(int(which.sum()), seed=seed)
    state |= {"head.weight": np.ones((2, 3), np.float32), "head.bias": np.ones(2, np.float32)}
    imported = adapter_from(state, {"as": "sparse"}, Hints(backbone=base), "run")
    found = base["blocks.0.mlp.fc1.weight"].copy()
    for branch in imported.adapter.branches:
        values = branch.tensors["weight"].dense()
        found = values if branch.method == "replace" else found + values
    np.testing.assert_allclose(found, state["blocks.0.mlp.fc1.weight"], rtol=0, atol=2e-7)


@pytest.mark.parametrize(
    "tensor",
    [
        Dense(array(5, 3)),
        Dense(array(5, 3).astype(np.float16), "float16"),
        Sparse((40, 30), np.arange(0, 1200, 7, dtype=np.int64), Dense(array(172))),
    ],
)
def test_stored_bytes_are_those_of_the_file(tensor: Any, tmp_path: Path) -> None:
    branch = adapterpack.Branch(adapterpack.Site("x"), "sparse", {}, {"weight": tensor})
    sizes = adapterpack.pack(adapterpack.Adapter("a", "m", (branch,)), tmp_path / "x.apk", profile="fast").sizes
    payload = sum(segment.size for segment in adapterpack.open(tmp_path / "x.apk").index.tasks[0].segments)
    assert stored_bytes(tensor) == payload <= sizes["file_bytes"]


def save(state: State, path: Path) -> Path:
    tensors = {name: torch.from_numpy(value) for name, value in state.items()}
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({"state_dict": tensors, "epoch": 3}, path)
    return path


def backbone_file(folder: Path) -> Path:
    kwargs = {"img_size": 32, "patch_size": 8, "num_classes": 7, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": 3}
    path = save(BASE, folder / "base.safetensors")
    path.with_suffix(".json").write_text(json.dumps({"timm_kwargs": kwargs, "mean": [0.5] * 3, "std": [0.5] * 3}))
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("how", ["auto", "bitdelta", "lowrank:4", "sparse"])
def test_the_command_from_file_to_logits(
    suffix: str, how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, out = tuned("rank 2"), tmp_path / "x.apk"
    source, base = save(state, tmp_path / f"tuned{suffix}"), backbone_file(tmp_path)
    assert recognise(source).name == ("safetensors" if suffix == ".safetensors" else "checkpoint")
    words = ["pack", str(source), "--backbone", str(base), "--as", how, "-o", str(out)]
    with pytest.raises(SystemExit) as done:
        main(words)
    shown = capsys.readouterr().out
    assert done.value.code == 0 and "kept exactly: " in shown
    assert ("blocks.0.attn.qkv.weight" in shown and "energy kept" in shown) == (how != "sparse")
    with pytest.raises(SystemExit):
        main([*words, "--force", "--json"])
    told = json.loads(capsys.readouterr().out)
    names = {row["tensor"] for row in told["matrices"]}
    assert names == {name for name in BASE if not name.startswith("head.")}
    assert all(
        row.keys() == {"tensor", "shape", "form", "kept_energy", "relative_error", "bytes"} for row in told["matrices"]
    )
    again = adapterpack.pack(source, tmp_path / "y.apk", backbone=base, settings={"as": how})
    assert [row.tensor for row in again.matrices] == [row["tensor"] for row in told["matrices"]]
    model = vit()
    loaded = adapterpack.load(out, model)
    with torch.no_grad():
        assert close(model(images()), logits(state), 0.5 if how in ("bitdelta", "auto") else 1e-2)
    loaded.unload()
    assert all(np.array_equal(value, BASE[name]) for name, value in state_of(model).items())


def test_said_twice_or_wrongly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save(tuned("few"), tmp_path / "tuned.safetensors")
    base = ["--backbone", str(backbone_file(tmp_path))]
    wrong = (["--as", "auto", "--set", "as=auto"], ["--as", "lowrank"], ["--as", "auto"], ["--as", "bitdelta:7", *base])
    for words in wrong:
        with pytest.raises(SystemExit) as done:
            main(["pack", str(source), "-o", str(tmp_path / "x.apk"), *words])
        assert done.value.code == 2 and capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "x.apk").exists()


@pytest.mark.parametrize(
    "text",
    [
        "bitdelta:7",
        "bitdelta:1",
        "bitdelta:131072",
        "",
        "lowrank:0",
        "lowrank:-1",
        "lowrank:4097",
        "lowrank:1.5",
        "bitdelta:",
        "Auto",
        "auto:3",
    ],
)
def test_forms_that_are_none(text: str) -> None:
    with pytest.raises(CallError) as caught:
        parse_how(text)
    assert caught.value.reason == "bad-call" and "lowrank:R" in str(caught.value)


def test_forms_that_are() -> None:
    assert parse_how("lowrank:8") == How("lowrank", 8) and parse_how("bitdelta:128") == How("bitdelta", 0, 128)
    assert parse_how("auto") == How("auto") and parse_how("sparse").kind == "sparse"


def without(name: str) -> Callable[[State], Any]:
    return lambda state: state.pop(name)


def extra(name: str, *shape: int) -> Callable[[State], Any]:
    return lambda state: state.update({name: array(*shape)})


BAD: dict[str, tuple[Callable[[State], Any], str, str]] = {
    "missing": (without("blocks.1.norm2.bias"), "missing-tensor", "blocks.1.norm2.bias"),
    "missing matrix": (without("blocks.2.mlp.fc2.weight"), "missing-tensor", "blocks.2.mlp.fc2.weight"),
    "extra": (extra("blocks.0.attn.q_norm.weight", 16), "unmapped-tensor", "blocks.0.attn.q_norm.weight"),
    "extra block": (extra("blocks.3.norm1.weight", WIDTH), "missing-site", "blocks.3.norm1.weight"),
    "another width": (extra("blocks.0.mlp.fc1.weight", 96, WIDTH), "site-shape", "blocks.0.mlp.fc1.weight"),
    "another resolution": (extra("pos_embed", 1, 50, WIDTH), "site-shape", "pos_embed"),
    "a method's names": (extra("blocks.0.attn.lora_q.adapter_up.weight", WIDTH, 2), "bad-call", "petl-vit"),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("how", ["auto", "lowrank:2"])
def test_refused_by_name(what: str, how: str) -> None:
    change, reason, name = BAD[what]
    state = tuned("few")
    change(state)
    with pytest.raises(AdapterPackError) as caught:
        adapter_from(state, {"as": how, "scale": 1.0, "bit": 32}, Hints(backbone=BASE), "run")
    assert (caught.value.reason, name in str(caught.value)) == (reason, True), caught.value


def test_the_classifier_is_whole_or_told() -> None:
    state = tuned("full")
    del state["head.bias"]
    with pytest.raises(AdapterPackError, match=r"head\.bias is missing") as caught:
        read(state, "sparse")
    assert caught.value.reason == "missing-tensor"
    assert read(state, "sparse", head_bias="none").adapter.head is not None
    del state["head.weight"]
    found = read(state, "sparse")
    assert found.adapter.head is None and any("no head: the backbone's own stays" in note for note in found.notes)


def test_nothing_is_extracted_unasked() -> None:
    """Without --as, a changed matrix is another backbone's; the remedy names the option."""
    with pytest.raises(AdapterPackError, match="--as auto") as caught:
        adapter_from(tuned("full"), {}, Hints(backbone=BASE), "run")
    assert caught.value.reason == "backbones-differ"


def test_a_backbone_is_needed_and_trained_is_another_thing() -> None:
    with pytest.raises(AdapterPackError, match="backbone") as caught:
        adapter_from(tuned("full"), {"as": "auto"}, Hints(), "run")
    assert caught.value.reason == "bad-call"
    with pytest.raises(AdapterPackError, match="trained"):
        read(tuned("full"), "auto", trained=["*"])


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_nan_and_code(suffix: str, tmp_path: Path) -> None:
    state, base = tuned("full"), backbone_file(tmp_path)
    state["blocks.1.mlp.fc1.weight"][3, 4] = np.nan
    path = save(state, tmp_path / f"tuned{suffix}")
    with pytest.raises(AdapterPackError, match=r"blocks\.1\.mlp\.fc1\.weight") as caught:
        adapterpack.pack(path, tmp_path / "x.apk", backbone=base, settings={"as": "auto"})
    assert caught.value.reason == "not-finite" and not (tmp_path / "x.apk").exists()
    torch.save({"model": {"norm.weight": torch.ones(3)}, "run": pytest.Item}, tmp_path / "bad.pth")
    with pytest.raises(AdapterPackError) as caught:
        adapterpack.pack(tmp_path / "bad.pth", tmp_path / "x.apk", backbone=base, settings={"as": "auto"})
    assert caught.value.reason == "unsafe-source"
