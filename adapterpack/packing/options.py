"""What a caller may choose when packing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adapterpack.codecs._quantized import GROUPS
from adapterpack.errors import CallError, Reason

PROFILES = ("small", "fast")
BITS = (1, 2, 4, 8, 16, 32)
CODE_BITS = 8  # more are floats


@dataclass(frozen=True, slots=True)
class Options:
    """Packing options.

    Attributes:
        profile: "small" (the smallest codecs) or "fast" (codecs that decode at memory speed).
        bits: post-training bits of the adapter's matrices, None to keep each tensor's form.
        head_bits: the same for the head's weight.
        group: weights a scale when quantizing, 0 for one scale a tensor.

    Raises:
        CallError: `bad-call` for a value that does not exist, or a group where nothing has codes.
    """

    profile: str = "small"
    bits: int | None = None
    head_bits: int | None = None
    group: int = 0

    def __post_init__(self) -> None:
        _one_of("profile", self.profile, PROFILES)
        _one_of("bits", self.bits, (None, *BITS))
        _one_of("head_bits", self.head_bits, (None, *BITS))
        _one_of("group", self.group, GROUPS)
        if self.group and not any(bits is not None and bits <= CODE_BITS for bits in (self.bits, self.head_bits)):
            hint = f"give --bits or --head-bits (bits=, head_bits=) of at most {CODE_BITS}"
            raise CallError(f"a group of {self.group} without bits to quantize to", Reason.BAD_CALL, hint=hint)


def _one_of(name: str, value: Any, choices: Sequence[Any]) -> None:
    if type(value) not in {type(choice) for choice in choices} or value not in choices:  # True is no 1
        hint = f"expected one of {', '.join(str(c) for c in choices if c is not None)}"
        raise CallError(f"{name} is {value!r}", Reason.BAD_CALL, hint=hint)
