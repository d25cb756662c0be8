"""Backbones from timm names and from files; nothing here needs a network."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants as hub
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from adapterpack.adapter import DataSettings
from adapterpack.errors import AdapterPackError, CallError, CorruptFileError, UnsupportedAdapterError
from adapterpack.runtime import backbone
from adapterpack.runtime.backbone import create_backbone, data_settings, require_vit, unwrap
from adapterpack.runtime.backbone_file import read_backbone_file, read_description
from adapterpack.runtime.fingerprint import fingerprint
from tests._vit import images, vit

FIXTURE = Path(__file__).resolve().parent.parent / "fixtures" / "backbone.safetensors"
TINY = "vit_tiny_patch16_224"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As behind a closed door, with an empty cache."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(backbone.urllib.request, "urlopen", refuse)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def test_random_weights_and_a_note_where_nothing_can_be_downloaded() -> None:
    before = torch.random.get_rng_state()
    model, data, note = create_backbone(TINY)
    assert "cannot be downloaded" in note and "random weights (seed 0)" in note and TINY in note
    assert data == DataSettings((3, 224, 224), (0.5,) * 3, (0.5,) * 3, "bicubic", 0.9, "center")
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), before) and hub.HF_HUB_OFFLINE is False
    logits = model(torch.rand(1, 3, 224, 224))
    assert logits.isfinite().all() and logits.std() > 0


def test_seed_decides() -> None:
    made = [create_backbone(TINY, pretrained=False, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (fingerprint(c.model) for c in made)
    assert first == again != other and "without its published weights" in made[0].note


def test_random_weights_have_the_deviations_of_an_initialisation() -> None:
    model = create_backbone("vit_small_patch14_reg4_dinov2", pretrained=False).model
    assert abs(model.blocks[3].attn.qkv.weight.std().item() - 0.02) < 1e-3
    assert torch.equal(model.norm.weight, torch.ones(384)) and not model.blocks[0].attn.qkv.bias.any()
    assert torch.allclose(model.blocks[0].ls1.gamma, torch.full((384,), 1e-5))
    assert all(p.isfinite().all() and p.abs().max() < 2 for p in model.parameters())


@pytest.mark.parametrize("name", ["vit_base_patch16_rope_224", "vit_tiny_r_s16_p8_224"])
def test_other_families_get_finite_weights(name: str) -> None:
    try:
        model = create_backbone(name, pretrained=False).model
    except UnsupportedAdapterError as error:
        assert error.reason == "unsupported-model"
        return
    assert all(p.isfinite().all() and p.abs().max() < 2 for p in model.parameters())


def test_the_old_name_of_published_adapters() -> None:
    model, _, note = create_backbone("vit_base_patch16_224_in21k", pretrained=False)
    assert "vit_base_patch16_224.orig_in21k" in note and model.embed_dim == 768
    assert sum(p.numel() for p in model.parameters()) == 85_798_656


def test_unpublished_weights() -> None:
    monkey = backbone._pretrained("vit_giant_patch14_224")
    assert monkey[0] is None and "no weights" in monkey[1]


@pytest.mark.parametrize("name", ["vit_bse_patch16_224", "vit_base_patch16_224.nope", "", "../x"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(CallError) as error:
        create_backbone(name)
    assert error.value.reason == "unknown-source" and error.value.exit_status == 2
    if name.startswith("vit"):
        assert "vit_base_patch16_224" in error.value.hint


def test_other_models_are_refused() -> None:
    with pytest.raises(UnsupportedAdapterError, match="ResNet"):
        create_backbone("resnet18", pretrained=False)


def write(folder: Path, model: nn.Module, about: Any) -> Path:
    path = folder / "backbone.safetensors"
    save_file({name: value.half() for name, value in model.state_dict().items()}, path)
    if about is not None:
        path.with_suffix(".json").write_text(about if isinstance(about, str) else json.dumps(about))
    return path


KWARGS = {"img_size": 32, "patch_size": 8, "num_classes": 7, "embed_dim": 48, "depth": 3, "num_heads": 3}


def test_file_with_kwargs(tmp_path: Path) -> None:
    model = vit()
    path = write(tmp_path, model, {"timm_kwargs": KWARGS, "mean": [0.1, 0.2, 0.3], "std": [1, 1, 0.5]})
    found, data, note = create_backbone(path)
    assert note == "" and data == DataSettings((3, 32, 32), (0.1, 0.2, 0.3), (1.0, 1.0, 0.5), "bicubic", 1.0, "squash")
    assert fingerprint(found) == fingerprint(model.half()) and found.pos_embed.dtype == torch.float32
    assert torch.equal(found(images()), model.float()(images()))


def test_file_with_architecture(tmp_path: Path) -> None:
    model = timm.create_model(TINY, num_classes=3, depth=2)
    about = {"architecture": TINY, "model_args": {"depth": 2}, "pretrained_cfg": {"mean": [0.0, 0.0, 0.0]}}
    found, data, _ = create_backbone(str(write(tmp_path, model, about)))
    assert found.num_classes == 3 and len(found.blocks) == 2
    assert data.mean == (0.0,) * 3 and data.std == (0.5,) * 3 and data.crop_pct == 0.9


def test_file_without_head(tmp_path: Path) -> None:
    found, _, _ = create_backbone(write(tmp_path, vit(num_classes=0), {"timm_kwargs": KWARGS}))
    assert found.num_classes == 0 and isinstance(found.head, nn.Identity)


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        (None, "missing-file"),
        ("{", "index-syntax"),
        ("[]", "bad-field"),
        ({}, "missing-field"),
        ({"architecture": 3}, "bad-field"),
        ({"architecture": "vit_of_dreams"}, "unknown-source"),
        ({"timm_kwargs": {"colour": 1}}, "bad-field"),
        ({"timm_kwargs": {**KWARGS, "num_heads": 5}}, "bad-field"),
        ({"timm_kwargs": {**KWARGS, "depth": 2}}, "unsupported-model"),
        ({"timm_kwargs": {**KWARGS, "embed_dim": 96}}, "unsupported-model"),
        ({"timm_kwargs": KWARGS, "std": [0, 1, 1]}, "bad-field"),
        ({"timm_kwargs": KWARGS, "mean": "grey"}, "bad-field"),
        ({"timm_kwargs": KWARGS, "mean": [10**400, 0, 0]}, "bad-field"),
    ],
)
def test_bad_descriptions(tmp_path: Path, about: Any, reason: str) -> None:
    with pytest.raises(AdapterPackError, match="backbone") as error:
        create_backbone(write(tmp_path, vit(), about))
    assert error.value.reason == reason


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        create_backbone(tmp_path / "none.safetensors")
    path = write(tmp_path, vit(), {"timm_kwargs": KWARGS})
    whole = path.read_bytes()
    for damaged in (b"", whole[:50], whole[:-3], os.urandom(200)):
        path.write_bytes(damaged)
        with pytest.raises(AdapterPackError, match=r"backbone\.safetensors") as error:
            create_backbone(path)
        assert error.value.reason == "bad-source"


def test_the_shipped_backbone() -> None:
    root = Path(__file__).resolve().parents[1]
    folder = next(
        (f for f in (root / "fixtures", root / "../shared/data/vision") if (f / "backbone.json").is_file()), None
    )
    if folder is None:
        pytest.skip("no trained backbone is at hand")
    model, data, note = create_backbone(folder / "backbone.safetensors")
    assert note == "" and model.embed_dim == 192 and data.mean == (0.4914, 0.4822, 0.4465)
    state = load_file(folder / "backbone.safetensors")
    assert fingerprint(model) == fingerprint(state)


def test_unwrap_and_require() -> None:
    model = vit()
    assert unwrap(torch.compile(model, backend="eager")) is model and unwrap(model) is model
    require_vit(model)
    with pytest.raises(UnsupportedAdapterError):
        require_vit(nn.Identity())


def test_data_settings_of_timm() -> None:
    found = data_settings(
        {"input_size": [3, 8, 8], "mean": [0, 0, 0], "interpolation": "random", "crop_mode": "squash"}
    )
    assert found == DataSettings((3, 8, 8), (0.0,) * 3, (1.0,) * 3, "bicubic", 1.0, "squash")


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    path, opened = shutil.copy(FIXTURE, tmp_path / "b.safetensors"), Path.open
    shutil.copy(FIXTURE.with_suffix(".json"), tmp_path / "b.json")

    def refuses(self: Path, *words: Any, **named: Any) -> Any:
        if self.suffix == suffix:
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *words, **named)

    monkeypatch.setattr(Path, "open", refuses)
    for read in (read_backbone_file, read_description):
        with pytest.raises(CallError, match=rf"b\{suffix}: Permission denied") as caught:
            read(Path(path))
        assert caught.value.reason == "io-error"


@pytest.mark.parametrize(
    ("tensors", "text", "told"),
    [
        (b"", "{}", "b.safetensors is no readable safetensors file"),
        (None, "{", "b.json is not JSON"),
        (None, "[1]", "b.json holds no JSON object"),
        (None, '{"architecture": 3}', "b.json has a field of the wrong type"),
        (None, '{"timm_kwargs": {}, "mean": "x"}', "b.json: mean is"),
        (None, '{"timm_kwargs": {}, "mean": [NaN, 0, 0]}', "b.json: mean is"),
        (None, '{"timm_kwargs": {}, "std": [0, 1, 1]}', "b.json: std is"),
        (None, '{"timm_kwargs": {}, "crop_pct": "x"}', "b.json: crop_pct is 'x'"),
        (None, '{"timm_kwargs": {}, "crop_pct": -1}', "b.json: crop_pct is -1"),
        (None, '{"timm_kwargs": {}, "interpolation": 5}', "b.json: interpolation is 5"),
    ],
)
def test_bad_files_are_named_with_a_remedy(tmp_path: Path, tensors: bytes | None, text: str, told: str) -> None:
    path = tmp_path / "b.safetensors"
    path.write_bytes(FIXTURE.read_bytes() if tensors is None else tensors)
    (tmp_path / "b.json").write_text(text)
    for read in (read_backbone_file, read_description):
        with pytest.raises(CorruptFileError, match=f"{tmp_path}/{told}") as caught:
            read(path)
        assert caught.value.hint


@pytest.mark.parametrize("change", [{"num_heads": 0}, {"act_layer": "os.system"}, {"depth": "x"}, {"bogus": 1}])
def test_what_timm_cannot_make(tmp_path: Path, change: dict[str, Any]) -> None:
    about = json.loads(FIXTURE.with_suffix(".json").read_text())
    shutil.copy(FIXTURE, tmp_path / "b.safetensors")
    (tmp_path / "b.json").write_text(json.dumps({**about, "timm_kwargs": {**about["timm_kwargs"], **change}}))
    with pytest.raises(
        CorruptFileError, match=f"{tmp_path}/b.safetensors: timm cannot make VisionTransformer: ."
    ) as caught:
        create_backbone(str(tmp_path / "b.safetensors"))
    assert "b.json" in caught.value.hint
