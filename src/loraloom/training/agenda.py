"""What is due after which step of a run: read by the trainer, which does it, and by the plan, which counts it.

What depends on the clock (a state after so many minutes) or on the losses (patience, a best file) is not foreseen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from loraloom.training.settings import TrainSettings

__all__ = ["Agenda", "Counts", "Due"]

_LOOKED_AT = 100_000
"""Epochs whose ends are compared with steps one by one; behind them, what falls on one step is counted twice."""


@dataclass(frozen=True)
class Due:
    """What is to be done after a step, in this order."""

    validation: bool = False
    weights_of_epoch: bool = False
    """A LoRA file named by the epoch."""
    weights_of_step: bool = False
    """A LoRA file named by the step."""
    state: bool = False
    preview_of_epoch: bool = False
    preview_of_step: bool = False
    """Previews named by the step: none where those of the epoch are due as well."""

    @property
    def preview(self) -> bool:
        """Whether previews are painted."""
        return self.preview_of_epoch or self.preview_of_step


@dataclass(frozen=True)
class Counts:
    """How often each comes in a whole run, its beginning and its end among them."""

    validations: int
    weights_of_epochs: int
    """LoRA files named by epochs, without the one at the end."""
    weights_of_steps: int
    states: int
    previews: int


@dataclass(frozen=True)
class _Rhythm:
    """Every N epochs, and every N steps; 0: never."""

    epochs: int = 0
    steps: tuple[int, ...] = ()

    def by_epoch(self, epoch: int, *, ends_epoch: bool) -> bool:
        """Whether it is due at the end of an epoch (from 1)."""
        return ends_epoch and self.epochs > 0 and epoch % self.epochs == 0

    def by_step(self, step: int) -> bool:
        """Whether it is due after a step (from 1)."""
        return any(every > 0 and step % every == 0 for every in self.steps)


@dataclass(frozen=True)
class Agenda:
    """What a run of ``total_steps`` does between its steps; ``steps_per_epoch``: those of its first epoch."""

    settings: TrainSettings
    total_steps: int
    steps_per_epoch: int

    @cached_property
    def save_every_epochs(self) -> int:
        """0: not by epochs."""
        saving = self.settings.saving
        if not saving.files_per_run:
            return saving.every_epochs
        epochs = math.ceil(self.total_steps / max(self.steps_per_epoch, 1))
        return max(1, epochs // saving.files_per_run)

    @cached_property
    def _validation(self) -> _Rhythm:
        validation = self.settings.validation
        if validation.every_steps:
            return _Rhythm(steps=(validation.every_steps,))
        return _Rhythm(epochs=validation.every_epochs)

    @cached_property
    def _weights(self) -> _Rhythm:
        return _Rhythm(self.save_every_epochs, (self.settings.saving.every_steps,))

    @cached_property
    def _state(self) -> _Rhythm:
        """With every LoRA file, and by steps of its own."""
        saving = self.settings.saving
        return _Rhythm(self.save_every_epochs, (saving.every_steps, saving.state_every_steps))

    @cached_property
    def _preview(self) -> _Rhythm:
        return _Rhythm(self.settings.preview.every_epochs, (self.settings.preview.every_steps,))

    @property
    def at_start(self) -> Due:
        """Before the first step of a run that is not resumed."""
        return Due(validation=True, preview_of_epoch=self.settings.preview.at_start)

    def after(self, step: int, epoch: int, *, ends_epoch: bool) -> Due:
        """After ``step``, in ``epoch`` (both from 1). The last step is :attr:`at_end`, whatever else falls on it."""
        if step >= self.total_steps:
            return self.at_end
        preview_of_epoch = self._preview.by_epoch(epoch, ends_epoch=ends_epoch)
        return Due(
            validation=self._validation.by_epoch(epoch, ends_epoch=ends_epoch) or self._validation.by_step(step),
            weights_of_epoch=self._weights.by_epoch(epoch, ends_epoch=ends_epoch),
            weights_of_step=self._weights.by_step(step),
            state=self._state.by_epoch(epoch, ends_epoch=ends_epoch) or self._state.by_step(step),
            preview_of_epoch=preview_of_epoch,
            preview_of_step=not preview_of_epoch and self._preview.by_step(step),
        )

    @property
    def at_end(self) -> Due:
        """After the last step: one of everything, and the final LoRA file."""
        return Due(validation=True, state=True, preview_of_epoch=True)

    def count(self, lengths: Sequence[tuple[int, int]]) -> Counts:
        """All of a run; ``lengths``: (steps of an epoch, how many epochs of that length follow each other)."""
        weights = self._weights
        return Counts(
            validations=1 + self._times(self._validation, lengths) + 1 if self.settings.validation.has_pictures else 0,
            weights_of_epochs=self._times(_Rhythm(epochs=weights.epochs), lengths),
            weights_of_steps=self._times(_Rhythm(steps=weights.steps), lengths),
            states=self._times(self._state, lengths) + 1,
            previews=int(self.settings.preview.at_start) + self._times(self._preview, lengths) + 1,
        )

    def _times(self, rhythm: _Rhythm, lengths: Sequence[tuple[int, int]]) -> int:
        """After how many steps it is due, the last step left out."""
        times = _multiples(rhythm.steps, self.total_steps - 1)
        if not rhythm.epochs:
            return times
        epochs = sum(count for _, count in lengths)
        times += (epochs - 1) // rhythm.epochs

        # An epoch may end with a step that is due anyhow.
        ends = enumerate(islice(_ends(lengths), min(epochs - 1, _LOOKED_AT)), start=1)
        return times - sum(epoch % rhythm.epochs == 0 and rhythm.by_step(end) for epoch, end in ends)


def _ends(lengths: Sequence[tuple[int, int]]) -> Iterator[int]:
    """The last step of each epoch."""
    step = 0
    for length, count in lengths:
        for _ in range(count):
            step += length
            yield step


def _multiples(numbers: Sequence[int], last: int) -> int:
    """How many of 1 to ``last`` are a multiple of any of the numbers (0 has none)."""
    counted: list[tuple[int, int]] = []  # least common multiples, each with the sign it counts with
    for number in {number for number in numbers if number > 0}:
        counted += [(number, 1), *((math.lcm(number, other), -sign) for other, sign in counted)]
    return sum(sign * (last // number) for number, sign in counted)
