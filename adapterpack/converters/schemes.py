"""Names in outside state dicts ↔ places in an adapter, as tables; each row is read in both directions.

A row's templates share their placeholders, so `blocks.{i}.attn.lora_{qv}.adapter_{half}.weight` and
`blocks.{i}.attn.qkv[{qv}]` with role `{half}` say the same in two languages. Knows names only, no tensor.
Source: the public code of Jie et al. 2022 and 2023 (Convpass, FacT, 1-bit adapters), Hao et al. 2023, He et al. 2023
(SPT), Lian et al. 2022 (SSF), and timm's ViT.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

Kind = Literal["branch", "vector", "frozen", "head"]

_PLACEHOLDERS = {
    "i": r"0|[1-9][0-9]{0,3}",
    "k": r"0|[1-9][0-9]{0,3}",
    "half": "down|up",
    "qv": "q|v",
    "qkv": "q|k|v",
    "fc": "fc1|fc2",
    "norm": "norm1|norm2",
    "ls": "ls1|ls2",
    "wb": "weight|bias",
    "beside": "attn|mlp",
    "layer": "down|conv|up",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One pattern of names.

    Attributes:
        key: the outside name's template.
        site: the site's template.
        role: the role's template; for a plain parameter "weight", "bias" or "value".
        kind: a "branch" tensor; a "vector" that may have been trained in place; "frozen" in every recipe; the "head".
        method: of a branch.
    """

    key: str
    site: str
    role: str
    kind: Kind = "branch"
    method: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """What an outside name stands for; `number` tells apart several branches at one site."""

    site: str
    role: str
    kind: Kind
    method: str = ""
    number: int = 0


TIMM = (
    Row("blocks.{i}.attn.qkv.weight", "blocks.{i}.attn.qkv", "weight", "frozen"),
    Row("blocks.{i}.attn.qkv.bias", "blocks.{i}.attn.qkv", "bias", "vector"),
    Row("blocks.{i}.attn.proj.weight", "blocks.{i}.attn.proj", "weight", "frozen"),
    Row("blocks.{i}.attn.proj.bias", "blocks.{i}.attn.proj", "bias", "vector"),
    Row("blocks.{i}.mlp.{fc}.weight", "blocks.{i}.mlp.{fc}", "weight", "frozen"),
    Row("blocks.{i}.mlp.{fc}.bias", "blocks.{i}.mlp.{fc}", "bias", "vector"),
    Row("blocks.{i}.{norm}.{wb}", "blocks.{i}.{norm}", "{wb}", "vector"),
    Row("blocks.{i}.{ls}.gamma", "blocks.{i}.{ls}.gamma", "value", "vector"),
    Row("norm.{wb}", "norm", "{wb}", "vector"),
    Row("norm_pre.{wb}", "norm_pre", "{wb}", "vector"),
    Row("fc_norm.{wb}", "fc_norm", "{wb}", "vector"),
    Row("cls_token", "cls_token", "value", "vector"),
    Row("reg_token", "reg_token", "value", "vector"),
    Row("pos_embed", "pos_embed", "value", "frozen"),
    Row("patch_embed.proj.weight", "patch_embed.proj", "weight", "frozen"),
    Row("patch_embed.proj.bias", "patch_embed.proj", "bias", "vector"),
    *(Row(f"{path}.{{wb}}", path, "{wb}", "head") for path in ("head", "head.fc", "classifier", "fc")),
)

PETL = (
    Row("blocks.{i}.adapter_mlp.adapter_{half}.weight", "blocks.{i}.mlp", "{half}", "branch", "adaptformer"),
    Row("blocks.{i}.attn.lora_{qv}.adapter_{half}.weight", "blocks.{i}.attn.qkv[{qv}]", "{half}", "branch", "lora"),
)


def _consolidator_rows() -> Iterable[Row]:
    for layer in ("attn.qkv", "attn.proj", "mlp.{fc}"):
        site = f"blocks.{{i}}.{layer}"
        yield Row(f"{site}.fc_origin.weight", site, "weight", "frozen")
        yield Row(f"{site}.fc_origin.bias", site, "bias", "vector")
        yield Row(f"{site}.fc_rep_branches.{{k}}.group_fc.{{wb}}", site, "{wb}", "branch", "consolidator")


# SPT's six operations: (their own module, the name of what is added beside it, the site)
_SPT_LAYERS = (
    ("blocks.{i}.attn.{qkv}", "blocks.{i}.attn.structured_{qkv}", "blocks.{i}.attn.qkv[{qkv}]"),
    ("blocks.{i}.attn.proj", "blocks.{i}.attn.structured_proj", "blocks.{i}.attn.proj"),
    ("blocks.{i}.mlp.{fc}", "blocks.{i}.mlp.structured_{fc}", "blocks.{i}.mlp.{fc}"),
)


def _spt_rows(variant: str) -> Iterable[Row]:
    for layer, added, site in _SPT_LAYERS:
        yield Row(f"{layer}.weight", site, "weight", "frozen")
        yield Row(f"{layer}.bias", site, "bias", "vector")
        yield Row(f"{layer}.sparse_weight", site, "weight", "branch", "sparse")
        yield Row(f"{layer}.sparse_bias", site, "bias", "branch", "sparse")
        yield Row(f"{added}.learnable.0.weight", site, "down", "branch", variant)
        yield Row(f"{added}.learnable.{1 if variant == 'lora' else 2}.weight", site, "up", "branch", variant)
        if variant == "adapter":
            yield Row(f"{added}.learnable.0.bias", site, "down_bias", "branch", variant)
            yield Row(f"{added}.learnable.2.bias", site, "up_bias", "branch", variant)


def _fact_rows(variant: str) -> Iterable[Row]:
    """Two factors that all layers share, and a small one each: on its own (TT), or a slice of a tensor (TK)."""
    yield Row("FacTu.weight", "FacT", "down", "branch", "fact")
    yield Row("FacTv.weight", "FacT", "up", "branch", "fact")
    if variant == "tk":
        yield Row("FacTc", "FacT", "core", "branch", "fact")
        yield Row("FacTp", "FacT", "slices", "branch", "fact")
        return
    for layer, site in (("attn.{qkv}", "attn.qkv[{qkv}]"), ("attn.proj", "attn.proj"), ("mlp.{fc}", "mlp.{fc}")):
        yield Row(f"blocks.{{i}}.{layer}_FacTs.weight", f"blocks.{{i}}.{site}", "core", "branch", "fact")


CONVPASS = (
    Row("blocks.{i}.adapter_{beside}.adapter_{layer}.weight", "blocks.{i}.{beside}", "{layer}", "branch", "convpass"),
    Row(
        "blocks.{i}.adapter_{beside}.adapter_{layer}.bias", "blocks.{i}.{beside}", "{layer}_bias", "branch", "convpass"
    ),
)


def _ssf_rows() -> Iterable[Row]:
    """A module's numbers count what follows each of its layers."""
    for module, layers in (
        ("patch_embed.", ("patch_embed.proj", "patch_embed.norm")),
        ("blocks.{i}.", ("blocks.{i}.norm1", "blocks.{i}.norm2")),
        ("blocks.{i}.attn.", ("blocks.{i}.attn.qkv", "blocks.{i}.attn.proj")),
        ("blocks.{i}.mlp.", ("blocks.{i}.mlp.fc1", "blocks.{i}.mlp.fc2")),
        ("", ("norm",)),
    ):
        for number, site in enumerate(layers, 1):
            yield Row(f"{module}ssf_scale_{number}", site, "factor", "branch", "affine")
            yield Row(f"{module}ssf_shift_{number}", site, "shift", "branch", "affine")


def _without(rows: Iterable[Row], names: Iterable[str]) -> tuple[Row, ...]:
    """Plain rows, less those whose modules a method has replaced by its own."""
    return tuple(row for row in rows if not any(row.key.startswith(name) for name in names))


_LINEAR = ("blocks.{i}.attn.", "blocks.{i}.mlp.")
SCHEMES: Mapping[str, tuple[Row, ...]] = {
    "timm": TIMM,
    "petl-vit": (*PETL, *TIMM),
    "consolidator": (*_consolidator_rows(), *_without(TIMM, _LINEAR)),
    "spt-lora": (*_spt_rows("lora"), *_without(TIMM, _LINEAR)),
    "spt-adapter": (*_spt_rows("adapter"), *_without(TIMM, _LINEAR)),
    "fact-tt": (*_fact_rows("tt"), *TIMM),
    "fact-tk": (*_fact_rows("tk"), *TIMM),
    "convpass": (*CONVPASS, *TIMM),
    "ssf": (*_ssf_rows(), *TIMM),
}
# what only this scheme's names contain
_MARKS = {
    "petl-vit": r"\.(?:adapter_mlp|lora_[qv])\.adapter_",
    "consolidator": r"\.fc_rep_branches\.|\.fc_origin\.",
    "spt": r"\.structured_|\.sparse_(?:weight|bias)$|\.attn\.[qkv]\.",
    "fact": r"^FacT|_FacTs\.",
    "convpass": r"\.adapter_attn\.adapter_|\.adapter_mlp\.adapter_(?:conv\.|\w+\.bias$)",
    "ssf": r"(?:^|\.)ssf_(?:scale|shift)_",
}
_BESIDE_MLP = ".adapter_mlp.adapter_"  # AdaptFormer's in one scheme, Convpass's in another


def schemes_in(names: Iterable[str]) -> list[str]:
    """The schemes whose names occur; none for a plain timm state dict."""
    listed = list(names)
    found = [scheme for scheme, mark in _MARKS.items() if any(re.search(mark, name) for name in listed)]
    if "convpass" in found and "petl-vit" in found:
        others = [name for name in listed if _BESIDE_MLP not in name]
        found = [name for name in found if name != "petl-vit" or any(re.search(_MARKS[name], n) for n in others)]
    return [_variant(scheme, listed) for scheme in found]


def _variant(scheme: str, listed: Sequence[str]) -> str:
    """SPT's two differ in `learnable.2`, FacT's in whether a core tensor is sliced."""
    if scheme == "spt":
        adapter = any(re.search(r"\.learnable\.(?:2\.|0\.bias)", name) for name in listed)
        return "spt-adapter" if adapter else "spt-lora"
    if scheme == "fact":
        return "fact-tk" if "FacTc" in listed or "FacTp" in listed else "fact-tt"
    return scheme


def place_of(scheme: str, name: str) -> Place | None:
    """Left to right: what an outside name stands for, None where no row explains it."""
    for pattern, row in _compiled(scheme):
        match = pattern.fullmatch(name)
        if match is not None:
            values = match.groupdict()
            number = int(values.get("k") or 0)
            return Place(row.site.format(**values), row.role.format(**values), row.kind, row.method, number)
    return None


def name_of(scheme: str, place: Place) -> str | None:
    """Right to left: the outside name of a place, None where no row has it."""
    for row in SCHEMES[scheme]:
        if (row.kind, row.method) != (place.kind, place.method):
            continue
        match = re.fullmatch(_pattern(f"{row.site}@{row.role}"), f"{place.site}@{place.role}")
        if match is not None:
            return row.key.format(**match.groupdict(), k=place.number)
    return None


def nearest(scheme: str, name: str) -> list[str]:
    """The rows that look most like a name, for messages."""
    like = re.sub(r"^blocks\.\d+\.", "blocks.{i}.", name)
    return difflib.get_close_matches(like, [row.key for row in SCHEMES[scheme]], n=2, cutoff=0.5)


@cache
def _compiled(scheme: str) -> tuple[tuple[re.Pattern[str], Row], ...]:
    return tuple((re.compile(_pattern(row.key)), row) for row in SCHEMES[scheme])


def _pattern(template: str) -> str:
    """A template as a regular expression; a placeholder that comes again must have the same value."""
    parts, seen = [], set[str]()
    for literal, name in re.findall(r"([^{}]*)(?:\{(\w+)\})?", template):
        parts.append(re.escape(literal))
        if name:
            parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>{_PLACEHOLDERS[name]})")
            seen.add(name)
    return "".join(parts)
