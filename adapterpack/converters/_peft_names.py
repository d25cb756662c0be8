"""Whose module names a PEFT folder is written in, and an adapter with its branches at those modules.

timm keeps query, key and value in one layer and Hugging Face in three, so a branch on all of timm's rows is divided
into three: the same down matrix, a third of everything that goes by the layer's output. Nouns in, nouns out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from adapterpack.adapter import Adapter, Branch, Site
from adapterpack.converters.hf_names import NAMINGS, OWN, Names
from adapterpack.errors import CorruptFileError, Reason, UnsupportedAdapterError
from adapterpack.tensors import Dense, Tensor

FORMAT = "peft"
TIMM = "timm"
PROJECTION = "visual_projection"  # the only classifier without a bias
_FUSED = "attn.qkv"
# what of a branch goes by the layer's output; of an affine one that depends
_OUTWARD = {"lora": ("up",), "dora": ("up", "magnitude"), "replace": ("bias", "weight"), "sparse": ("bias", "weight")}
_FURTHER = "head.fc"
_STAGED_WITH_HEAD = ("pvt_v2", "efficientformer")
_HEADLESS = {
    "dinov2": "its classifier reads class token and mean patch together, timm's head does not",
    "clip": "its classifier reads the mean patch before the last norm; only a head that came from there goes back",
}


@dataclass(frozen=True, slots=True)
class Naming:
    """Names of modules, and the classifier's.

    Attributes:
        word: one of `hf_names.NAMINGS`.
        names: the family with its prefix.
        head: the classifier's module, "" where the family, or the source, has none.
    """

    word: str
    names: Names
    head: str

    @property
    def is_timm(self) -> bool:
        return self.word == TIMM

    @property
    def is_usual(self) -> bool:
        """Whether nothing need be said of it: a plain vision transformer's names in timm, the classifier at `head`."""
        return self.is_timm and self.names.family is not OWN and self.head in ("", "head")

    def described(self) -> dict[str, str]:
        """What `naming_of` reads."""
        return {"names": self.word, "prefix": self.names.prefix, "head": self.head}

    def place(self, site: Site) -> Site:
        """The module at a site of timm's, as a site without a part.

        Raises:
            UnsupportedAdapterError: `not-expressible`.
        """
        if self.is_timm:
            return site
        module = self.names.module(str(site))
        if module is None:
            text = f"{self.names.family.name} has no module for {site}"
            raise UnsupportedAdapterError(text, Reason.NOT_EXPRESSIBLE, hint="write timm's names: --names timm")
        return Site.parse(module)


TIMMS = Naming(TIMM, NAMINGS[TIMM][0], "head")


def naming_of(said: Any, where: str) -> Naming:
    """A naming as `Naming.described` says it.

    Raises:
        CorruptFileError: `bad-field`.
    """
    values = said if isinstance(said, Mapping) else {}
    word, prefix, head = (values.get(key) for key in ("names", "prefix", "head"))
    listed = NAMINGS.get(word, ()) if isinstance(word, str) else ()
    for names in (*listed, *([Names(OWN, "")] if word == TIMM else [])):
        if names.prefix == prefix and head in ("", *names.family.heads):
            return Naming(str(word), names, str(head))
    raise CorruptFileError("there are no such names of modules", Reason.BAD_FIELD, where, "say whose: --names")


def read_naming(names: Names, modules: Mapping[str, object]) -> Naming:
    """The naming of a folder that was read: which word, and which of the family's classifiers it has, if any."""
    word = next((word for word, listed in NAMINGS.items() if names in listed), TIMM)
    return Naming(word, names, next((head for head in names.family.heads if head in modules), ""))


def chosen(adapter: Adapter, asked: str) -> Naming:
    """Whose names to write: those that were asked for, else the source's, else timm's.

    Args:
        adapter: its metadata say whose names the source had, where those were not timm's.
        asked: one of `hf_names.NAMINGS`, or "".

    Raises:
        CorruptFileError: `bad-field`, metadata that were edited.
        UnsupportedAdapterError: `not-expressible`, a head that would read something else there.
    """
    source = adapter.metadata.get("source")
    kept = source if isinstance(source, Mapping) and source.get("format") == FORMAT else {}
    if kept and asked in ("", kept.get("names")):
        found = naming_of({key: value for key, value in kept.items() if key != "format"}, "metadata.source")
        if found.head or adapter.head is None:
            return found
        asked = found.word  # a head that came later: the source's model had no place for it
    found = _usual(asked or TIMM, adapter.head is not None)
    return replace(found, names=Names(OWN, ""), head=_FURTHER) if found.is_timm and _has_stages(adapter) else found


def _has_stages(adapter: Adapter) -> bool:
    """Whether the model is of timm's with stages, whose classifier is further down."""
    staged = any(branch.site.path.startswith(("layers.", "stages.")) for branch in adapter.branches)
    return staged and not adapter.backbone.name.startswith(_STAGED_WITH_HEAD)


def revision_of(adapter: Adapter) -> str:
    """The backbone's revision, as a PEFT folder said it, "" for none."""
    source = adapter.metadata.get("source")
    found = source.get("revision") if isinstance(source, Mapping) and source.get("format") == FORMAT else ""
    return found if isinstance(found, str) else ""


def _usual(word: str, head: bool) -> Naming:
    """The names of a model with a classifier, or of a bare one."""
    if head and (why := _HEADLESS.get(word.partition("-")[0])):
        text = f"a head for {NAMINGS[word][0].family.name}"
        raise UnsupportedAdapterError(text, Reason.NOT_EXPRESSIBLE, hint=f"{why}; write timm's names: --names timm")
    names = NAMINGS[word][0 if head or len(NAMINGS[word]) == 1 else -1]
    return Naming(word, names, (names.family.heads or ("",))[0])


def divided(adapter: Adapter, naming: Naming) -> Adapter:
    """The adapter with a branch for each of query, key and value, where the names have a module for each.

    Raises:
        UnsupportedAdapterError: `not-expressible`: rows that are no thirds, two branches on the same rows.
    """
    if naming.is_timm:
        return adapter
    branches = [part for branch in adapter.branches for part in (_thirds(branch) if _fused(branch) else [branch])]
    for (site, method), count in Counter((str(branch.site), branch.method) for branch in branches).items():
        if count > 1:
            text = f"{count} {method} branches at {site}"
            raise UnsupportedAdapterError(text, Reason.NOT_EXPRESSIBLE, hint="write timm's names: --names timm")
    return replace(adapter, branches=tuple(branches))


def placed(adapter: Adapter, naming: Naming) -> Adapter:
    """A `divided` adapter with the modules' names as its sites.

    Raises:
        UnsupportedAdapterError: `not-expressible`.
    """
    branches = (replace(branch, site=naming.place(branch.site)) for branch in adapter.branches)
    return replace(adapter, branches=tuple(branches))


def has_fused(adapter: Adapter) -> bool:
    """Whether any branch is on all of query, key and value."""
    return any(_fused(branch) for branch in adapter.branches)


def _fused(branch: Branch) -> bool:
    return branch.site.path.endswith(_FUSED) and not branch.site.part


def _thirds(branch: Branch) -> list[Branch]:
    outward = _OUTWARD.get(branch.method, ())
    if branch.method == "affine" and branch.params.get("tap") != "input":
        outward = tuple(branch.tensors)
    found: list[dict[str, Tensor]] = [{}, {}, {}]
    for role, tensor in branch.tensors.items():
        values = tensor.dense()
        if role in outward and values.shape[0] % 3:
            text = f"the {role} at {branch.site} has {values.shape[0]} rows, which are no thirds"
            raise UnsupportedAdapterError(text, Reason.NOT_EXPRESSIBLE)
        parts = np.split(values, 3) if role in outward else [values] * 3
        for roles, part in zip(found, parts):
            roles[role] = Dense(np.ascontiguousarray(part))
    return [replace(branch, site=Site(branch.site.path, part), tensors=roles) for part, roles in zip("qkv", found)]
