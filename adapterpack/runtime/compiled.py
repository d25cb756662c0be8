"""Models that `torch.compile` runs: compiled code goes on without hooks that are added to a module later."""

from __future__ import annotations

from torch import nn

from adapterpack.errors import Reason, UnsupportedAdapterError
from adapterpack.runtime.backbone import unwrap
from adapterpack.runtime.plan import Step


def refuse_hooks(model: nn.Module, steps: list[Step]) -> None:
    """Refuse what must be attached where compiled code runs, which does not see it.

    Args:
        model: as the caller has it, perhaps what `torch.compile` gave.
        steps: for the model inside.

    Raises:
        UnsupportedAdapterError: `unsupported-model`.
    """
    stuck = [step for step in steps if step.how != "fold"]
    if stuck and (unwrap(model) is not model or any([step.at.compiled for step in stuck])):
        text = f"{stuck[0].method.name} at {stuck[0].site} must be attached, which a compiled model does not see"
        raise UnsupportedAdapterError(text, Reason.UNSUPPORTED_MODEL, hint="load into the model before torch.compile")
