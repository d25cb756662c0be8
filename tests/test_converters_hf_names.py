"""Module names of outside models ↔ sites: every row both ways, and who is meant where names are shared."""

from __future__ import annotations

import pytest

from adapterpack.adapter import Site
from adapterpack.converters._hf_families import FAMILIES, Family
from adapterpack.converters.hf_names import HEAD, Names, module_of, names_of
from adapterpack.errors import CorruptFileError


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_row_is_read_both_ways(family: Family) -> None:
    for prefix in family.prefixes:
        names = Names(family, prefix)
        for module, site in family.rows:
            theirs, ours = prefix + module.format(i=11), site.format(i=11)
            assert names.site(theirs) == ours and str(Site.parse(ours)) == ours
            back = module_of(family, prefix, ours)
            assert back is not None and names.site(back) == ours
        assert all(names.site(head) == HEAD for head in family.heads)


@pytest.mark.parametrize(
    ("module", "site"),
    [
        ("blocks.3.attn.qkv", "blocks.3.attn.qkv"),
        ("vit.encoder.layer.3.attention.attention.key", "blocks.3.attn.qkv[k]"),
        ("encoder.layer.3.output.dense", "blocks.3.mlp.fc2"),
        ("deit.encoder.layer.0.attention.output.dense", "blocks.0.attn.proj"),
        ("vit.layers.3.attention.o_proj", "blocks.3.attn.proj"),
        ("dinov2.encoder.layer.3.mlp.weights_in", "blocks.3.mlp.fc1"),
        ("vision_model.encoder.layers.3.self_attn.v_proj", "blocks.3.attn.qkv[v]"),
        ("vision_model.post_layernorm", "norm"),
    ],
)
def test_modules(module: str, site: str) -> None:
    assert names_of([module]).site(module) == site


def test_the_named_class_decides_between_equals() -> None:
    shared = ["encoder.layer.0.attention.attention.query"]
    assert names_of(shared).family.name == "Hugging Face ViT"
    assert names_of(shared, "Dinov2Model").family.name == "Hugging Face DINOv2"


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        (["blocks.0.attn.qkv", "blocks.00.attn.qkv"], "blocks.00.attn.qkv"),
        (["blocks.0.attn.qkvx"], "attn.qkv"),
        (["encoder.layer.0.attention.attention.query", "pooler.dense"], "no pooler"),
        (["vision_model.encoder.layers.0.mlp.fc1", "text_model.encoder.layers.0.mlp.fc1"], "text tower"),
        (["deit.encoder.layer.0.output.dense", "distillation_classifier"], "two heads"),
    ],
)
def test_names_without_a_site(modules: list[str], words: str) -> None:
    with pytest.raises(CorruptFileError, match=words.replace(".", r"\.")) as caught:
        names_of(modules)
    assert caught.value.reason == "unmapped-tensor"
