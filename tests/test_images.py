"""Images: the steps of timm's own evaluation transform, and files that are none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from adapterpack.adapter import DataSettings
from adapterpack.errors import CorruptFileError, MissingFileError, UnsupportedAdapterError
from adapterpack.runtime.images import check_image, read_image, read_pixels, top_classes
from tests._vit import vit


def picture(path: Path, width: int = 61, height: int = 47, mode: str = "RGB") -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    smooth = Image.fromarray(noise).resize((width // 4, height // 4)).resize((width, height))
    smooth.convert(mode).save(path)
    return path


@pytest.mark.parametrize("mode", ["squash", "center"])
@pytest.mark.parametrize("pct", [1.0, 0.9, 0.875])
@pytest.mark.parametrize("size", [(61, 47), (47, 61), (32, 32), (500, 40), (20, 25)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
def test_equal_to_timm(tmp_path: Path, mode: str, pct: float, size: tuple[int, int], interpolation: str) -> None:
    path = picture(tmp_path / "a.png", *size)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    ours = read_image(path, DataSettings((3, 32, 32), mean, std, interpolation, pct, mode))
    theirs = create_transform(
        (3, 32, 32), mean=mean, std=std, interpolation=interpolation, crop_pct=pct, crop_mode=mode, is_training=False
    )(Image.open(path).convert("RGB"))
    assert ours.dtype == torch.float32 and ours.shape == (3, 32, 32)
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_published_files_keep_values_in_0_1(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[[0, 51, 255]]], np.uint8)).save(path)
    found = read_image(path, DataSettings())
    assert found.shape == (3, 224, 224) and torch.equal(found[:, 0, 0], torch.tensor([0.0, 0.2, 1.0]))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_modes(tmp_path: Path, mode: str) -> None:
    path = picture(tmp_path / ("a.tif" if mode in ("CMYK",) else "a.png"), mode=mode)
    assert read_image(path, DataSettings((3, 16, 16))).shape == (3, 16, 16)
    grey = DataSettings((1, 16, 16), (0.5,), (0.5,))
    assert read_image(path, grey).shape == (1, 16, 16)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bits_are_scaled_to_8(tmp_path: Path, name: str) -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(ramp).save(tmp_path / name)
    expected = np.round(ramp / 257)
    for channels in (1, 3):
        zeros, ones = (0.0,) * channels, (1.0,) * channels
        found = read_pixels(tmp_path / name, DataSettings((channels, 256, 256), zeros, ones, "nearest"))
        assert found.dtype == np.uint8
        assert all(np.array_equal(plane, expected) for plane in found)


def test_32_bit_pixels_are_not_cut(tmp_path: Path) -> None:
    settings = DataSettings((1, 16, 16), (0.0,), (1.0,), "nearest")
    Image.fromarray(np.arange(256, dtype=np.int32).reshape(16, 16)).save(tmp_path / "a.tif")
    assert np.array_equal(read_pixels(tmp_path / "a.tif", settings)[0].reshape(-1), np.arange(256))
    for values in (np.full((16, 16), 256, np.int32), np.full((16, 16), 300.0, np.float32)):
        Image.fromarray(values).save(tmp_path / "a.tif")
        with pytest.raises(CorruptFileError, match=r"a\.tif.*(256|300)"):
            read_pixels(tmp_path / "a.tif", settings)


def test_images_can_be_checked_alone(tmp_path: Path) -> None:
    check_image(picture(tmp_path / "a.png"))
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    with pytest.raises(CorruptFileError, match=r"b\.png"):
        check_image(tmp_path / "b.png")
    with pytest.raises(MissingFileError):
        check_image(tmp_path / "c.png")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.gif", "a.bmp", "a.webp"):
        whole = picture(tmp_path / name).read_bytes()
        for damaged in (b"", b"not an image", whole[: len(whole) // 2], whole[:20]):
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(CorruptFileError, match=name) as error:
                read_image(tmp_path / name, DataSettings())
            assert error.value.reason == "bad-source"
    with pytest.raises(MissingFileError):
        read_image(tmp_path / "none.png", DataSettings())


def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = picture(tmp_path / "a.png")
    for limit in (61 * 47 - 1, 61 * 47 // 3):  # Pillow only warns up to twice its limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(CorruptFileError, match=r"a\.png"):
            read_image(path, DataSettings())


def test_settings_that_no_image_has(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    for settings in (DataSettings((4, 8, 8)), DataSettings(interpolation="sinc")):
        with pytest.raises(UnsupportedAdapterError):
            read_image(path, settings)


def test_top_classes() -> None:
    model, image = vit().train(), torch.rand(3, 32, 32)
    labels = list("abcdefg")
    found = top_classes(model, image, 3, labels)
    assert model.training
    with torch.no_grad():
        probabilities = model.eval()(image[None])[0].softmax(0)
    order = probabilities.argsort(descending=True).tolist()[:3]
    assert [top.index for top in found] == order and [top.label for top in found] == [labels[i] for i in order]
    assert [top.probability for top in found] == pytest.approx(probabilities[order].tolist())
    assert len(top_classes(model, image, 50)) == 7 and top_classes(model, image)[0].label == ""
    assert top_classes(torch.compile(model, backend="eager"), image, 3, labels) == found  # type: ignore[arg-type]
    assert top_classes(model.bfloat16(), image)[0].index in range(7)


def test_features_are_no_classes() -> None:
    with pytest.raises(UnsupportedAdapterError, match="no head") as error:
        top_classes(vit(num_classes=0), torch.rand(3, 32, 32))
    assert error.value.reason == "missing-site"
    with pytest.raises(UnsupportedAdapterError, match="no logits"):
        top_classes(vit(global_pool="", class_token=True), torch.rand(3, 32, 32))


def test_wrong_size_is_refused() -> None:
    with pytest.raises(UnsupportedAdapterError, match=r"224×224.*32×32"):
        top_classes(vit(), torch.rand(3, 224, 224))
    assert len(top_classes(vit(dynamic_img_size=True), torch.rand(3, 64, 64))) == 5


def test_frozen_settings_can_be_replaced() -> None:
    assert replace(DataSettings(), crop_pct=0.5).crop_pct == 0.5
