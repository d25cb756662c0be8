"""What a codec is: one way to turn tensors into a payload and back, exactly.

A codec is known by its name, and a name is never given a second meaning: two implementations may share it only if each
decodes what the other wrote. One payload serves one or many tensors of one form, so a codec may let them learn from
each other; the container neither knows nor cares. A codec says how many bytes its payload must have wherever that
follows from shapes and parameters, and a reader checks it before anything is allocated.

A codec may learn from tensors that are known already: those of earlier tasks of a bundle, which the caller hands over
as `given`. A payload that was encoded with them can be decoded with the same ones only.

Parameters are a flat JSON object. Those that describe the *form* (bits, codebook, group, dtypes) are part of what the
adapter is and enter its digest; the others (compression) are not. An unknown parameter is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from adapterpack.errors import CorruptFileError, Reason
from adapterpack.tensors import Shape, Tensor

Params = Mapping[str, Any]
Given = Sequence[Sequence[Tensor]]  # for each earlier task, tensors alike in shape and number, in the same order


class Codec(Protocol):
    """Tensors of one form ⇄ one payload."""

    @property
    def name(self) -> str: ...

    @property
    def takes_given(self) -> bool:
        """Whether `given` may be anything but empty."""
        ...

    def form(self, params: Params) -> dict[str, Any]:
        """The form of every tensor in the payload, as `Tensor.form()` gives it; checks all parameters.

        Raises:
            CorruptFileError: `bad-parameter`.
        """
        ...

    def decoded_bytes(self, shapes: Sequence[Shape], params: Params) -> int:
        """An upper bound of the memory that decoding needs, in bytes."""
        ...

    def payload_bytes(self, shapes: Sequence[Shape], params: Params) -> int | None:
        """The payload's exact size where it follows from the shapes, else None."""
        ...

    def encode(self, tensors: Sequence[Tensor], params: Params, given: Given = ()) -> bytes:
        """Tensors whose form is `form(params)`, in file order, to a payload."""
        ...

    def decode(
        self, payload: memoryview, shapes: Sequence[Shape], params: Params, given: Given = ()
    ) -> Sequence[Tensor]:
        """The inverse of `encode`.

        Raises:
            CorruptFileError: the payload is not what `encode` writes for these shapes, parameters and given tensors.
        """
        ...


def parameter(params: Params, name: str, choices: Sequence[Any]) -> Any:
    """One parameter, which must be given and must be one of `choices` (compared by type as well).

    Raises:
        CorruptFileError: `bad-parameter`.
    """
    value = params.get(name)
    for choice in choices:
        if type(value) is type(choice) and value == choice:
            return value
    raise CorruptFileError(f"parameter {name} is {value!r}", Reason.BAD_PARAMETER, hint=f"expected {_listed(choices)}")


def only(params: Params, names: Sequence[str]) -> None:
    """Refuse parameters that the codec does not have.

    Raises:
        CorruptFileError: `bad-parameter`.
    """
    unknown = params.keys() - names
    if unknown:
        raise CorruptFileError(
            f"unknown parameter {min(unknown)}", Reason.BAD_PARAMETER, hint=f"known: {_listed(names)}"
        )


def _listed(choices: Sequence[Any]) -> str:
    return ", ".join(map(str, choices[:12])) + (", …" if len(choices) > 12 else "")
