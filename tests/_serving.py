"""Small adapters on the fixtures' backbone, pictures, and plain HTTP, for the tests of `serving`."""

from __future__ import annotations

import dataclasses
import io
import json
import struct
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adapterpack.adapter import Head
from adapterpack.exchange import pack
from adapterpack.packing.bundle import open_bundle
from adapterpack.packing.cross import standalone
from adapterpack.packing.encode import encode_task
from adapterpack.packing.join import join
from adapterpack.tensors import Dense

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
BACKBONE = str(FIXTURES / "backbone.safetensors")
# what ray and its own dependencies say when they are imported; none of it is about this package
RAY_WARNINGS = (
    "ignore::DeprecationWarning",
    "ignore::FutureWarning:ray",
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)


@cache
def digits(folder: Path) -> bytes:
    """The fixtures' adapter as an `.apk`."""
    path = folder / "made.apk"
    pack(FIXTURES / "digits.ckpt", path, task="digits", force=True)
    data = path.read_bytes()
    path.unlink()
    return data


def variant(data: bytes, name: str, classes: int = 10, shift: int = 0) -> bytes:
    """The same task under another name, with fewer classes, and its head's rows rolled."""
    bundle = open_bundle(data)
    task = bundle.read()
    assert task.head is not None
    weight = np.roll(task.head.weight.dense(), shift, axis=0)[:classes]
    changed = dataclasses.replace(task, name=name, head=Head(Dense(np.ascontiguousarray(weight))), labels=None)
    return join([encode_task(changed, "fast")], bundle.backbone)


def both(*files: bytes) -> bytes:
    """One file with the tasks of several."""
    bundles = [open_bundle(data) for data in files]
    return join([standalone(bundle, task) for bundle in bundles for task in bundle.tasks], bundles[0].backbone)


def other_backbone(data: bytes, name: str) -> bytes:
    """A task that says it was trained on another backbone."""
    bundle = open_bundle(data)
    backbone = dataclasses.replace(bundle.backbone, fingerprint="sha256:" + 64 * "0")
    task = dataclasses.replace(bundle.read(), name=name, backbone=backbone)
    return join([encode_task(task, "fast")], backbone)


def picture(seed: int = 0, side: int = 40) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(seed: int = 0, side: int = 40) -> bytes:
    out = io.BytesIO()
    picture(seed, side).save(out, "PNG")
    return out.getvalue()


def plain_png(side: int) -> bytes:
    """Few bytes that take long to decode."""
    out = io.BytesIO()
    Image.new("RGB", (side, side)).save(out, "PNG")
    return out.getvalue()


def large_png(width: int, height: int) -> bytes:
    """A valid head that announces so many pixels, and hardly any data."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


@dataclasses.dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def http(
    method: str, url: str, data: bytes | None = None, headers: Mapping[str, str] | None = None, timeout: float = 60
) -> Reply:
    """One request, without any retry."""
    sent = {"Content-Type": "application/octet-stream", **(headers or {})}
    request = urllib.request.Request(url, data, sent, method=method)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return Reply(answer.status, answer.read(), dict(answer.headers))
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, error.read(), dict(error.headers))


def form(fields: Mapping[str, str], image: bytes, field: str = "image") -> tuple[bytes, dict[str, str]]:
    """A multipart body and its header."""
    edge = "----------edge"
    lines = b""
    for name, value in fields.items():
        lines += f'--{edge}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
    lines += f'--{edge}\r\nContent-Disposition: form-data; name="{field}"; filename="a.png"\r\n\r\n'.encode()
    return lines + image + f"\r\n--{edge}--\r\n".encode(), {"Content-Type": f"multipart/form-data; boundary={edge}"}


def until(check: Callable[[], Any], seconds: float = 120) -> Any:
    """What `check` gives as soon as it is true."""
    end = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)
    return found
