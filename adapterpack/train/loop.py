"""The training loop: epochs of AdamW, the best one by validation accuracy, and a state from which it can go on.

Order, dropout and drop path of an epoch follow from the seed and the epoch's number alone, so a run that is resumed at
an epoch gives the same bits as one that was never stopped. It writes no file and prints nothing: callbacks do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from adapterpack.adapter import DataSettings
from adapterpack.errors import CallError, Reason
from adapterpack.train.data import Split
from adapterpack.train.devices import Hardware, seeded
from adapterpack.train.measure import NOTHING, Score, score
from adapterpack.train.recipe import Recipe
from adapterpack.train.schedule import rate
from adapterpack.train.trainee import Trainee

Json = dict[str, Any]
_LOOK = 10  # on an accelerator, looking at the loss waits for it: every so many steps


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: for a progress bar.

    Attributes:
        stage: "train", or "scale 0.1" during a search.
        epoch, epochs, step, steps: from 1.
        loss, accuracy: over the epoch so far.
        validation: after an epoch that was scored.
    """

    stage: str
    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracy: float
    validation: Score | None = None


@dataclass(slots=True, eq=False)
class State:
    """Where a run stands after an epoch; plain tensors and numbers, so that it can be saved.

    Attributes:
        epoch: how many are done.
        tensors: the trained parameters, on the CPU.
        optimizer: AdamW's own state.
        best: the parameters of the best epoch so far.
        best_epoch, best_score: which, from 1, and how good.
        history: one row an epoch.
    """

    epoch: int = 0
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    best: Mapping[str, torch.Tensor] = field(default_factory=dict)
    best_epoch: int = 0
    best_score: Score = NOTHING
    history: list[Json] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """One training: what is trained, on what, and who is told.

    Attributes:
        trainee: with the recipe.
        train, validation: the images.
        settings: makes input of 8-bit values.
        hardware: of this process.
        report: is called after every step.
        save: is called after every epoch, in the first process.
        stage: for reports.
    """

    trainee: Trainee
    train: Split
    validation: Split
    settings: DataSettings
    hardware: Hardware
    report: Callable[[Progress], object]
    save: Callable[[State], object]
    stage: str = "train"

    @property
    def recipe(self) -> Recipe:
        return self.trainee.recipe

    def run(self, state: State | None = None) -> State:
        """Train to the end; the trainee then holds the best epoch's weights.

        Args:
            state: to go on from; by default from the start.

        Raises:
            CallError: `not-finite`, the loss is no number any more.
        """
        recipe = self.recipe
        optimizer = torch.optim.AdamW(self.trainee.groups(), lr=recipe.lr, eps=1e-8)
        state = state or State(tensors=self.hardware.of_first(self.trainee.snapshot()))
        self.trainee.restore(state.tensors)
        if state.epoch:
            optimizer.load_state_dict(dict(state.optimizer))
        with self.hardware.faster(self.trainee):
            for epoch in range(state.epoch, recipe.epochs):
                row = self._epoch(epoch, optimizer)
                if is_scored(recipe, epoch):
                    self._score(state, epoch, row)
                state.history.append(row)
                state.epoch, state.tensors = epoch + 1, self.trainee.snapshot()
                state.optimizer = optimizer.state_dict()
                if self.hardware.rank == 0:
                    self.save(state)
        self.trainee.restore(state.best)
        return state

    def _epoch(self, epoch: int, optimizer: torch.optim.Optimizer) -> Json:
        recipe, hardware = self.recipe, self.hardware
        batches = order_of(len(self.train), epoch, recipe)
        parts = [part for batch in batches for part in shares(batch, recipe.accumulate, hardware)]
        pictures = self.train.pictures.batches(parts)
        sums = torch.zeros(3, device=hardware.device)
        self.trainee.train()
        loss = accuracy = math.nan
        with seeded(seed_of(recipe, epoch, hardware.rank), hardware.device):
            for step, batch in enumerate(batches):
                lr = set_rate(optimizer, rate(recipe, epoch, step, len(batches)))
                optimizer.zero_grad(set_to_none=True)
                for part in shares(batch, recipe.accumulate, hardware):
                    sums += self._backward(next(pictures), part, len(batch))
                hardware.sum_gradients(self.trainee.trained().values())
                optimizer.step()
                if hardware.device.type == "cpu" or step % _LOOK == _LOOK - 1 or step == len(batches) - 1:
                    loss, accuracy = _look(hardware.total(sums), epoch, step)
                    at = (self.stage, epoch + 1, recipe.epochs, step + 1, len(batches))
                    self.report(Progress(*at, loss, accuracy))
        return {"epoch": epoch + 1, "lr": lr, "loss": loss, "accuracy": accuracy}

    def _backward(self, pixels: torch.Tensor, part: NDArray[np.int64], count: int) -> torch.Tensor:
        """One part of a batch of `count`: adds its share of the gradient; gives summed loss, right answers, images."""
        device = self.hardware.device
        labels = torch.from_numpy(self.train.labels[part]).to(device)
        with self.hardware.autocast():
            logits = self.trainee(self.trainee.inputs(pixels.to(device, non_blocking=True), self.settings)).float()
        loss = functional.cross_entropy(logits, labels, reduction="sum")
        (loss / count).backward()  # type: ignore[no-untyped-call]
        right = (logits.argmax(dim=1) == labels).sum()
        return torch.stack([loss.detach(), right.to(loss.dtype), loss.new_tensor(float(len(part)))])

    def _score(self, state: State, epoch: int, row: Json) -> None:
        with self.hardware.autocast():
            found = score(self.trainee, self.validation, self.settings, self.hardware)
        if not math.isfinite(found.loss):
            raise _not_finite(f"the loss on the validation images is {found.loss} after epoch {epoch + 1}")
        row |= {"val_accuracy": found.accuracy, "val_loss": found.loss}
        if found.better_than(state.best_score):
            state.best, state.best_epoch, state.best_score = self.trainee.snapshot(), epoch + 1, found
        at = (self.stage, epoch + 1, self.recipe.epochs, 0, 0)
        self.report(Progress(*at, row["loss"], row["accuracy"], found))


def is_scored(recipe: Recipe, epoch: int) -> bool:
    """Whether an epoch is a candidate: about twenty in a run, the last one among them."""
    every = max(1, recipe.epochs // 20)
    return (recipe.epochs - 1 - epoch) % every == 0


def order_of(count: int, epoch: int, recipe: Recipe) -> list[NDArray[np.int64]]:
    """The batches of an epoch: positions, from the seed and the epoch's number alone."""
    order = np.random.default_rng((recipe.seed, epoch)).permutation(count)
    size = min(recipe.batch_size, count)
    whole = count - count % size if recipe.drop_last else count
    return [order[start : start + size] for start in range(0, whole, size)]


def shares(batch: NDArray[np.int64], parts: int, hardware: Hardware) -> list[NDArray[np.int64]]:
    """This process's part of a batch, in the parts that it is computed in."""
    mine = batch[hardware.rank :: hardware.world]
    return np.array_split(mine, min(parts, len(mine))) if len(mine) else []


def seed_of(recipe: Recipe, epoch: int, rank: int) -> int:
    """Of dropout and drop path in an epoch, another one for every process."""
    return recipe.seed * 1_000_003 + epoch * 1009 + rank


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> float:
    """Set the learning rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr


def _look(sums: torch.Tensor, epoch: int, step: int) -> tuple[float, float]:
    loss, right, count = sums.tolist()
    if not math.isfinite(loss):
        raise _not_finite(f"the loss is {loss} in epoch {epoch + 1}, step {step + 1}")
    return loss / max(count, 1), right / max(count, 1)


def _not_finite(text: str) -> CallError:
    return CallError(text, Reason.NOT_FINITE, hint="lower --lr or --scale, or use --precision float32")
