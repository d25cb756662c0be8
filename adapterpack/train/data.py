"""Images and labels of a task: a folder with `train/`, perhaps `val/`, and `test/`, or an `.npz`; checked before use.

It knows names and labels, and hands decoding to `pictures`. Everything that can be wrong with a data set is said here
or there, by name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from adapterpack._walk import files_in, unreadable
from adapterpack.adapter import DataSettings
from adapterpack.errors import CallError, CorruptFileError, MissingFileError, Reason
from adapterpack.runtime.images import SUFFIXES
from adapterpack.train.npz import read_npz
from adapterpack.train.pictures import Pictures, Source, load_pictures

SPLITS = ("train", "val", "test")
_KNOWN = f"known suffixes: {' '.join(sorted(SUFFIXES))}"


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Some images and their labels.

    Attributes:
        pictures: [n].
        labels: int64 [n], rows of `Task.classes`.
    """

    pictures: Pictures
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, which: NDArray[np.int64]) -> Split:
        """Some of the images."""
        return Split(self.pictures.take(which), self.labels[which])


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A data set.

    Attributes:
        name: the folder's or file's.
        classes: names in label order.
        splits: by name; "val" and "test" may be missing.
        digest: of classes, labels and pixels, of the splits that were read; names of files and folders do not count.
        notes: what a user should know: skipped images.
    """

    name: str
    classes: tuple[str, ...]
    splits: dict[str, Split]
    digest: str
    notes: tuple[str, ...] = ()

    def split(self, name: str) -> Split:
        """One split.

        Raises:
            MissingFileError: `missing-file`.
        """
        if name not in self.splits:
            raise MissingFileError(f"{self.name} has no {name} images", Reason.MISSING_FILE, hint=f"expected {name}/")
        return self.splits[name]


@dataclass(frozen=True, slots=True, eq=False)
class Listing:
    """A data set before any image is read: for each split, the sources and labels."""

    name: str
    classes: tuple[str, ...]
    sources: Mapping[str, tuple[Sequence[Source], NDArray[np.int64]]]


def read_task(path: Path, settings: DataSettings, *, skip_corrupt: bool = False, only: Sequence[str] = SPLITS) -> Task:
    """Read a data set, its images fitted to the model's input size.

    Args:
        path: a folder with `train/`, `val/`, `test/`, each with a folder of images a class; or an `.npz` of `images`
            and `labels` (and `split`: 0 train, 1 val, 2 test), or of encoded images, see `npz`.
        settings: size, crop and interpolation.
        skip_corrupt: leave out images that cannot be read, and say which; otherwise they are an error.
        only: the splits that are wanted.

    Raises:
        MissingFileError, CallError: nothing there, or no data set.
        CorruptFileError: `bad-source`, an image that cannot be read, a class without images, a class in `val/` or
            `test/` that `train/` lacks.
    """
    listing = _listing(path)
    splits, notes = {}, []
    digest = hashlib.sha256("\0".join(listing.classes).encode("utf-8", "surrogatepass"))
    for name, (sources, labels) in listing.sources.items():
        if name in only:
            read = load_pictures(sources, settings, skip_corrupt=skip_corrupt)
            splits[name] = Split(read.pictures, labels[read.kept])
            notes += [f"skipped {text}" for text in read.bad]
            _no_empty_class(name, labels[read.kept], listing)
            digest.update(b"\0".join([name.encode(), labels[read.kept].tobytes(), read.digest]))
    return Task(listing.name, listing.classes, splits, digest.hexdigest(), tuple(notes))


def read_some(path: Path, settings: DataSettings, count: int) -> torch.Tensor:
    """Some images of a data set, labels aside: of its training part, or of a folder of images without such parts.

    Args:
        path: as for `read_task`, or any folder of images, however deep.
        settings: size, crop and interpolation.
        count: how many at most; they are taken evenly from all, in the order of their names.

    Returns:
        uint8 [n, channels, height, width].

    Raises:
        AdapterPackError: as `read_task`; `bad-source` also for a folder without images.
    """
    if path.is_dir() and not any((path / name).is_dir() for name in SPLITS):
        sources: Sequence[Source] = [Source(str(file), file) for file in _images_in(path)]
        if not sources:
            raise CorruptFileError(f"{path} has no images", Reason.BAD_SOURCE, hint=_KNOWN)
    else:
        listing = _listing(path)
        sources = listing.sources["train" if "train" in listing.sources else min(listing.sources)][0]
    chosen = [sources[i * len(sources) // count] for i in range(count)] if len(sources) > count else sources
    read = load_pictures(chosen, settings, skip_corrupt=False)
    return next(read.pictures.batches([read.kept]))


def _listing(path: Path) -> Listing:
    if not path.exists():
        raise MissingFileError(f"there is no {path}", Reason.MISSING_FILE, hint="give a folder with train/ and test/")
    return _folders(path) if path.is_dir() else Listing(path.stem, *read_npz(path))


def _folders(path: Path) -> Listing:
    names = [name for name in SPLITS if (path / name).is_dir()]
    if not names:
        raise MissingFileError(f"{path} has no train/ or test/", Reason.MISSING_FILE, hint="see `train --help`")
    by_split = {name: _class_folders(path / name) for name in names}
    base = "train" if "train" in by_split else names[-1]
    classes = tuple(by_split[base])
    if not classes:
        raise CorruptFileError(f"{path / base} has no class folders", Reason.BAD_SOURCE, hint="one folder a class")
    sources = {}
    for name, found in by_split.items():
        extra = sorted(set(found) - set(classes))
        if extra:
            text = f"the class {extra[0]!r} of {path / name} is not in {path / base}"
            raise CorruptFileError(text, Reason.BAD_SOURCE, hint="add images of it to train/, or remove it")
        files = [(file, classes.index(label)) for label, items in found.items() for file in items]
        labels = np.array([label for _, label in files], np.int64)
        sources[name] = ([Source(str(file), file) for file, _ in files], labels)
    return Listing(path.resolve().name, classes, sources)


def _class_folders(path: Path) -> dict[str, list[Path]]:
    """Images by class, both in ascending order of their names."""
    found = {}
    try:
        inside = sorted(item for item in path.iterdir() if item.is_dir() and not item.name.startswith("."))
    except OSError as error:
        unreadable(error)
    for folder in inside:
        found[folder.name] = _images_in(folder)
        if not found[folder.name]:
            raise CorruptFileError(f"the class folder {folder} has no images", Reason.BAD_SOURCE, hint=_KNOWN)
    return found


def _images_in(folder: Path) -> list[Path]:
    """By their names alone: a link that leads nowhere is an image that cannot be read, and not none."""
    return sorted(item for item in files_in(folder) if item.suffix.lower() in SUFFIXES)


def _no_empty_class(split: str, labels: NDArray[np.int64], listing: Listing) -> None:
    counts = np.bincount(labels, minlength=len(listing.classes))
    empty = [name for name, count in zip(listing.classes, counts) if not count]
    if split == "train" and empty:
        raise CorruptFileError(f"the class {empty[0]!r} has no training images", Reason.BAD_SOURCE, hint="add some")
    if not len(labels):
        raise CorruptFileError(f"{listing.name} has no {split} images", Reason.BAD_SOURCE)


def with_validation(task: Task, share: float, seed: int) -> tuple[Split, Split, str]:
    """What trains and what validates.

    Where a task has no validation images, a share of every class of the training images is put aside: at least one of
    each class that has two, and never all.

    Returns:
        Training split, validation split, and a sentence that says which images validate.

    Raises:
        CallError: `bad-call`, too few images to put any aside.
    """
    train = task.split("train")
    if "val" in task.splits:
        return train, task.splits["val"], f"{len(task.splits['val'])} images of val/"
    random = np.random.default_rng(seed)
    aside = []
    for label in range(len(task.classes)):
        mine = random.permutation(np.flatnonzero(train.labels == label))
        aside.append(mine[: min(max(1, round(share * len(mine))), len(mine) - 1)])
    chosen = np.sort(np.concatenate(aside))
    rest = np.setdiff1d(np.arange(len(train)), chosen)
    if not len(chosen):
        raise CallError("there are too few images to validate on", Reason.BAD_CALL, hint="add a val/ folder")
    text = f"{len(chosen)} of {len(train)} training images (no val/): {share:.0%} of each class"
    return train.take(rest), train.take(chosen), text
