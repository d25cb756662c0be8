"""A planned adapter to payloads, and the choice of codec: the smallest of the candidates of its profile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adapterpack.adapter import Adapter
from adapterpack.codecs import CODECS, labels
from adapterpack.codecs.predictive import candidate_params
from adapterpack.container import digest, limits
from adapterpack.container.index import Labels, Segment, TaskEntry
from adapterpack.packing.check import check_adapter
from adapterpack.packing.plan import Planned, plan

Choice = tuple[str, dict[str, Any]]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedTask:
    """One task as it goes into a file: its index entry, the payload of each segment, its digest (32 bytes)."""

    entry: TaskEntry
    payloads: tuple[bytes, ...]
    digest: bytes


def encode_task(adapter: Adapter, profile: str) -> EncodedTask:
    """Encode an adapter.

    Args:
        adapter: what to store.
        profile: "small" or "fast".

    Raises:
        UnsupportedAdapterError, CallError: what the adapter holds cannot be stored; the message names it.
    """
    check_adapter(adapter)
    layout = plan(adapter)
    written = [encode_segment(segment, profile) for segment in layout.segments]
    forms: list[dict[str, Any] | None] = [segment.form for segment in layout.segments]
    names = None
    if adapter.labels is not None:
        text = labels.encode(adapter.labels)
        names = Labels(len(adapter.labels), len(written))
        written.append((Segment(labels.NAME, {}, len(text)), text))
        forms.append(None)
    entry = TaskEntry(
        name=adapter.name,
        method=adapter.method,
        groups=layout.groups,
        head=layout.head,
        segments=tuple(segment for segment, _ in written),
        labels=names,
        data=adapter.data,
        metadata=dict(adapter.metadata),
    )
    contents = (part for tensor in layout.tensors for part in tensor.content())
    checksum = digest.digest(digest.describe(entry, forms, adapter.labels), contents)
    return EncodedTask(entry, tuple(payload for _, payload in written), checksum)


def encode_segment(segment: Planned, profile: str) -> tuple[Segment, bytes]:
    """The smallest candidate; the earlier of two equally small ones, so that the choice is the same everywhere."""
    best: tuple[Segment, bytes] | None = None
    shapes = [tensor.shape for tensor in segment.tensors]
    for name, params in candidates(segment, profile):
        codec = CODECS[name]
        limits.require(codec.decoded_bytes(shapes, params), limits.DECODED_BYTES, "decoded bytes")
        payload = codec.encode(segment.tensors, params)
        if best is None or len(payload) < len(best[1]):
            best = (Segment(name, params, len(payload)), payload)
    if best is None:
        raise RuntimeError(f"no codec stores the form {segment.form}")
    return best


def candidates(segment: Planned, profile: str) -> list[Choice]:
    """Codecs and parameters that can store a segment, preferred first."""
    entries = sum(tensor.entries for tensor in segment.tensors)
    if profile == "fast":
        return [_codec_of(segment.form, entries, "none")]
    found = [_codec_of(segment.form, entries, compression) for compression in ("zstd", "none")]
    if "bits" in segment.form:
        plain = found[0][1]
        shapes = [tensor.shape for tensor in segment.tensors]
        name = "predictive-signs" if segment.form["bits"] == 1 else "predictive-codebook"
        found += [(name, {**plain, **extra}) for extra in candidate_params(segment.part, shapes)]
    return found


def _codec_of(form: dict[str, Any], entries: int, compression: str) -> Choice:
    """The plain codec of a form."""
    if "sparse" in form:
        name, params = _codec_of(form["sparse"], entries, compression)
        return "sparse", {"compression": compression, "entries": entries, "values": {"codec": name, **params}}
    if "dtype" in form:
        return "raw", {"compression": compression, **form}
    quantized = {name: value for name, value in form.items() if name != "bits" or form["bits"] > 1}
    return ("signs" if form["bits"] == 1 else "codebook"), {"compression": compression, **quantized}
