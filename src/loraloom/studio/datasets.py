"""What there is to know of a dataset before training: concepts and their shares, buckets, captions, every problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from loraloom.control import Control, each_of, keep_going
from loraloom.data.audit import ConceptShare, audit, concept_shares
from loraloom.data.buckets import Size
from loraloom.data.dataset import load_dataset
from loraloom.data.problems import Problem, Severity, readable
from loraloom.data.sample import Dataset
from loraloom.data.settings import DatasetSettings
from loraloom.events import Listener, ignore

__all__ = [
    "BucketUse",
    "CaptionPreview",
    "CaptionPreviews",
    "DatasetReport",
    "Problem",
    "ProblemGroup",
    "check_dataset",
    "preview_captions",
    "readable",
]


@dataclass(frozen=True)
class BucketUse:
    """One bucket: ``shown`` counts repeats; ``cropped`` is the mean share of area lost, 0 to 1."""

    size: Size
    images: int
    shown: int
    cropped: float


@dataclass(frozen=True)
class ProblemGroup:
    """All problems of one kind."""

    severity: Severity
    kind: str
    problems: tuple[Problem, ...]

    @property
    def hint(self) -> str | None:
        """What to do about all of them, so that it can be said once; None where there is one, or they differ."""
        hints = {problem.hint for problem in self.problems}
        return self.problems[0].hint if len(hints) == 1 and len(self.problems) > 1 else None


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
    masked: int = 0
    """Pictures with a mask (or transparent parts that count as one)."""

    @property
    def clean(self) -> bool:
        """Whether every picture and caption could be used (warnings may remain)."""
        return not any(problem.severity == "error" for problem in self.problems)

    @property
    def groups(self) -> tuple[ProblemGroup, ...]:
        """The problems by kind, the worst first."""
        found = groupby(self.problems, key=lambda problem: (problem.severity, problem.kind))
        return tuple(ProblemGroup(severity, kind, tuple(members)) for (severity, kind), members in found)

    def count(self, severity: Severity) -> int:
        """How many problems are of this severity."""
        return sum(problem.severity == severity for problem in self.problems)

    @property
    def regularization_images(self) -> int:
        """Pictures that are regularization images."""
        return sum(row.images for row in self.concepts if row.concept.is_regularization)

    def place(self, path: Path | None) -> str:
        """A path as people read it: relative to the dataset's folder where it is inside, ``-`` for none."""
        if path is None:
            return "-"
        if path != self.folder and path.is_relative_to(self.folder):
            path = path.relative_to(self.folder)
        return readable(path)


def check_dataset(
    settings: DatasetSettings, *, listener: Listener = ignore, control: Control = keep_going
) -> DatasetReport:
    """Read everything, decode every picture, look for problems. Changes nothing.

    ``listener`` hears of every picture, ``control`` is heeded between them.
    A dataset without a usable picture gives a report that says so; DatasetError only if the folder cannot be read.
    """
    dataset = load_dataset(settings, allow_empty=True, listener=listener, control=control)
    lengths: dict[str, tuple[int, int]] = {}
    measure = _measure()

    # The audit and the figures below ask of the same captions, and counting tokens is what takes the time.
    def remembered(text: str) -> tuple[int, int]:
        if text not in lengths:
            lengths[text] = measure(text)
        return lengths[text]

    problems = audit(dataset, remembered, control)
    longest = max(dataset.samples, key=lambda sample: remembered(sample.fullest_caption)[0], default=None)
    chunks = max((remembered(sample.fullest_caption)[1] for sample in dataset.samples), default=1)
    return DatasetReport(
        folder=dataset.folder,
        regularization_folder=dataset.regularization_folder,
        concepts=tuple(concept_shares(dataset)),
        buckets=_buckets(dataset),
        images=len({sample.picture or sample.identity for sample in dataset.training}),
        shown=dataset.draws_per_epoch,
        cropped=_mean([sample.cropped_share for sample in dataset.samples]),
        longest_tokens=remembered(longest.fullest_caption)[0] if longest else 0,
        longest_caption=(longest.caption_path or longest.path) if longest else None,
        max_token_length=chunks * 75,
        problems=tuple(problems),
        masked=len({sample.picture or sample.identity for sample in dataset.samples if sample.has_mask}),
    )


@dataclass(frozen=True)
class CaptionPreview:
    """One picture: where its caption comes from, what the file says, and what the model gets each time.

    ``told``: (epoch from 1, caption, its tokens) of the first showings.
    """

    name: str
    source: Path | None
    lines: tuple[str, ...]
    told: tuple[tuple[int, str, int], ...]


@dataclass(frozen=True)
class CaptionPreviews:
    """The captions of a dataset, and what was odd about it (``notices``: only what concerns captions)."""

    pictures: tuple[CaptionPreview, ...]
    operations: tuple[str, ...]
    notices: tuple[str, ...]


def preview_captions(
    settings: DatasetSettings,
    *,
    draws: int = 4,
    seed: int = 0,
    epochs: int = 10,
    listener: Listener = ignore,
    control: Control = keep_going,
) -> CaptionPreviews:
    """The captions that the model would get for each picture in its first ``draws`` showings with this run seed.

    Tag warm-up is shown as in a run of ``epochs`` epochs with one picture a step. Pictures at several resolutions are
    listed once for each, as each has draws of its own. ``listener`` hears of every picture and caption, ``control`` is
    heeded between them.
    """
    from loraloom.data.caption_operations import OPERATIONS, Moment
    from loraloom.models.tokenizer import clip_tokenizer

    dataset = load_dataset(settings, listener=listener, control=control)
    tokenizer = clip_tokenizer()
    per_epoch = dataset.draws_per_epoch
    previews = []
    for sample in each_of("captions", dataset.samples, listener, control):
        told = []
        first = sample.concept.first_epoch - 1
        for number in range(draws):
            epoch, occurrence = divmod(number, sample.repeats)
            moment = Moment(seed, first + epoch, occurrence, (first + epoch) * per_epoch, epochs * per_epoch, per_epoch)
            text = sample.caption_at(moment)
            told.append((first + epoch + 1, text, tokenizer.count(text)))
        lines = sample.lines or (sample.caption,)
        previews.append(CaptionPreview(sample.identity, sample.caption_path, lines, tuple(told)))
    used = {sample.captions for sample in dataset.samples}
    operations = tuple(name for name, wanted, _ in OPERATIONS if any(wanted(captions) for captions in used))
    kinds = ("caption", "settings")
    notices = tuple(str(problem) for problem in dataset.problems if problem.kind.startswith(kinds))
    return CaptionPreviews(tuple(previews), operations, notices)


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
