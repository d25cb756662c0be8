"""From an adapter to the layout of its file: canonical groups of branches, and the form each segment carries.

Nothing is encoded here. The grouping follows from the adapter alone, so the same adapter gives the same index and the
same digest on every machine. Source: spec/README.md, "Canonical order".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adapterpack.adapter import Adapter, Branch
from adapterpack.container import strict_json
from adapterpack.container.index import Group, TensorRow
from adapterpack.errors import Reason, UnsupportedAdapterError
from adapterpack.tensors import Tensor

Key = tuple[str, str, bytes]


@dataclass(frozen=True, slots=True, eq=False)
class Planned:
    """One segment to be written: the part it belongs to and its tensors, all of one form, in file order."""

    part: str
    form: dict[str, Any]
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """An adapter's layout.

    Attributes:
        groups, head: for the index.
        segments: adapter segments in order of first use, then the head's.
        tensors: every tensor in file order, for the digest.
    """

    groups: tuple[Group, ...]
    head: dict[str, TensorRow]
    segments: tuple[Planned, ...]
    tensors: tuple[Tensor, ...]


def plan(adapter: Adapter) -> Plan:
    """Lay an adapter out.

    Raises:
        UnsupportedAdapterError: `duplicate-name` for two equal branches at one site.
    """
    branches = _by_key(adapter.branches)
    slots = _Slots()
    groups: list[Group] = []
    ordered: list[Tensor] = []
    for template in _groups(adapter.branches):
        members = [branches[str(site), template.method, _text(template.params)] for site in template.expand()]
        roles = sorted(members[0].tensors)
        rows = {role: slots.row("adapter", members[0].tensors[role]) for role in roles}
        for branch in members:
            for role in roles:
                slots.add(rows[role].segment, branch.tensors[role])
                ordered.append(branch.tensors[role])
        groups.append(Group(template.method, template.params, template.sites, template.blocks, rows))
    head: dict[str, TensorRow] = {}
    for role, tensor in sorted(adapter.head.tensors.items(), reverse=False) if adapter.head else ():
        head[role] = slots.row("head", tensor)
        slots.add(head[role].segment, tensor)
        ordered.append(tensor)
    return Plan(tuple(groups), head, slots.planned(), tuple(ordered))


class _Slots:
    """Segments under construction, numbered in order of first use, one for each part and form."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, bytes], int] = {}
        self._parts: list[tuple[str, dict[str, Any], list[Tensor]]] = []

    def row(self, part: str, tensor: Tensor) -> TensorRow:
        key = (part, _text(tensor.form()))
        if key not in self._numbers:
            self._numbers[key] = len(self._parts)
            self._parts.append((part, tensor.form(), []))
        return TensorRow(tensor.shape, self._numbers[key])

    def add(self, segment: int, tensor: Tensor) -> None:
        self._parts[segment][2].append(tensor)

    def planned(self) -> tuple[Planned, ...]:
        return tuple(Planned(part, form, tuple(tensors)) for part, form, tensors in self._parts)


def _text(value: Any) -> bytes:
    return strict_json.dumps(dict(value))


def _by_key(branches: Sequence[Branch]) -> dict[Key, Branch]:
    found: dict[Key, Branch] = {}
    for branch in branches:
        key = (str(branch.site), branch.method, _text(branch.params))
        if key in found:
            raise UnsupportedAdapterError(
                f"{branch.site} has two equal {branch.method} branches", Reason.DUPLICATE_NAME
            )
        found[key] = branch
    return found


def _groups(branches: Sequence[Branch]) -> list[Group]:
    """Groups without their tensors: branches alike but for the block, then patterns alike with the same blocks."""
    alike: dict[tuple[str, bytes, str, str], list[int]] = {}
    params: dict[bytes, Any] = {}
    for branch in branches:
        text = _text(branch.params)
        params[text] = dict(branch.params)
        shapes = repr(sorted((role, t.shape, _text(t.form())) for role, t in branch.tensors.items()))
        blocks = alike.setdefault((branch.method, text, shapes, branch.site.pattern), [])
        if branch.site.block is not None:
            blocks.append(branch.site.block)
    joined: dict[tuple[str, bytes, str, tuple[int, ...]], list[str]] = {}
    for (method, text, shapes, pattern), blocks in alike.items():
        joined.setdefault((method, text, shapes, _ranges(sorted(blocks))), []).append(pattern)
    order = sorted((blocks, sorted(sites), method, text) for (method, text, _, blocks), sites in joined.items())
    return [Group(method, params[text], tuple(sites), blocks, {}) for blocks, sites, method, text in order]


def _ranges(blocks: list[int]) -> tuple[int, ...]:
    """Ascending block numbers as flattened half-open ranges."""
    out: list[int] = []
    for block in blocks:
        if out and out[-1] == block:
            out[-1] = block + 1
        else:
            out += [block, block + 1]
    return tuple(out)
