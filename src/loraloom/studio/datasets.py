"""What ``dataset check`` finds out: concepts with their shares, buckets, caption lengths and every problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loraloom.data.audit import ConceptShare, audit, concept_shares
from loraloom.data.buckets import Size
from loraloom.data.dataset import Dataset, load_dataset
from loraloom.data.problems import Problem, readable
from loraloom.data.settings import DatasetSettings

__all__ = ["BucketUse", "DatasetReport", "Problem", "check_dataset", "readable"]


@dataclass(frozen=True)
class BucketUse:
    """One bucket: ``shown`` counts repeats; ``cropped`` is the mean share of area lost, 0 to 1."""

    size: Size
    images: int
    shown: int
    cropped: float


@dataclass(frozen=True)
class DatasetReport:
    """The whole finding. ``longest_tokens`` is that of the longest caption, which is in ``longest_caption``."""

    folder: Path
    regularization_folder: Path | None
    concepts: tuple[ConceptShare, ...]
    buckets: tuple[BucketUse, ...]
    images: int
    shown: int
    cropped: float
    longest_tokens: int
    longest_caption: Path | None
    max_token_length: int
    problems: tuple[Problem, ...]

    @property
    def clean(self) -> bool:
        """Whether every picture and caption could be used (warnings may remain)."""
        return not any(problem.severity == "error" for problem in self.problems)


def check_dataset(settings: DatasetSettings, *, progress: Callable[[int, int], None] | None = None) -> DatasetReport:
    """Read everything, decode every picture, look for problems. Changes nothing.

    A dataset without a usable picture gives a report that says so; DatasetError only if the folder cannot be read.
    """
    dataset = load_dataset(settings, progress=progress, allow_empty=True)
    lengths: dict[str, tuple[int, int]] = {}
    measure = _measure()

    def remembered(text: str) -> tuple[int, int]:
        if text not in lengths:
            lengths[text] = measure(text)
        return lengths[text]

    problems = audit(dataset, remembered)
    longest = max(dataset.samples, key=lambda sample: remembered(sample.caption)[0], default=None)
    chunks = max((remembered(sample.caption)[1] for sample in dataset.samples), default=1)
    return DatasetReport(
        folder=dataset.folder,
        regularization_folder=dataset.regularization_folder,
        concepts=tuple(concept_shares(dataset)),
        buckets=_buckets(dataset),
        images=len(dataset.training),
        shown=dataset.draws_per_epoch,
        cropped=_mean([sample.cropped_share for sample in dataset.samples]),
        longest_tokens=remembered(longest.caption)[0] if longest else 0,
        longest_caption=(longest.caption_path or longest.path) if longest else None,
        max_token_length=chunks * 75,
        problems=tuple(problems),
    )


def _measure() -> Callable[[str], tuple[int, int]]:
    """Tokens and chunks of a caption. Only long ones need the module that cuts chunks, which imports torch."""
    from loraloom.models.tokenizer import clip_tokenizer

    tokenizer = clip_tokenizer()

    def measure(text: str) -> tuple[int, int]:
        tokens = tokenizer.count(text)
        if tokens <= 75:
            return tokens, 1
        from loraloom.models.conditioning import measure

        return tokens, measure(text, tokenizer).chunks

    return measure


def _buckets(dataset: Dataset) -> tuple[BucketUse, ...]:
    uses = []
    for size, images in dataset.buckets.items():
        samples = [sample for sample in dataset.samples if sample.bucket == size]
        shown = sum(sample.repeats for sample in samples)
        uses.append(BucketUse(size, images, shown, _mean([sample.cropped_share for sample in samples])))
    return tuple(uses)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
