"""A task in one `.npz`: pixels (`images`, `labels`, perhaps `split` and `classes`), or encoded image files in a row.

In the second form file i is `prefix + data[offsets[i]:offsets[i + 1]]`. Nothing is unpickled.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterpack.errors import CorruptFileError, Reason
from adapterpack.train.pictures import Source

_NAMES = ("train", "val", "test")
_MOST_CLASSES = 1 << 20
# what zipfile, zlib and numpy raise for a damaged file
_DAMAGED = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    RuntimeError,
    MemoryError,
    OverflowError,
    SyntaxError,
    zlib.error,
    zipfile.BadZipFile,
)
Sources = dict[str, tuple[Sequence[Source], NDArray[np.int64]]]


def read_npz(path: Path) -> tuple[tuple[str, ...], Sources]:
    """Class names, and sources and labels by split.

    Args:
        path: `images` uint8 [n, h, w], [n, h, w, 3] or [n, 3, h, w], or `data`, `offsets` and `prefix`; `labels`
            integers [n]; `split` [n] of 0 train, 1 val, 2 test (without it all images train); `classes` [k].

    Raises:
        CorruptFileError: `bad-source`, saying what is wrong with which array.
    """
    arrays = _arrays(path)
    labels = _whole(arrays, "labels", path)
    sources = _encoded(arrays, path) if "offsets" in arrays else _pixels(arrays, path)
    if len(labels) != len(sources):
        raise _bad(path, f"there are {len(labels)} labels for {len(sources)} images")
    split = _whole(arrays, "split", path) if "split" in arrays else np.zeros(len(labels), np.int64)
    if len(split) != len(labels) or not np.isin(split, (0, 1, 2)).all():
        raise _bad(path, "split is no 0 (train), 1 (val) or 2 (test) for each image")
    classes = _classes(arrays, labels, path)
    found: Sources = {}
    for number, name in enumerate(_NAMES):
        which = np.flatnonzero(split == number)
        if len(which):
            found[name] = [sources[i] for i in which], labels[which]
    return classes, found


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as file:  # which numpy leaves open where it fails
            if zipfile.is_zipfile(file):
                file.seek(0)
                with np.load(file, allow_pickle=False) as arrays:
                    return {name: arrays[name] for name in arrays.files}
    except _DAMAGED as error:
        raise _bad(path, f"it cannot be read: {error}") from error
    raise _bad(path, "it is no .npz file, or only a part of one")


def _whole(arrays: dict[str, NDArray[Any]], name: str, path: Path) -> NDArray[np.int64]:
    values = arrays.get(name)
    if values is None or values.ndim != 1 or values.dtype.kind not in "iu":
        found = "missing" if values is None else f"{values.dtype} {list(values.shape)}"
        raise _bad(path, f"{name} is {found}, expected one row of integers")
    return values.astype(np.int64)


def _encoded(arrays: dict[str, NDArray[Any]], path: Path) -> list[Source]:
    offsets = _whole(arrays, "offsets", path)
    data = arrays.get("data", np.zeros(0, np.uint8)).tobytes()
    prefix = arrays.get("prefix", np.zeros(0, np.uint8)).tobytes()
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(data) or (np.diff(offsets) < 0).any():
        raise _bad(path, f"offsets do not divide the {len(data):,} bytes of data")
    files = (prefix + data[start:end] for start, end in pairwise(offsets.tolist()))
    return [Source(f"{path}[{i}]", file) for i, file in enumerate(files)]


def _pixels(arrays: dict[str, NDArray[Any]], path: Path) -> list[Source]:
    images = arrays.get("images")
    if images is None or images.dtype != np.uint8 or images.ndim not in (3, 4) or 0 in images.shape:
        text = "missing" if images is None else f"{images.dtype} {list(images.shape)}"
        raise _bad(path, f"images is {text}, expected uint8 [n, h, w], [n, h, w, 3] or [n, 3, h, w]")
    if images.ndim == 4 and images.shape[3] not in (1, 3) and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if images.ndim == 4 and images.shape[3] != 3:
        raise _bad(path, f"images is {list(images.shape)}: neither 1 nor 3 channels")
    return [Source(f"{path}[{i}]", pixels) for i, pixels in enumerate(images)]


def _classes(arrays: dict[str, NDArray[Any]], labels: NDArray[np.int64], path: Path) -> tuple[str, ...]:
    if not len(labels) or labels.min() < 0:
        raise _bad(path, "labels is empty or has negative numbers")
    if labels.max() >= _MOST_CLASSES:
        raise _bad(path, f"labels go to {labels.max():,}, expected numbers below {_MOST_CLASSES:,}")
    if "classes" not in arrays:
        return tuple(str(i) for i in range(int(labels.max()) + 1))
    names = tuple(_text(name, path) for name in arrays["classes"].reshape(-1))
    if labels.max() >= len(names) or len(set(names)) != len(names):
        raise _bad(path, f"labels go to {labels.max()}, and there are {len(set(names))} different classes")
    return names


def _text(name: Any, path: Path) -> str:
    try:
        return name.decode() if isinstance(name, bytes) else str(name)
    except UnicodeDecodeError as error:
        raise _bad(path, f"the class name {name!r} is not in UTF-8") from error


def _bad(path: Path, text: str) -> CorruptFileError:
    return CorruptFileError(f"{path}: {text}", Reason.BAD_SOURCE, hint="see `adapterpack train --help` for the form")
