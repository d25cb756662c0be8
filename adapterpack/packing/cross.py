"""Tasks of one bundle coded given the earlier ones of it, and each alone again.

Only segments of signs change, and only where that makes them smaller; tensors and digests stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from adapterpack.codecs import CODECS
from adapterpack.container import limits, strict_json
from adapterpack.container.index import Segment, TaskEntry
from adapterpack.packing.bundle import Bundle, open_bundle
from adapterpack.packing.decode import Content
from adapterpack.packing.earlier import signs_of
from adapterpack.packing.encode import EncodedTask, candidates, encode_segment
from adapterpack.packing.join import join
from adapterpack.packing.plan import Planned
from adapterpack.tensors import Quantized

Stored = tuple[Segment, bytes]


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """A task that later ones may be given: its name, and its signs by segment (none where a segment holds others)."""

    name: str
    signs: Sequence[Sequence[Quantized]]


def cross_coded(data: bytes) -> bytes:
    """The bytes of a file whose tasks are given those before them where that is smaller.

    Args:
        data: the bytes of a file.

    Raises:
        CorruptFileError, UnsupportedVersionError: a task that cannot be decoded.
    """
    bundle = open_bundle(data)
    known: list[Known] = []
    tasks: list[EncodedTask] = []
    for entry, content in bundle.contents():
        tasks.append(_crossed(bundle.encoded(entry.name), content, known))
        known.append(Known(entry.name, [signs_of(tensors) for tensors in content.segments]))
    found = join(tasks, bundle.backbone)
    if len(found) >= len(data):
        return data
    if list(open_bundle(found).verify()) != list(bundle.tasks):  # decodes all, each against its digest
        raise RuntimeError("the bundle does not read back; please report this")
    return found


def _crossed(encoded: EncodedTask, content: Content, known: Sequence[Known]) -> EncodedTask:
    stored = []
    for i, planned in enumerate(_planned(encoded.entry, content)):
        found = (encoded.entry.segments[i], encoded.payloads[i])
        stored.append(found if planned is None else _smaller(found, i, planned, known))
    return _with_segments(encoded, stored)


def standalone(bundle: Bundle, task: str) -> EncodedTask:
    """A task as a file of its own needs it; the payloads of segments that are given no other task move unread."""
    encoded = bundle.encoded(task)
    if not any(segment.given for segment in encoded.entry.segments):
        return encoded
    content = bundle.content(task)
    forms = _planned(encoded.entry, content)
    stored = [
        encode_segment(planned, "small") if segment.given and planned is not None else (segment, payload)
        for segment, payload, planned in zip(encoded.entry.segments, encoded.payloads, forms)
    ]
    return _with_segments(encoded, stored)


def _with_segments(encoded: EncodedTask, stored: Sequence[Stored]) -> EncodedTask:
    entry = replace(encoded.entry, segments=tuple(segment for segment, _ in stored))
    return EncodedTask(entry, tuple(payload for _, payload in stored), encoded.digest)


def _planned(entry: TaskEntry, content: Content) -> list[Planned | None]:
    """Each segment as a writer sees it; None where it holds no tensors."""
    parts = {row.segment: part for row, part in entry.rows()}
    return [
        None if form is None else Planned(parts[i], form, tuple(tensors))
        for i, (form, tensors) in enumerate(zip(content.forms, content.segments))
    ]


def _smaller(stored: Stored, number: int, planned: Planned, known: Sequence[Known]) -> Stored:
    """The smallest of what is stored and what earlier tasks make of it."""
    rows = signs_of(planned.tensors)
    if not rows:
        return stored
    shapes = [tensor.shape for tensor in rows]
    best = stored
    for given in _choices(rows, number, known):
        names, signs = tuple(task.name for task in given), [task.signs[number] for task in given]
        for name, params in candidates(planned, "small"):
            codec = CODECS[name]
            if codec.takes_given:
                limits.require(codec.decoded_bytes(shapes, params), limits.DECODED_BYTES, "decoded bytes")
                payload = codec.encode(rows, params, signs)
                found = (Segment(name, params, len(payload), given=names), payload)
                best = min(best, found, key=_cost)  # the earlier one of two equals
    return best


def _cost(stored: Stored) -> int:
    """Bytes of a segment in the file, the names in its index counted as if nothing compressed them."""
    segment, payload = stored
    return len(payload) + (len(strict_json.dumps({"given": list(segment.given)})) if segment.given else 0)


def _choices(rows: Sequence[Quantized], number: int, known: Sequence[Known]) -> list[list[Known]]:
    """Which earlier tasks to try, best first: those that agree at least half, and a quarter, as much as the best."""
    shapes = [tensor.shape for tensor in rows]
    scored = [
        (agreement(rows, task.signs[number]), task)
        for task in known
        if number < len(task.signs) and [tensor.shape for tensor in task.signs[number]] == shapes
    ]
    ranked = sorted([pair for pair in scored if pair[0] > 0], key=lambda pair: -pair[0])[: limits.GIVEN]
    half, quarter = ([task for score, task in ranked if share * score >= ranked[0][0]] for share in (2, 4))
    return [half, quarter][: 1 + (len(quarter) > len(half))] if ranked else []


def agreement(a: Sequence[Quantized], b: Sequence[Quantized]) -> int:
    """Signs that are equal minus signs that differ, of tensors alike in shape."""
    differ = sum(int(np.unpackbits(x.packed ^ y.packed).sum(dtype=np.int64)) for x, y in zip(a, b))
    return sum(tensor.entries for tensor in a) - 2 * differ
