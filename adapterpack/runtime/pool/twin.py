"""One forward pass for many tasks: a twin of the backbone whose modules ask, at each site, which rows are whose.

The twin has modules of its own and the backbone's very parameters. So the model that the user holds never carries a
hook for mixed batches, may be compiled or captured, and with nothing active is the frozen backbone itself; and the
twin's calls know their batch by thread, so several threads may run it at once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from types import MethodType

import torch
from torch import nn

from adapterpack.runtime.pool.station import Batch, Running, Station, shallow


class Twin:
    """The backbone once more, for mixed batches.

    Args:
        model: a timm `VisionTransformer` with nothing in it.

    Attributes:
        model: modules of its own, in eval mode, parameters and buffers shared.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = _copied(model)
        self._held = [held for m in self.model.modules() for held in (m._parameters, m._buffers)]
        self._running = Running()
        self._stations: dict[tuple[int, str], Station] = {}
        self._installing = threading.Lock()

    def station(self, module: nn.Module) -> Station:
        """The station at a module of the twin, installed when it is first asked for."""
        method = "_pos_embed" if module is self.model else "forward"
        with self._installing:
            found = self._stations.get((id(module), method))
            if found is None:
                found = self._stations[id(module), method] = Station(module, method, self._running)
                module.__dict__[method] = found
            return found

    def addresses(self) -> tuple[int, ...]:
        """Where its parameters and buffers are in memory now."""
        return tuple(tensor.data_ptr() for held in self._held for tensor in held.values() if tensor is not None)

    def features(self, images: torch.Tensor, batch: Batch) -> torch.Tensor:
        """What the heads read: [n, features]."""
        with self._running.on(batch):
            tokens = self.model.forward_features(images)  # type: ignore[operator]
            found: torch.Tensor = self.model.forward_head(tokens, pre_logits=True)  # type: ignore[operator]
        return found


def _copied(model: nn.Module) -> nn.Module:
    """Modules of its own, without hooks, in eval mode; parameters and buffers stay shared, also when the model is moved
    or a parameter is exchanged, because the dictionaries that hold them are shared."""
    made: dict[int, nn.Module] = {id(module): shallow(module) for module in model.modules()}
    for other in made.values():
        state = other.__dict__
        state["_modules"] = {name: None if child is None else made[id(child)] for name, child in other._modules.items()}
        state.update(training=False, _compiled_call_impl=None)
        if "grad_checkpointing" in state:  # it asks for the state of random numbers, which no captured graph can
            state["grad_checkpointing"] = False
        state.update({key: OrderedDict() for key in state if "_hooks" in key})
        for key, value in state.items():  # a method that somebody bound to a module of the model
            if isinstance(value, MethodType) and id(value.__self__) in made:
                state[key] = MethodType(value.__func__, made[id(value.__self__)])
    return made[id(model)]
