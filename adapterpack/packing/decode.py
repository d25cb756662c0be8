"""Payloads back to an adapter: every size checked before it is believed, every number verified by the digest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from adapterpack.adapter import Adapter, Backbone, Branches, BranchGroup, Head
from adapterpack.codecs import CODECS, labels
from adapterpack.codecs._base import Codec
from adapterpack.container import digest, limits
from adapterpack.container.index import Segment, TaskEntry
from adapterpack.container.limits import Limits
from adapterpack.errors import AdapterPackError, CorruptFileError, Reason, UnsupportedVersionError
from adapterpack.packing.check import check_group
from adapterpack.packing.earlier import Earlier
from adapterpack.stacks import Column, Runs, group_content, in_runs
from adapterpack.tensors import Shape, Tensor

Forms = list[dict[str, Any] | None]


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """What a task's payloads hold, verified by its digest.

    Attributes:
        forms: of each segment's tensors; None for class names and skipped segments.
        segments: the tensors of each segment, in file order.
        groups: of each group, the tensors of all its sites by role.
        head: by role.
        labels: class names.
    """

    forms: Forms
    segments: Sequence[Sequence[Tensor]]
    groups: list[dict[str, Column]]
    head: dict[str, Tensor]
    labels: tuple[str, ...] | None

    def parts(self) -> Iterator[Any]:
        """What the digest covers: arrays, in file order."""
        for columns in self.groups:
            yield from group_content(list(columns.values()))
        for tensor in self.head.values():
            yield from tensor.content()


def check_task(entry: TaskEntry, shapes: Sequence[Sequence[Shape]], bounds: Limits, where: str, kept: int = 0) -> Forms:
    """Everything that can be known about a task before its payload is read.

    Args:
        entry: its index entry.
        shapes: of each segment's tensors.
        bounds: limits.
        where: path of the entry, for messages.
        kept: bytes of earlier tasks that are still in memory.

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
        limits.require(kept + decoded, bounds.decoded_bytes, "decoded bytes", where)
    return forms


def codec_of(segment: Segment, where: str) -> Codec | None:
    """The codec of a segment; None for class names and for segments marked to be skipped.

    Raises:
        UnsupportedVersionError: `unknown-codec`.
        CorruptFileError: `bad-parameter` for parameters of class names, which have none; `bad-field` for given tasks
            that the codec does not use.
    """
    if segment.codec == labels.NAME and segment.params:
        raise CorruptFileError("class names have no parameters", Reason.BAD_PARAMETER, where)
    if segment.skip:
        return None
    codec = CODECS.get(segment.codec)
    if codec is None and segment.codec != labels.NAME:
        hint = "upgrade adapterpack"
        raise UnsupportedVersionError(f"the codec {segment.codec!r} is unknown", Reason.UNKNOWN_CODEC, where, hint)
    if segment.given and not (codec and codec.takes_given):
        raise CorruptFileError(f"{segment.codec} uses no given tasks", Reason.BAD_FIELD, f"{where}.given")
    return codec


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


def decode_task(
    entry: TaskEntry,
    payloads: Sequence[memoryview],
    expected: bytes,
    bounds: Limits,
    where: str,
    earlier: Earlier,
) -> Content:
    """Decode one task.

    Args:
        entry: its index entry.
        payloads: each segment's bytes, checksums verified.
        expected: its digest, 32 bytes.
        bounds: limits.
        where: path of the entry, for messages.
        earlier: at least what its segments are given.

    Raises:
        CorruptFileError, UnsupportedVersionError: each reason of index and payload; `digest-mismatch`.
    """
    shapes = entry.shapes_by_segment()
    forms = check_task(entry, shapes, bounds, where, earlier.nbytes())
    decoded: list[Runs] = []
    for i, segment in enumerate(entry.segments):
        codec = codec_of(segment, where)
        given = earlier.signs(segment, i, f"{where}.segments[{i}]")
        try:
            tensors = () if codec is None else codec.decode(payloads[i], shapes[i], segment.params, given)
            decoded.append(Runs(()) if codec is None else in_runs(tensors, shapes[i]))
        except AdapterPackError as error:
            raise _placed(error, f"{where}.segments[{i}]") from error
    found = Content(forms, decoded, *_by_role(entry, decoded), _class_names(entry, payloads, where))
    if digest.digest(digest.describe(entry, forms, found.labels), found.parts()) != expected:
        raise CorruptFileError("the decoded content does not match the task's digest", Reason.DIGEST, where)
    return found


def _by_role(entry: TaskEntry, segments: list[Runs]) -> tuple[list[dict[str, Column]], dict[str, Tensor]]:
    """The columns of each group, and the head: every group and every tensor of the head takes the next run of the
    segments that hold it (`TaskEntry.shapes_by_segment`)."""
    runs = [iter(segment.columns) for segment in segments]
    groups = []
    for group in entry.groups:
        columns = {number: iter(next(runs[number])) for number in {row.segment for row in group.tensors.values()}}
        groups.append({role: next(columns[row.segment]) for role, row in group.tensors.items()})
    return groups, {role: next(runs[row.segment])[0][0] for role, row in entry.head.items()}


def _class_names(entry: TaskEntry, payloads: Sequence[memoryview], where: str) -> tuple[str, ...] | None:
    if entry.labels is None:
        return None
    try:
        return labels.decode(payloads[entry.labels.segment], entry.labels.count)
    except AdapterPackError as error:
        raise _placed(error, f"{where}.segments[{entry.labels.segment}]") from error


def assemble(entry: TaskEntry, content: Content, backbone: Backbone) -> Adapter:
    """A decoded task as an adapter for the file's backbone."""
    head = content.head
    pairs = zip(entry.groups, content.groups)
    branches = Branches(BranchGroup(group.method, group.params, group.expand(), columns) for group, columns in pairs)
    return Adapter(
        name=entry.name,
        method=entry.method,
        branches=branches,
        head=Head(head["weight"], head.get("bias")) if head else None,
        labels=content.labels,
        data=entry.data,
        metadata=entry.metadata,
        backbone=backbone,
    )
