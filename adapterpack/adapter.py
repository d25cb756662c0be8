"""The nouns: Site, Branch and, kept together, Branches, Head, DataSettings, Backbone, Adapter. Frozen, with no more
behaviour than their own grammar.

A *site* names a place in the backbone in timm's words: `blocks.3.attn.qkv[q]` is the query rows of block 3's fused
projection, `norm` the final LayerNorm, `cls_token` a bare parameter. A *branch* is one trained thing at one site.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapterpack.errors import CorruptFileError, Reason
from adapterpack.stacks import Column
from adapterpack.tensors import Tensor, same_tensor

Json = Any  # what strict JSON can hold: None, bool, int, float, str, list, dict
Params = Mapping[str, Json]

_SITE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*(?:\.(?:[A-Za-z_][A-Za-z0-9_]*|0|[1-9][0-9]{0,3}))*)(?:\[([qkv])\])?")


@dataclass(frozen=True, slots=True)
class Site:
    """A place in the backbone.

    Attributes:
        path: dotted module or parameter path (`blocks.3.attn.qkv`).
        part: "q", "k" or "v" for those rows of a fused projection, else "".
    """

    path: str
    part: str = ""

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read `path` or `path[part]`.

        Raises:
            CorruptFileError: `bad-name`.
        """
        match = _SITE.fullmatch(text)
        if match is None or len(text) > 255:
            raise CorruptFileError(
                f"{text[:80]!r} is not a site", Reason.BAD_NAME, hint="expected e.g. blocks.3.attn.qkv[q]"
            )
        return cls(match[1], match[2] or "")

    @property
    def block(self) -> int | None:
        """The block's number where the path is `blocks.N.…`, else None."""
        parts = self.path.split(".")
        return int(parts[1]) if len(parts) > 2 and parts[0] == "blocks" and parts[1].isdigit() else None

    @property
    def pattern(self) -> str:
        """The site with its block number replaced by `*`."""
        if self.block is None:
            return str(self)
        return re.sub(r"^blocks\.\d+\.", "blocks.*.", str(self))

    def __str__(self) -> str:
        return f"{self.path}[{self.part}]" if self.part else self.path


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """One trained thing at one site.

    Attributes:
        site: where.
        method: a name in the registry of methods ("lora").
        params: the method's settings (`{"scale": 0.1}`).
        tensors: by role ("down", "up").
    """

    site: Site
    method: str
    params: Params
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class BranchGroup:
    """Branches that differ in nothing but their site, and in the numbers of their tensors.

    Attributes:
        method, params: of all of them.
        sites: of each.
        columns: by role, the tensors of all sites, in the order of `sites`.
    """

    method: str
    params: Params
    sites: tuple[Site, ...]
    columns: Mapping[str, Column]


class Branches(Sequence[Branch]):
    """Branches as a file keeps them, by group; one by one they are made when they are asked for."""

    def __init__(self, groups: Iterable[BranchGroup]) -> None:
        self.groups = tuple(groups)
        self._made: tuple[Branch, ...] | None = None

    @classmethod
    def of(cls, branches: Sequence[Branch]) -> Branches:
        """Branches in their order; neighbours that are alike make a group."""
        if isinstance(branches, cls):
            return branches
        runs: list[list[Branch]] = []
        for branch in branches:
            if runs and _alike(branch, runs[-1][0]):
                runs[-1].append(branch)
            else:
                runs.append([branch])
        found = cls(_group(run) for run in runs)
        found._made = tuple(branches)
        return found

    def __len__(self) -> int:
        return sum(len(group.sites) for group in self.groups)

    def __iter__(self) -> Iterator[Branch]:
        return iter(self._all())

    def __getitem__(self, at: Any) -> Any:
        return self._all()[at]

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles without what can be made again."""
        return Branches, (self.groups,)

    def _all(self) -> tuple[Branch, ...]:
        if self._made is None:
            self._made = tuple(branch for group in self.groups for branch in _branches(group))
        return self._made


def _branches(group: BranchGroup) -> Iterator[Branch]:
    for site, *tensors in zip(group.sites, *group.columns.values()):
        yield Branch(site, group.method, group.params, dict(zip(group.columns, tensors)))


def _group(run: Sequence[Branch]) -> BranchGroup:
    columns = {role: [branch.tensors[role] for branch in run] for role in run[0].tensors}
    return BranchGroup(run[0].method, run[0].params, tuple(branch.site for branch in run), columns)


def _alike(one: Branch, other: Branch) -> bool:
    """Of one method and the same settings, with tensors of the same roles and shapes."""
    if one.method != other.method or one.tensors.keys() != other.tensors.keys() or not _same(one.params, other.params):
        return False
    return all(tensor.shape == other.tensors[role].shape for role, tensor in one.tensors.items())


def _same(one: Params, other: Params) -> bool:
    """Equal to the type (1 and True are equal to each other), whatever the values are."""
    return one is other or repr(one) == repr(other)


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """The classifier of one task: weight [classes, features], and bias [classes] or none."""

    weight: Tensor
    bias: Tensor | None = None

    @property
    def classes(self) -> int:
        return self.weight.shape[0]

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {"weight": self.weight} if self.bias is None else {"weight": self.weight, "bias": self.bias}


@dataclass(frozen=True, slots=True)
class DataSettings:
    """How an image becomes the model's input; the fields mirror timm's `pretrained_cfg`.

    Attributes:
        input_size: (channels, height, width).
        mean, std: per channel, of values in [0, 1].
        interpolation: "bicubic", "bilinear" or "nearest".
        crop_pct: share of the shorter side that the crop keeps.
        crop_mode: "center", or "squash" where the aspect ratio is not kept.
    """

    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "squash"


@dataclass(frozen=True, slots=True)
class Backbone:
    """The frozen model an adapter belongs to: hub name, and fingerprint ("sha256:…") where it is known."""

    name: str = ""
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """All branches, the head and the description of one task.

    Attributes:
        name: the task's name ("cifar").
        method: what trained it, for people ("lora", "spt").
        branches: in canonical order (see `canonical_order`).
        head: the classifier, or None.
        labels: class names in the head's row order, or None.
        data: preprocessing, or None where it is not known.
        metadata: free values; `source` holds what a converter needs to write the outside form again.
        backbone: what the adapter was trained on.
    """

    name: str
    method: str
    branches: Sequence[Branch]
    head: Head | None = None
    labels: tuple[str, ...] | None = None
    data: DataSettings | None = None
    metadata: Mapping[str, Json] = field(default_factory=dict)
    backbone: Backbone = Backbone()

    @property
    def sites(self) -> dict[str, tuple[Branch, ...]]:
        """Branches by site."""
        found: dict[str, tuple[Branch, ...]] = {}
        for branch in self.branches:
            found[str(branch.site)] = (*found.get(str(branch.site), ()), branch)
        return found

    def same_as(self, other: Adapter) -> bool:
        """Whether two adapters are one to the bit: names, settings, and every tensor's form and content."""
        plain = ("name", "method", "labels", "data", "metadata", "backbone")
        if any(getattr(self, name) != getattr(other, name) for name in plain):
            return False
        mine, theirs = _by_key(self), _by_key(other)
        return mine.keys() == theirs.keys() and all(same_tensor(mine[key], theirs[key]) for key in mine)


def _by_key(adapter: Adapter) -> dict[tuple[str, ...], Tensor]:
    found: dict[tuple[str, ...], Tensor] = {
        (str(b.site), b.method, repr(sorted(b.params.items())), role): tensor
        for b in adapter.branches
        for role, tensor in b.tensors.items()
    }
    if adapter.head is not None:
        for role, tensor in adapter.head.tensors.items():
            found["head", role] = tensor
    return found


def canonical_order(branch: Branch) -> tuple[int, str, str]:
    """Sort key of branches: block number (sites outside the blocks first), then site pattern, then method."""
    block = branch.site.block
    return (-1 if block is None else block, branch.site.pattern, branch.method)
