"""Models that `torch.compile` runs: compiled code goes on without hooks that are added to a module later."""

from __future__ import annotations

from torch import nn

from adapterpack.errors import Reason, UnsupportedAdapterError
from adapterpack.runtime.backbone import unwrap
from adapterpack.runtime.places import Residual
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
    inner = unwrap(model)
    if stuck and (inner is not model or _run_compiled(inner, stuck)):
        text = f"{stuck[0].method.name} at {stuck[0].site} must be attached, which a compiled model does not see"
        raise UnsupportedAdapterError(text, Reason.UNSUPPORTED_MODEL, hint="load into the model before torch.compile")


def _run_compiled(model: nn.Module, steps: list[Step]) -> bool:
    """Whether `compile()` was called on a module that hooks would be added to, or on one around it."""
    around: dict[int, nn.Module] = {id(model): model}
    for path in {step.site.path for step in steps}:
        inside = model
        for name in path.split("."):
            child = inside._modules.get(name)
            if child is None:
                break
            around[id(child)] = inside = child
    for step in steps:
        for end in (step.at.norm, step.at.end) if isinstance(step.at, Residual) else (step.at.module,):
            around[id(end)] = end
    return any([vars(module).get("_compiled_call_impl") for module in around.values()])
