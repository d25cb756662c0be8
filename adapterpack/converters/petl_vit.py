"""PETL-ViT's published 1-bit adapters: a headerless `.bin` and a YAML of seven lines beside it; read and written.

The `.bin` holds, in the order in which the modules are registered, packed indices, mean and standard deviation of each
quantized matrix, then the head. What it holds follows from the YAML and the backbone's size alone, so the length must
match to the byte. Source: Jie et al. 2023, `binary_adapter/utils.py`, `dump` and `load`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from adapterpack import bits as bitstream
from adapterpack._files import write_all
from adapterpack.adapter import Adapter, Backbone, Branch, DataSettings, Head, Site
from adapterpack.converters import settings as sidecar
from adapterpack.converters._backbones import depth_and_width, todays_name
from adapterpack.converters._base import Hints, Imported, finish, prefix_of, read_bytes
from adapterpack.converters._data import of_recipe
from adapterpack.converters._lost import left_out
from adapterpack.converters.petl_settings import (
    LEVELS,
    METHODS,
    NAMES,
    Settings,
    impossible,
    need_head,
    read_sidecar,
    settings_from,
    settings_of,
    with_source,
    yaml_of,
)
from adapterpack.errors import CallError, CorruptFileError, Reason, UnsupportedAdapterError
from adapterpack.tensors import Dense, Quantized, Shape, Tensor, numel

_FLOAT = np.dtype("<f4")
_OTHER_FORMS = (b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF", b"GGUF")


@dataclass(frozen=True, slots=True)
class Place:
    """One quantized matrix in the file."""

    site: str
    role: str
    shape: Shape
    bits: int

    @property
    def size(self) -> int:
        return bitstream.packed_bytes(numel(self.shape), self.bits) + 2 * _FLOAT.itemsize


@dataclass(frozen=True, slots=True)
class PetlVit:
    """`.bin` + `.yaml`: AdaptFormer or LoRA on q and v, 1, 2, 4 or 8 bits, float or 1-bit head."""

    name: str = "petl-vit"

    def recognise(self, source: Path) -> bool:
        return source.suffix == ".bin" and source.is_file() and not prefix_of(source).startswith(_OTHER_FORMS)

    def read(self, source: Path, hints: Hints) -> Imported:
        """See `Converter.read`.

        Raises:
            MissingFileError: there is no YAML and the call does not give its seven values.
            CorruptFileError: `bad-source` when the length is not what the YAML says; `not-finite`, `bad-scale`.
        """
        said = sidecar.only(hints.settings, (*NAMES, "depth", "width"), "a PETL-ViT file")
        text, given = read_sidecar(source)
        settings = settings_from(given, said, source.name)
        depth, width = depth_and_width(settings.backbone, said, hints.backbone)
        places = layout(settings, depth, width)
        head_bytes = 0 if settings.bihead else settings.num_class * (width + 1) * _FLOAT.itemsize
        expected = sum(place.size for place in places) + head_bytes
        data = read_bytes(source)
        if len(data) != expected:
            found = f"{source.name} has {len(data):,} bytes, the settings make {expected:,}"
            hint = f"it is damaged, or its method, dim, bit, num_class or backbone ({depth} blocks × {width}) differ"
            raise CorruptFileError(found, Reason.BAD_SOURCE, hint=hint)
        stored = _adapter(settings, places, memoryview(data), width)
        fed = of_recipe(DataSettings(), hints.data)
        adapter = finish(replace(stored, data=fed), replace(hints, settings=said))
        return Imported(with_source(adapter, settings, text))

    def write(self, adapter: Adapter, out: Path, *, force: bool) -> tuple[Path, ...]:
        """See `Converter.write`; `out` names the `.bin`, the YAML goes beside it.

        Raises:
            UnsupportedAdapterError: `not-expressible`, naming what PETL-ViT has no place for.
        """
        if out.suffix not in ("", ".bin"):
            raise CallError(
                f"{out.name} does not end in .bin", Reason.BAD_CALL, hint="name the .bin; the .yaml goes beside it"
            )
        settings = settings_of(adapter)
        width = need_head(adapter).weight.shape[1]
        places = layout(settings, len(adapter.branches) // len(METHODS[settings.plain_method]), width)
        data = b"".join(_bytes_of(tensor, place) for tensor, place in zip(_tensors_for(adapter, places), places))
        if not settings.bihead:
            head = need_head(adapter)
            data += b"".join(t.dense().astype(_FLOAT).tobytes() for t in (head.weight, head.bias) if t is not None)
        files = {out.with_suffix(".yaml"): yaml_of(adapter, settings).encode("ascii"), out.with_suffix(".bin"): data}
        write_all(files, force=force)
        return out.with_suffix(".bin"), out.with_suffix(".yaml")

    def lost(self, adapter: Adapter) -> tuple[str, ...]:
        """See `Lossy.lost`."""
        recipe = adapter.data == replace(DataSettings(), input_size=adapter.data.input_size) if adapter.data else True
        return left_out(adapter, ("head", "forms", "data") if recipe else ("head", "forms"))


def layout(settings: Settings, depth: int, width: int) -> list[Place]:
    """The quantized matrices in file order.

    Raises:
        UnsupportedAdapterError: `not-expressible` for a matrix that does not fill its bytes: the last ones are lost.
    """
    shapes = {"down": (settings.dim, width), "up": (width, settings.dim)}
    places = [
        Place(site.format(block), role, shapes[role], settings.bit)
        for block in range(depth)
        for site in METHODS[settings.plain_method]
        for role in ("down", "up")
    ]
    if settings.bihead:
        places.append(Place("head", "weight", (settings.num_class, width), 1))
    for place in places:
        if numel(place.shape) * place.bits % 8:
            message = f"{place.site} {place.role} {list(place.shape)} at {place.bits} bit does not end on a whole byte"
            hint = "PETL-ViT drops the last weights of such a matrix; they cannot be had back"
            raise UnsupportedAdapterError(message, Reason.NOT_EXPRESSIBLE, hint=hint)
    return places


def _adapter(settings: Settings, places: list[Place], data: memoryview, width: int) -> Adapter:
    offset, found = 0, {}
    for place in places:
        found[place.site, place.role] = _matrix(data[offset : offset + place.size], place)
        offset += place.size
    head = (
        Head(found.pop(("head", "weight")))
        if settings.bihead
        else _float_head(data[offset:], settings.num_class, width)
    )
    branches = [
        Branch(
            Site.parse(site),
            settings.plain_method,
            {"scale": settings.scale},
            {r: found[site, r] for r in ("down", "up")},
        )
        for site in dict.fromkeys(site for site, _ in found)
    ]
    backbone = Backbone(todays_name(settings.backbone))
    return Adapter(settings.dataset, settings.plain_method, tuple(branches), head, backbone=backbone)


def _matrix(data: memoryview, place: Place) -> Quantized:
    mean, std = np.frombuffer(data[-8:], _FLOAT)
    where = f"{place.site} {place.role}"
    if not (math.isfinite(mean) and math.isfinite(std)):
        raise CorruptFileError(f"mean {mean} and deviation {std}", Reason.NOT_FINITE, where, "the file is damaged")
    if np.signbit(std):
        raise CorruptFileError(f"the standard deviation is {std}", Reason.BAD_SCALE, where, "the file is damaged")
    packed = np.frombuffer(data[:-8], np.uint8)
    scale, offset = np.array([std], np.float32), np.array([mean], np.float32)
    return Quantized(place.shape, place.bits, LEVELS[place.bits], 0, packed, scale, offset)


def _float_head(data: memoryview, classes: int, width: int) -> Head:
    values = np.frombuffer(data, _FLOAT).astype(np.float32)
    if not np.isfinite(values).all():
        raise CorruptFileError("the head holds NaN or infinity", Reason.NOT_FINITE, "head", "the file is damaged")
    return Head(Dense(values[: classes * width].reshape(classes, width)), Dense(values[classes * width :]))


def _tensors_for(adapter: Adapter, places: list[Place]) -> list[Tensor]:
    """The adapter's tensors in file order; every one of them must have its place."""
    found = {(str(b.site), role): tensor for b in adapter.branches for role, tensor in b.tensors.items()}
    head = need_head(adapter)
    if head.bias is None:
        found["head", "weight"] = head.weight
    elif not (isinstance(head.weight, Dense) and isinstance(head.bias, Dense)):
        bits = min(getattr(head.weight, "bits", 32), getattr(head.bias, "bits", 32))
        what = f"a head of {bits} bit with a bias"
        raise impossible(f"{what}: it holds one of 1 bit without a bias or of float32 with one")
    expected = {(place.site, place.role) for place in places}
    odd = sorted(expected.symmetric_difference(found))
    if odd:
        raise impossible(_misfit(*odd[0], missing=odd[0] in expected))
    if len(found) != sum(len(b.tensors) for b in adapter.branches) + (head.bias is None):
        raise impossible("two branches at one site")
    return [found[place.site, place.role] for place in places]


def _misfit(site: str, role: str, *, missing: bool) -> str:
    """What is wrong with a place, and which places there are."""
    held = "; ".join(f"{name}: {' and '.join(at.format('N') for at in sites)}" for name, sites in METHODS.items())
    what = f"an adapter in which {site} lacks {role}" if missing else f"a branch at {site}"
    return f"{what}: it holds down and up in every block, of {held}"


def _bytes_of(tensor: Tensor, place: Place) -> bytes:
    fits = isinstance(tensor, Quantized) and tensor.shape == place.shape and tensor.bits == place.bits
    if not isinstance(tensor, Quantized) or not fits or tensor.group or tensor.levels != LEVELS[place.bits]:
        found = f"{tensor.form()}, shape {list(tensor.shape)}"
        want = f"{list(place.shape)} with {place.bits} bit, one group and the {LEVELS[place.bits]} codebook"
        raise impossible(f"{place.site} {place.role} as {found}: it holds {want}")
    offset = np.zeros(1) if tensor.offset is None else tensor.offset
    return tensor.packed.tobytes() + offset.astype(_FLOAT).tobytes() + tensor.scale.astype(_FLOAT).tobytes()
