"""The dataset: folders, pictures, captions and buckets put together into samples."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from loraloom.control import Control, each_of, keep_going
from loraloom.data.buckets import Size, assign_buckets, bucket_sizes
from loraloom.data.caption_sources import CaptionTables, ConceptCaptions
from loraloom.data.concept_files import Files, list_files
from loraloom.data.concepts import Concept, Layout, find_layout
from loraloom.data.images import ImageFacts, inspect_image
from loraloom.data.masks import MaskFiles, mask_problems
from loraloom.data.nearby_captions import captions_nearby
from loraloom.data.problems import Problem, normal_name, readable, worst_first
from loraloom.data.sample import Dataset, Sample
from loraloom.data.settings import DatasetSettings
from loraloom.data.variants import PLAIN, Variation
from loraloom.data.without_effect import dataset_without_effect
from loraloom.errors import DatasetError, FileError
from loraloom.events import Listener, ignore
from loraloom.formats.pictures import SUFFIXES, picture_budget, quiet_decoders

__all__ = ["load_dataset"]


@dataclass(frozen=True)
class _Found:
    """A picture that is usable, before its bucket is known."""

    concept: Concept
    relative: Path
    facts: ImageFacts
    caption: str
    caption_path: Path | None
    lines: tuple[str, ...]
    own: DatasetSettings
    """The dataset's settings as its concept has them."""
    mask_path: Path | None
    has_alpha_mask: bool


def load_dataset(
    settings: DatasetSettings,
    *,
    allow_empty: bool = False,
    listener: Listener = ignore,
    control: Control = keep_going,
) -> Dataset:
    """Find, decode once and describe every picture.

    A picture or caption that cannot be used becomes a Problem with its path and is skipped. DatasetError when the
    folder is missing or nothing usable is left (``allow_empty``: that is a Problem too). ``listener`` hears
    of every picture, ``control`` is heeded between them.
    """
    layout = find_layout(settings)
    listed = []
    for concept in layout.concepts:
        beside = concept.effective(settings).masks == "beside"
        listed.append((concept, list_files(concept, layout, settings.caption_extensions, beside=beside)))
    found, problems = _find_pictures(listed, settings, listener, control)
    problems = [*layout.problems, *problems]

    # Where captions lie elsewhere one hint is enough, not one for every text that has no picture.
    near = list(_without_captions(listed, found, settings))
    offered = {problem.path for problem in near if problem.kind == "captions-nearby"}
    problems = [problem for problem in problems if problem.kind != "caption-orphan" or problem.path not in offered]
    problems.extend(near)

    if not allow_empty:
        _require_tables(problems)
    if not any(not picture.concept.is_regularization for picture in found):
        error = _nothing_usable(layout, problems)
        if not allow_empty:
            raise error
        problems.append(Problem("error", "empty", layout.folder, "holds no usable picture", error.hint))

    samples = _samples(found, settings, layout)
    problems.extend(_rounded_resolution(settings, layout))
    problems.extend(Problem("warning", "settings", layout.folder, note) for note in dataset_without_effect(settings))
    return Dataset(
        settings=settings,
        folder=layout.folder,
        regularization_folder=layout.regularization_folder,
        concepts=tuple(layout.concepts),
        samples=samples,
        problems=tuple(worst_first(dict.fromkeys(problems))),
    )


def _find_pictures(
    listed: Sequence[tuple[Concept, Files]],
    settings: DatasetSettings,
    listener: Listener,
    control: Control,
) -> tuple[list[_Found], list[Problem]]:
    """Every picture that can be used, and what is odd about the pictures, their captions and their masks."""
    paths = list(dict.fromkeys(concept.folder / relative for concept, files in listed for relative in files.images))
    facts = dict(zip(paths, _inspect_all(paths, settings.max_megapixels, listener, control), strict=True))
    found: list[_Found] = []
    problems: list[Problem] = []
    masks, tables = MaskFiles(settings), CaptionTables()
    for concept, files in listed:
        pictures, odd = _pictures_of(concept, files, facts, settings, masks, tables)
        found += pictures
        problems += odd
    return found, [*problems, *masks.problems(), *tables.problems()]


def _pictures_of(
    concept: Concept,
    files: Files,
    facts: Mapping[Path, ImageFacts | FileError],
    settings: DatasetSettings,
    masks: MaskFiles,
    tables: CaptionTables,
) -> tuple[list[_Found], list[Problem]]:
    """The same of one concept; ``facts``: of every picture, or why it cannot be read."""
    own = concept.effective(settings)
    captions = ConceptCaptions(concept, files, own, tables)
    found: list[_Found] = []
    problems = list(files.problems)
    for relative in files.images:
        path = concept.folder / relative
        result = facts[path]
        captions.belong_to(relative)
        if isinstance(result, FileError):
            problems.append(Problem("error", "image", path, result.problem, result.hint))
            continue
        problems += _oddities(path, result, own)
        caption = captions.of(relative)
        problems += caption.problems
        mask, odd = _mask(masks.of(concept, relative, files, own.masks), path, result, concept, own)
        problems += odd
        alpha = own.masks == "alpha" and result.alpha != "none"
        found.append(_Found(concept, relative, result, caption.lines[0], caption.path, caption.lines, own, mask, alpha))

    problems += captions.problems(all_captioned=all(picture.caption_path is not None for picture in found))
    problems += _shared_names(concept, files)
    if files.masks and own.masks != "beside":
        note = f"holds {len(files.masks)} masks beside the pictures, which are not used"
        problems.append(Problem("info", "mask-unused", concept.folder, note, "set masks=beside to use them"))
    return found, problems


def _require_tables(problems: Iterable[Problem]) -> None:
    """DatasetError for a table of captions that is needed and cannot be used."""
    for problem in problems:
        if problem.kind == "caption-table" and problem.severity == "error":
            raise DatasetError(f"{readable(problem.path)} {problem.problem}", problem.hint)


def _without_captions(
    listed: Sequence[tuple[Concept, Files]], found: Sequence[_Found], settings: DatasetSettings
) -> Iterable[Problem]:
    """Concepts of which no picture has a caption, and what lies near them that may hold some."""
    for concept, _ in listed:
        pictures = [picture for picture in found if picture.concept is concept]
        own = concept.effective(settings).captions
        if not pictures or own.source != "file" or any(picture.caption_path is not None for picture in pictures):
            continue
        near = list(captions_nearby(concept.folder, [p.relative for p in pictures], settings.caption_extensions))
        # Regularization images often have no captions on purpose: their class's name says what they show.
        if concept.is_regularization and not near:
            continue

        note = f"has {len(pictures)} pictures and no caption: all of them are trained as {concept.name!r}"
        hint = "see below for what lies near it" if near else "set captions.source=folder if that is meant"
        yield Problem("warning", "captions-none", concept.folder, note, hint)
        yield from near


def _mask(
    mask: Path | None, path: Path, facts: ImageFacts, concept: Concept, own: DatasetSettings
) -> tuple[Path | None, list[Problem]]:
    """The mask if it can be used, with what is odd about it; ``own``: the settings as the concept has them."""
    if own.masks not in ("folder", "beside"):
        return None, []
    if mask is None and concept.is_regularization:
        return None, []
    if mask is None:
        hint = "give it one with the same name, white where it is to be learned"
        return None, [Problem("warning", "mask-missing", path, "has no mask: all of it is learned", hint)]
    odd, usable = mask_problems(mask, facts.size, max_megapixels=own.max_megapixels)
    return (mask if usable else None), odd


def _oddities(path: Path, facts: ImageFacts, own: DatasetSettings) -> Iterator[Problem]:
    """What is to be known of a picture; ``own``: the settings as its concept has them."""
    masked = own.masks == "alpha"
    if path.suffix.lower() not in SUFFIXES[facts.format]:
        right = SUFFIXES[facts.format][0]
        note = f"is a {facts.format} picture by content; it is used"
        yield Problem("info", "suffix", path, note, f"rename it to end in {right}, with its caption")

    if facts.animated and facts.format == "TIFF":
        note, hint = "has several pages; its first one is used", "save the pages you want as pictures of their own"
        yield Problem("info", "pages", path, note, hint)
    elif facts.animated:
        note = "is animated; its first frame is used"
        yield Problem("info", "animated", path, note, "save the frame you want as a picture of its own")

    if facts.alpha == "all":
        note = f"is entirely transparent: {'nothing' if masked else 'only the background colour'} is trained"
        yield Problem("warning", "alpha", path, note, "remove it")
    elif facts.alpha == "some" and masked:
        note = f"is partly transparent: those parts are laid on {own.background} and not learned"
        yield Problem("info", "alpha", path, note)
    elif facts.alpha == "some":
        note = f"is partly transparent; it is laid on {own.background}"
        yield Problem("info", "alpha", path, note, "set background=COLOUR for another colour")


def _inspect_all(
    paths: Sequence[Path], max_megapixels: float, listener: Listener, control: Control
) -> list[ImageFacts | FileError]:
    """Facts or the error of each path. Decoding releases the interpreter lock, so threads use every core.

    All of them together stay within one budget of memory, however large the pictures are.
    """
    budget = picture_budget()

    def inspect(path: Path) -> ImageFacts | FileError:
        try:
            return inspect_image(path, max_megapixels=max_megapixels, budget=budget)
        except FileError as error:
            return error

    results: list[ImageFacts | FileError] = []
    with quiet_decoders(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            begun = pool.map(inspect, paths)
            for _ in each_of("pictures", paths, listener, control):
                results.append(next(begun))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # else thousands of pictures are decoded for nobody
            raise
    return results


def _shared_names(concept: Concept, files: Files) -> Iterable[Problem]:
    """Pictures that share a caption, or a name on file systems that ignore case or Unicode form."""
    stems: dict[str, Path] = {}
    for relative in files.images:
        stem = normal_name(relative.with_suffix("")).casefold()
        other = stems.setdefault(stem, relative)
        if other is not relative:
            note = f"has the same name as {readable(other.name)}, so both share one caption"
            hint = "rename one of them and give it its own caption"
            yield Problem("warning", "same-name", concept.folder / relative, note, hint)


def _samples(found: Sequence[_Found], settings: DatasetSettings, layout: Layout) -> tuple[Sample, ...]:
    background = settings.background_rgb
    identities: Counter[str] = Counter()
    samples = []
    buckets = _buckets(found, settings)
    for picture in found:
        name = _name(picture, layout)
        identity = ("regularization:" if picture.concept.is_regularization else "") + name
        identities[identity] += 1
        if identities[identity] > 1:  # a composed and a decomposed form of one name
            identity = f"{identity}#{identities[identity]}"
        listed = picture.concept.settings
        sample = Sample(
            path=picture.concept.folder / picture.relative,
            name=name,
            identity=identity,
            digest=picture.facts.digest,
            concept=picture.concept,
            caption=picture.caption,
            size=picture.facts.size,
            bucket=(0, 0),
            orientation=picture.facts.orientation,
            background=background,
            caption_path=picture.caption_path,
            lines=picture.lines,
            captions=picture.own.captions,
            picture=identity,
            variation=_variation(picture.own),
            flip=None if listed is None else listed.flip,  # None: that of the dataset, which the cache is given
            mask_path=picture.mask_path,
            has_alpha_mask=picture.has_alpha_mask,
        )
        resolutions = _resolutions(picture.own)
        for resolution in resolutions:
            at = f"@{_side_text(resolution)}" if len(resolutions) > 1 else ""
            bucket = buckets[resolution][picture.facts.size]
            samples.append(replace(sample, bucket=bucket, identity=identity + at))
    return tuple(samples)


def _resolutions(own: DatasetSettings) -> tuple[int | Size, ...]:
    return tuple(dict.fromkeys(own.sizes))


def _side_text(resolution: int | Size) -> str:
    return str(resolution) if isinstance(resolution, int) else f"{resolution[0]}x{resolution[1]}"


def _buckets(found: Sequence[_Found], settings: DatasetSettings) -> dict[int | Size, dict[Size, Size]]:
    """For each resolution the bucket of each picture size that is trained at it."""
    sizes: dict[int | Size, list[Size]] = {}
    for picture in found:
        for resolution in _resolutions(picture.own):
            sizes.setdefault(resolution, []).append(picture.facts.size)
    return {resolution: assign_buckets(group, settings.at(resolution)) for resolution, group in sizes.items()}


def _variation(own: DatasetSettings) -> Variation:
    """How pictures are varied; ``own``: the settings as their concept has them."""
    if not own.random_crop and not own.color_augmentation:
        return PLAIN
    zoom = own.random_crop_zoom if own.random_crop else 1.0
    return Variation(own.variants, own.random_crop, zoom, own.color_augmentation)


def _rounded_resolution(settings: DatasetSettings, layout: Layout) -> Iterable[Problem]:
    if settings.buckets:
        return
    for resolution in settings.sizes:
        at = settings.at(resolution)
        (size,) = bucket_sizes(at)
        if size != at.size:
            note = f"is trained at {size[0]} x {size[1]}, not {at.size[0]} x {at.size[1]}"
            hint = f"sides must be multiples of bucket_step={settings.bucket_step}"
            yield Problem("info", "resolution", layout.folder, note, hint)


def _name(picture: _Found, layout: Layout) -> str:
    concept = picture.concept
    inside = normal_name(picture.relative)
    if not concept.is_regularization:
        return inside if concept.folder == layout.folder else f"{normal_name(concept.label)}/{inside}"
    folder = layout.regularization_folder
    if folder is None or concept.folder == folder:
        return f"{normal_name(concept.folder.name)}/{inside}"
    return f"{normal_name(folder.name)}/{normal_name(concept.label)}/{inside}"


def _nothing_usable(layout: Layout, problems: Sequence[Problem]) -> DatasetError:
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        first = errors[0]
        return DatasetError(
            f"no picture in {readable(layout.folder)} can be used: {len(errors)} could not be read, the first is"
            f" {readable(first.path.name)}, which {first.problem}",
            first.hint,
        )
    skipped = [problem for problem in problems if problem.kind in ("zero-repeats", "folder-name", "loose-images")]
    if skipped:
        return DatasetError(f"no picture in {readable(layout.folder)} can be used: {skipped[0]}", skipped[0].hint)
    return DatasetError(
        f"there are no pictures in {readable(layout.folder)}",
        "put pictures (.jpg .png .webp .bmp .avif .gif .tif) into it, best in folders such as 10_cat",
    )
