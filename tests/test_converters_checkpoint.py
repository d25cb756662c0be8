"""torch files: the own form to the bit, state dicts with settings inside and beside, and files that mean harm."""

# ruff: noqa: E501 (a bad case a line)

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterpack.adapter import Adapter
from adapterpack.converters._base import Hints
from adapterpack.converters.checkpoint import Checkpoint, float_array, load_run, save_run
from adapterpack.errors import AdapterPackError, CallError, MissingFileError
from tests._converter_samples import backbone, normal, petl_adapter, rich_adapter
from tests.test_converters_state_dict import LORA, consolidator_state, petl_state, spt_state

torch = pytest.importorskip("torch")
CKPT = Checkpoint()


def save(content: Any, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def as_torch(state: dict[str, Any]) -> dict[str, Any]:
    return {name: torch.from_numpy(np.array(value)) for name, value in state.items()}


def petl(**extra: Any) -> dict[str, Any]:
    return {"model": as_torch(petl_state()), **extra}


def reason_of(path: Path, hints: Hints | None = None) -> tuple[str, str]:
    with pytest.raises(AdapterPackError) as caught:
        CKPT.read(path, hints or Hints())
    return caught.value.reason, str(caught.value)


@pytest.mark.parametrize("adapter", [petl_adapter(), petl_adapter("adaptformer", 8, bihead=True), rich_adapter()])
def test_the_own_form_keeps_everything(adapter: Adapter, tmp_path: Path) -> None:
    CKPT.write(adapter, tmp_path / "run.ckpt", force=False)
    assert CKPT.read(tmp_path / "run.ckpt", Hints()).adapter.same_as(adapter)
    plain = torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert plain["adapterpack"] == "run/1" and sorted(plain) == ["adapterpack", "task", "tensors"]
    assert json.loads(json.dumps(plain["task"])) == plain["task"]


def test_a_single_number_is_no_row_of_one() -> None:
    found = float_array(pytest.importorskip("torch").tensor(1.5), "x")
    assert found.shape == () and found == 1.5


def test_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_run(petl_adapter(), tmp_path / "run.ckpt", force=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    for call in (
        lambda: save_run(petl_adapter(), tmp_path / "new.ckpt", force=False),
        lambda: load_run(tmp_path / "run.ckpt"),
    ):
        with pytest.raises(CallError, match=r"(writing|reading) a checkpoint needs torch; pip install"):
            call()
    assert not (tmp_path / "new.ckpt").exists()


def test_training_state_travels_along(tmp_path: Path) -> None:
    state = {"step": 7, "optimizer": {0: {"exp_avg": torch.ones(3)}}}
    save_run(petl_adapter(), tmp_path / "run.ckpt", training=state, force=False)
    adapter, training = load_run(tmp_path / "run.ckpt")
    assert adapter.same_as(petl_adapter()) and training is not None and training["step"] == 7
    assert CKPT.read(tmp_path / "run.ckpt", Hints()).adapter.same_as(adapter)


def edited(path: Path, edit: Any) -> Path:
    CKPT.write(rich_adapter(), path, force=True)
    content = torch.load(path, weights_only=True)
    edit(content)
    return save(content, path)


EDITS: dict[str, tuple[Any, str]] = {
    "another form": (lambda c: c.update(adapterpack="run/2"), "newer-version"),
    "no task": (lambda c: c.pop("task"), "bad-field"),
    "another entry": (lambda c: c.update(code=1), "bad-source"),
    "tensor left out": (lambda c: c["tensors"].pop("head.bias"), "missing-tensor"),
    "tensor too many": (lambda c: c["tensors"].update(extra=torch.ones(1)), "unmapped-tensor"),
    "another type": (lambda c: c["tensors"].update({"head.bias": torch.ones(3, dtype=torch.float64)}), "bad-field"),
    "NaN": (lambda c: c["tensors"].update({"head.bias": torch.full((3,), float("nan"))}), "not-finite"),
    "another shape": (lambda c: c["tensors"].update({"head.bias": torch.ones(4)}), "bad-shape"),
    "huge shape": (lambda c: c["task"]["head"]["weight"].update(shape=[10**9, 10**9]), "limit-exceeded"),
    "unknown method": (lambda c: c["task"]["branches"][0].update(method="magic"), "missing-tensor"),
    "unknown field": (lambda c: c["task"].update(magic=1), "unknown-field"),
    "unknown role": (lambda c: c["task"]["branches"][0]["tensors"].update(up={"form": "dense", "dtype": "float32"}), "missing-tensor"),
    "bad site": (lambda c: c["task"]["branches"][0].update(site="a..b"), "bad-name"),
    "bad params": (lambda c: c["task"]["branches"][2]["params"].update(scale=1), "bad-parameter"),
    "infinite scale": (lambda c: c["task"]["branches"][2]["params"].update(scale=float("inf")), "bad-parameter"),
    "bool for int": (lambda c: c["task"]["branches"][3]["params"].update(groups=True), "bad-parameter"),
    "unknown codebook": (lambda c: c["task"]["head"]["weight"].update(levels="mine"), "bad-parameter"),
    "positions descend": (lambda c: c["tensors"].update({"blocks.0.attn.qkv[k].sparse.weight.positions": torch.tensor([3, 2, 1])}), "bad-positions"),
    "negative scale": (lambda c: c["tensors"]["head.weight.scale"].mul_(-1), "bad-scale"),
    "labels": (lambda c: c["task"].update(labels=["a"]), "bad-labels"),
    "data": (lambda c: c["task"]["data"].update(mean=[0.5]), "bad-field"),
}  # fmt: skip


@pytest.mark.parametrize("what", EDITS)
def test_an_edited_own_form_is_refused(what: str, tmp_path: Path) -> None:
    edit, reason = EDITS[what]
    assert reason_of(edited(tmp_path / "run.ckpt", edit))[0] == reason


def test_settings_for_a_file_that_describes_itself(tmp_path: Path) -> None:
    CKPT.write(petl_adapter(), tmp_path / "run.ckpt", force=False)
    assert reason_of(tmp_path / "run.ckpt", Hints(settings={"scale": 2.0}))[0] == "bad-call"


def test_state_dict_bare_nested_prefixed_and_legacy(tmp_path: Path) -> None:
    state, said = as_torch(petl_state()), Hints(task="cifar", settings=LORA)
    expected = CKPT.read(save(state, tmp_path / "a.pt"), said).adapter
    files = {
        "b.pth": {"model": state, "optimizer": {"state": {}}, "epoch": 3},
        "c.pt": {"state_dict": {f"module.{name}": value for name, value in state.items()}},
        "d.pt": {name: value.half().double() if "head" not in name else value for name, value in state.items()},
    }
    for name, content in files.items():
        found = CKPT.read(save(content, tmp_path / name), said).adapter
        assert found.same_as(expected) or name == "d.pt"
    old = save(state, tmp_path / "e.pt", _use_new_zipfile_serialization=False)
    assert CKPT.recognise(old) and CKPT.read(old, said).adapter.same_as(expected)


def averaged(**extra: Any) -> dict[str, Any]:
    """A checkpoint with averaged weights beside the others, which differ."""
    state = as_torch(petl_state())
    return {"state_dict_ema": {name: value * 1.5 for name, value in state.items()}, "epoch": 3, **extra}


def head_of(path: Path, **settings: Any) -> tuple[Any, tuple[str, ...]]:
    found = CKPT.read(path, Hints(task="cifar", settings={**LORA, **settings}))
    assert found.adapter.head is not None
    return found.adapter.head.weight.dense(), found.notes


def test_averaged_weights_are_those_that_timm_takes(tmp_path: Path) -> None:
    import timm
    from timm.models import load_state_dict

    state = as_torch(petl_state())
    for key in ("state_dict", "model"):
        for name in ("state_dict_ema", "model_ema"):
            content = {key: state, name: averaged()["state_dict_ema"], "epoch": 3}
            path = save(content, tmp_path / "run.pth")
            expected = load_state_dict(str(path))["head.weight"].numpy()
            weight, notes = head_of(path)
            assert np.array_equal(weight, expected) and np.array_equal(
                weight, state["head.weight"].numpy() * np.float32(1.5)
            )
            assert any(name in note and "ema=no" in note for note in notes), timm.__version__
            weight, notes = head_of(path, ema=False)
            assert np.array_equal(weight, state["head.weight"].numpy()) and not any("ema" in note for note in notes)
            assert np.array_equal(head_of(path, ema=True)[0], expected)
    (tmp_path / "run.yaml").write_text("ema: false\n")
    assert np.array_equal(head_of(path)[0], state["head.weight"].numpy())
    (tmp_path / "run.yaml").unlink()
    assert np.array_equal(head_of(save(averaged(), path))[0], expected)
    assert np.array_equal(head_of(save(averaged(state_dict=state, model_ema=None), path))[0], expected)


def test_settings_by_parameter_are_no_second_model(tmp_path: Path) -> None:
    state = as_torch(petl_state())
    names = list(state)
    content = petl(lr_scale=dict.fromkeys(names, 0.5), param_shapes={name: state[name].shape for name in names})
    assert np.array_equal(head_of(save(content, tmp_path / "run.pth"))[0], state["head.weight"].numpy())


MODELS: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "another model": (
        averaged(state_dict=as_torch(petl_state()), foo_model=as_torch(petl_state())),
        {},
        "ambiguous-source",
        "foo_model",
    ),
    "another without an average": (
        petl(teacher={f"module.{name}": value for name, value in as_torch(petl_state()).items()}),
        {},
        "ambiguous-source",
        "teacher",
    ),
    "two averages": (averaged(model_ema=averaged()["state_dict_ema"]), {}, "ambiguous-source", "model_ema"),
    "only averaged": (averaged(), {"ema": False}, "missing-tensor", "state_dict_ema"),
    "not averaged": (petl(), {"ema": True}, "bad-call", "ema"),
    "not averaged, bare": (as_torch(petl_state()), {"ema": False}, "bad-call", "ema"),
}


@pytest.mark.parametrize("what", MODELS)
def test_a_second_model_is_named(what: str, tmp_path: Path) -> None:
    content, settings, reason, named = MODELS[what]
    found = reason_of(save(content, tmp_path / "run.pth"), Hints(settings={**LORA, **settings}))
    assert (found[0], named in found[1]) == (reason, True), found


def test_what_is_no_second_model(tmp_path: Path) -> None:
    more = {
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        "scaler": {"scale": 2.0},
    }
    assert CKPT.read(
        save(petl(**more, rng={"head": torch.ones(2)}), tmp_path / "run.pth"), Hints(settings=LORA)
    ).adapter.head


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_names_are_taken_off(prefix: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from adapterpack.converters import CONVERTERS

    state = as_torch(petl_state())
    wrapped = {f"{prefix}{name}": value for name, value in state.items()}
    expected = CKPT.read(save(state, tmp_path / "run.pt"), Hints(settings=LORA)).adapter
    assert CKPT.read(save({"model": wrapped}, tmp_path / "run.pt"), Hints(settings=LORA)).adapter.same_as(expected)
    save_file(wrapped, tmp_path / "run.safetensors")
    assert CONVERTERS["safetensors"].read(tmp_path / "run.safetensors", Hints(settings=LORA)).adapter.same_as(expected)
    with pytest.raises(AdapterPackError, match="ema"):
        CONVERTERS["safetensors"].read(tmp_path / "run.safetensors", Hints(settings={**LORA, "ema": True}))
    del wrapped[f"{prefix}head.bias"]
    odd = save({**wrapped, "head.bias": state["head.bias"]}, tmp_path / "run.pt")
    assert reason_of(odd, Hints(settings=LORA))[0] == "unmapped-tensor"


def test_settings_inside_and_beside(tmp_path: Path) -> None:
    path = save(
        petl(args=argparse.Namespace(scale=10.0, lr=1e-3, log_dir=None), config={"bit": 1}), tmp_path / "run.ckpt"
    )
    assert CKPT.read(path, Hints()).adapter.branches[0].params == {"scale": 10.0}
    (tmp_path / "run.yaml").write_text("scale: 10.0\ndataset: cifar\n")
    (tmp_path / "run.json").write_text('{"backbone": "small_vit"}')
    adapter = CKPT.read(path, Hints()).adapter
    assert (adapter.name, adapter.backbone.name) == ("cifar", "small_vit")
    (tmp_path / "run.yaml").write_text("scale: 1.0\n")
    reason, text = reason_of(path)
    assert reason == "conflicting-settings" and "args" in text and "run.yaml" in text
    assert CKPT.read(path, Hints(settings={"scale": 5.0})).adapter.branches[0].params == {"scale": 5.0}
    save(petl(args={"scale": 1.0, "bit": 1}, settings={"scale": 2.0}), path)
    (tmp_path / "run.yaml").unlink()
    assert reason_of(path)[0] == "conflicting-settings"


def test_consolidator_with_its_argparse_settings(tmp_path: Path) -> None:
    args = argparse.Namespace(with_channel_shuffle=False, lr=0.001, consolidator_dim=[8])
    path = save({"model": as_torch(consolidator_state()), "args": args, "epoch": 99}, tmp_path / "c.pth")
    imported = CKPT.read(path, Hints(backbone=backbone()))
    assert {b.params["reorder"] for b in imported.adapter.branches if b.method == "consolidator"} == {False}


def spt_files(folder: Path) -> Path:
    state, mask = spt_state()
    raw = {
        "unstructured_name_shapes": {name: torch.Size(shape) for name, shape in mask.shapes.items()},
        "unstructured_name_shapes_int": {name: np.prod(shape) for name, shape in mask.shapes.items()},
        "unstructured_indexes": torch.from_numpy(mask.indexes),
        "unstructured_params": torch.tensor(float(len(mask.indexes))),
        "structured_params": 0,
        "params": torch.tensor(0.0),
        "tuned_matrices": [list(map(int, row)) for row in mask.matrices],
        "tuned_vectors": list(mask.vectors),
    }
    save(raw, folder / "param_req_0.2.pth")
    return save(as_torch(state), folder / "run.ckpt")


def test_spt_finds_its_mask(tmp_path: Path) -> None:
    path = spt_files(tmp_path)
    adapter = CKPT.read(path, Hints(backbone=backbone())).adapter
    assert {b.method for b in adapter.branches} == {"lora", "sparse", "replace"}
    (tmp_path / "param_req_1.0.pth").write_bytes((tmp_path / "param_req_0.2.pth").read_bytes())
    assert reason_of(path)[0] == "ambiguous-source"
    said = Hints(backbone=backbone(), settings={"mask": "param_req_0.2.pth"})
    assert CKPT.read(path, said).adapter.same_as(adapter)
    with pytest.raises(MissingFileError):
        CKPT.read(path, Hints(settings={"mask": "nowhere.pth"}))
    assert reason_of(tmp_path / "param_req_0.2.pth")[0] == "unsafe-source"


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch pwned",)


def test_code_is_refused_and_named_and_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    reason, text = reason_of(save({"model": as_torch(petl_state()), "x": Evil()}, tmp_path / "a.ckpt"))
    assert reason == "unsafe-source" and "system" in text
    reason, text = reason_of(save({"x": Path("a")}, tmp_path / "b.ckpt"))
    assert reason == "unsafe-source" and "pathlib" in text.lower()
    reason, text = reason_of(save(torch.nn.Linear(2, 2), tmp_path / "c.ckpt"))
    assert reason == "unsafe-source" and "torch.nn.modules.linear.Linear" in text
    reason, _ = reason_of(save({"x": Evil()}, tmp_path / "d.ckpt", _use_new_zipfile_serialization=False))
    assert reason == "unsafe-source"
    assert not (tmp_path / "pwned").exists()


NAME = "blocks.0.attn.lora_q.adapter_down.weight"
LEAVES: dict[str, tuple[Any, str]] = {
    "number": (1.5, "bad-source"),
    "list": ([1.0], "bad-source"),
    "NaN": (lambda: torch.full((4, 16), float("nan")), "not-finite"),
    "infinity": (lambda: torch.full((4, 16), float("inf")), "not-finite"),
    "integers": (lambda: torch.ones(4, 16, dtype=torch.int64), "bad-source"),
    "complex": (lambda: torch.ones(4, 16, dtype=torch.complex64), "bad-source"),
    "too wide for float32": (lambda: torch.full((4, 16), 0.1, dtype=torch.float64), "bad-source"),
    "sparse": (lambda: torch.eye(4, 16).to_sparse(), "bad-source"),
    "meta": (lambda: torch.ones(4, 16, device="meta"), "bad-source"),
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(4, 16), 0.1, 0, torch.qint8), "bad-source"),
    "values from one number": (lambda: torch.ones(1).expand(10**6, 10**6), "bad-source"),
}


@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:DeprecationWarning")
@pytest.mark.parametrize("what", LEAVES)
def test_leaves_that_are_no_plain_tensor_are_named(what: str, tmp_path: Path) -> None:
    leaf, reason = LEAVES[what]
    state = as_torch(petl_state()) | {NAME: leaf() if callable(leaf) else leaf}
    found, text = reason_of(save(state, tmp_path / "run.ckpt"), Hints(settings=LORA))
    assert found == reason and NAME in text


def test_views_of_a_larger_storage_are_cut_out(tmp_path: Path) -> None:
    state = as_torch(petl_state())
    big = torch.zeros(100, 16)
    big[7:11] = state[NAME]
    expected = CKPT.read(save(state, tmp_path / "a.ckpt"), Hints(settings=LORA)).adapter
    found = CKPT.read(save(state | {NAME: big[7:11]}, tmp_path / "a.ckpt"), Hints(settings=LORA)).adapter
    assert found.same_as(expected)
    turned = state | {NAME: state[NAME].T.contiguous().T}
    assert CKPT.read(save(turned, tmp_path / "a.ckpt"), Hints(settings=LORA)).adapter.same_as(expected)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "bad-source"),
        ({}, "bad-source"),
        ({"model": {}}, "bad-source"),
        ({1: torch.ones(1)}, "bad-source"),
        ({"model": {"a": torch.ones(1)}, "state_dict": {"a": torch.ones(1)}}, "ambiguous-source"),
        (petl(args={"scale": "big", "bit": 1}), "bad-source"),
        ({"foo.weight": torch.ones(1)}, "unmapped-tensor"),
    ],
)
def test_other_contents(content: Any, reason: str, tmp_path: Path) -> None:
    assert reason_of(save(content, tmp_path / "run.ckpt"))[0] == reason


def test_damaged_files(tmp_path: Path) -> None:
    data = save(petl(), tmp_path / "a.ckpt").read_bytes()
    for cut in (0, 4, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "b.ckpt").write_bytes(data[:cut])
        assert reason_of(tmp_path / "b.ckpt")[0] in ("bad-source", "unsafe-source")
    with pytest.raises(MissingFileError):
        CKPT.read(tmp_path / "nothing.ckpt", Hints())


def test_load_run_wants_the_own_form(tmp_path: Path) -> None:
    with pytest.raises(AdapterPackError, match="no checkpoint of this package"):
        load_run(save(petl(), tmp_path / "a.ckpt"))


def test_half_precision_is_widened_exactly(tmp_path: Path) -> None:
    state = {"head.weight": torch.from_numpy(normal(1, 3, 16)).bfloat16(), "head.bias": torch.ones(3).half()}
    adapter = CKPT.read(save(state, tmp_path / "a.ckpt"), Hints()).adapter
    assert adapter.head is not None and adapter.name == "a"
    assert np.array_equal(adapter.head.weight.dense(), state["head.weight"].float().numpy())
