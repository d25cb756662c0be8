"""Settings, the learning rate of the papers, and which images train when."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from adapterpack.adapter import DataSettings
from adapterpack.errors import CallError
from adapterpack.train.devices import Hardware, choose, seeded
from adapterpack.train.inputs import input_settings
from adapterpack.train.loop import is_scored, order_of, seed_of, shares
from adapterpack.train.recipe import RECIPES, recipe_for
from adapterpack.train.schedule import rate


@pytest.mark.parametrize(
    ("setting", "value"),
    [("bits", 3), ("head_bits", 0), ("dim", 0), ("scale", -1.0), ("scale", math.nan), ("epochs", 0), ("lr", 0.0),
     ("batch_size", 0), ("groups", (0,)), ("budget", 0.0), ("val_share", 1.0), ("precision", "fp8"), ("colour", 1),
     ("dim", 1 << 30), ("seed", -1), ("seed", 1 << 32), ("lr", 1e38), ("weight_decay", 1e38)],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(setting: str, value: Any) -> None:
    with pytest.raises(CallError, match=setting.replace("_", "-")):
        recipe_for("lora", {setting: value})


def test_only_methods_with_a_scale_search_for_one() -> None:
    assert {name for name in RECIPES if recipe_for(name, {"scale": None}).scale is None} == {"lora", "adaptformer"}


def test_unknown_method() -> None:
    with pytest.raises(CallError, match="choose one of lora"):
        recipe_for("vpt", {})


def test_defaults_are_the_papers() -> None:
    assert (RECIPES["lora"].epochs, RECIPES["lora"].lr, RECIPES["lora"].weight_decay) == (100, 1e-3, 1e-4)
    assert RECIPES["adaptformer"].batch_size == 64 and RECIPES["lora"].drop_last
    assert not RECIPES["spt-lora"].drop_last and not RECIPES["consolidator"].decay_vectors
    assert recipe_for("lora", {"bits": 1}).dim == 32 and recipe_for("lora", {"bits": 8}).dim == 8
    assert recipe_for("lora", {"bits": 8, "dim": 3}).dim == 3


def test_rate_is_the_papers_by_epochs() -> None:
    recipe = recipe_for("lora", {"epochs": 100, "lr": 1e-3})
    f = [rate(recipe, epoch, 5, 15) for epoch in range(100)]
    assert f[0] == f[1] == 1e-6
    assert f[2] == pytest.approx(1e-6 + (1e-3 - 1e-6) / 10)
    assert f[11] / 1e-3 == pytest.approx(0.976, abs=5e-4)  # t = 10: the cosine does not wait for the warm-up
    assert f[99] == pytest.approx(1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + math.cos(math.pi * 98 / 100)))


def test_short_runs_change_the_rate_with_every_step() -> None:
    recipe = recipe_for("lora", {"epochs": 10})
    rates = [rate(recipe, epoch, step, 4) for epoch in range(10) for step in range(4)]
    assert rates[0] > 1e-5 and max(rates) > 0.96e-3 and len(set(rates)) == 40
    assert rate(recipe_for("lora", {"epochs": 10, "schedule": "epoch"}), 1, 3, 4) == 1e-6


def test_every_image_once_an_epoch_in_an_order_of_its_own() -> None:
    recipe = recipe_for("spt-lora", {"batch_size": 7})
    first, second = order_of(30, 0, recipe), order_of(30, 1, recipe)
    assert sorted(np.concatenate(first).tolist()) == list(range(30)) and len(first) == 5
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))
    assert all(np.array_equal(a, b) for a, b in zip(first, order_of(30, 0, recipe)))
    assert [len(batch) for batch in order_of(30, 0, recipe_for("lora", {"batch_size": 7}))] == [7] * 4
    assert [len(batch) for batch in order_of(5, 0, recipe_for("lora", {}))] == [5]  # fewer images than a batch


def test_processes_and_parts_share_a_batch() -> None:
    batch = np.arange(11)
    found = []
    for rank in range(3):
        parts = shares(batch, 2, Hardware(torch.device("cpu"), False, rank, 3))
        assert len(parts) == 2
        found += [int(i) for part in parts for i in part]
    assert sorted(found) == list(range(11))


def test_every_epoch_and_process_draws_its_own_dropout() -> None:
    recipes = [recipe_for("lora", {"seed": seed}) for seed in range(3)]
    assert (
        len({seed_of(recipe, epoch, rank) for recipe in recipes for epoch in range(100) for rank in range(8)}) == 2400
    )


def test_which_epochs_are_scored() -> None:
    assert [e for e in range(10) if is_scored(recipe_for("lora", {"epochs": 10}), e)] == list(range(10))
    hundred = [e for e in range(100) if is_scored(recipe_for("lora", {}), e)]
    assert len(hundred) == 20 and hundred[-1] == 99


def test_a_papers_input_values_are_of_three_channels() -> None:
    own = DataSettings(input_size=(1, 28, 28), mean=(0.5,), std=(0.5,))
    assert input_settings("spt-lora", own, "grey.safetensors", "auto") == own
    for method in ("lora", "consolidator"):
        with pytest.raises(CallError, match="takes 1; use --input backbone"):
            input_settings(method, own, "grey.safetensors", "recipe")


def test_input_values() -> None:
    own = DataSettings(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=0.9, crop_mode="center")
    assert input_settings("lora", own, "vit_tiny", "auto") == DataSettings(input_size=(3, 32, 32))
    assert input_settings("spt-lora", own, "vit_tiny", "recipe").mean == (0.485, 0.456, 0.406)
    assert input_settings("lora", own, "small.safetensors", "auto") == own
    assert input_settings("lora", own, "vit_tiny", "backbone") == own
    assert input_settings("lora", own, "small.safetensors", "recipe").mean == (0.0, 0.0, 0.0)


def test_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose("cpu", "float32") == Hardware(torch.device("cpu"), False)
    assert choose("cpu", "bf16").bf16
    if not torch.cuda.is_available():
        with pytest.raises(CallError, match="no CUDA"):
            choose("cuda", "auto")
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(CallError, match="no CUDA"):
            choose("cuda", "auto")


def test_seeded_leaves_the_callers_numbers_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with seeded(8, torch.device("cpu")):
        one = torch.rand(2)
    with seeded(8, torch.device("cpu")):
        assert torch.equal(one, torch.rand(2))
    assert torch.equal(torch.rand(2), expected)
