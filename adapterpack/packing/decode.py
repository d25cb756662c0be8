"""Payloads back to an adapter: every size checked before it is believed, every number verified by the digest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adapterpack.adapter import Adapter, Backbone, Branch, Head
from adapterpack.codecs import CODECS, labels
from adapterpack.codecs._base import Codec
from adapterpack.container import digest, limits
from adapterpack.container.index import Segment, TaskEntry
from adapterpack.container.limits import Limits
from adapterpack.errors import AdapterPackError, CorruptFileError, Reason, UnsupportedVersionError
from adapterpack.packing.check import check_group
from adapterpack.tensors import Shape, Tensor

Forms = list[dict[str, Any] | None]


def check_task(entry: TaskEntry, shapes: Sequence[Sequence[Shape]], bounds: Limits, where: str) -> Forms:
    """Everything that can be known about a task before its payload is read.

    Returns:
        The form of each segment's tensors.

    Raises:
        UnsupportedVersionError: `unknown-codec`, `unknown-method`.
        CorruptFileError: `bad-parameter`, `payload-size`, `limit-exceeded` and the reasons of `check_group`.
    """
    for i, group in enumerate(entry.groups):
        check_group(group, f"{where}.groups[{i}]")
    forms: Forms = []
    decoded = 0
    for i, segment in enumerate(entry.segments):
        codec = codec_of(segment, f"{where}.segments[{i}]")
        forms.append(None if codec is None else _form(codec, segment, shapes[i], f"{where}.segments[{i}]"))
        decoded += 0 if codec is None else codec.decoded_bytes(shapes[i], segment.params)
        limits.require(decoded, bounds.decoded_bytes, "decoded bytes", where)
    return forms


def codec_of(segment: Segment, where: str) -> Codec | None:
    """The codec of a segment; None for class names and for segments marked to be skipped.

    Raises:
        UnsupportedVersionError: `unknown-codec`.
        CorruptFileError: `bad-parameter` for parameters of class names, which have none.
    """
    if segment.codec == labels.NAME and segment.params:
        raise CorruptFileError("class names have no parameters", Reason.BAD_PARAMETER, where)
    if segment.skip or segment.codec == labels.NAME:
        return None
    if segment.codec not in CODECS:
        hint = "upgrade adapterpack"
        raise UnsupportedVersionError(f"the codec {segment.codec!r} is unknown", Reason.UNKNOWN_CODEC, where, hint)
    return CODECS[segment.codec]


def _form(codec: Codec, segment: Segment, shapes: Sequence[Shape], where: str) -> dict[str, Any]:
    try:
        form = codec.form(segment.params)
        expected = codec.payload_bytes(shapes, segment.params)
    except AdapterPackError as error:
        raise _placed(error, where) from error
    if expected is not None and expected != segment.size:
        message = f"{codec.name}: {segment.size:,} bytes, expected {expected:,} for these shapes"
        raise CorruptFileError(message, Reason.PAYLOAD_SIZE, where)
    return form


def _placed(error: AdapterPackError, where: str) -> AdapterPackError:
    """The same error with its place in the index."""
    return type(error)(error.message, Reason(error.reason), where, error.hint)


def _shapes(entry: TaskEntry) -> list[list[Shape]]:
    shapes: list[list[Shape]] = [[] for _ in entry.segments]
    for row, _ in entry.rows():
        shapes[row.segment].append(row.shape)
    return shapes


def decode_task(
    entry: TaskEntry, payloads: Sequence[memoryview], expected: bytes, backbone: Backbone, bounds: Limits, where: str
) -> Adapter:
    """Decode one task.

    Args:
        entry: its index entry.
        payloads: each segment's bytes, checksums verified.
        expected: its digest, 32 bytes.
        backbone: the file's.
        bounds: limits.
        where: path of the entry, for messages.

    Raises:
        CorruptFileError, UnsupportedVersionError: each reason of index and payload; `digest-mismatch`.
    """
    shapes = _shapes(entry)
    forms = check_task(entry, shapes, bounds, where)
    decoded: list[list[Tensor]] = []
    for i, segment in enumerate(entry.segments):
        codec = codec_of(segment, where)
        try:
            decoded.append([] if codec is None else codec.decode(payloads[i], shapes[i], segment.params))
        except AdapterPackError as error:
            raise _placed(error, f"{where}.segments[{i}]") from error
    names = _class_names(entry, payloads, where)
    queues = [iter(tensors) for tensors in decoded]
    tensors = [next(queues[row.segment]) for row, _ in entry.rows()]
    contents = (part for tensor in tensors for part in tensor.content())
    if digest.digest(digest.describe(entry, forms, names), contents) != expected:
        raise CorruptFileError("the decoded content does not match the task's digest", Reason.DIGEST, where)
    return _assemble(entry, tensors, names, backbone)


def _class_names(entry: TaskEntry, payloads: Sequence[memoryview], where: str) -> tuple[str, ...] | None:
    if entry.labels is None:
        return None
    try:
        return labels.decode(payloads[entry.labels.segment], entry.labels.count)
    except AdapterPackError as error:
        raise _placed(error, f"{where}.segments[{entry.labels.segment}]") from error


def _assemble(
    entry: TaskEntry, tensors: Sequence[Tensor], names: tuple[str, ...] | None, backbone: Backbone
) -> Adapter:
    queue = iter(tensors)
    branches = tuple(
        Branch(site, group.method, group.params, {role: next(queue) for role in group.tensors})
        for group in entry.groups
        for site in group.expand()
    )
    head = {role: next(queue) for role in entry.head}
    return Adapter(
        name=entry.name,
        method=entry.method,
        branches=branches,
        head=Head(head["weight"], head.get("bias")) if head else None,
        labels=names,
        data=entry.data,
        metadata=entry.metadata,
        backbone=backbone,
    )
