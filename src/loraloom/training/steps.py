"""Which pictures each optimizer step of a run shows: a pure function of the dataset and the settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from loraloom.data.batches import Draw, plan_epoch
from loraloom.data.sample import Dataset
from loraloom.training.settings import TrainSettings

__all__ = ["Share", "Step", "StepPlan", "epoch_draws"]


@dataclass(frozen=True)
class Share:
    """What one process takes of a step's ``number``-th batch (from 0): the pictures at ``rows``; alone all of them."""

    batch: list[Draw]
    number: int
    rows: tuple[int, ...]

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the batch is left to others."""
        return len(self.rows) == len(self.batch)


@dataclass(frozen=True)
class Step:
    """One optimizer step: its epoch (from 0), whether it ends it, and its batches, each a list of draws."""

    epoch: int
    ends_epoch: bool
    batches: list[list[Draw]]

    @property
    def images(self) -> int:
        """How many pictures it shows."""
        return sum(len(draws) for draws in self.batches)


def epoch_draws(settings: TrainSettings, dataset: Dataset, epoch: int) -> list[list[Draw]]:
    """The batches of an epoch (from 0), each a list of draws."""
    return plan_epoch(
        dataset, batch_size=settings.batch_size, seed=settings.seed, epoch=epoch, flip=settings.dataset.flip
    )


@dataclass(frozen=True)
class StepPlan:
    """The order of a whole run."""

    settings: TrainSettings
    dataset: Dataset

    def epoch_batches(self, epoch: int) -> list[list[list[Draw]]]:
        """The epoch's optimizer steps, each a list of batches, each a list of draws."""
        batches = epoch_draws(self.settings, self.dataset, epoch)
        size = self.settings.gradient_accumulation
        return [batches[start : start + size] for start in range(0, len(batches), size)]

    @cached_property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of the first epoch (the others differ by regularization images at most)."""
        return len(self.epoch_batches(0))

    @cached_property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.settings.steps is not None:
            return self.settings.steps
        return sum(len(self.epoch_batches(epoch)) for epoch in range(self.settings.epochs))

    def remaining(self, first: int) -> Iterator[Step]:
        """Every step that is left when ``first`` are done."""
        epoch, done = 0, 0
        while done < self.total_steps:
            steps = self.epoch_batches(epoch)[: self.total_steps - done]
            for index, batches in enumerate(steps):
                if done + index >= first:
                    yield Step(epoch, index == len(steps) - 1, batches)
            epoch, done = epoch + 1, done + len(steps)

    def epoch_of(self, step: int) -> int:
        """The epoch, from 1, of the ``step``-th step (from 1); 0 for none."""
        epoch, done = 0, 0
        while done < step:
            done, epoch = done + len(self.epoch_batches(epoch)), epoch + 1
        return epoch
