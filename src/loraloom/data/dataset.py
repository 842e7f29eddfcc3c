"""The dataset: folders, pictures, captions and buckets put together into samples."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from loraloom.control import Control, each_of, keep_going
from loraloom.data.buckets import Size, assign_buckets, bucket_sizes
from loraloom.data.caption_operations import file_words
from loraloom.data.caption_table import FOUND_BY_THEMSELVES, CaptionTable
from loraloom.data.captions import CaptionFiles, read_caption
from loraloom.data.concepts import Concept, Files, Layout, find_layout, list_files
from loraloom.data.images import ImageFacts, inspect_image
from loraloom.data.masks import MaskFiles, mask_problems
from loraloom.data.nearby_captions import captions_nearby, setting_of_everydream
from loraloom.data.problems import Problem, normal_name, readable, worst_first
from loraloom.data.sample import Dataset, Sample
from loraloom.data.settings import CaptionSettings, ConceptSettings, DatasetSettings
from loraloom.data.variants import PLAIN, Variation
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
    captions: CaptionSettings
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
        beside = _mask_source(concept, settings) == "beside"
        listed.append((concept, list_files(concept, layout, settings.caption_extensions, beside=beside)))
    problems = list(layout.problems)
    found = _find_pictures(listed, settings, problems, listener, control)
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
    problems.extend(Problem("warning", "settings", layout.folder, note) for note in settings.without_effect())
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
    problems: list[Problem],
    listener: Listener,
    control: Control,
) -> list[_Found]:
    paths = list(dict.fromkeys(concept.folder / relative for concept, files in listed for relative in files.images))
    facts = dict(zip(paths, _inspect_all(paths, settings.max_megapixels, listener, control), strict=True))
    found: list[_Found] = []
    masks = MaskFiles(settings)
    tables: dict[Path, CaptionTable | FileError] = {}
    several: dict[Path, list[Path]] = {}
    text_path: Path | None
    for concept, files in listed:
        problems.extend(files.problems)
        own = settings.captions.merged(concept.settings.captions if concept.settings else {})
        source = _mask_source(concept, settings)
        captions = CaptionFiles(files.texts, settings.caption_extensions)
        named = own.table if concept.settings is None else concept.settings.caption_table or own.table
        table = _table(concept, named, own, tables)
        used: set[Path] = set()
        for relative in files.images:
            path = concept.folder / relative
            result = facts[path]
            used.update(captions.of(relative))
            if isinstance(result, FileError):
                problems.append(Problem("error", "image", path, result.problem, result.hint))
                continue
            _describe(path, result, settings, problems, masked=source == "alpha")
            in_table = None if table is None else table.of(concept.folder, relative)
            if table is not None and in_table is not None and (named is not None or not captions.of(relative)):
                lines, text_path = in_table, table.path
                if len(lines) > 1 and own.lines == "first":
                    several.setdefault(table.path, []).append(relative)
            else:
                lines, text_path = _lines(concept, relative, captions, own, settings.caption_extensions, problems)
            mask = _mask(masks.of(concept, relative, files), source, path, result, concept, settings, problems)
            alpha = source == "alpha" and result.alpha != "none"
            found.append(_Found(concept, relative, result, lines[0], text_path, lines, own, mask, alpha))
        if own.source == "file":
            orphans = (concept.folder / text for text in files.texts if text not in used)
            problems.extend(
                _orphan(path) for path in orphans if named is None or path.absolute() != named.expanduser().absolute()
            )
        problems.extend(_passed_over(concept, named, own))
        problems.extend(_unusable_tables(concept, named, own, tables, found))
        problems.extend(_shared_names(concept, files))
        if files.masks and source != "beside":
            note = f"holds {len(files.masks)} masks beside the pictures, which are not used"
            problems.append(Problem("info", "mask-unused", concept.folder, note, "set masks=beside to use them"))
    problems.extend(masks.problems())
    for read in tables.values():
        if isinstance(read, CaptionTable):
            problems.extend(_table_problems(read))
    for path, pictures in several.items():
        note = f"has several lines for {len(pictures)} pictures, such as {readable(pictures[0])}; the first are used"
        problems.append(Problem("warning", "caption-lines", path, note, "set captions.lines to use the others"))
    return found


def _table(
    concept: Concept, named: Path | None, settings: CaptionSettings, tables: dict[Path, CaptionTable | FileError]
) -> CaptionTable | None:
    """The table of a concept's captions: the one that is named, or one that lies in the folder. Each is read once."""
    path = _table_path(concept, named, settings)
    if path is None:
        return None
    if path not in tables:
        try:
            tables[path] = CaptionTable.read(path)
        except FileError as error:
            if named is not None:
                raise
            tables[path] = error
    table = tables[path]
    return table if isinstance(table, CaptionTable) else None


def _table_path(concept: Concept, named: Path | None, settings: CaptionSettings) -> Path | None:
    if settings.source != "file":
        return None
    if named is not None:
        return named.expanduser().absolute()
    return next(iter(_lying_tables(concept)), None)


def _lying_tables(concept: Concept) -> list[Path]:
    """Tables in a concept's folder that are found by their names, the one to use first."""
    try:
        lying = {path.name.casefold(): path for path in concept.folder.iterdir()}
    except OSError:
        return []
    return [lying[name].absolute() for name in FOUND_BY_THEMSELVES if name in lying]


def _passed_over(concept: Concept, named: Path | None, settings: CaptionSettings) -> Iterable[Problem]:
    """Tables that lie beside the one that is used."""
    if settings.source != "file" or named is not None:
        return
    first, *others = _lying_tables(concept) or [concept.folder]
    for path in others:
        note = f"is not used, because {readable(first.name)} lies beside it"
        yield Problem("warning", "caption-table", path, note, "keep one of them, or set captions.table")


def _unusable_tables(
    concept: Concept,
    named: Path | None,
    settings: CaptionSettings,
    tables: Mapping[Path, CaptionTable | FileError],
    found: Sequence[_Found],
) -> Iterable[Problem]:
    """A table that lies in the folder and cannot be used: an error where pictures would need it."""
    path = _table_path(concept, named, settings)
    error = None if path is None else tables.get(path)
    if path is None or not isinstance(error, FileError):
        return
    reason = error.problem.removeprefix("captions.table: ").removeprefix(f"{path}").removeprefix(": ")
    if all(picture.caption_path is not None for picture in found if picture.concept is concept):
        yield Problem("warning", "caption-table", path, f"is not used: {reason}", error.hint)
        return
    hint = f"mend it, or give it another name to train without it; {error.hint}"
    yield Problem(
        "error", "caption-table", path, f"cannot be used, and pictures without a caption need it: {reason}", hint
    )


def _require_tables(problems: Iterable[Problem]) -> None:
    """DatasetError for a table of captions that is needed and cannot be used."""
    for problem in problems:
        if problem.kind == "caption-table" and problem.severity == "error":
            raise DatasetError(f"{readable(problem.path)} {problem.problem}", problem.hint)


def _table_problems(table: CaptionTable) -> Iterable[Problem]:
    yield from table.problems
    count, unused = len(table), table.unused
    if len(unused) == count:
        note = f"has captions of {count} pictures, none of which is here; one is called {readable(unused[0])}"
        hint = "compare its names with those of the pictures: it is of no use as it is"
        yield Problem("warning", "caption-orphan", table.path, note, hint)
    elif unused:
        note = f"has captions of {len(unused)} pictures that are not there, such as {readable(unused[0])}"
        yield Problem("info", "caption-orphan", table.path, note)


def _without_captions(
    listed: Sequence[tuple[Concept, Files]], found: Sequence[_Found], settings: DatasetSettings
) -> Iterable[Problem]:
    """Concepts of which no picture has a caption, and what lies near them that may hold some."""
    for concept, _ in listed:
        pictures = [picture for picture in found if picture.concept is concept]
        own = settings.captions.merged(concept.settings.captions if concept.settings else {})
        if not pictures or own.source != "file" or any(picture.caption_path is not None for picture in pictures):
            continue
        near = list(captions_nearby(concept.folder, [p.relative for p in pictures], settings.caption_extensions))
        if concept.is_regularization and not near:
            continue
        note = f"has {len(pictures)} pictures and no caption: all of them are trained as {concept.name!r}"
        hint = "see below for what lies near it" if near else "set captions.source=folder if that is meant"
        yield Problem("warning", "captions-none", concept.folder, note, hint)
        yield from near


def _mask_source(concept: Concept, settings: DatasetSettings) -> str:
    own = concept.settings
    return settings.masks if own is None or own.masks is None else own.masks


def _mask(
    mask: Path | None,
    source: str,
    path: Path,
    facts: ImageFacts,
    concept: Concept,
    settings: DatasetSettings,
    problems: list[Problem],
) -> Path | None:
    """The mask if it can be used, with what is odd about it."""
    if source not in ("folder", "beside"):
        return None
    if mask is None:
        if not concept.is_regularization:
            hint = "give it one with the same name, white where it is to be learned"
            problems.append(Problem("warning", "mask-missing", path, "has no mask: all of it is learned", hint))
        return None
    odd, usable = mask_problems(mask, facts.size, max_megapixels=settings.max_megapixels)
    problems.extend(odd)
    return mask if usable else None


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


def _describe(
    path: Path, facts: ImageFacts, settings: DatasetSettings, problems: list[Problem], *, masked: bool
) -> None:
    if path.suffix.lower() not in SUFFIXES[facts.format]:
        right = SUFFIXES[facts.format][0]
        note = f"is a {facts.format} picture by content; it is used"
        problems.append(Problem("info", "suffix", path, note, f"rename it to end in {right}, with its caption"))
    if facts.animated and facts.format == "TIFF":
        note, hint = "has several pages; its first one is used", "save the pages you want as pictures of their own"
        problems.append(Problem("info", "pages", path, note, hint))
    elif facts.animated:
        note = "is animated; its first frame is used"
        problems.append(Problem("info", "animated", path, note, "save the frame you want as a picture of its own"))
    if facts.alpha == "all":
        note = f"is entirely transparent: {'nothing' if masked else 'only the background colour'} is trained"
        problems.append(Problem("warning", "alpha", path, note, "remove it"))
    elif facts.alpha == "some" and masked:
        note = f"is partly transparent: those parts are laid on {settings.background} and not learned"
        problems.append(Problem("info", "alpha", path, note))
    elif facts.alpha == "some":
        note = f"is partly transparent; it is laid on {settings.background}"
        problems.append(Problem("info", "alpha", path, note, "set background=COLOUR for another colour"))


def _lines(
    concept: Concept,
    relative: Path,
    captions: CaptionFiles,
    settings: CaptionSettings,
    extensions: Sequence[str],
    problems: list[Problem],
) -> tuple[tuple[str, ...], Path | None]:
    """The lines of one picture's caption and the file they come from; the concept's name where there is none."""
    image = concept.folder / relative
    if settings.source == "folder":
        return (concept.name,), None
    if settings.source == "filename":
        words = file_words(normal_name(relative.stem))
        if not words:
            note = f"has no words in its name; the concept's name is used: {concept.name!r}"
            problems.append(Problem("info", "caption-missing", image, note))
        return (words or concept.name,), None
    candidates = captions.of(relative)
    texts: dict[Path, str] = {}
    lines: dict[Path, tuple[str, ...]] = {}
    for candidate in candidates:
        caption = read_caption(concept.folder / candidate, first_line_only=settings.lines == "first")
        if not texts:
            problems.extend(caption.problems)
        if caption.text is not None:
            texts[candidate] = caption.text
            lines[candidate] = caption.lines or (caption.text,)
    if not texts:
        problems.extend(_caption_folders(image, extensions))
        note = f"has no caption; the concept's name is used: {concept.name!r}"
        hint = "write one into a .txt file with the picture's name beside it"
        problems.append(Problem("info", "caption-missing", image, note, hint))
        return (concept.name,), None
    source, text = next(iter(texts.items()))
    if source.name.lower().startswith(relative.name.lower() + "."):
        note = f"its caption is read from {readable(source.name)}"
        hint = "rename it to the picture's name without its suffix, where other trainers look for it"
        problems.append(Problem("info", "caption-name", image, note, hint))
    others = [readable(path.name) for path, other in texts.items() if other != text]
    if others:
        note = f"has several captions; {readable(source.name)} is used, not {', '.join(others)}"
        problems.append(Problem("warning", "caption-several", image, note, "keep one, or set caption_extensions"))
    return lines[source], concept.folder / source


def _caption_folders(image: Path, extensions: Sequence[str]) -> Iterable[Problem]:
    """Folders that have the name of a picture's caption file."""
    for extension in extensions:
        for path in (image.with_suffix(extension), image.with_name(image.name + extension)):
            if path.is_dir():
                note = "is a folder, not a caption file"
                yield Problem("error", "caption-unreadable", path, note, "put the caption into a file of that name")


def _orphan(path: Path) -> Problem:
    hint = "rename it as its picture, or remove it"
    orphan = Problem("warning", "caption-orphan", path, "belongs to no picture", hint)
    return setting_of_everydream(path) or orphan


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
        own = picture.concept.settings
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
            captions=picture.captions,
            picture=identity,
            variation=_variation(own, settings),
            flip=None if own is None else own.flip,
            mask_path=picture.mask_path,
            has_alpha_mask=picture.has_alpha_mask,
        )
        resolutions = _resolutions(picture.concept, settings)
        for resolution in resolutions:
            at = f"@{_side_text(resolution)}" if len(resolutions) > 1 else ""
            bucket = buckets[resolution][picture.facts.size]
            samples.append(replace(sample, bucket=bucket, identity=identity + at))
    return tuple(samples)


def _resolutions(concept: Concept, settings: DatasetSettings) -> tuple[int | Size, ...]:
    own = concept.settings
    given = own.resolutions if own is not None and own.resolutions else settings.sizes
    return tuple(dict.fromkeys(given))


def _side_text(resolution: int | Size) -> str:
    return str(resolution) if isinstance(resolution, int) else f"{resolution[0]}x{resolution[1]}"


def _buckets(found: Sequence[_Found], settings: DatasetSettings) -> dict[int | Size, dict[Size, Size]]:
    """For each resolution the bucket of each picture size that is trained at it."""
    sizes: dict[int | Size, list[Size]] = {}
    for picture in found:
        for resolution in _resolutions(picture.concept, settings):
            sizes.setdefault(resolution, []).append(picture.facts.size)
    return {resolution: assign_buckets(group, settings.at(resolution)) for resolution, group in sizes.items()}


def _variation(own: ConceptSettings | None, settings: DatasetSettings) -> Variation:
    crop = settings.random_crop if own is None or own.random_crop is None else own.random_crop
    colours = settings.color_augmentation
    if own is not None and own.color_augmentation is not None:
        colours = own.color_augmentation
    if not crop and not colours:
        return PLAIN
    return Variation(settings.variants, crop, settings.random_crop_zoom if crop else 1.0, colours)


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
