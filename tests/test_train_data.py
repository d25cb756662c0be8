"""Data sets on disk: read, split, and refused by name when something is wrong with them."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adapterpack.adapter import DataSettings
from adapterpack.errors import AdapterPackError, CallError, CorruptFileError, MissingFileError
from adapterpack.runtime.images import normalised, read_image
from adapterpack.train.data import Split, read_some, read_task, with_validation
from adapterpack.train.npz import read_npz
from adapterpack.train.pictures import OnDisk, Source, load_pictures
from tests._images import SIDE, arrays, folder, picture

SETTINGS = DataSettings(input_size=(3, SIDE, SIDE), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def pixels(split: Split) -> np.ndarray:
    (found,) = split.pictures.batches([np.arange(len(split))])
    return found.numpy()


def test_folder(tmp_path: Path) -> None:
    task = read_task(folder(tmp_path / "toy"), SETTINGS)
    assert (task.name, task.classes) == ("toy", ("class 0", "class 1", "class 2"))
    assert {name: len(split) for name, split in task.splits.items()} == {"train": 36, "val": 12, "test": 15}
    train = task.splits["train"]
    assert (np.bincount(train.labels) == 12).all()
    assert (pixels(train)[0].transpose(1, 2, 0) == picture(0, 0)).all()
    again = read_task(tmp_path / "toy", SETTINGS)
    assert again.digest == task.digest
    (tmp_path / "toy/train/class 1/0.png").rename(tmp_path / "toy/train/class 1/new.png")
    assert read_task(tmp_path / "toy", SETTINGS).digest != task.digest


def test_values_are_those_of_a_single_image(tmp_path: Path) -> None:
    settings = DataSettings(
        input_size=(3, 10, 12), mean=SETTINGS.mean, std=SETTINGS.std, crop_pct=0.9, crop_mode="center"
    )
    task = read_task(folder(tmp_path / "toy", train=2, val=0, test=0), settings)
    (batch,) = task.splits["train"].pictures.batches([np.arange(6)])
    file = sorted((tmp_path / "toy/train/class 0").iterdir())[0]
    assert (normalised(batch, settings)[0] == read_image(file, settings)).all()


def test_plain_npz_in_all_layouts(tmp_path: Path) -> None:
    found = arrays()
    np.savez(tmp_path / "a.npz", **found)
    np.savez(tmp_path / "b.npz", **{**found, "images": found["images"].transpose(0, 3, 1, 2)})
    np.savez(tmp_path / "c.npz", **{**found, "images": found["images"][..., 0]})
    one, other, grey = (read_task(tmp_path / f"{name}.npz", SETTINGS) for name in "abc")
    assert one.classes == ("0", "1", "2") and len(one.splits["train"]) == 18 and len(one.splits["test"]) == 9
    assert (pixels(one.splits["val"]) == pixels(other.splits["val"])).all()
    assert (pixels(grey.splits["val"])[:, 0] == pixels(one.splits["val"])[:, 0]).all()


@pytest.mark.parametrize("place", ["train", "train/class 0"])
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    refused, scandir = folder(tmp_path / "toy") / place, os.scandir

    def scan(path: str) -> Any:
        if Path(path) == refused:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    monkeypatch.setattr(os, "listdir", lambda path: [entry.name for entry in scan(path)])
    wanted = f"cannot read {refused}: Permission denied"
    with pytest.raises(CallError, match=wanted) as caught:
        read_task(tmp_path / "toy", SETTINGS)
    assert caught.value.reason == "io-error"
    with pytest.raises(CallError, match=wanted):
        read_some(refused, SETTINGS, 4)


def test_encoded_npz(tmp_path: Path) -> None:
    files = []
    for i in range(6):
        buffer = io.BytesIO()
        Image.fromarray(picture(i % 2, i)).save(buffer, "PNG")
        files.append(buffer.getvalue())
    common = 8
    data = b"".join(file[common:] for file in files)
    offsets = np.cumsum([0, *(len(file) - common for file in files)])
    content = {
        "prefix": np.frombuffer(files[0][:common], np.uint8),
        "data": np.frombuffer(data, np.uint8),
        "offsets": offsets,
        "labels": np.arange(6) % 2,
        "split": np.array([0, 0, 0, 0, 2, 2]),
        "classes": np.array(["cat", "dog"]),
    }
    np.savez(tmp_path / "toy.npz", **content)
    task = read_task(tmp_path / "toy.npz", SETTINGS)
    assert task.classes == ("cat", "dog") and list(task.splits) == ["train", "test"]
    assert (pixels(task.splits["test"])[1].transpose(1, 2, 0) == picture(1, 5)).all()
    np.savez(tmp_path / "bad.npz", **{**content, "offsets": offsets[:-1]})
    with pytest.raises(CorruptFileError, match="offsets"):
        read_task(tmp_path / "bad.npz", SETTINGS)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"labels": np.arange(5)}, "5 labels for 36 images"),
        ({"labels": np.ones(36)}, "labels is float64"),
        ({"images": np.zeros((36, 4), np.uint8)}, "images is uint8"),
        ({"images": np.zeros((36, 8, 8, 3), np.float32)}, "images is float32"),
        ({"images": np.zeros((36, 0, 8), np.uint8)}, r"images is uint8 \[36, 0, 8\]"),
        ({"labels": np.zeros((36, 1), int)}, "expected one row of integers"),
        ({"split": np.full(36, 3)}, "split"),
        ({"classes": np.array(["a", "b"])}, "labels go to 2"),
        ({"labels": np.full(36, -1)}, "negative"),
        ({"labels": np.full(36, 1 << 60)}, "labels go to 1,152,921,504,606,846,976"),
    ],
)
def test_bad_npz(tmp_path: Path, change: dict[str, np.ndarray], text: str) -> None:
    np.savez(tmp_path / "toy.npz", **{**arrays(), **change})
    with pytest.raises(CorruptFileError, match=text):
        read_task(tmp_path / "toy.npz", SETTINGS)


def test_class_names_in_bytes(tmp_path: Path) -> None:
    np.savez(tmp_path / "toy.npz", **arrays(), classes=np.array([b"cat", "k\u00e4se".encode(), b"cow"]))
    assert read_task(tmp_path / "toy.npz", SETTINGS).classes == ("cat", "käse", "cow")
    np.savez(tmp_path / "toy.npz", **arrays(), classes=np.array([b"cat", b"\xff", b"cow"]))
    with pytest.raises(CorruptFileError, match="is not in UTF-8"):
        read_task(tmp_path / "toy.npz", SETTINGS)
    np.savez(tmp_path / "toy.npz", **arrays(), classes=np.array(["cat", "\ud800", "cow"]))  # no file can hold it
    assert read_task(tmp_path / "toy.npz", SETTINGS).classes[1] == "\ud800"


def test_npz_is_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "toy.npz", **{**arrays(), "classes": np.array([{"a": 1}], object)})
    with pytest.raises(CorruptFileError, match="cannot be read"):
        read_task(tmp_path / "toy.npz", SETTINGS)
    for data in (b"nothing", b"", b"\x89PNG\r\n\x1a\n", b"\x93NUMPY"):
        (tmp_path / "no.npz").write_bytes(data)
        with pytest.raises(CorruptFileError, match=r"no\.npz: it is no \.npz file") as caught:
            read_task(tmp_path / "no.npz", SETTINGS)
        assert "allow_pickle" not in str(caught.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_flipped_bit_is_our_error_or_none(tmp_path: Path, save: Callable[..., None]) -> None:
    buffer = io.BytesIO()
    save(buffer, images=np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3), labels=np.arange(2))
    data = bytearray(buffer.getvalue())
    for at, bit in product(range(len(data)), (0, 5)):
        data[at] ^= 1 << bit
        (tmp_path / "toy.npz").write_bytes(data)
        with contextlib.suppress(CorruptFileError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zipfile's, on names that are there twice
            read_npz(tmp_path / "toy.npz")
        data[at] ^= 1 << bit


def test_corrupt_image_is_named_and_skipped_only_when_asked(tmp_path: Path) -> None:
    bad = folder(tmp_path / "toy") / "train/class 1/3.png"
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(CorruptFileError, match=r"class 1/3\.png"):
        read_task(tmp_path / "toy", SETTINGS)
    task = read_task(tmp_path / "toy", SETTINGS, skip_corrupt=True)
    assert len(task.splits["train"]) == 35 and len(task.notes) == 1 and "3.png" in task.notes[0]
    assert np.bincount(task.splits["train"].labels).tolist() == [12, 11, 12]


def test_a_link_that_leads_nowhere_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    root = folder(tmp_path / "toy", train=3, val=0, test=0)
    (root / "train" / "class 0" / "9.png").symlink_to("nowhere.png")
    with pytest.raises(MissingFileError, match=r"there is no image .*9\.png"):
        read_task(root, SETTINGS)
    task = read_task(root, SETTINGS, skip_corrupt=True)
    assert len(task.splits["train"]) == 9 and "9.png" in task.notes[0]


def test_what_is_wrong_with_a_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="there is no"):
        read_task(tmp_path / "nothing", SETTINGS)
    (tmp_path / "flat").mkdir()
    with pytest.raises(MissingFileError, match="no train/"):
        read_task(tmp_path / "flat", SETTINGS)
    (tmp_path / "flat/train").mkdir()
    with pytest.raises(CorruptFileError, match="no class folders"):
        read_task(tmp_path / "flat", SETTINGS)
    toy = folder(tmp_path / "toy", train=2, val=1, test=1)
    (toy / "train/empty").mkdir()
    with pytest.raises(CorruptFileError, match=r"empty has no images"):
        read_task(toy, SETTINGS)
    (toy / "train/empty").rmdir()
    (toy / "test/class 1").rename(toy / "test/stranger")
    with pytest.raises(CorruptFileError, match="'stranger'"):
        read_task(toy, SETTINGS, only=("train",))


def test_a_class_that_lost_all_its_images(tmp_path: Path) -> None:
    toy = folder(tmp_path / "toy", train=1, val=0, test=0)
    (toy / "train/class 2/0.png").write_bytes(b"nothing")
    with pytest.raises(CorruptFileError, match="'class 2' has no training images"):
        read_task(toy, SETTINGS, skip_corrupt=True)


def test_validation_is_put_aside_from_train_by_class(tmp_path: Path) -> None:
    task = read_task(folder(tmp_path / "toy", train=10, val=0), SETTINGS)
    fitting, validation, text = with_validation(task, 0.2, 0)
    assert np.bincount(validation.labels).tolist() == [2, 2, 2] and len(fitting) == 24
    assert "6 of 30 training images" in text
    both = np.concatenate([pixels(fitting), pixels(validation)])
    assert len(np.unique(both.reshape(30, -1), axis=0)) == 30
    again = with_validation(task, 0.2, 0)[1]
    assert (pixels(again) == pixels(validation)).all()
    assert not np.array_equal(pixels(with_validation(task, 0.2, 1)[1]), pixels(validation))


@pytest.mark.parametrize("count", [2, 3, 12])
def test_every_class_keeps_an_image_to_train_on(count: int, tmp_path: Path) -> None:
    task = read_task(folder(tmp_path / "toy", train=count, val=0), SETTINGS)
    train, validation, _ = with_validation(task, 0.99, 0)
    assert np.bincount(train.labels).tolist() == [1] * 3 and len(validation) == 3 * (count - 1)


def test_a_digest_tells_pixels_and_labels_apart_and_not_names(tmp_path: Path) -> None:
    first = folder(tmp_path / "toy")
    digest = read_task(first, SETTINGS).digest
    (first / "train" / "class 1" / "3.png").rename(first / "train" / "class 1" / "3a.png")
    assert read_task(first.rename(tmp_path / "moved"), SETTINGS).digest == digest
    moved = tmp_path / "moved"
    Image.fromarray(picture(0, 77)).save(moved / "val" / "class 0" / "1.png")
    assert read_task(moved, SETTINGS).digest != digest


def test_validation_folder_is_used_where_there_is_one(tmp_path: Path) -> None:
    fitting, validation, text = with_validation(read_task(folder(tmp_path / "toy"), SETTINGS), 0.2, 0)
    assert (len(fitting), len(validation), text) == (36, 12, "12 images of val/")


def test_too_few_images_to_validate_on(tmp_path: Path) -> None:
    task = read_task(folder(tmp_path / "toy", train=1, val=0), SETTINGS)
    with pytest.raises(CallError, match="too few"):
        with_validation(task, 0.2, 0)


def test_images_that_do_not_fit_into_memory_are_decoded_again(tmp_path: Path) -> None:
    task = folder(tmp_path / "toy", train=5, val=0, test=0)
    files = sorted(task.rglob("*.png"))
    files[3].write_bytes(b"nothing")
    sources = [Source(str(file), file) for file in files]
    here, order, bad, digest = load_pictures(sources, SETTINGS, skip_corrupt=True)
    there, same_order, _, same_digest = load_pictures(sources, SETTINGS, skip_corrupt=True, cache_bytes=100)
    assert isinstance(there, OnDisk) and (order == same_order).all() and len(bad) == 1 and digest == same_digest
    wanted = [np.array([5, 0]), np.array([1]), np.array([7, 8, 9]), np.array([2])]
    for one, other in zip(here.batches(wanted), there.batches(wanted)):
        assert (one == other).all()
    (lone,) = there.take(np.array([4])).batches([np.array([0])])
    (expected,) = here.batches([np.array([4])])
    assert (lone == expected).all()
    with pytest.raises(AdapterPackError, match=files[3].name):
        load_pictures(sources, SETTINGS, skip_corrupt=False, cache_bytes=100)
