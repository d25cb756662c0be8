"""Image files to model input, by the settings that an adapter records, and logits to the top classes.

The steps are timm's evaluation transform (resize, centre crop, mean and std), done by Pillow alone.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Union

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import nn

from adapterpack.adapter import DataSettings
from adapterpack.errors import CorruptFileError, MissingFileError, Reason, UnsupportedAdapterError
from adapterpack.runtime.backbone import unwrap
from adapterpack.runtime.evaluating import evaluating
from adapterpack.runtime.families import classifier

_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}
_MODES = {1: "L", 3: "RGB"}
Picture = Union[Image.Image, str, Path]  # in memory, or a path
SUFFIXES = frozenset(
    [".bmp", ".gif", ".jpeg", ".jpg", ".jp2", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"]
)
# What Pillow's decoders raise on damaged files.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True, slots=True)
class TopClass:
    """One class of the answer: its row in the head, its label ("" where there is none) and its probability."""

    index: int
    label: str
    probability: float


def read_image(path: Picture, settings: DataSettings) -> torch.Tensor:
    """One image as the model's input.

    Args:
        path: any format that Pillow reads, or a picture in memory.
        settings: size, crop, interpolation, and the mean and deviation of values in [0, 1].

    Returns:
        float32 [channels, height, width].

    Raises:
        MissingFileError: `missing-file`.
        CorruptFileError: `bad-source`, naming the file: damaged, no image, or absurdly large.
        UnsupportedAdapterError: `bad-parameter`, settings that no image can have.
    """
    return normalised(torch.from_numpy(read_pixels(path, settings))[None], settings)[0].contiguous()


def read_pixels(
    source: str | Path | BinaryIO | Image.Image, settings: DataSettings, name: str = ""
) -> NDArray[np.uint8]:
    """One image, resized and cropped, its values as they are: uint8 [channels, height, width].

    Args:
        source: a path, an open file, or a picture in memory.
        settings: size, crop and interpolation.
        name: what to call an open file in an error.

    Raises:
        AdapterPackError: as `read_image`.
    """
    mode = _MODES.get(settings.input_size[0])
    if mode is None or settings.interpolation not in _FILTERS:
        text = f"images of {settings.input_size[0]} channels, {settings.interpolation} interpolation, are not supported"
        raise UnsupportedAdapterError(text, Reason.BAD_PARAMETER, "data", "expected 1 or 3 channels and a known filter")
    if isinstance(source, (str, Path)):
        source, name = _existing(source), str(source)
    image = _converted(source, mode, name) if isinstance(source, Image.Image) else _open(source, mode, name)
    return resized(image, settings)


def check_image(path: str | Path) -> None:
    """Refuse early what `read_image` would refuse whatever the settings.

    Raises:
        MissingFileError: `missing-file`.
        CorruptFileError: `bad-source`.
    """
    _open(_existing(path), "RGB", str(path))


def decoded(data: bytes, formats: Sequence[str], most_pixels: int) -> Image.Image:
    """A picture that a stranger sent: its size is read first, and it is decoded only where that is allowed.

    Args:
        data: a whole file.
        formats: Pillow's names of the formats that are accepted.
        most_pixels: more are refused undecoded.

    Returns:
        8 bits, RGB, in memory. Safe to call in several threads at once.

    Raises:
        CorruptFileError: `bad-source`, no such image, or damaged; `limit-exceeded`, more pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=tuple(formats)) as image:
            if image.width * image.height > most_pixels:
                text = f"the image has {image.width}×{image.height} pixels, at most {most_pixels:,} are accepted"
                raise CorruptFileError(text, Reason.LIMIT, hint="scale it down")
            return _eight_bits(image, "the image").convert("RGB")
    except CorruptFileError:
        raise
    except UnidentifiedImageError as error:
        raise CorruptFileError("no image of a known format", Reason.BAD_SOURCE, hint="send a PNG or JPEG") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # Pillow's own limits
        raise CorruptFileError("the image has too many pixels", Reason.LIMIT, hint="scale it down") from error
    except _DAMAGE as error:
        raise CorruptFileError(f"no readable image: {error}", Reason.BAD_SOURCE, hint="send the file whole") from error


def _existing(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise MissingFileError(f"there is no image {path}", Reason.MISSING_FILE, hint="check the path")
    return Path(path)


def resized(image: Image.Image, settings: DataSettings) -> NDArray[np.uint8]:
    """A picture in memory, fitted to the input size: uint8 [channels, height, width]."""
    pixels = np.asarray(_fit(image, settings))
    return np.array(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1), np.uint8)


def normalised(pixels: torch.Tensor, settings: DataSettings) -> torch.Tensor:
    """Values in 0 … 255, [n, channels, height, width], as the model's input: float32 of the same shape."""
    to: dict[str, Any] = {"dtype": torch.float32, "device": pixels.device}
    mean, std = (torch.tensor(values, **to)[:, None, None] for values in (settings.mean, settings.std))
    return (pixels.to(torch.float32) / 255 - mean) / std


def require_classes(model: nn.Module, name: str) -> None:
    """Refuse to call the features of a model whose head is none probabilities of classes.

    Args:
        model: with the task's own head in it, or asked about a task that has none; also what `torch.compile` gave.
        name: of the task, for the message.

    Raises:
        UnsupportedAdapterError: `missing-site`.
    """
    if isinstance(classifier(unwrap(model)), nn.Identity):
        hint = "pack the task with its head, or use a backbone that has one"
        raise UnsupportedAdapterError(f"{name} has no head, nor has the backbone", Reason.MISSING_SITE, "head", hint)


def top_classes(
    model: nn.Module, image: torch.Tensor, k: int = 5, labels: Sequence[str] | None = None
) -> list[TopClass]:
    """The `k` most probable classes of one image, best first; the model is run in eval mode and left as it was.

    Args:
        model: with a head.
        image: float32 [channels, height, width].
        k: at most the number of classes is given.
        labels: class names in the head's order.

    Raises:
        UnsupportedAdapterError: `site-shape`, an image of another size than the model takes, or a model that gives no
            logits; `missing-site`, a model without a head.
    """
    require_classes(model, "the task")
    require_size(model, image)
    like = next(model.parameters())
    with evaluating(model), torch.inference_mode():
        logits = model(image[None].to(like.device, like.dtype))
    if logits.ndim != 2:
        raise UnsupportedAdapterError(f"the model gives {list(logits.shape)}, no logits", Reason.SITE_SHAPE, "head")
    probabilities = logits[0].float().softmax(dim=0).cpu()
    best = probabilities.topk(min(k, len(probabilities)))
    names = labels or [""] * len(probabilities)
    return [TopClass(i, names[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist())]


SMALLEST_CROP = 0.05  # a smaller crop_pct would resize a picture to more than 20 times the input


def require_input(model: nn.Module, settings: DataSettings) -> None:
    """Refuse preprocessing whose result the model does not take, or that takes ages.

    Raises:
        UnsupportedAdapterError: `site-shape` or `bad-parameter`.
    """
    require_size(model, torch.empty(settings.input_size, device="meta"))
    if settings.crop_pct < SMALLEST_CROP:
        text = f"a crop_pct of {settings.crop_pct} resizes pictures to many times the model's input"
        raise UnsupportedAdapterError(text, Reason.BAD_PARAMETER, "data", f"expected at least {SMALLEST_CROP}")


def require_size(model: nn.Module, image: torch.Tensor) -> None:
    """Refuse an image, [channels, height, width], of another size or number of channels than the model takes.

    Raises:
        UnsupportedAdapterError: `site-shape`.
    """
    patches = getattr(model, "patch_embed", None)
    weight = None if hasattr(patches, "backbone") else getattr(getattr(patches, "proj", None), "weight", None)
    if weight is not None and weight.ndim == 4 and image.shape[-3] != weight.shape[1]:
        text = f"the image has {image.shape[-3]} channels, the model takes {weight.shape[1]}"
        raise UnsupportedAdapterError(text, Reason.SITE_SHAPE, "data.input_size", "convert it first")
    expected = getattr(patches, "img_size", None)
    if (
        expected is not None
        and not getattr(model, "dynamic_img_size", False)
        and tuple(image.shape[-2:]) != tuple(expected)
    ):
        text = f"the image is {image.shape[-2]}×{image.shape[-1]}, the model takes {expected[0]}×{expected[1]}"
        raise UnsupportedAdapterError(text, Reason.SITE_SHAPE, "data.input_size", "give the model that img_size")


def _open(source: Path | BinaryIO, mode: str, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source) as image:
                return _eight_bits(image, name).convert(mode)
    except (*_DAMAGE, Image.DecompressionBombWarning) as error:
        raise CorruptFileError(
            f"{name} is no readable image: {error}",
            Reason.BAD_SOURCE,
            hint="fetch it again, or save it anew as PNG or JPEG",
        ) from error


def _converted(image: Image.Image, mode: str, name: str) -> Image.Image:
    """A picture in memory, which Pillow may not have decoded yet."""
    try:
        return _eight_bits(image, name).convert(mode)
    except _DAMAGE as error:
        what = name or "the picture"
        raise CorruptFileError(
            f"{what} cannot be read: {error}", Reason.BAD_SOURCE, hint="fetch it again, or save it anew as PNG or JPEG"
        ) from error


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Grey values of 16 bits, scaled; Pillow's own conversion would cut all above 255 down to white.

    Raises:
        CorruptFileError: `bad-source`, values of 32 bits or floats above 255, whose range is not known.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        whole = values.astype(np.uint32)
        return Image.fromarray(((whole * 255 + 32767) // 65535).astype(np.uint8))
    if values.max() > 255:
        text = f"{name} has grey values up to {values.max():g}"
        raise CorruptFileError(text, Reason.BAD_SOURCE, hint="convert it to 8 or 16 bits")
    return image


def _fit(image: Image.Image, settings: DataSettings) -> Image.Image:
    """Resize and crop to the input size."""
    height, width = settings.input_size[1:]
    wide, high = (math.floor(size / settings.crop_pct) for size in (width, height))
    if settings.crop_mode != "squash":
        ratio = max(wide / image.width, high / image.height)
        wide, high = (_side(wide, image.width, ratio), _side(high, image.height, ratio))
    if (wide, high) != image.size:
        image = image.resize((wide, high), _FILTERS[settings.interpolation])
    left, top = (round((have - need) / 2.0) for have, need in ((image.width, width), (image.height, height)))
    return image.crop((left, top, left + width, top + height))


def _side(wanted: int, side: int, ratio: float) -> int:
    """The side that decides the ratio becomes exactly as long as wanted, the other one is cut down to whole pixels."""
    return wanted if wanted / side == ratio else int(side * ratio)
