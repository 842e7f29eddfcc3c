"""What a dataset is once it was read: its pictures with their captions, and all of them together."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from loraloom.data.buckets import Fit, Size, cropped_share, fit
from loraloom.data.caption_operations import Moment, caption_of, fullest_caption
from loraloom.data.concepts import Concept
from loraloom.data.problems import Problem
from loraloom.data.settings import UNCHANGED, CaptionSettings, DatasetSettings
from loraloom.data.variants import PLAIN, Colours, Variation, colours_of, fit_of

__all__ = ["Dataset", "Sample"]


@dataclass(frozen=True)
class Sample:
    """One picture with its caption.

    ``name``: posix path relative to the dataset folder (regularization images: beginning with their folder's name).
    ``identity``: what its randomness is keyed by; the same on every machine, unique in the dataset. ``digest``:
    sha256 of the file's bytes. ``size``: (width, height) upright, after ``orientation`` (EXIF) was applied.
    ``bucket``: (width, height) it is trained at. ``caption`` is the first of its ``lines``; ``captions`` say what
    becomes of them. ``picture``: the identity it shares with the same picture at other resolutions.
    ``has_alpha_mask``: its transparent parts are not learned.
    """

    path: Path
    name: str
    identity: str
    digest: str
    concept: Concept
    caption: str
    size: Size
    bucket: Size
    orientation: int = 1
    background: tuple[int, int, int] = (255, 255, 255)
    caption_path: Path | None = None
    lines: tuple[str, ...] = ()
    captions: CaptionSettings = UNCHANGED
    picture: str = ""
    variation: Variation = PLAIN
    flip: bool | None = None
    mask_path: Path | None = None
    has_alpha_mask: bool = False

    @property
    def repeats(self) -> int:
        """How often it is shown in an epoch."""
        return self.concept.repeats

    @property
    def is_regularization(self) -> bool:
        """Whether it is a regularization image."""
        return self.concept.is_regularization

    @property
    def fit(self) -> Fit:
        """How it comes into its bucket."""
        return fit(self.size, self.bucket)

    @property
    def crop(self) -> tuple[int, int]:
        """Top and left of the part that is used, in pixels after resizing (SDXL's crop conditioning)."""
        return self.fit.crop

    def fit_of(self, variant: int) -> Fit:
        """How version ``variant`` of it comes into its bucket."""
        return fit_of(self.size, self.bucket, self.digest, self.variation, variant)

    def colours_of(self, variant: int) -> Colours | None:
        """How version ``variant`` of it is recoloured."""
        return colours_of(self.digest, self.variation, variant)

    def caption_at(self, moment: Moment) -> str:
        """The caption that the model gets when the picture is shown at ``moment``."""
        return caption_of(self.lines or (self.caption,), self.captions, self.identity, moment)

    @property
    def fullest_caption(self) -> str:
        """Its caption with nothing left out."""
        return fullest_caption(self.lines or (self.caption,), self.captions)

    @property
    def has_mask(self) -> bool:
        """Whether some of it may not be learned."""
        return self.has_alpha_mask or self.mask_path is not None

    @property
    def cropped_share(self) -> float:
        """Share of the picture's area that lies outside the bucket."""
        return cropped_share(self.size, self.bucket)


@dataclass(frozen=True)
class Dataset:
    """Everything there is to train on, in a fixed order, and what a person should know about it."""

    settings: DatasetSettings
    folder: Path
    regularization_folder: Path | None
    concepts: tuple[Concept, ...]
    samples: tuple[Sample, ...]
    problems: tuple[Problem, ...]

    @cached_property
    def training(self) -> tuple[Sample, ...]:
        """The samples that are not regularization images."""
        return tuple(sample for sample in self.samples if not sample.is_regularization)

    @cached_property
    def regularization(self) -> tuple[Sample, ...]:
        """The regularization images."""
        return tuple(sample for sample in self.samples if sample.is_regularization)

    @cached_property
    def buckets(self) -> dict[Size, int]:
        """Images per bucket (width, height), from the tallest shape to the widest."""
        counts = Counter(sample.bucket for sample in self.samples)
        return {size: counts[size] for size in sorted(counts, key=lambda size: (size[0] / size[1], size))}

    @property
    def draws_per_epoch(self) -> int:
        """Training images times repeats (regularization draws come on top), with every concept taking part."""
        return sum(self.showings.values())

    @property
    def last_epoch(self) -> int | None:
        """The last epoch (from 1) that has training images, None if there is no last."""
        lasts = [self._last_epoch_of(concept) for concept in self.showings]
        known = [last for last in lasts if last is not None]
        return max(known) if known and len(known) == len(lasts) else None

    def _last_epoch_of(self, concept: Concept) -> int | None:
        if concept.steps is None:
            return concept.last_epoch
        enough = concept.first_epoch - 1 + math.ceil(concept.steps / self.showings[concept])
        return enough if concept.last_epoch is None else min(concept.last_epoch, enough)

    @cached_property
    def showings(self) -> dict[Concept, int]:
        """How often an epoch in which a training concept takes part shows its pictures."""
        samples = self.training
        if self.settings.resolution_choice == "random":
            samples = tuple({sample.picture or sample.identity: sample for sample in samples}.values())
        counts: Counter[Concept] = Counter()
        for sample in samples:
            counts[sample.concept] += sample.repeats
        return dict(counts)
