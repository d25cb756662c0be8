"""Scales fitted to outputs, against the least-squares solution written out with an explicit design matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapterpack.methods import METHODS
from adapterpack.quantize import quantize
from adapterpack.runtime import refit as module
from adapterpack.runtime.refit import WEIGHT, branch_output, coded, refit, wide
from adapterpack.tensors import Dense, Quantized, Sparse
from tests._vit import EXAMPLES

IN, OUT, RANK, TOKENS = 12, 10, 4, 64


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def activations(seed: int, width: int = IN) -> torch.Tensor:
    """Features that are far from independent and far from mean 0, as real ones are."""
    mixed = numbers(seed, TOKENS, width) @ numbers(seed + 1, width, width) + 2 * numbers(seed + 2, width)
    return torch.from_numpy(mixed.astype(np.float64))


def basis(tensor: Quantized) -> np.ndarray:
    """What each scale, then each offset, multiplies: float64 [parameters, *shape]."""
    group = np.arange(tensor.entries) // (tensor.group or tensor.entries)
    levels = {1: np.array([-1.0, 1.0])}[tensor.bits][tensor.codes()]
    rows = [np.where(group == g, levels, 0.0) for g in range(len(tensor.scale))]
    if tensor.offset is not None:
        rows += [np.where(group == g, 1.0, 0.0) for g in range(len(tensor.scale))]
    return np.stack(rows).reshape(len(rows), *tensor.shape)


def best(columns: list[np.ndarray], target: np.ndarray, parts: list[np.ndarray], exact: np.ndarray) -> np.ndarray:
    """argmin of |output error|² / |output|² + share · |weight error|² / |weights|², by numpy."""
    rows = [np.stack([column.reshape(-1) for column in columns], 1) / np.linalg.norm(target)]
    rows.append(WEIGHT**0.5 * np.stack([part.reshape(-1) for part in parts], 1) / np.linalg.norm(exact))
    right = [target.reshape(-1) / np.linalg.norm(target), WEIGHT**0.5 * exact.reshape(-1) / np.linalg.norm(exact)]
    solution, *_ = np.linalg.lstsq(np.concatenate(rows), np.concatenate(right), rcond=None)
    return solution


@pytest.mark.parametrize("group", [0, 8, 16])
@pytest.mark.parametrize("role", ["down", "up"])
def test_a_lora_gets_the_least_squares_scales(group: int, role: str) -> None:
    x, scale = activations(1), 0.5
    exact = {"down": numbers(5, RANK, IN), "up": numbers(6, OUT, RANK)}
    tensor = quantize(exact[role], 1, group, offset=group == 0)
    t = {"down": torch.from_numpy(exact["down"]).double(), "up": scale * torch.from_numpy(exact["up"]).double()}
    target = METHODS["lora"].branch(x, t, {"scale": scale})
    factor = scale if role == "up" else 1.0
    found = refit(tensor, branch_output(METHODS["lora"], {"scale": scale}, x, t, role), t[role], target, factor)
    assert isinstance(found, Quantized) and np.array_equal(found.packed, tensor.packed)

    down, up = (t[name].numpy() for name in ("down", "up"))
    columns = [
        (x.numpy() @ part.T) @ up.T if role == "down" else (x.numpy() @ down.T) @ (scale * part).T
        for part in basis(tensor)
    ]
    solution = best(columns, target.numpy(), [factor * part for part in basis(tensor)], t[role].numpy())
    fitted = np.concatenate([found.scale, *([found.offset] if found.offset is not None else [])])
    assert (solution[: len(found.scale)] >= 0).all()
    np.testing.assert_allclose(fitted, solution, rtol=2e-5, atol=2e-6)


@given(seed=st.integers(0, 10_000), bits=st.sampled_from([1, 2, 4, 8]), group=st.sampled_from([0, 4, 32]))
def test_it_never_gets_worse(seed: int, bits: int, group: int) -> None:
    x = activations(seed)
    weight = torch.from_numpy(numbers(seed + 7, OUT, IN)).double()
    scale = "float16" if group else "float32"
    tensor = quantize(weight.numpy().astype(np.float32), bits, group, scale=scale, offset=group == 0)

    def output(values: torch.Tensor) -> torch.Tensor:
        return x @ values.T

    found = refit(tensor, output, weight, output(weight))
    before, after = ((output(wide(t)) - output(weight)).norm() for t in (tensor, found))
    assert after <= before
    assert found.form() == tensor.form() and found.shape == tensor.shape
    assert isinstance(found, Quantized) and (found.scale >= 0).all() and not np.signbit(found.scale).any()


def test_a_scale_that_wants_to_be_negative_becomes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WEIGHT", 0.0)
    tensor = Quantized((1, 4), 1, "unit", 2, np.array([0b1111], np.uint8), np.array([0.5, 0.5], np.float32), None)
    x = torch.eye(4, dtype=torch.float64)
    target = torch.tensor([[2.0], [2.0], [-1.0], [-1.0]], dtype=torch.float64)
    found = refit(tensor, lambda values: x @ values.T, target.T, target)
    assert isinstance(found, Quantized) and found.scale.tolist() == [2.0, 0.0] and not np.signbit(found.scale).any()


def test_directions_that_no_image_shows_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group whose inputs are all 0 keeps its scale; float16 scales that would be infinite change nothing."""
    monkeypatch.setattr(module, "WEIGHT", 0.0)
    x = torch.zeros(8, 4, dtype=torch.float64)
    x[:, :2] = torch.from_numpy(numbers(1, 8, 2)).double()
    tensor = Quantized((1, 4), 1, "unit", 2, np.array([0b0101], np.uint8), np.array([0.5, 0.25], np.float32), None)
    weight = torch.tensor([[1.0, -1.0, 9.0, 9.0]], dtype=torch.float64)
    found = refit(tensor, lambda values: x @ values.T, weight, x @ weight.T)
    assert isinstance(found, Quantized)
    np.testing.assert_allclose(found.scale, [1.0, 0.25], rtol=1e-6)
    half = Quantized((1, 4), 1, "unit", 2, np.array([0b0101], np.uint8), np.array([1, 1], np.float16), None)
    assert refit(half, lambda values: 1e-6 * x @ values.T, weight, x @ weight.T) is half


def test_sparse_codes() -> None:
    x = activations(3)
    at = np.array([3, 17, 40, 77, 100], np.int64)
    values = quantize(numbers(4, 5), 1)
    tensor = Sparse((OUT, IN), at, values)
    weight = torch.zeros(OUT * IN, dtype=torch.float64)
    weight[torch.from_numpy(at)] = torch.from_numpy(numbers(4, 5)).double()
    weight = weight.reshape(OUT, IN)
    found = refit(tensor, lambda w: x @ w.T, weight, x @ weight.T)
    assert isinstance(found, Sparse) and isinstance(found.values, Quantized) and found is not tensor
    parts = np.zeros((2, OUT * IN))
    parts[0, at], parts[1, at] = np.array([-1.0, 1.0])[values.codes()], 1.0
    columns = [x.numpy() @ part.reshape(OUT, IN).T for part in parts]
    solution = best(columns, (x @ weight.T).numpy(), list(parts), weight.numpy())
    assert found.values.offset is not None
    np.testing.assert_allclose([found.values.scale[0], found.values.offset[0]], solution, rtol=1e-5)


def test_what_has_scales() -> None:
    codes = quantize(numbers(1, 4, 4), 2)
    assert coded(codes) and coded(Sparse((9,), np.arange(2), quantize(numbers(1, 2), 1)))
    assert not coded(Dense(numbers(1, 4))) and not coded(Sparse((9,), np.arange(2), Dense(numbers(1, 2))))
    with pytest.raises(RuntimeError):
        refit(Dense(numbers(1, 4)), lambda w: w, torch.zeros(4), torch.zeros(4))


@pytest.mark.parametrize("name", ["lora", "adaptformer", "adapter", "consolidator", "sparse"])
def test_every_method_that_has_a_branch_can_be_fitted(name: str) -> None:
    """The tangent exists for the activations of every method, and following it once helps."""
    for row in EXAMPLES[name]:
        method, tensors = METHODS[name], row.tensors
        shapes = {role: tensor.shape for role, tensor in tensors.items()}
        if "weight" not in shapes and "down" not in shapes:
            continue
        role = "down" if "down" in shapes else "weight"
        width = shapes[role][-1] * (row.params.get("groups", 1) if role == "weight" else 1)
        x = activations(2, width)
        exact: dict[str, torch.Tensor] = {
            r: torch.from_numpy(numbers(9, *t.shape)).double() for r, t in tensors.items()
        }
        target = method.branch(x, exact, row.params)
        plain = quantize(np.asarray(exact[role], np.float32), 1, 0)
        found = refit(plain, branch_output(method, row.params, x, exact, role), exact[role], target)
        before, after = (
            (method.branch(x, {**exact, role: wide(t)}, row.params) - target).norm() for t in (plain, found)
        )
        assert after < before, str(row.site)


def test_the_weights_hold_what_the_images_leave_open() -> None:
    """Inputs that hardly vary in one direction: without the weights' share the offset runs away for almost nothing."""
    x = activations(5) - activations(5).mean(dim=1, keepdim=True) * 0.999
    weight = torch.from_numpy(numbers(6, OUT, IN)).double()
    tensor = quantize(weight.numpy().astype(np.float32), 1, 0)
    found = refit(tensor, lambda w: x @ w.T, weight, x @ weight.T)
    assert isinstance(found, Quantized)
    assert (wide(found) - weight).norm() < 1.5 * (wide(tensor) - weight).norm()
