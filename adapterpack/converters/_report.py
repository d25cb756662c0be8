"""What was kept of one tensor of a fine-tuned model: a row of the report that such an import gives."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Extracted:
    """One tensor that training changed.

    Attributes:
        tensor: its name.
        shape: its shape.
        form: "exact" (the new values), "sparse", "lowrank:R" or "bitdelta".
        kept_energy: share of the squared difference to the backbone that is kept, 0 to 1.
        relative_error: Frobenius norm of what is lost over that of the difference.
        bytes: of what is kept, before any compression.
    """

    tensor: str
    shape: tuple[int, ...]
    form: str
    kept_energy: float
    relative_error: float
    bytes: int
