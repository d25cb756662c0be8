"""The fingerprint of a backbone, against its definition written out, and what it does not depend on."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from adapterpack.runtime import fingerprint as module
from adapterpack.runtime.fingerprint import fingerprint
from adapterpack.runtime.load import load_adapter
from tests._vit import adapter, lora_qv, vit


def by_hand(state: dict[str, torch.Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(state):
        if not name.startswith(("head.", "head_dist.")):
            values = np.ascontiguousarray(state[name].detach().float().numpy(), "<f4")
            shape = "x".join(str(side) for side in values.shape)
            total.update(f"{name} {shape} {hashlib.sha256(values.tobytes()).hexdigest()}\n".encode())
    return f"sha256:{total.hexdigest()}"


def test_definition() -> None:
    model = vit(init_values=0.1)
    assert fingerprint(model) == by_hand(model.state_dict())


def test_known_value() -> None:
    """A constant of the format: it must never change."""
    state = {"b": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([-0.5]), "head.weight": torch.ones(2)}
    assert fingerprint(state) == "sha256:af6252e008007a31ed2ec788a560d2baa6908c916bef60eff321d939aa569bad"


def test_order_head_and_container_do_not_matter() -> None:
    model = vit()
    state = model.state_dict()
    expected = fingerprint(state)
    assert fingerprint(dict(reversed(state.items()))) == expected == fingerprint(model)
    assert fingerprint({**state, "head.weight": torch.zeros(1)}) == expected
    model.reset_classifier(0)
    assert fingerprint(model) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_widening_without_loss_does_not_matter(dtype: torch.dtype) -> None:
    narrow = vit().to(dtype)
    expected = fingerprint(narrow)
    assert fingerprint(narrow.float()) == expected == fingerprint(narrow.double())


def test_every_tensor_and_name_matters() -> None:
    state = vit(depth=1).state_dict()
    seen = {fingerprint(state)}
    backbone = [name for name in state if not name.startswith("head.")]
    for name in backbone:
        changed = {**state, name: state[name].clone()}
        changed[name].view(-1)[0] += 0.25
        seen |= {fingerprint(changed), fingerprint({k: v for k, v in state.items() if k != name})}
        seen.add(fingerprint({**{k: v for k, v in state.items() if k != name}, f"{name}2": state[name]}))
        seen.add(fingerprint({**state, name: state[name][None]}))
    assert len(seen) == 1 + 4 * len(backbone)


def test_remembered_until_something_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    real = module._of_tensors

    def counting(tensors: dict[str, torch.Tensor]) -> str:
        nonlocal calls
        calls += 1
        return real(tensors)

    monkeypatch.setattr(module, "_of_tensors", counting)
    model = vit()
    first = fingerprint(model)
    assert fingerprint(model) == first and calls == 1
    load_adapter(adapter(lora_qv(), model), model).unload()
    load_adapter(adapter(lora_qv(), model), model, fold="never").unload()
    assert fingerprint(model) == first and calls == 1
    with torch.no_grad():
        model.pos_embed[0, 0, 0] += 1
    second = fingerprint(model)
    assert second != first and calls == 2
    model.norm.weight.data = model.norm.weight.data * 2
    third = fingerprint(model)
    assert third not in (first, second) and calls == 3
    model.blocks[1].mlp.fc1 = torch.nn.Linear(48, 192)
    assert fingerprint(model) not in (first, second, third) and calls == 4


def test_a_write_while_loaded_is_not_forgotten() -> None:
    model = vit()
    first = fingerprint(model)
    with load_adapter(adapter(lora_qv(), model), model), torch.no_grad():
        model.blocks[0].mlp.fc2.weight[0, 0] += 1
    assert fingerprint(model) != first
    assert fingerprint(model) == by_hand(model.state_dict())


def test_inference_models_are_hashed_each_time() -> None:
    with torch.inference_mode():
        model = vit()
        first = fingerprint(model)
        model.norm.bias[0] += 1
    assert fingerprint(model) != first
