"""Whether a PEFT folder holds all that its settings say was trained: what is missing is refused by name.

Which parameters a model has is known from the backbone where that is given, else from the family's table, else from the
other blocks of the folder. One that a model may truly lack is asked for all the same: only the backbone can show it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from adapterpack.adapter import Site
from adapterpack.converters._folder import missing
from adapterpack.converters._head import require_bias
from adapterpack.converters._peft_names import PROJECTION
from adapterpack.converters._peft_sort import CALLED, WANTED, Sorted
from adapterpack.converters.hf_names import HEAD, OWN, Names
from adapterpack.converters.peft_config import PeftConfig
from adapterpack.errors import Reason, UnsupportedAdapterError
from adapterpack.tensors import F32

_BLOCK = re.compile(r"(.+\.)?\d+(?=\.)")  # up to the last number that a name follows
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_SHOW = "the folder is incomplete; if the model truly has none, show that: --backbone (backbone=)"
Numbers = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Folder:
    """What the checks look at.

    Attributes:
        found, config: the tensors and the settings.
        names: whose names the modules have.
        sites: of every module of the folder.
        depth: blocks of the model, as far as is known.
        backbone: the frozen model's tensors by timm's names, or None.
        settings: what the caller said of the source.
    """

    found: Sorted
    config: PeftConfig
    names: Names
    sites: Mapping[str, str]
    depth: int
    backbone: Mapping[str, F32] | None
    settings: Mapping[str, Any]

    def lacks(self, module: str, role: str) -> bool:
        """Whether the backbone shows that its module has no such parameter."""
        if self.backbone is None:
            return False
        site = self.names.site(module) or module
        if site != HEAD:
            return f"{Site.parse(site).path}.{role}" not in self.backbone
        there = [head for head in (module, *OWN.heads) if f"{head}.weight" in self.backbone]
        return bool(there) and f"{there[0]}.{role}" not in self.backbone

    def require(self, module: str, role: str, why: str) -> None:
        """Refuse a folder without a parameter that its model has.

        Raises:
            CorruptFileError: `missing-tensor`.
        """
        if role not in self.found.plain.get(module, {}) and not self.lacks(module, role):
            raise missing(f"{module}.{role}", f"{why}; {_SHOW if self.backbone is None else 'the backbone has one'}")


def check_whole(folder: Folder) -> None:
    """Refuse a folder that lacks a parameter of the model's own that was trained.

    Raises:
        CorruptFileError: `missing-tensor` naming the first.
        UnsupportedAdapterError: `not-expressible`: which biases the model has is not known.
    """
    for module in _alike(folder, filter(folder.config.saves, folder.found.plain)):
        if folder.config.saves(module) and not folder.lacks(module, "weight"):
            folder.require(module, "weight", "modules_to_save names its module")
            if folder.names.site(module) == HEAD:
                _check_head(folder, module)
            else:
                folder.require(module, "bias", "modules_to_save names its module")
    said = folder.config.values.get("bias")
    for module in _biased(folder):
        folder.require(module, "bias", f"bias is {said!r}")


def _check_head(folder: Folder, module: str) -> None:
    if module != PROJECTION and not folder.lacks(module, "bias"):
        require_bias(folder.found.plain[module], f"{module}.bias", folder.settings)


def _biased(folder: Folder) -> Iterator[str]:
    """Modules of the model whose bias was trained, all but the classifier."""
    names = folder.names
    if folder.config.bias == "only":
        modules = folder.found.adapted
        yield from (module for module in modules if names.family.unbiased.get(folder.sites[module]) != "")
    elif folder.config.bias == "all" and names.family is OWN:
        if folder.backbone is None:
            text = "bias is 'all', and which biases this model has is not known"
            hint = "show it: --backbone (backbone=)"
            raise UnsupportedAdapterError(text, Reason.NOT_EXPRESSIBLE, folder.config.name, hint)
        named = (name.removesuffix(".bias") for name in folder.backbone if name.endswith(".bias"))
        yield from (module for module in named if names.site(module) != HEAD)
    elif folder.config.bias == "all":
        yield from _biased_in_family(folder)


def _biased_in_family(folder: Folder) -> Iterator[str]:
    names = folder.names
    for template, place in names.family.rows:
        instead = names.family.unbiased.get(place)
        other = names.module(instead) if instead else None
        if instead != "" and (other is None or "bias" not in folder.found.plain.get(other, {})):
            for i in range(folder.depth if "{i}" in template else 1):
                yield names.prefix + template.format(i=i)


def check_targets(folder: Folder) -> None:
    """Refuse a folder that lacks the adapter of a layer that PEFT would adapt.

    Raises:
        CorruptFileError: `missing-tensor` naming the layer.
    """
    present = {folder.sites[module] for module in folder.found.adapted}
    for module, site in _linears(folder):
        if folder.config.targets(module) and site not in present:
            wanted = " and ".join(CALLED[part] for part in WANTED[folder.config.type])
            hint = "target_modules names it"
            raise missing(f"{wanted} of {module}", f"{hint}; {_SHOW}" if folder.names.family is OWN else hint)


def _linears(folder: Folder) -> Iterator[tuple[str, str]]:
    """(module, site) of the layers that the model has, as far as is known."""
    if folder.names.family is not OWN:
        yield from folder.names.linears(folder.depth)
        return
    for name, values in (folder.backbone or {}).items():
        module = name.removesuffix(".weight")
        if module != name and values.ndim == 2 and folder.names.site(module) == module:
            yield module, module
    if folder.backbone is None:
        yield from ((module, module) for module in _alike(folder, folder.found.adapted))


def _alike(folder: Folder, modules: Iterable[str]) -> Iterator[str]:
    """Modules in every block that the model must have, as far as the folder shows, and those that are in none.

    Blocks, and the stages that hold them, count from 0; the first stage need not begin with a downsampling. Where the
    first stages have no such layers (TinyViT, EdgeNeXt), the backbone shows it.
    """
    seen: dict[str, set[Numbers]] = {}
    for module in (*folder.found.adapted, *folder.found.plain):
        shape, numbers, _ = _split(module)
        seen.setdefault(shape, set()).add(numbers)
        if folder.depth and len(numbers) == 1 and folder.names.family is not OWN:
            seen[shape].add((folder.depth - 1,))
    for shape, rest in dict.fromkeys((shape, rest) for shape, _, rest in map(_split, modules)):
        first = 1 if rest.startswith(".downsample") and (0,) not in seen[shape] else 0
        yield from (shape.format(*numbers) + rest for numbers in _filled(seen[shape], first))


def _split(module: str) -> tuple[str, Numbers, str]:
    """A module's block with its numbers taken out, the numbers, and the rest: nothing before it in no block."""
    block = _BLOCK.match(module)
    if block is None:
        return "", (), module
    numbers = tuple(int(text) for text in _NUMBER.findall(block[0]))
    return _NUMBER.sub("{}", block[0]), numbers, module[block.end() :]


def _filled(seen: Collection[Numbers], first: int = 0) -> Iterator[Numbers]:
    """Every number from the first to the highest, at each level."""
    if not next(iter(seen), ()):
        yield ()
        return
    length = len(next(iter(seen)))
    for i in range(first, max(numbers[0] for numbers in seen) + 1):
        inner = {numbers[1:] for numbers in seen if numbers[0] == i} or {(0,) * (length - 1)}
        yield from ((i, *rest) for rest in _filled(inner))
