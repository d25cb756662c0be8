"""Every limit of the format, for reader and writer alike, and the one place where sizes are added up and compared.

Source: spec/README.md, "Limits".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from adapterpack.errors import CorruptFileError, Reason

INDEX_BYTES = 1 << 20
HEAD_BYTES = 4 << 20
TASKS = 4096
TENSORS = 65_535
SEGMENTS = 65_535
GIVEN = 64  # tasks of one segment
DIMENSIONS = 8
NAME_BYTES = 255
STRING_BYTES = 65_536
JSON_DEPTH = 16
INTEGER = (1 << 53) - 1
ELEMENTS = 1 << 40
DECODED_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class Limits:
    """What a caller may tighten or widen; everything else is fixed by the format.

    Attributes:
        decoded_bytes: memory that decoding one task may take.
    """

    decoded_bytes: int = DECODED_BYTES


def require(value: int, limit: int, what: str, where: str = "") -> int:
    """Return `value` unless it exceeds `limit`.

    Raises:
        CorruptFileError: `limit-exceeded`.
    """
    if value > limit:
        raise CorruptFileError(f"{value:,} {what}, at most {limit:,} are allowed", Reason.LIMIT, where)
    return value


def checked_size(shape: Sequence[int], where: str = "") -> int:
    """Number of elements of a shape from a file, in exact integers.

    Raises:
        CorruptFileError: `limit-exceeded`.
    """
    return require(math.prod(shape), ELEMENTS, "elements", where)
