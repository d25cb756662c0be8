"""What a form has no place for, in sentences for the one who writes it. It knows parts of an adapter, not forms."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal, Protocol, runtime_checkable

from adapterpack.adapter import Adapter
from adapterpack.tensors import Dense, Tensor

Part = Literal["head", "labels", "data", "fingerprint", "metadata", "forms"]


@runtime_checkable
class Lossy(Protocol):
    """A form that cannot hold all of an adapter."""

    def lost(self, adapter: Adapter) -> tuple[str, ...]:
        """One sentence for each thing of this adapter that the written form does not hold; empty where it holds all."""
        ...


def left_out(adapter: Adapter, keeps: Collection[Part]) -> tuple[str, ...]:
    """What of an adapter is lost where only some parts are kept.

    Args:
        adapter: that is written.
        keeps: the parts that the form has a place for; values of tensors count as kept, their "forms" are codes,
            scales, 16-bit floats and positions.
    """
    absent = [words for part, words in _parts(adapter).items() if part not in keeps and words]
    notes = (f"left out, the form has no place for it: {', '.join(absent)}",) if absent else ()
    return notes if "forms" in keeps else (*notes, *written_out(tensors_of(adapter)))


def written_out(tensors: Collection[Tensor]) -> tuple[str, ...]:
    """That tensors of another form than float32 are written as plain float32."""
    changed = sum(not (isinstance(tensor, Dense) and tensor.dtype == "float32") for tensor in tensors)
    if not changed:
        return ()
    count = "1 tensor is" if changed == 1 else f"{changed} tensors are"
    return (f"{count} written as plain float32: codes, scales and positions are gone, the values are equal",)


def tensors_of(adapter: Adapter) -> list[Tensor]:
    """Every tensor, the head's last."""
    head = adapter.head.tensors if adapter.head is not None else {}
    return [tensor for tensors in (*(b.tensors for b in adapter.branches), head) for tensor in tensors.values()]


def _parts(adapter: Adapter) -> dict[Part, str]:
    """Each part in words, "" where this adapter has none."""
    free = sorted(set(adapter.metadata) - {"source"})
    told: dict[Part, Callable[[], str]] = {
        "head": lambda: f"the head of {adapter.head.classes} classes" if adapter.head else "",
        "labels": lambda: f"{len(adapter.labels)} class names" if adapter.labels else "",
        "data": lambda: "the preprocessing" if adapter.data else "",
        "fingerprint": lambda: "the backbone's fingerprint" if adapter.backbone.fingerprint else "",
        "metadata": lambda: f"the metadata {', '.join(free)}" if free else "",
    }
    return {part: words() for part, words in told.items()}
