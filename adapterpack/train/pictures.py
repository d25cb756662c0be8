"""Images as 8-bit values of the model's input size: decoded once where memory allows, else when they are needed."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, Union

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from adapterpack.adapter import DataSettings
from adapterpack.errors import AdapterPackError
from adapterpack.runtime.images import read_pixels, resized

CACHE_BYTES = 4 << 30
Order = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """One image: a name for messages, and a path, an encoded file, or pixels uint8 [h, w] or [h, w, 3]."""

    name: str
    content: Union[Path, bytes, NDArray[np.uint8]]

    def decode(self, settings: DataSettings) -> NDArray[np.uint8]:
        """uint8 [channels, height, width].

        Raises:
            CorruptFileError: `bad-source`, naming the image.
        """
        if isinstance(self.content, Path):
            return read_pixels(self.content, settings)
        if isinstance(self.content, bytes):
            return read_pixels(io.BytesIO(self.content), settings, self.name)
        mode = "L" if settings.input_size[0] == 1 else "RGB"
        return resized(Image.fromarray(self.content).convert(mode), settings)


class Pictures(Protocol):
    """Images that can be had in any order."""

    def take(self, which: Order) -> Pictures: ...
    def batches(self, order: Sequence[Order]) -> Iterator[torch.Tensor]:
        """uint8 [n, channels, height, width] for each list of positions."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class InMemory:
    """All images decoded: uint8 [n, channels, height, width]."""

    pixels: torch.Tensor

    def take(self, which: Order) -> InMemory:
        return InMemory(self.pixels[torch.from_numpy(which)])

    def batches(self, order: Sequence[Order]) -> Iterator[torch.Tensor]:
        return (self.pixels[torch.from_numpy(which)] for which in order)


@dataclass(frozen=True, slots=True, eq=False)
class OnDisk:
    """Images decoded when they are needed, one batch ahead of the model."""

    sources: Sequence[Source]
    settings: DataSettings

    def take(self, which: Order) -> OnDisk:
        return OnDisk([self.sources[i] for i in which], self.settings)

    def batches(self, order: Sequence[Order]) -> Iterator[torch.Tensor]:
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            ahead: list[list[Future[NDArray[np.uint8]]]] = []
            for which in order:
                ahead.append([pool.submit(self.sources[i].decode, self.settings) for i in which])
                if len(ahead) > 2:
                    yield _stack(ahead.pop(0))
            while ahead:
                yield _stack(ahead.pop(0))


def _stack(waiting: Sequence[Future[NDArray[np.uint8]]]) -> torch.Tensor:
    return torch.from_numpy(np.stack([one.result() for one in waiting]))


class Read(NamedTuple):
    """Images, the positions of those that could be read, a sentence for each that could not, and a digest of pixels."""

    pictures: Pictures
    kept: Order
    bad: list[str]
    digest: bytes


def load_pictures(
    sources: Sequence[Source], settings: DataSettings, *, skip_corrupt: bool, cache_bytes: int = CACHE_BYTES
) -> Read:
    """Decode all images once.

    Args:
        sources: the images.
        settings: size, crop and interpolation.
        skip_corrupt: leave out what cannot be read; otherwise the first such image is an error.
        cache_bytes: beyond this they are checked now and decoded again when needed.

    Raises:
        CorruptFileError: `bad-source`, naming the image.
    """
    size = int(np.prod(settings.input_size, dtype=np.int64))
    keep = size * len(sources) <= cache_bytes
    pixels = np.empty((len(sources) if keep else 0, *settings.input_size), np.uint8)
    good: list[int] = []
    bad: list[str] = []
    seen = hashlib.sha256()
    for i, decoded in enumerate(_decoded(sources, settings)):
        if isinstance(decoded, AdapterPackError):
            if not skip_corrupt:
                raise decoded
            bad.append(str(decoded))
        else:
            if keep:
                pixels[len(good)] = decoded
            seen.update(decoded.tobytes())
            good.append(i)
    order = np.array(good, np.int64)
    if keep:
        return Read(InMemory(torch.from_numpy(pixels[: len(good)])), order, bad, seen.digest())
    return Read(OnDisk([sources[i] for i in good], settings), order, bad, seen.digest())


def _decoded(sources: Sequence[Source], settings: DataSettings) -> Iterator[NDArray[np.uint8] | AdapterPackError]:
    """Every image, or what is wrong with it, in order; decoded by several threads."""

    def one(source: Source) -> NDArray[np.uint8] | AdapterPackError:
        try:
            return source.decode(settings)
        except AdapterPackError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for start in range(0, len(sources), 1024):  # a chunk at a time, so that an error is told soon
            yield from pool.map(one, sources[start : start + 1024])
