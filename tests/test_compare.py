"""`diff`: sites, roles, settings and numbers of two adapters, against the same quantities written out in numpy."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import adapterpack
from adapterpack.adapter import Adapter, Branch, Head, Site
from adapterpack.compare import Diff
from adapterpack.errors import AdapterPackError, CallError, CorruptFileError, MissingFileError
from adapterpack.methods.consolidator import positions
from adapterpack.quantize import quantize, quantize_latent
from adapterpack.tensors import F32, Dense
from adapterpack_cli.main import main
from tests import factories
from tests._converter_samples import petl_adapter
from tests._web import hub
from tests.factories import numbers

__all__ = ["hub"]  # a fixture
PEFT = Path(__file__).resolve().parent.parent / "fixtures" / "peft-lora"


def lora(site: str = "blocks.0.attn.proj", seed: int = 0, scale: float = 0.5, bits: int | None = None) -> Branch:
    down, up = numbers(seed, (4, 16)), numbers(seed + 1, (16, 4))
    tensors = {"down": down, "up": up}
    made = {role: Dense(values) if bits is None else quantize_latent(values, bits) for role, values in tensors.items()}
    return Branch(Site.parse(site), "lora", {"scale": scale}, made)


def adapter(*branches: Branch, **changes: Any) -> Adapter:
    return factories.make("lora", branches=list(branches), **changes)


def relative(a: F32, b: F32) -> float:
    return float(np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(a.astype(np.float64)))


def run(*words: str) -> int:
    with warnings.catch_warnings(), pytest.raises(SystemExit) as done:  # main() sets showwarning
        main(["diff", *words])
    assert isinstance(done.value.code, int)
    return done.value.code


@pytest.mark.parametrize("method", factories.MAKERS)
def test_an_adapter_and_itself(method: str) -> None:
    made = factories.make(method)
    found = adapterpack.diff(made, replace(made, name="other"))
    assert found.identical and found.same_numbers and found.description == {"task": ("cifar", "other")}
    inner = found.differences
    assert not (inner.only_a or inner.only_b or inner.sites) and len(inner.branches) == len(made.branches)
    assert all(branch.identical and branch.delta_error in (0, None) for branch in inner.branches)


def test_errors_of_tensors_and_of_what_they_add() -> None:
    one, other = lora(), lora(seed=7, scale=2.0)
    (branch,) = adapterpack.diff(adapter(one), adapter(other)).differences.branches
    assert branch.settings == {"scale": (0.5, 2.0)} and not branch.identical
    for tensor in branch.tensors:
        a, b = one.tensors[tensor.role].dense(), other.tensors[tensor.role].dense()
        assert tensor.error == pytest.approx(relative(a, b), rel=1e-6) and tensor.same_signs is None
    deltas = [row.params["scale"] * row.tensors["up"].dense() @ row.tensors["down"].dense() for row in (one, other)]
    assert branch.delta_error == pytest.approx(relative(*deltas), rel=1e-5)


def test_nothing_is_no_scale_for_an_error() -> None:
    one = lora()
    fresh = replace(one, tensors={**one.tensors, "up": Dense(np.zeros((16, 4), np.float32))})
    found = adapterpack.diff(adapter(fresh), adapter(one))
    (branch,) = found.differences.branches
    assert [tensor.error for tensor in branch.tensors] == [0, None] and branch.delta_error is None
    assert not found.same_numbers
    (back,) = adapterpack.diff(adapter(one), adapter(fresh)).differences.branches
    assert back.delta_error == 1


def test_other_factors_of_one_delta() -> None:
    """B·A and (B·Q⁻¹)·(Q·A) are the same LoRA."""
    one = lora()
    turn = np.linalg.qr(numbers(3, (4, 4)))[0]
    tensors = {"down": turn @ one.tensors["down"].dense(), "up": one.tensors["up"].dense() @ turn.T}
    other = replace(one, tensors={role: Dense(values) for role, values in tensors.items()})
    (branch,) = adapterpack.diff(adapter(one), adapter(other)).differences.branches
    assert branch.delta_error is not None and branch.delta_error < 1e-6
    assert all(tensor.error is not None and tensor.error > 0.1 for tensor in branch.tensors)


def test_signs_of_one_bit() -> None:
    one, other = lora(bits=1), lora(seed=50, bits=1)
    (branch,) = adapterpack.diff(adapter(one), adapter(other)).differences.branches
    for tensor in branch.tensors:
        signs = [(row.tensors[tensor.role].dense() > np.mean(row.tensors[tensor.role].dense())) for row in (one, other)]
        assert tensor.same_signs == pytest.approx((signs[0] == signs[1]).mean())
    (mixed,) = adapterpack.diff(adapter(one), adapter(lora())).differences.branches
    assert all(tensor.same_signs is None for tensor in mixed.tensors)


def test_one_sided_branches_roles_and_shapes() -> None:
    wide = Branch(Site.parse("blocks.1.mlp.fc1"), "lora", {"scale": 0.5}, {"down": Dense(numbers(1, (2, 16))),
                  "up": Dense(numbers(2, (64, 2)))})  # fmt: skip
    thin = replace(wide, tensors={"down": Dense(numbers(1, (3, 16))), "up": Dense(numbers(2, (64, 3)))})
    biased = factories.adapter_branches()[0]
    bare = replace(biased, tensors={role: biased.tensors[role] for role in ("down", "up")})
    found = adapterpack.diff(adapter(lora(), wide, biased), adapter(lora("norm"), thin, bare)).differences
    assert found.only_a == ("blocks.0.attn.proj lora",) and found.only_b == ("norm lora",)
    by_site = {branch.site: branch for branch in found.branches}
    shapes = {tensor.role: tensor.shapes for tensor in by_site["blocks.1.mlp.fc1"].tensors}
    assert shapes == {"down": ((2, 16), (3, 16)), "up": ((64, 2), (64, 3))}
    assert all(tensor.error is None for tensor in by_site["blocks.1.mlp.fc1"].tensors)
    assert by_site["blocks.1.mlp.fc1"].delta_error is not None  # what they add has one shape
    assert by_site["blocks.0.mlp.fc2"].only_a == ("down_bias", "up_bias")
    assert by_site["blocks.0.mlp.fc2"].delta_error == 0  # the product of the matrices, biases aside


def test_methods_that_add_to_one_weight() -> None:
    """A LoRA against two consolidators at one site: the sums are compared."""
    site, low = Site.parse("blocks.0.attn.proj"), lora()
    groups = [
        Branch(site, "consolidator", {"groups": g, "reorder": True}, {"weight": Dense(numbers(g, (16, 16 // g)))})
        for g in (4, 8)
    ]
    total = np.zeros(16 * 16, np.float32)
    for row, g in zip(groups, (4, 8)):
        total[positions(16, 16 // g, g, True)] += row.tensors["weight"].dense().reshape(-1)
    delta = 0.5 * low.tensors["up"].dense() @ low.tensors["down"].dense()
    found = adapterpack.diff(adapter(low), adapter(*groups)).differences
    assert found.sites == {str(site): pytest.approx(relative(delta, total.reshape(16, 16)), rel=1e-5)}
    assert len(found.only_b) == 2
    replaced = Branch(site, "replace", {}, {"weight": Dense(numbers(1, (16, 16)))})
    assert adapterpack.diff(adapter(low), adapter(replaced)).differences.sites == {str(site): None}


def test_head_labels_and_preprocessing() -> None:
    one = adapter(lora())
    assert one.head is not None and one.data is not None and one.labels is not None
    head = Head(quantize(one.head.weight.dense(), 4), None)
    labels = ("x", *one.labels[1:])
    other = replace(one, head=head, labels=labels, data=replace(one.data, mean=(0.5, 0.5, 0.5)), metadata={"lr": 1})
    found = adapterpack.diff(one, other)
    assert not found.identical and not found.same_numbers
    (weight,) = found.differences.head
    assert weight.error == pytest.approx(relative(one.head.weight.dense(), head.weight.dense()), rel=1e-6)
    assert found.differences.head_only_a == ("bias",)
    assert found.description == {
        "labels": (list(one.labels), list(labels)),
        "data.mean": ([0.0, 0.0, 0.0], [0.5, 0.5, 0.5]),
        "metadata.dataset": ("cifar", None),
        "metadata.lr": (None, 1),
    }
    headless = adapterpack.diff(one, replace(one, head=None, labels=None))
    assert headless.description["classes"] == (5, None) and not headless.same_numbers


def test_forms_that_a_converter_reads(tmp_path: Path) -> None:
    """An .apk, the PETL-ViT pair and the plain safetensors file of one adapter."""
    made = petl_adapter()
    packed = tmp_path / "x.apk"
    packed.write_bytes(factories.pack(made, backbone=made.backbone))
    pair, plain = (adapterpack.unpack(packed, tmp_path / name, to=to)[0] for name, to in
                   (("x.bin", "petl-vit"), ("x.safetensors", "safetensors")))  # fmt: skip
    found = adapterpack.diff(packed, pair, settings={"depth": 2, "width": 16})
    assert found.identical and found.a.digest == found.b.digest == adapterpack.open(packed).task_digest()
    dense = adapterpack.diff(str(packed), plain)
    assert not dense.identical and dense.same_numbers
    assert dense.differences.branches[0].tensors[0].forms[0]["bits"] == 1


def test_a_trainers_folder_on_the_hub(hub: Any, tmp_path: Path) -> None:
    hub.repos["me/peft"] = [({path.name: path.read_bytes() for path in PEFT.iterdir()}, "1" * 40)]
    adapterpack.pack(PEFT, tmp_path / "x.apk")
    hub.repos["me/packed"] = [({"x.apk": (tmp_path / "x.apk").read_bytes()}, "2" * 40)]
    for there in ("hf://me/peft", "hf://me/packed", "hf://me/packed/x.apk"):
        found = adapterpack.diff(tmp_path / "x.apk", there)
        assert found.identical and found.b.path == there
    with pytest.raises(MissingFileError, match=r"holds no \.apk file"):
        adapterpack.diff(tmp_path / "x.apk", "hf://me/adapters")


def test_a_whole_fine_tuned_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch, save = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch").save_file
    from tests import _images

    base = _images.backbone(tmp_path)
    state = pytest.importorskip("safetensors.torch").load_file(base)
    save({name: value + torch.ones(()) / 8 for name, value in state.items()}, tmp_path / "tuned.safetensors")
    adapterpack.pack(tmp_path / "tuned.safetensors", tmp_path / "x.apk", backbone=base, settings={"as": "bitdelta"})
    words = [str(tmp_path / "x.apk"), str(tmp_path / "tuned.safetensors"), "--backbone", str(base)]
    assert run(*words, "--as", "bitdelta", "--exit-code") == 0
    assert "the same to the bit" in capsys.readouterr().out
    assert run(*words, "--as", "bitdelta", "--set", "as=auto") == 2


def test_one_task_of_each(tmp_path: Path) -> None:
    one, two = (factories.make("lora", name) for name in ("one", "two"))
    path = tmp_path / "all.apk"
    path.write_bytes(factories.pack(one, two))
    assert adapterpack.diff(path, path, task="one", other_task="two").description["task"] == ("one", "two")
    with pytest.raises(CallError):
        adapterpack.diff(path, path)
    with pytest.raises(CallError):
        adapterpack.diff(path, path, task="three")


def test_a_checkpoint_of_torch_may_be_called_apk(tmp_path: Path) -> None:
    packed, strange = tmp_path / "x.apk", tmp_path / "y.apk"
    made = adapter(lora())
    packed.write_bytes(factories.pack(made))
    (written,) = adapterpack.unpack(packed, tmp_path / "y.ckpt", to="checkpoint")
    written.rename(strange)
    assert adapterpack.diff(packed, strange).identical  # as `pack` reads it


def test_what_cannot_be_read(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.apk", tmp_path / "bad.apk"
    good.write_bytes(factories.pack(adapter(lora())))
    bad.write_bytes(good.read_bytes()[:-5])
    with pytest.raises(CorruptFileError):
        adapterpack.diff(good, bad)
    with pytest.raises(MissingFileError):
        adapterpack.diff(good, tmp_path / "none.apk")
    (tmp_path / "x.bin").write_bytes(b"hello")
    with pytest.raises(AdapterPackError):
        adapterpack.diff(good, tmp_path / "x.bin")
    with pytest.raises(CallError):
        adapterpack.diff(good, good, settings={"nonsense": 1})


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = lora(bits=1), lora(seed=3, scale=2.0, bits=1)
    for name, branches in (("a", [first]), ("b", [second, lora("blocks.1.attn.proj")])):
        Path(f"{name}.apk").write_bytes(factories.pack(adapter(*branches)))


@pytest.mark.usefixtures("files")
def test_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("a.apk", "b.apk") == 0
    assert run("a.apk", "b.apk", "--exit-code") == 1
    assert run("a.apk", "a.apk", "--exit-code") == 0
    assert "the same to the bit" in capsys.readouterr().out
    assert run("a.apk", "none.apk", "--exit-code") == 2
    assert run("a.apk", "b.apk", "--task", "nothing") == 2


@pytest.mark.usefixtures("files")
def test_what_people_see(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("a.apk", "b.apk") == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert lines[0].startswith("a a.apk: cifar, lora, 1 branch, 5 classes, sha256:")
    assert "only in b: blocks.1.attn.proj lora" in lines and "blocks.0.attn.proj scale: 0.5 → 2.0" in lines
    (down,) = [line for line in lines if " down " in line]
    assert "1 bit 4×16" in down and down.rstrip().endswith("%")
    assert any(" delta " in line for line in lines) and not any("head" in line for line in lines)
    assert run("a.apk", "b.apk", "--all") == 0
    assert any(line.startswith("head") for line in capsys.readouterr().out.splitlines())


@pytest.mark.usefixtures("files")
def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("a.apk", "b.apk", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    found: Diff = adapterpack.diff("a.apk", "b.apk")
    assert told["identical"] is False and told["b"]["digest"] == found.b.digest
    (branch,) = told["differences"]["branches"]
    assert branch["settings"] == {"scale": [0.5, 2.0]}
    assert branch["delta_error"] == found.differences.branches[0].delta_error
    assert told["differences"]["only_b"] == ["blocks.1.attn.proj lora"]
