"""Class names as a payload: UTF-8 lines, one a class, compressed as a section.

Not a tensor codec, hence not in the registry; its segment names the codec `labels`. Source: spec/codecs.md, "labels".
"""

from __future__ import annotations

from collections.abc import Sequence

from adapterpack.codecs._sections import Reader, Writer
from adapterpack.errors import CallError, CorruptFileError, Reason, steering

NAME = "labels"
MAX_BYTES = 1 << 20


def encode(labels: Sequence[str]) -> bytes:
    """Class names to a payload.

    Raises:
        CallError: `bad-labels` for an unprintable name or more than 1 MiB in all.
    """
    for i, label in enumerate(labels):
        if not label or steering(label):
            hint = "a class name is one line of text without control characters"
            raise CallError(f"class name {i} is {label!r}", Reason.BAD_LABELS, hint=hint)
    text = "\n".join(labels).encode()
    if len(text) > MAX_BYTES:
        raise CallError(f"class names take {len(text):,} bytes", Reason.BAD_LABELS, hint=f"at most {MAX_BYTES:,}")
    writer = Writer("zstd")
    writer.number(len(text))
    writer.section(text)
    return writer.payload()


def decode(payload: memoryview, count: int) -> tuple[str, ...]:
    """The inverse of `encode`.

    Raises:
        CorruptFileError: `bad-labels`, `payload-size` or `zstd-frame`.
    """
    reader = Reader(payload, "zstd")
    size = reader.number()
    if size > MAX_BYTES:
        raise CorruptFileError(f"class names take {size:,} bytes", Reason.BAD_LABELS, hint=f"at most {MAX_BYTES:,}")
    raw = bytes(reader.section(size))
    reader.done()
    try:
        labels = tuple(raw.decode().split("\n"))
    except UnicodeDecodeError as error:
        raise CorruptFileError("class names are not UTF-8", Reason.BAD_LABELS) from error
    if len(labels) != count or not all(label and not steering(label) for label in labels):
        raise CorruptFileError(
            f"{len(labels)} class names, expected {count} without control characters", Reason.BAD_LABELS
        )
    return labels
