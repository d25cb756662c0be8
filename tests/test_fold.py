"""Folding: exact sums, kept entries, and the low-rank product in one pass."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from torch import nn

from adapterpack.adapter import Site
from adapterpack.methods._base import Entries
from adapterpack.runtime.fold import Arena, Kept, fold, swap, write
from adapterpack.runtime.places import Place


def test_product_in_one_pass_is_as_exact_as_the_sum() -> None:
    torch.manual_seed(0)
    for out, rank, inward in ((768, 32, 768), (768, 1, 768), (96, 3, 50)):
        weight, up, down = torch.randn(3 * out, inward), torch.randn(out, rank), torch.randn(rank, inward)
        target = weight.clone()[out : 2 * out]
        write(target, (up, down), replaces=False)
        exact = weight[out : 2 * out].double() + up.double() @ down.double()
        sum_error = (weight[out : 2 * out] + up @ down - exact).abs().max()
        assert (target - exact).abs().max() <= sum_error


def place(module: nn.Module, rows: tuple[int, int] | None = None) -> Place:
    return Place(Site("x"), module, rows=rows)


@torch.no_grad()
def test_entries_touch_nothing_else_and_keep_only_themselves() -> None:
    layer = nn.Linear(5, 6)
    before = layer.weight.clone()
    positions, values = torch.tensor([0, 7, 9]), torch.tensor([1.0, 2.0, 3.0])
    with ExitStack() as undo:
        fold(place(layer, (2, 2)), "weight", Entries(positions, values), replaces=False, undo=undo, arena=Arena())
        expected = before.clone()
        expected[2, 0] += 1
        expected[3, 2] += 2
        expected[3, 4] += 3
        assert torch.equal(layer.weight, expected)
        kept = undo._exit_callbacks[0][1].__wrapped__.__self__  # type: ignore[attr-defined]
        assert isinstance(kept, Kept) and kept.values.numel() == 3
    assert torch.equal(layer.weight, before)


@torch.no_grad()
@pytest.mark.parametrize("positions", [False, True])
def test_a_parameter_that_is_not_contiguous(positions: bool) -> None:
    conv = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
    before = conv.weight.clone()
    delta = torch.arange(48.0).reshape(4, 3, 2, 2)
    with ExitStack() as undo:
        given = Entries(torch.arange(48), delta.reshape(-1)) if positions else delta
        fold(place(conv), "weight", given, replaces=False, undo=undo, arena=Arena())
        assert torch.equal(conv.weight, before + delta) and not conv.weight.is_contiguous()
    assert torch.equal(conv.weight, before)


@torch.no_grad()
def test_swap_leaves_the_first_parameter_alone() -> None:
    norm = nn.LayerNorm(4)
    first, values = norm.bias, norm.bias.clone()
    with ExitStack() as undo:
        swap(place(norm), "bias", torch.ones(4), replaces=True, undo=undo)
        assert norm.bias is not first and torch.equal(norm.bias, torch.ones(4)) and norm.bias.requires_grad
        assert torch.equal(first, values)
    assert norm.bias is first


def test_what_the_plan_let_through_is_a_bug_of_ours() -> None:
    bare = place(nn.Linear(2, 2, bias=False))
    with pytest.raises(RuntimeError, match="bias"):
        fold(bare, "bias", torch.ones(2), replaces=False, undo=ExitStack(), arena=Arena())
    with pytest.raises(RuntimeError, match="bias"):
        swap(bare, "bias", torch.ones(2), replaces=False, undo=ExitStack())


def test_arena_copies_are_copies() -> None:
    arena = Arena()
    sources = [torch.randn(3, 5), torch.randn(7).to(torch.bfloat16), torch.randn(2, 2, 2, dtype=torch.float64)]
    copies = [arena.copy(source[1:]) for source in sources]
    for source, copy in zip(sources, copies):
        assert torch.equal(copy, source[1:]) and copy.dtype == source.dtype
        source.zero_()
    assert all(copy.abs().sum() > 0 for copy in copies)
    assert len({copy.data_ptr() for copy in copies}) == 3


def test_arena_takes_what_is_larger_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Arena, "BLOCK", 64)
    arena, source = Arena(), torch.arange(100.0)
    assert torch.equal(arena.copy(source), source) and torch.equal(arena.copy(source[:3]), source[:3])
