"""Whose names a source uses, and the site of each: the tables of `_hf_families`, each row read both ways.

Knows names only. `HEAD` stands for the classifier.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from adapterpack.converters._hf_families import FAMILIES, Family
from adapterpack.errors import CorruptFileError, Reason

HEAD = "head"
# names that no row can explain, and why
_WHY = (
    (r"(^|\.)text_(model|projection)(\.|$)", "the text tower is no part of a vision transformer"),
    (r"(^|\.)pooler\.", "timm's vision transformer has no pooler; train without it (add_pooling_layer=False)"),
    (r"^classifier$", "DINOv2's classifier reads class token and mean patch together, timm's head does not"),
    (r"^(cls|distillation)_classifier$", "a distilled model has two heads, and a task has one"),
)


@dataclass(frozen=True, slots=True)
class Names:
    """One family with the prefix that a source uses."""

    family: Family
    prefix: str

    def site(self, module: str) -> str | None:
        """The site of a module, `HEAD` for the classifier, or None."""
        if module in self.family.heads:
            return HEAD
        if not module.startswith(self.prefix):
            return None
        for pattern, site in _compiled(self.family.name):
            match = pattern.fullmatch(module, len(self.prefix))
            if match is not None:
                return site.format(**match.groupdict())
        return None

    def module(self, site: str) -> str | None:
        """The inverse of `site`; None for a site that the family has no single module for."""
        return module_of(self.family, self.prefix, site)

    def linears(self, depth: int) -> Iterator[tuple[str, str]]:
        """(module, site) of every linear layer of so many blocks."""
        for i in range(depth):
            for module, site in self.family.linears:
                yield self.prefix + module.format(i=i), site.format(i=i)


def _namings() -> dict[str, tuple[Names, ...]]:
    timm, vit, vit5, dinov2, giant, clip = FAMILIES
    rows = {
        "timm": (timm, ("",)), "vit": (vit, ("vit.", "")), "deit": (vit, ("deit.", "")),
        "vit5": (vit5, ("vit.", "")), "deit5": (vit5, ("deit.", "")), "dinov2": (dinov2, dinov2.prefixes),
        "dinov2-giant": (giant, giant.prefixes), "clip": (clip, clip.prefixes),
    }  # fmt: skip
    return {word: tuple(Names(family, prefix) for prefix in prefixes) for word, (family, prefixes) in rows.items()}


# The names that can be asked for: those of a model with a classifier first, of a bare one last.
NAMINGS = _namings()


def names_of(modules: Iterable[str], said: str = "") -> Names:
    """Whose names a source uses.

    Args:
        modules: module paths, without a library's own wrapping.
        said: the model class that the source names, "" where it names none; it decides between equals.

    Raises:
        CorruptFileError: `unmapped-tensor` naming a module that the likeliest family does not explain.
    """
    listed = list(modules)
    choices = [Names(family, prefix) for family in FAMILIES for prefix in family.prefixes]

    def score(names: Names) -> tuple[int, bool]:
        known = sum(names.site(module) not in (None, HEAD) for module in listed)
        return known, said.startswith(names.family.classes)

    best = max(choices, key=score)
    for module in listed:
        if best.site(module) is None:
            raise unmapped(module, best)
    return best


def unmapped(module: str, names: Names) -> CorruptFileError:
    """The error for a module without a site."""
    like = re.sub(r"\d+", "{i}", module.removeprefix(names.prefix))
    near = difflib.get_close_matches(like, [row[0] for row in names.family.rows], n=2, cutoff=0.5)
    said = next((why for pattern, why in _WHY if re.search(pattern, module)), "")
    hint = said or (f"the nearest known names are {' and '.join(near)}" if near else f"expected {names.family.name}'s")
    message = f"no rule explains the module {module[:200]!r}"
    return CorruptFileError(message, Reason.UNMAPPED_TENSOR, hint=hint)


def module_of(family: Family, prefix: str, site: str) -> str | None:
    """The inverse of `Names.site`; None for a site that the family has no single module for."""
    for module, ours in family.rows:
        match = re.fullmatch(_pattern(ours), site)
        if match is not None:
            return prefix + module.format(**match.groupdict())
    return None


@cache
def _compiled(family: str) -> tuple[tuple[re.Pattern[str], str], ...]:
    rows = next(f for f in FAMILIES if f.name == family).rows
    return tuple((re.compile(_pattern(module)), site) for module, site in rows)


def _pattern(template: str) -> str:
    return re.escape(template).replace(r"\{i\}", "(?P<i>0|[1-9][0-9]{0,3})")
