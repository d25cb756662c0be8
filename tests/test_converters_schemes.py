"""The tables of names: one-to-one, and known names of the public code land where they belong."""

from __future__ import annotations

import itertools
import re

import pytest

from adapterpack.adapter import Site
from adapterpack.converters.schemes import _PLACEHOLDERS, SCHEMES, Place, name_of, nearest, place_of, schemes_in

VALUES = {name: ("0", "11") if "[" in choices else tuple(choices.split("|")) for name, choices in _PLACEHOLDERS.items()}


def names(template: str) -> list[str]:
    """Every name that a template stands for, two values for a number."""
    holders = list(dict.fromkeys(re.findall(r"\{(\w+)\}", template)))
    return [template.format(**dict(zip(holders, row))) for row in itertools.product(*(VALUES[h] for h in holders))]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_table_is_one_to_one(scheme: str) -> None:
    listed = [name for row in SCHEMES[scheme] for name in names(row.key)]
    assert len(set(listed)) == len(listed)
    places = {name: place_of(scheme, name) for name in listed}
    assert None not in places.values()
    assert len(set(places.values())) == len(listed)
    for name, place in places.items():
        assert place is not None and name_of(scheme, place) == name
        assert str(Site.parse(place.site)) == place.site


@pytest.mark.parametrize(
    ("scheme", "name", "place"),
    [
        (
            "petl-vit",
            "blocks.3.adapter_mlp.adapter_down.weight",
            Place("blocks.3.mlp", "down", "branch", "adaptformer"),
        ),
        ("petl-vit", "blocks.10.attn.lora_v.adapter_up.weight", Place("blocks.10.attn.qkv[v]", "up", "branch", "lora")),
        ("petl-vit", "blocks.0.attn.lora_k.adapter_up.weight", None),
        ("petl-vit", "blocks.00.attn.lora_q.adapter_up.weight", None),
        ("petl-vit", "xblocks.0.attn.lora_q.adapter_up.weight", None),
        ("petl-vit", "head.bias", Place("head", "bias", "head")),
        ("consolidator", "blocks.1.attn.qkv.fc_origin.weight", Place("blocks.1.attn.qkv", "weight", "frozen")),
        ("consolidator", "blocks.1.mlp.fc2.fc_origin.bias", Place("blocks.1.mlp.fc2", "bias", "vector")),
        (
            "consolidator",
            "blocks.1.mlp.fc2.fc_rep_branches.2.group_fc.weight",
            Place("blocks.1.mlp.fc2", "weight", "branch", "consolidator", 2),
        ),
        ("consolidator", "blocks.1.mlp.fc2.weight", None),
        (
            "spt-lora",
            "blocks.1.attn.structured_q.learnable.0.weight",
            Place("blocks.1.attn.qkv[q]", "down", "branch", "lora"),
        ),
        (
            "spt-lora",
            "blocks.1.mlp.structured_fc2.learnable.1.weight",
            Place("blocks.1.mlp.fc2", "up", "branch", "lora"),
        ),
        ("spt-lora", "blocks.1.mlp.structured_fc2.learnable.2.weight", None),
        (
            "spt-adapter",
            "blocks.1.attn.structured_proj.learnable.2.bias",
            Place("blocks.1.attn.proj", "up_bias", "branch", "adapter"),
        ),
        ("spt-lora", "blocks.1.attn.k.sparse_weight", Place("blocks.1.attn.qkv[k]", "weight", "branch", "sparse")),
        ("spt-lora", "blocks.1.attn.k.bias", Place("blocks.1.attn.qkv[k]", "bias", "vector")),
        ("spt-lora", "cls_token", Place("cls_token", "value", "vector")),
        ("fact-tt", "blocks.1.attn.k_FacTs.weight", Place("blocks.1.attn.qkv[k]", "core", "branch", "fact")),
        ("fact-tt", "blocks.1.mlp.fc2_FacTs.weight", Place("blocks.1.mlp.fc2", "core", "branch", "fact")),
        ("fact-tt", "FacTc", None),
        ("fact-tk", "FacTp", Place("FacT", "slices", "branch", "fact")),
        ("fact-tk", "blocks.1.attn.k_FacTs.weight", None),
        (
            "convpass",
            "blocks.1.adapter_attn.adapter_conv.bias",
            Place("blocks.1.attn", "conv_bias", "branch", "convpass"),
        ),
        ("ssf", "blocks.1.mlp.ssf_shift_2", Place("blocks.1.mlp.fc2", "shift", "branch", "affine")),
        ("ssf", "blocks.1.ssf_scale_1", Place("blocks.1.norm1", "factor", "branch", "affine")),
        ("ssf", "ssf_scale_1", Place("norm", "factor", "branch", "affine")),
        ("ssf", "ssf_scale_2", None),
        ("timm", "blocks.1.norm2.weight", Place("blocks.1.norm2", "weight", "vector")),
        ("timm", "blocks.1.attn.qkv.weight", Place("blocks.1.attn.qkv", "weight", "frozen")),
    ],
)
def test_known_names(scheme: str, name: str, place: Place | None) -> None:
    assert place_of(scheme, name) == place


def test_schemes_are_told_apart() -> None:
    assert schemes_in(["head.weight", "blocks.0.attn.qkv.weight"]) == []
    assert schemes_in(["blocks.0.attn.lora_q.adapter_up.weight"]) == ["petl-vit"]
    assert schemes_in(["blocks.0.attn.qkv.fc_origin.bias"]) == ["consolidator"]
    assert schemes_in(["blocks.0.attn.structured_q.learnable.1.weight"]) == ["spt-lora"]
    assert schemes_in(["blocks.0.attn.structured_q.learnable.2.weight"]) == ["spt-adapter"]
    assert schemes_in(["FacTu.weight"]) == schemes_in(["blocks.0.mlp.fc1_FacTs.weight"]) == ["fact-tt"]
    assert schemes_in(["FacTu.weight", "FacTc"]) == ["fact-tk"]
    beside = [f"blocks.0.adapter_mlp.adapter_{name}.weight" for name in ("down", "conv", "up")]
    assert schemes_in(beside) == schemes_in(["blocks.0.adapter_attn.adapter_up.bias"]) == ["convpass"]
    assert schemes_in(beside[:1]) == ["petl-vit"]
    assert schemes_in(["patch_embed.ssf_scale_1"]) == schemes_in(["ssf_shift_1"]) == ["ssf"]
    assert len(schemes_in(["blocks.0.attn.q.sparse_bias", "blocks.0.adapter_mlp.adapter_up.weight"])) == 2


def test_the_nearest_names_are_offered() -> None:
    assert nearest("petl-vit", "blocks.3.attn.lora_q.adapter_mid.weight")[0].startswith("blocks.{i}.attn.lora_")
    assert nearest("petl-vit", "zzz") == []
