"""The order of an epoch: pure functions of (seed, epoch), so that it can be computed again at any time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from loraloom.data.sample import Dataset, Sample
from loraloom.errors import DatasetError
from loraloom.randomness import seed_of, shuffled, uniform

__all__ = ["Draw", "plan_epoch"]


@dataclass(frozen=True)
class Draw:
    """One showing of a sample: its ``occurrence``-th (from 0) in the epoch, mirrored or not, in which version."""

    sample: Sample
    occurrence: int
    flipped: bool
    variant: int = 0


def plan_epoch(dataset: Dataset, *, batch_size: int, seed: int, epoch: int, flip: bool) -> list[list[Draw]]:
    """The batches of one epoch (counted from 0), in order.

    Every repeat of every training image whose concept takes part in the epoch comes exactly once (at each resolution,
    or with ``resolution_choice=random`` at one of them); of a concept with few ``steps`` left, only that many. With
    regularization images there are as many draws of them as of training images, taken one after another from a shuffled
    list of all, with which the next epoch carries on. A batch holds pictures of one bucket; the last batch of a bucket
    is short rather than filled up or dropped, so when averaging over batches, weight each by its number of pictures.
    DatasetError if no concept takes part.
    """
    pairs = _training(dataset, seed, epoch)
    if not pairs and dataset.training:
        hint = "check first_epoch, last_epoch and steps of the concepts, or train for fewer epochs"
        raise DatasetError(f"no concept has pictures for epoch {epoch + 1}", hint)
    pairs += _regularization(dataset, len(pairs), seed, epoch)
    buckets: dict[tuple[int, int], list[Draw]] = {}
    for sample, occurrence in pairs:
        mirrored = flip if sample.flip is None else sample.flip
        flipped = mirrored and uniform(seed, "flip", epoch, sample.identity, occurrence) < 0.5
        versions = sample.variation.count
        variant = seed_of(seed, "variant", epoch, sample.identity, occurrence) % versions if versions > 1 else 0
        buckets.setdefault(sample.bucket, []).append(Draw(sample, occurrence, flipped, variant))
    batches = []
    for (width, height), draws in sorted(buckets.items()):
        order = shuffled(draws, seed, "order", epoch, "bucket", width, height)
        if dataset.settings.pair_regularization:
            order = _paired(order)
        batches += [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return shuffled(batches, seed, "order", epoch, "batches")


def _paired(draws: Sequence[Draw]) -> list[Draw]:
    """The draws with the regularization images spread evenly among the others; the order of each kind stays."""
    kinds = [[draw for draw in draws if draw.sample.is_regularization is wanted] for wanted in (False, True)]
    places = [((place + 0.5) / len(kind), draw) for kind in kinds for place, draw in enumerate(kind)]
    return [draw for _, draw in sorted(places, key=lambda pair: pair[0])]


def _training(dataset: Dataset, seed: int, epoch: int) -> list[tuple[Sample, int]]:
    """The training samples of an epoch with the number of each showing."""
    pairs = _shown(dataset, seed, epoch)
    for concept in dict.fromkeys(sample.concept for sample, _ in pairs):
        if concept.steps is None:
            continue
        # Earlier epochs have used up some of the concept's steps. Which showings are left out of this one is drawn,
        # so that it is not always the last pictures.
        each = dataset.showings[concept]
        left = max(0, concept.steps - each * (epoch - concept.first_epoch + 1))
        if left < each:
            mine = [pair for pair in pairs if pair[0].concept == concept]
            order = shuffled(range(len(mine)), seed, "steps", epoch, concept.label, concept.place)
            gone = {(mine[index][0].identity, mine[index][1]) for index in order[left:]}
            pairs = [pair for pair in pairs if pair[0].concept != concept or (pair[0].identity, pair[1]) not in gone]

    return pairs


def _shown(dataset: Dataset, seed: int, epoch: int) -> list[tuple[Sample, int]]:
    """The same, without regard to the steps of concepts."""
    shown = [sample for sample in dataset.training if sample.concept.shown_in(epoch)]
    if dataset.settings.resolution_choice == "each":
        return [(sample, occurrence) for sample in shown for occurrence in range(sample.repeats)]
    pairs = []
    for sizes in _sizes(shown):
        for occurrence in range(sizes[0].repeats):
            pairs.append((_one(sizes, seed, epoch, occurrence), occurrence))
    return pairs


def _sizes(samples: Sequence[Sample]) -> list[list[Sample]]:
    """The samples of each picture: one for each resolution."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.picture or sample.identity, []).append(sample)
    return list(groups.values())


def _one(sizes: Sequence[Sample], seed: int, epoch: int, occurrence: int) -> Sample:
    """One of a picture's resolutions, by chance."""
    picture = sizes[0].picture or sizes[0].identity
    return sizes[seed_of(seed, "resolution", epoch, picture, occurrence) % len(sizes)]


def _regularization(dataset: Dataset, count: int, seed: int, epoch: int) -> list[tuple[Sample, int]]:
    """``count`` draws that go on where the epoch before stopped."""
    shown = [sample for sample in dataset.regularization if sample.concept.shown_in(epoch)]
    each = dataset.settings.resolution_choice == "each"
    groups = [[sample] for sample in shown] if each else _sizes(shown)
    pool = [sizes for sizes in groups for _ in range(sizes[0].repeats)]
    if not pool:
        return []

    result: list[tuple[Sample, int]] = []
    occurrences: Counter[str] = Counter()
    position = _shown_before(dataset, epoch)
    end = position + count

    # An epoch may show fewer pictures than the pool has: it goes on where the one before stopped, so that each has
    # its turn before any comes twice.
    while position < end:
        turn, start = divmod(position, len(pool))
        stop = min(len(pool), start + end - position)
        for sizes in shuffled(pool, seed, "regularization", turn)[start:stop]:
            name = sizes[0].picture or sizes[0].identity if len(sizes) > 1 else sizes[0].identity
            result.append((_one(sizes, seed, epoch, occurrences[name]), occurrences[name]))
            occurrences[name] += 1
        position += stop - start

    return result


def _shown_before(dataset: Dataset, epoch: int) -> int:
    """Showings of training images in all epochs before this one."""
    total = 0
    for concept, each in dataset.showings.items():
        last = epoch if concept.last_epoch is None else concept.last_epoch
        shown = each * max(0, min(epoch, last) - (concept.first_epoch - 1))
        total += shown if concept.steps is None else min(shown, concept.steps)
    return total
