"""Where sites are in a live model."""

from __future__ import annotations

import pytest
import torch

from adapterpack.adapter import Site
from adapterpack.errors import UnsupportedAdapterError
from adapterpack.runtime.places import residual, resolve
from tests._vit import WIDTH, vit


@pytest.mark.parametrize(
    ("text", "role", "expected"),
    [
        ("blocks.1.attn.qkv[q]", "weight", lambda m: m.blocks[1].attn.qkv.weight[:48]),
        ("blocks.1.attn.qkv[k]", "bias", lambda m: m.blocks[1].attn.qkv.bias[48:96]),
        ("blocks.2.attn.qkv[v]", "weight", lambda m: m.blocks[2].attn.qkv.weight[96:]),
        ("blocks.0.attn.qkv", "weight", lambda m: m.blocks[0].attn.qkv.weight),
        ("blocks.0.ls1.gamma", "value", lambda m: m.blocks[0].ls1.gamma),
        ("blocks.0.attn.q_norm", "weight", lambda m: m.blocks[0].attn.q_norm.weight),
        ("patch_embed.proj", "weight", lambda m: m.patch_embed.proj.weight),
        ("norm", "bias", lambda m: m.norm.bias),
        ("cls_token", "value", lambda m: m.cls_token),
        ("reg_token", "value", lambda m: m.reg_token),
        ("pos_embed", "value", lambda m: m.pos_embed),
    ],
)
def test_parameters(text: str, role: str, expected: object) -> None:
    model = vit(reg_tokens=2, init_values=0.1, qk_norm=True)
    place = resolve(model, Site.parse(text))
    found, wanted = place.tensor(role), expected(model)  # type: ignore[operator]
    assert found is not None and found.data_ptr() == wanted.data_ptr() and found.shape == wanted.shape
    assert place.shape(role) == tuple(wanted.shape) and place.has(role)
    other = "value" if role != "value" else "weight"
    assert place.tensor(other) is None and place.shape(other) is None and not place.has(other)


def test_a_linear_layer_without_bias_has_its_shape() -> None:
    place = resolve(vit(qkv_bias=False), Site.parse("blocks.0.attn.qkv[q]"))
    assert place.shape("bias") == (WIDTH,) and place.tensor("bias") is None and not place.has("bias")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("blocks.3.mlp.fc1", "3 blocks"),
        ("blocks.3.attn.qkv[v]", "3 blocks"),
        ("blocks.0.mlp.fc3", "fc1"),
        ("blocks.0.attn.q_proj", "qkv"),
        ("blocks.0.mlp.fc1[k]", "only an attention"),
        ("reg_token", "the model has"),
        ("head", "task's head"),
        ("norm.weight.x", "norm has"),
    ],
)
def test_missing_sites_are_named(text: str, why: str) -> None:
    with pytest.raises(UnsupportedAdapterError, match=why) as error:
        resolve(vit(), Site.parse(text))
    assert error.value.reason == "missing-site" and error.value.where == text and text in str(error.value)


def test_residual() -> None:
    model = vit()
    found = residual(model, Site.parse("blocks.2.mlp"))
    assert found.norm is model.blocks[2].norm2 and found.end is model.blocks[2].drop_path2 and found.width == WIDTH
    found = residual(model, Site.parse("blocks.0.attn"))
    assert found.norm is model.blocks[0].norm1 and found.end is model.blocks[0].drop_path1 and not found.whole
    for text in ("blocks.3.mlp", "blocks.3.attn", "norm", "blocks.0.mlp.fc1", "blocks.0.attn.qkv[q]"):
        with pytest.raises(UnsupportedAdapterError) as error:
            residual(model, Site.parse(text))
        assert error.value.reason == "missing-site"


def test_resolving_changes_nothing() -> None:
    model = vit()
    before = [p._version for p in model.parameters()]
    place = resolve(model, Site.parse("blocks.1.attn.qkv[q]"))
    assert place.rows == (0, WIDTH) and [p._version for p in model.parameters()] == before
    assert isinstance(place.tensor("weight"), torch.Tensor)
