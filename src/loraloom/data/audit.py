"""What is likely wrong with a dataset that loads: sizes, captions, duplicates, balance. Each finding has a hint."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from loraloom.control import Control, heed, keep_going
from loraloom.data.concepts import Concept
from loraloom.data.problems import Problem, Severity, normal_name, readable, worst_first
from loraloom.data.sample import Dataset, Sample

__all__ = ["ConceptShare", "Measure", "audit", "concept_shares"]

Measure = Callable[[str], tuple[int, int]]
"""Tokens of a caption and the chunks of 75 it needs."""

_WEIGHT = re.compile(r"(?<!\\)\([^()]*:\s*[0-9]*\.?[0-9]+\s*\)|<lora:[^>]*>")
_WILDCARD = re.compile(r"\{[^{}]*\|[^{}]*\}")
_DOUBLE_COMMA = re.compile(r",\s*,")
_UNDERSCORE = re.compile(r"[^\W_]{2}_|_[^\W_]{2}")  # words; not the faces o_o, ^_^, >_<, 0_0
_WINDOWS_NAMES = frozenset(
    ["con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))]
)
_STRONG_ENLARGEMENT = 1.5
_STRONG_CROP = 0.1


@dataclass(frozen=True)
class ConceptShare:
    """How much of an epoch a concept is: ``shown`` = images times repeats, ``share`` of all that is shown (0 to 1).

    Regularization concepts have no share: there are as many draws of them as of training images, whatever their number.
    """

    concept: Concept
    images: int
    captions: int
    shown: int
    share: float | None


def concept_shares(dataset: Dataset) -> list[ConceptShare]:
    """The arithmetic of repeats: 2 x 20 pictures and 1 x 10 pictures are 80 % and 20 % of an epoch."""
    total = dataset.draws_per_epoch
    shares = []
    for concept in dataset.concepts:
        samples = [sample for sample in dataset.samples if sample.concept == concept]
        pictures = {sample.picture or sample.identity: sample for sample in samples}
        each = dataset.settings.resolution_choice == "each"
        shown = len(samples if each else pictures) * concept.repeats
        share = None if concept.is_regularization or not total else shown / total
        captions = sum(sample.caption_path is not None for sample in pictures.values())
        shares.append(ConceptShare(concept, len(pictures), captions, shown, share))
    return shares


def audit(dataset: Dataset, measure: Measure, control: Control = keep_going) -> list[Problem]:
    """Everything worth knowing: what loading found, and what is found by looking at the samples together.

    ``control`` is heeded between two of them.
    """
    problems = list(dataset.problems)
    seen: set[str] = set()
    for sample in dataset.samples:
        heed(control)
        problems += _size(sample, dataset)
        if sample.picture in seen:  # the same picture at another resolution
            continue
        seen |= {sample.picture} - {""}
        problems += _caption(sample, measure)
        problems += _portable_name(sample)
    problems += _duplicates(dataset)
    problems += _balance(dataset)
    return worst_first(problems)


def _size(sample: Sample, dataset: Dataset) -> Iterator[Problem]:
    width, height = sample.size
    scale = max(sample.bucket[0] / width, sample.bucket[1] / height)
    if scale > 1.01:
        severity: Severity = "warning" if scale > _STRONG_ENLARGEMENT else "info"
        note = f"is small ({width} x {height}) and enlarged {scale:.2f} times"
        hint = "find a larger original, lower the resolution, or set upscale=false"
        yield Problem(severity, "enlarged", sample.path, note, hint)
    if sample.cropped_share <= _STRONG_CROP:
        return
    note = f"loses {sample.cropped_share:.0%} of its area to cropping ({width} x {height})"
    if dataset.settings.buckets:
        yield Problem("warning", "cropped", sample.path, note, "cut it to a less extreme shape, or raise bucket_max")
    else:
        yield Problem("info", "cropped", sample.path, note, "set buckets=true to keep pictures whole")


def _caption(sample: Sample, measure: Measure) -> Iterator[Problem]:
    path, text = sample.caption_path, sample.caption
    tokens, chunks = measure(sample.fullest_caption)
    if chunks > 1:
        note = f"has {tokens} tokens and needs a max token length of {chunks * 75}"
        yield Problem(
            "info", "caption-tokens", path or sample.path, note, "chosen automatically unless max_token_length is set"
        )

    if path is None:
        return
    if not normal_name(path.name).casefold().startswith(normal_name(sample.path.stem).casefold()):
        path = sample.path  # its caption is one of many in a table

    syntax = _WEIGHT.findall(text)
    if syntax and (syntax[0].startswith("<") or not sample.captions.weighted):
        note = f"has prompt syntax that means nothing in training: {syntax[0][:40]}"
        hint = "write the words without brackets and weights, or set captions.weighted=true"
        yield Problem("warning", "caption-weights", path, note, hint)

    if not sample.captions.wildcards and _WILDCARD.search(text):
        note = f"has braces, which are text: {_WILDCARD.findall(text)[0][:40]}"
        yield Problem(
            "warning", "caption-wildcards", path, note, "set captions.wildcards=true to choose one of them each time"
        )

    if _DOUBLE_COMMA.search(text):
        yield Problem("info", "caption-commas", path, "has two commas in a row", "remove one")

    tags = [tag.strip() for tag in text.split(",") if _UNDERSCORE.search(tag)]
    if tags and not sample.captions.replace_underscores:
        note = f"has underscores in tags: {', '.join(tags[:3])}{' ...' if len(tags) > 3 else ''}"
        hint = "captions.replace_underscores=true turns them into spaces"
        yield Problem("info", "caption-underscores", path, note, hint)


def _portable_name(sample: Sample) -> Iterator[Problem]:
    for part in sample.path.relative_to(sample.concept.folder.parent).parts:
        reserved = part.split(".")[0].lower() in _WINDOWS_NAMES
        if reserved or part != part.rstrip(". ") or any(character in '<>:"\\|?*' for character in part):
            note = f"cannot exist on Windows under this name ({readable(part)})"
            yield Problem("info", "name", sample.path, note, "rename it if the dataset is to be shared")
            return


def _duplicates(dataset: Dataset) -> Iterator[Problem]:
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in dataset.samples:
        if all(sample.path != other.path for other in groups[sample.digest]):
            groups[sample.digest].append(sample)
    for first, *others in groups.values():
        for other in others:
            name = readable(first.name)
            if other.is_regularization != first.is_regularization:
                note, hint = f"is also a training image: {name}", "regularization images must be different pictures"
            elif other.concept == first.concept:
                note, hint = f"is the same picture as {name}", "remove one; to give it more weight use repeats"
            else:
                note, hint = f"is the same picture as {name}, of another concept", "remove one if this was not intended"
            yield Problem("warning", "duplicate", other.path, note, hint)


def _balance(dataset: Dataset) -> Iterator[Problem]:
    for share in concept_shares(dataset):
        if share.images == 0:
            note = "has no usable pictures"
            yield Problem("warning", "empty-concept", share.concept.folder, note, "add pictures or remove the folder")
    count, wanted = len(dataset.regularization), len(dataset.training)
    if dataset.regularization_folder is not None and 0 < count < wanted:
        note = f"holds {count} regularization images for {wanted} training images"
        hint = "add more: at least as many as there are training images"
        yield Problem("warning", "regularization", dataset.regularization_folder, note, hint)
