"""The plan of an epoch: complete, repeatable, of one bucket per batch, with regularization images taken in turn."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from loraloom.data.batches import Draw, plan_epoch
from loraloom.data.concepts import Concept
from loraloom.data.sample import Dataset, Sample
from loraloom.data.settings import ConceptSettings, DatasetSettings

BUCKETS = [(64, 64), (80, 48), (48, 80)]


def dataset(counts: list[int], regularization: list[int] = []) -> Dataset:  # noqa: B006 - never changed
    """``counts[r - 1]`` training images with r repeats; the same for regularization images."""
    samples = []
    for is_regularization, numbers in ((False, counts), (True, regularization)):
        for repeats, count in enumerate(numbers, start=1):
            label = f"{repeats}_{'reg' if is_regularization else 'train'}"
            concept = Concept(label, label, Path(label), repeats, is_regularization)
            for index in range(count):
                name = f"{label}/{index}.png"
                bucket = BUCKETS[index % 3]
                samples.append(Sample(Path(name), name, name, name, concept, "", bucket, bucket))
    return Dataset(DatasetSettings(folder=Path()), Path(), None, (), tuple(samples), ())


def plan(data: Dataset, epoch: int = 0, *, seed: int = 1, batch_size: int = 4, flip: bool = False) -> list[list[Draw]]:
    return plan_epoch(data, batch_size=batch_size, seed=seed, epoch=epoch, flip=flip)


def counted(batches: list[list[Draw]], *, regularization: bool) -> Counter[str]:
    draws = [draw for batch in batches for draw in batch]
    return Counter(d.sample.identity for d in draws if d.sample.is_regularization == regularization)


@hypothesis_settings(max_examples=50)
@given(
    st.lists(st.integers(0, 7), min_size=1, max_size=4).filter(any),
    st.lists(st.integers(0, 5), max_size=3),
    st.integers(1, 9),
    st.integers(0, 50),
)
def test_every_repeat_once_and_as_many_regularization_draws(
    counts: list[int], regularization: list[int], batch_size: int, epoch: int
) -> None:
    data = dataset(counts, regularization)
    batches = plan(data, epoch, batch_size=batch_size)
    assert counted(batches, regularization=False) == {s.identity: s.repeats for s in data.training}
    expected = data.draws_per_epoch if data.regularization else 0
    assert counted(batches, regularization=True).total() == expected
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert all(len({draw.sample.bucket for draw in batch}) == 1 for batch in batches)
    keys = [(draw.sample.identity, draw.sample.is_regularization, draw.occurrence) for b in batches for draw in b]
    assert len(set(keys)) == len(keys)
    for bucket in BUCKETS:  # at most one short batch a bucket
        lengths = [len(batch) for batch in batches if batch[0].sample.bucket == bucket]
        assert sum(length < batch_size for length in lengths) <= 1


def test_repeatable_and_different() -> None:
    data = dataset([5, 5])
    assert plan(data) == plan(data)
    assert plan(data) != plan(data, epoch=1)
    assert plan(data) != plan(data, seed=2)


def test_an_epoch_does_not_depend_on_those_before() -> None:
    data = dataset([9], [4])
    in_order = [plan(data, epoch) for epoch in range(5)]
    assert [plan(data, epoch) for epoch in reversed(range(5))] == in_order[::-1]


def test_regularization_goes_on_over_the_epochs() -> None:
    """3 draws an epoch from 10 images: each image once in the first 10 draws, twice in the first 20."""
    data = dataset([3], [10])
    seen: Counter[str] = Counter()
    for epoch in range(10):
        seen += counted(plan(data, epoch), regularization=True)
        total = 3 * (epoch + 1)
        assert min(seen[s.identity] for s in data.regularization) >= total // 10
        assert max(seen.values()) <= -(-total // 10)
    assert set(seen.values()) == {3}


def test_regularization_repeats_give_weight() -> None:
    data = dataset([30], [1, 1])
    assert sorted(counted(plan(data), regularization=True).values()) == [10, 20]


def test_flips() -> None:
    data = dataset([100, 100])
    flips = [draw.flipped for batch in plan(data, flip=True) for draw in batch]
    assert 105 < sum(flips) < 195  # 300 fair coins: mean 150, five standard deviations are 43
    assert not any(draw.flipped for batch in plan(data) for draw in batch)


def test_order_is_fair() -> None:
    """Over many epochs the first batch comes from each of two equally full buckets about equally often."""
    data = dataset([20])
    firsts = Counter(plan(data, epoch)[0][0].sample.bucket for epoch in range(200))
    assert firsts[BUCKETS[0]] == pytest.approx(200 * 2 / 6, abs=35)


def of_concepts(*settings: ConceptSettings) -> Dataset:
    """Five pictures for each."""
    samples = []
    for place, own in enumerate(settings):
        label = own.folder.name
        concept = Concept(label, label, own.folder, own.repeats or 1, own.is_regularization, place, own)
        for index in range(5):
            name = f"{label}/{index}.png"
            samples.append(Sample(Path(name), name, name, name, concept, "", BUCKETS[index % 2], BUCKETS[index % 2]))
    return Dataset(DatasetSettings(folder=Path()), Path(), None, (), tuple(samples), ())


def test_a_concept_with_steps_ends_in_the_middle_of_an_epoch() -> None:
    data = of_concepts(
        ConceptSettings(folder=Path("a"), repeats=2, steps=25, first_epoch=2),
        ConceptSettings(folder=Path("b")),
        ConceptSettings(folder=Path("r"), is_regularization=True),
    )
    shown = []
    for epoch in range(6):
        counts = counted(plan(data, epoch), regularization=False)
        shown.append(sum(count for name, count in counts.items() if name.startswith("a/")))
        assert sum(count for name, count in counts.items() if name.startswith("b/")) == 5
        assert counted(plan(data, epoch), regularization=True).total() == counts.total()
    assert shown == [0, 10, 10, 5, 0, 0]
    assert plan(data, 3) == plan(data, 3)
    assert of_concepts(ConceptSettings(folder=Path("a"), steps=12)).last_epoch == 3
    assert data.last_epoch is None
    # The round through the regularization images goes on where the epoch before stopped.
    all_of_them = sum((counted(plan(data, epoch), regularization=True) for epoch in range(5)), Counter())
    assert max(all_of_them.values()) - min(all_of_them.values()) <= 1
    with pytest.raises(ValueError, match="steps is for training images"):
        ConceptSettings(folder=Path("r"), is_regularization=True, steps=3)


def test_pairs() -> None:
    """As many of one kind as of the other in every batch of a bucket that has both."""
    data = dataset([9, 6], [30])
    samples = tuple(replace(sample, bucket=BUCKETS[0]) for sample in data.samples)
    plain = replace(data, samples=samples)
    paired = replace(plain, settings=DatasetSettings(folder=Path(), pair_regularization=True))
    batches, others = plan(paired, batch_size=4), plan(plain, batch_size=4)
    assert {repr(d) for batch in batches for d in batch} == {repr(d) for batch in others for d in batch}
    kinds = [[draw.sample.is_regularization for draw in batch] for batch in batches]
    assert all(sum(kind) == len(kind) / 2 for kind in kinds)
    assert any(sum(d.sample.is_regularization for d in batch) != len(batch) / 2 for batch in others)
