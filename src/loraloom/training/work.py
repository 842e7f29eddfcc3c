"""How much a run has to do: its steps, epochs and pictures, counted before it starts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from loraloom.data.batches import Draw
from loraloom.data.sample import Dataset
from loraloom.training.settings import TrainSettings
from loraloom.training.steps import epoch_draws

__all__ = ["Work", "batch_shape", "count_work"]


@dataclass(frozen=True)
class Work:
    """Steps and images of a run. ``largest``: the batch that takes most, (width, height, images)."""

    steps: int
    epochs: int
    steps_per_epoch: int
    images: dict[str, int]
    """Images seen per concept over the whole run."""
    buckets: dict[str, int]
    """Batches of the first epoch by bucket, ``512x768``."""
    largest: tuple[int, int, int]
    share_of_largest: float
    """All batches of the run, in units of the largest."""
    lengths: tuple[tuple[int, int], ...] = ()
    """The epochs one after another: (steps, how many epochs of that length follow each other)."""

    @property
    def images_seen(self) -> int:
        """Of all concepts together."""
        return sum(self.images.values())


_LOOKED_AT = 100_000
"""Pictures that are counted one by one; a run of a million epochs would take hours to go through."""


def count_work(settings: TrainSettings, dataset: Dataset) -> Work:
    """Go through the run's epochs as the trainer does; after the first many pictures, the others are as those were.

    Which picture is in which batch differs from epoch to epoch, how many there are of each concept does not.
    """
    first = epoch_draws(settings, dataset, 0)
    size = settings.gradient_accumulation
    images: Counter[str] = Counter()
    units, steps, epoch = 0.0, 0, 0
    lengths: list[tuple[int, int]] = []
    largest = max((batch_shape(batch) for batch in first), key=math.prod)

    while (steps < settings.steps) if settings.steps is not None else (epoch < settings.epochs):
        batches = epoch_draws(settings, dataset, epoch)
        if not batches:
            break
        if settings.steps is not None:
            batches = batches[: (settings.steps - steps) * size]
        for batch in batches:
            images.update(draw.sample.concept.label for draw in batch)
            units += math.prod(batch_shape(batch)) / math.prod(largest)
        length = math.ceil(len(batches) / size)
        _lengthen(lengths, length, 1)
        steps += length
        epoch += 1

        # After so many pictures the mean stands for the rest: a plan of a million images should take a moment.
        more = _whole_epochs_left(settings, steps, epoch)
        if images.total() >= _LOOKED_AT and more:
            images = Counter({label: count + count * more // epoch for label, count in images.items()})
            units += units / epoch * more
            _lengthen(lengths, steps // epoch, more)
            steps += steps // epoch * more
            epoch += more

    buckets = Counter("{}x{}".format(*batch[0].sample.bucket) for batch in first)
    return Work(
        steps=steps,
        epochs=epoch,
        steps_per_epoch=math.ceil(len(first) / size),
        images=dict(sorted(images.items())),
        buckets=dict(sorted(buckets.items())),
        largest=largest,
        share_of_largest=units,
        lengths=tuple(lengths),
    )


def _whole_epochs_left(settings: TrainSettings, steps: int, epoch: int) -> int:
    """How many epochs of the run are still whole, after ``epoch`` of them took ``steps``."""
    if settings.steps is None:
        return settings.epochs - epoch
    return max(settings.steps - steps, 0) // (steps // epoch)


def _lengthen(lengths: list[tuple[int, int]], length: int, count: int) -> None:
    """Add epochs of one length to the lengths of those before."""
    if lengths and lengths[-1][0] == length:
        lengths[-1] = (length, lengths[-1][1] + count)
    else:
        lengths.append((length, count))


def batch_shape(batch: Sequence[Draw]) -> tuple[int, int, int]:
    """(width, height, images) of a batch."""
    return *batch[0].sample.bucket, len(batch)
