"""The order of an epoch: pure functions of (seed, epoch), so that it can be computed again at any time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from loraloom.data.dataset import Dataset, Sample
from loraloom.randomness import shuffled, uniform

__all__ = ["Draw", "plan_epoch"]


@dataclass(frozen=True)
class Draw:
    """One showing of a sample: its ``occurrence``-th (from 0) in the epoch, mirrored or not."""

    sample: Sample
    occurrence: int
    flipped: bool


def plan_epoch(dataset: Dataset, *, batch_size: int, seed: int, epoch: int, flip: bool) -> list[list[Draw]]:
    """The batches of one epoch (counted from 0), in order.

    Every repeat of every training image comes exactly once. With regularization images there are as many draws of
    them as of training images, taken in turn from a shuffled round through all of them that goes on over the epochs.
    A batch holds pictures of one bucket; the last batch of a bucket is short rather than filled up or dropped, so
    whoever averages over batches must weight each by its number of pictures.
    """
    pairs = [(sample, occurrence) for sample in dataset.training for occurrence in range(sample.repeats)]
    pairs += _regularization(dataset.regularization, len(pairs), seed, epoch)
    buckets: dict[tuple[int, int], list[Draw]] = {}
    for sample, occurrence in pairs:
        flipped = flip and uniform(seed, "flip", epoch, sample.identity, occurrence) < 0.5
        buckets.setdefault(sample.bucket, []).append(Draw(sample, occurrence, flipped))
    batches = []
    for (width, height), draws in sorted(buckets.items()):
        order = shuffled(draws, seed, "order", epoch, "bucket", width, height)
        batches += [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return shuffled(batches, seed, "order", epoch, "batches")


def _regularization(samples: Sequence[Sample], count: int, seed: int, epoch: int) -> list[tuple[Sample, int]]:
    """``count`` draws that go on where the epoch before stopped."""
    pool = [sample for sample in samples for _ in range(sample.repeats)]
    if not pool:
        return []
    result: list[tuple[Sample, int]] = []
    occurrences: Counter[str] = Counter()
    position, end = epoch * count, (epoch + 1) * count
    while position < end:
        turn, start = divmod(position, len(pool))
        stop = min(len(pool), start + end - position)
        for sample in shuffled(pool, seed, "regularization", turn)[start:stop]:
            result.append((sample, occurrences[sample.identity]))
            occurrences[sample.identity] += 1
        position += stop - start
    return result
