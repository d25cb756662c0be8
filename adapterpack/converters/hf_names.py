"""Whose names a source uses, and the site of each: the tables of `_hf_families`, each row read both ways.

Knows names only. `HEAD` stands for the classifier.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from adapterpack.converters._hf_families import FAMILIES, OWN, Family
from adapterpack.errors import CorruptFileError, Reason

__all__ = ["HEAD", "NAMINGS", "OWN", "Names", "module_of", "names_of", "unmapped"]
HEAD = "head"
# where timm keeps the plain ViTs, whose modules are all in the table
_PLAIN = ("timm.models.vision_transformer", "timm.models.deit")
# how a path within a block or stage of timm's other models begins, and the words that go on
_N = r"(?:0|[1-9][0-9]{0,3})"
_BLOCKS = rf"\w*blocks\w*\.{_N}(?:\.{_N})?"
_STAGE = re.compile(rf"((?:layers|stages)\.{_N}\.(?:{_BLOCKS}|downsample)|{_BLOCKS})\.(.+)", re.ASCII)
_WORDS = frozenset(
    [
        "attn", "qkv", "q", "k", "v", "kv", "proj", "mlp", "fc1", "fc2", "fc1_g", "fc1_x", "norm", "norm1",
        "norm2", "q_norm", "k_norm", "q_proj", "k_proj", "v_proj", "conv_dw", "reduction", "attn_block",
        "attn_grid", "mlp_tokens", "mlp_channels", "token_mixer", "proj_l", "proj_w", "0", "1",
    ]
)  # fmt: skip
_OUTSIDE = ("norm", "norm_pre", "fc_norm", "head.norm", "patch_embed.proj", "patch_embed.norm", "stem.0", "stem.1")
_PATH = re.compile(rf"[A-Za-z_]\w*(?:\.(?:[A-Za-z_]\w*|{_N}))*", re.ASCII)
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
        if self.family is OWN:
            return module if _PATH.fullmatch(module) else None
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


def names_of(modules: Iterable[str], said: str = "", library: str | None = None) -> Names:
    """Whose names a source uses.

    Args:
        modules: module paths, without a library's own wrapping.
        said: the model class that the source names, "" where it names none; it decides between equals.
        library: the module of Python that the class is from, likewise; None where the paths of timm's other models are
            no names of the source's, else these are taken as they are.

    Raises:
        CorruptFileError: `unmapped-tensor` naming a module that the likeliest family does not explain.
    """
    listed = list(modules)
    if library is not None and library.startswith("timm.") and library not in _PLAIN:
        best = _OWN
    else:
        choices = [Names(family, prefix) for family in FAMILIES for prefix in family.prefixes]

        def score(names: Names) -> tuple[int, bool]:
            known = sum(names.site(module) not in (None, HEAD) for module in listed)
            return known, said.startswith(names.family.classes)

        best = max(choices, key=score)
    strange = next((module for module in listed if best.site(module) is None), None)
    if strange is None:
        return best
    if library is not None and not library.startswith("transformers.") and all(map(_is_timms, listed)):
        return _OWN
    raise unmapped(strange, best)


_OWN = Names(OWN, "")


def _is_timms(module: str) -> bool:
    """Whether a path is spelled as in timm's models, which no other library's is."""
    within = _STAGE.fullmatch(module)
    if within is None:
        return module in (*OWN.heads, *_OUTSIDE)
    return all(word in _WORDS for word in within[2].split("."))


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
