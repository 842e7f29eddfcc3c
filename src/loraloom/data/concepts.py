"""Which folders hold what: n_name concept folders, regularization images, and the files in each.

``10_cat`` means: every picture inside is shown ten times an epoch, and "cat" is the caption of pictures without one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from loraloom.data.problems import Problem, normal_name, readable
from loraloom.data.settings import ConceptSettings, DatasetSettings
from loraloom.errors import DatasetError
from loraloom.formats.pictures import SUFFIXES, signature

__all__ = [
    "IMAGE_SUFFIXES",
    "MASK_ENDINGS",
    "REGULARIZATION_NAMES",
    "Concept",
    "Files",
    "Layout",
    "find_layout",
    "list_files",
    "orphan_mask",
]

REGULARIZATION_NAMES = ("regularization_images", "regularization", "reg_images", "reg", "class_images")
"""Folder names that mean regularization images, in any case."""

IMAGE_SUFFIXES = frozenset(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
_FOREIGN_SUFFIXES = frozenset(
    {".heic", ".heif", ".hif", ".jxl", ".jp2", ".j2k", ".jpx", ".jfif", ".jpe", ".apng", ".psd", ".xcf", ".svg"}
    | {
        ".ico",
        ".tga",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".pcx",
        ".dds",
        ".exr",
        ".qoi",
        ".pdf",
        ".raw",
        ".dng",
        ".cr2",
        ".cr3",
        ".nef",
        ".arw",
    }
    | {".mp4", ".mov", ".webm", ".avi"}
)
MASK_ENDINGS = ("-masklabel", ".mask")
"""What the names of masks beside pictures end with, before the suffix (OneTrainer, cloneofsimo)."""
_CONDITION_ENDING = "-condlabel"  # OneTrainer: pictures for inpainting
_IGNORED_FOLDERS = frozenset({"__pycache__", "__macosx", "model", "models", "log", "logs", "sample", "samples"})
_MAX_REPEATS = 9999
_MAX_DEPTH = 12
_N_NAME = re.compile(r"([0-9]+)_(.*)", re.DOTALL)


@dataclass(frozen=True)
class Concept:
    """One folder of pictures. ``label`` names it to people; ``name`` is the caption of pictures without one."""

    label: str
    name: str
    folder: Path
    repeats: int
    is_regularization: bool = False
    place: int = 0
    """Where in dataset.concepts it is listed: one folder may be listed several times."""
    settings: ConceptSettings | None = field(default=None, compare=False)
    """Its settings there."""

    def effective(self, settings: DatasetSettings) -> DatasetSettings:
        """The settings of the dataset as this concept has them: what it says itself goes before what they say."""
        return settings if self.settings is None else self.settings.over(settings)

    @property
    def loss_weight(self) -> float:
        """How much its pictures count in the loss."""
        return 1.0 if self.settings is None else self.settings.loss_weight

    @property
    def first_epoch(self) -> int:
        """The first epoch (from 1) that shows its pictures."""
        return 1 if self.settings is None else self.settings.first_epoch

    @property
    def last_epoch(self) -> int | None:
        """The last one, None if there is no last."""
        return None if self.settings is None else self.settings.last_epoch

    @property
    def steps(self) -> int | None:
        """After how many showings in all its pictures are shown no more, None for never."""
        return None if self.settings is None else self.settings.steps

    def shown_in(self, epoch: int) -> bool:
        """Whether the epoch (from 0) shows its pictures."""
        return self.first_epoch <= epoch + 1 <= (self.last_epoch or epoch + 1)


@dataclass
class Layout:
    """What was found: ``folder`` holds the concept folders (or the pictures), ``problems`` says how it was read.

    ``apart`` are folders that hold no pictures to train on, wherever they are: those of masks.
    """

    folder: Path
    regularization_folder: Path | None = None
    concepts: list[Concept] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    apart: frozenset[Path] = frozenset()


@dataclass
class Files:
    """The files of one concept, relative paths sorted by composed Unicode name. ``masks``: those of the pictures."""

    images: list[Path] = field(default_factory=list)
    masks: dict[Path, Path] = field(default_factory=dict)
    texts: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def find_layout(settings: DatasetSettings) -> Layout:
    """Understand the folder that the user named; DatasetError when it holds nothing that can be trained on."""
    if settings.concepts:
        layout = _listed_concepts(settings)
    else:
        folder = settings.folder.expanduser().absolute()
        _require_folder(folder, "dataset folder")
        layout = _training_layout(folder, settings)
    layout.apart = _mask_folders(settings)
    if settings.use_regularization and (not settings.concepts or settings.regularization_folder is not None):
        _add_regularization(layout, settings)
    return layout


def orphan_mask(mask: Path) -> Problem:
    """The sentence about a mask without its picture."""
    return Problem(
        "warning", "mask-orphan", mask, "is the mask of no picture", "give it the name of its picture, or remove it"
    )


def list_files(concept: Concept, layout: Layout, caption_extensions: Collection[str], *, beside: bool = False) -> Files:
    """Pictures, captions and the rest inside a concept folder.

    Plain folders inside belong to the concept; other concepts' folders and regularization folders do not. ``beside``:
    what is named as a mask is one, even where its picture is gone.
    """

    # Pictures of a concept inside this one would be shown twice, and regularization images trained as the subject.
    apart = {other.folder for other in layout.concepts if other.folder != concept.folder} | layout.apart
    if layout.regularization_folder is not None and layout.regularization_folder != concept.folder:
        apart.add(layout.regularization_folder)

    files = Files()
    inner: set[Path] = set()
    for path in _walk(concept.folder, apart):
        if isinstance(path, Problem):
            files.problems.append(path)
            continue
        relative = path.relative_to(concept.folder)
        suffix = path.suffix.lower()
        if suffix in caption_extensions:
            files.texts.append(relative)
        elif suffix in IMAGE_SUFFIXES or suffix in _FOREIGN_SUFFIXES or _looks_like_image(path):
            files.images.append(relative)
            inner.update([relative.parent] if len(relative.parts) > 1 else [])
    for subfolder in sorted(inner):
        files.problems.append(
            Problem(
                "info",
                "nested-folder",
                concept.folder / subfolder,
                f"its pictures are used as part of concept {readable(concept.label)!r}",
                "name a folder n_name (10_cat) to make it a concept with repeats of its own",
            )
        )
    files.images.sort(key=_order)
    files.texts.sort(key=_order)
    _set_masks_apart(files)

    if beside:
        orphans = [path for path in files.images if path.stem.lower().endswith(MASK_ENDINGS)]
        files.images = [path for path in files.images if path not in orphans]
        files.problems.extend(orphan_mask(concept.folder / path) for path in orphans)
    return files


def _set_masks_apart(files: Files) -> None:
    """``cat-masklabel.png`` and ``cat.mask.png`` beside a ``cat.*`` are its mask; ``cat-condlabel.png`` is neither."""
    pictures = {path.with_suffix(""): path for path in reversed(files.images)}
    for path in list(files.images):
        for ending in (*MASK_ENDINGS, _CONDITION_ENDING):
            picture = pictures.get(path.with_name(path.stem[: -len(ending)] or "-"))
            if path.stem.lower().endswith(ending) and picture is not None:
                files.images.remove(path)
                if ending != _CONDITION_ENDING:
                    files.masks.setdefault(picture, path)
                break


def _mask_folders(settings: DatasetSettings) -> frozenset[Path]:
    folders = [settings.mask_folder, *(concept.mask_folder for concept in settings.concepts)]
    return frozenset(folder.expanduser().absolute() for folder in folders if folder is not None)


def _order(path: Path) -> tuple[str, str]:
    """Composed Unicode name, then the raw one: the same order on every file system."""
    return normal_name(path), path.as_posix()


def _require_folder(folder: Path, what: str) -> None:
    name = readable(folder)
    try:
        if folder.is_dir():
            os.scandir(folder).close()
            return
        exists = folder.exists()
    except OSError as error:
        raise DatasetError(
            f"{what} {name} cannot be read: {error.strerror or error}", "check its permissions"
        ) from error
    if exists:
        raise DatasetError(f"{what} {name} is a file, not a folder", "give the folder that holds the pictures")
    parent = folder.parent
    hint = "check the path" if parent.is_dir() else f"{readable(parent)} does not exist either; check the path"
    raise DatasetError(f"{what} {name} does not exist", hint)


def _training_layout(folder: Path, settings: DatasetSettings, depth: int = 0) -> Layout:
    masks = _mask_folders(settings)
    inside = _entries(folder)
    problems = list(inside.problems)
    children = [child for child in inside.folders if child not in masks]
    named = [child for child in children if _N_NAME.fullmatch(child.name)]

    # The order is from what says most to what says least: n_name folders inside, the folder's own name, one dataset
    # further down, plain folders of pictures, and at last a folder of pictures.
    if named:
        layout = _parent_of_concepts(folder, named, children, settings)
        layout.problems[:0] = problems
        return layout

    if depth == 0 and _N_NAME.fullmatch(folder.name) and _has_images(folder):
        layout = Layout(folder.parent, problems=problems)
        _add_concept(layout, folder, settings, is_regularization=False)
        note = "is a concept folder itself; its neighbours are not used"
        layout.problems.append(
            Problem("info", "layout", folder, note, f"give {readable(folder.parent)} to use all of them")
        )
        return layout

    plain = [child for child in children if not _is_regularization(child)]
    if not _has_images(folder, deep=False):
        deeper = [child for child in plain if any(_N_NAME.fullmatch(c.name) for c in _entries(child).folders)]
        if len(deeper) > 1:
            names = ", ".join(readable(child.name) for child in deeper)
            raise DatasetError(f"{readable(folder)} holds several datasets: {names}", "give one of these folders")
        if deeper:
            layout = _training_layout(deeper[0], settings, depth + 1)
            note = f"holds the concept folders in {readable(deeper[0].name)!r}, which is used as the dataset"
            layout.problems.insert(0, Problem("info", "layout", folder, note))
            return layout

        # An archive that was unpacked into a folder of its own name is one level deeper, or two.
        with_images = [child for child in plain if child.name.lower() not in _IGNORED_FOLDERS and _has_images(child)]
        if len(with_images) == 1 and depth < 3 and not _has_images(with_images[0], deep=False):
            return _training_layout(with_images[0], settings, depth + 1)
        if with_images:
            layout = _plain_concepts(folder, with_images, settings)
            layout.problems[:0] = problems
            return layout

    layout = Layout(folder, problems=problems)
    layout.concepts.append(Concept(folder.name, _text(folder.name), folder, settings.repeats))
    note = f"is one folder of pictures; each is shown {settings.repeats} time(s) an epoch"
    layout.problems.append(
        Problem("info", "layout", folder, note, "put pictures into folders like 10_cat for repeats of their own")
    )
    return layout


def _parent_of_concepts(folder: Path, named: list[Path], children: list[Path], settings: DatasetSettings) -> Layout:
    layout = Layout(folder)
    for child in named:
        _add_concept(layout, child, settings, is_regularization=False)
    for child in children:
        unnamed = child not in named and not _is_regularization(child) and child.name.lower() not in _IGNORED_FOLDERS
        if unnamed and _has_images(child):
            note = "is not used: its name does not begin with a number of repeats and an underscore"
            hint = f"rename it to 1_{readable(child.name)} to use it as a concept"
            layout.problems.append(Problem("warning", "folder-name", child, note, hint))
    if _has_images(folder, deep=False):
        note = "pictures beside the concept folders are not used"
        layout.problems.append(
            Problem("warning", "loose-images", folder, note, "move them into a concept folder such as 1_name")
        )
    return layout


def _plain_concepts(folder: Path, children: list[Path], settings: DatasetSettings) -> Layout:
    layout = Layout(folder)
    for child in children:
        layout.concepts.append(Concept(child.name, _text(child.name), child, settings.repeats))
        note = f"is used as a concept with {settings.repeats} repeat(s), as its name does not say how many"
        hint = f"rename it, for example to 10_{readable(child.name)}, to set them"
        layout.problems.append(Problem("info", "folder-name", child, note, hint))
    return layout


def _listed_concepts(settings: DatasetSettings) -> Layout:
    """The concepts of the list, in its order. What else the folder holds is not looked at."""
    layout = Layout(settings.folder.expanduser().absolute())
    for place, own in enumerate(settings.concepts):
        if not own.enabled or (own.is_regularization and not settings.use_regularization):
            continue
        folder = own.folder.expanduser().absolute()
        _require_folder(folder, "concept folder")

        # The folder's name (10_cat) fills in what the list leaves open; the list counts before it.
        match = _N_NAME.fullmatch(folder.name)
        digits, name = match.groups() if match else ("", folder.name)
        repeats = int(digits) if digits and 0 < int(digits[:9]) <= _MAX_REPEATS else settings.repeats
        caption = _text(name if own.name is None else own.name) if own.caption is None else own.caption

        concept = Concept(
            label=own.name or folder.name,
            name=caption,
            folder=folder,
            repeats=repeats if own.repeats is None else own.repeats,
            is_regularization=own.is_regularization,
            place=place,
            settings=own,
        )
        layout.concepts.append(concept)
    return layout


def _add_regularization(layout: Layout, settings: DatasetSettings) -> None:
    folder = settings.regularization_folder
    if folder is not None:
        folder = folder.expanduser().absolute()
        _require_folder(folder, "regularization folder")
    else:
        folder = _find_regularization(layout, settings.folder.expanduser().absolute())
    if folder is None:
        return
    layout.regularization_folder = folder
    inside = _entries(folder)
    layout.problems += inside.problems

    named = [child for child in inside.folders if _N_NAME.fullmatch(child.name)]
    # Counted from here, to see whether this folder adds anything at all.
    found = len(layout.concepts)
    for child in named:
        _add_concept(layout, child, settings, is_regularization=True)
    if not named and _has_images(folder):
        if _N_NAME.fullmatch(folder.name):
            _add_concept(layout, folder, settings, is_regularization=True)
        else:
            layout.concepts.append(Concept(folder.name, _text(folder.name), folder, 1, is_regularization=True))

    if named and _has_images(folder, deep=False):
        note = "pictures beside the regularization concept folders are not used"
        layout.problems.append(
            Problem("warning", "loose-images", folder, note, "move them into a folder such as 1_person")
        )

    if len(layout.concepts) == found:
        note = "holds no regularization images; training goes on without"
        layout.problems.append(Problem("info", "regularization", folder, note))
    elif settings.regularization_folder is None:
        note = "is used as the folder of regularization images"
        layout.problems.append(
            Problem("info", "regularization", folder, note, "set use_regularization=false to leave them out")
        )


def _find_regularization(layout: Layout, given: Path) -> Path | None:
    """A folder of that name inside the dataset folder, inside the folder the user gave, or beside that one."""
    for place in dict.fromkeys([layout.folder, given, given.parent]):
        found = {child.name.lower(): child for child in _entries(place).folders if _is_regularization(child)}
        for name in REGULARIZATION_NAMES:
            if name in found:
                return found[name]
    return None


def _add_concept(layout: Layout, folder: Path, settings: DatasetSettings, *, is_regularization: bool) -> None:
    match = _N_NAME.fullmatch(folder.name)
    digits, name = match.groups() if match else ("1", folder.name)
    repeats = int(digits) if len(digits) < 10 else _MAX_REPEATS + 1
    if repeats == 0:
        note, hint = "has 0 repeats, so its pictures are not used", "rename it to begin with 1_ or more to use them"
        layout.problems.append(Problem("warning", "zero-repeats", folder, note, hint))
        return
    if repeats > _MAX_REPEATS:
        note = f"begins with {digits[:12]}, too many to be repeats (a date?); {settings.repeats} is used"
        layout.problems.append(
            Problem("warning", "folder-name", folder, note, "rename it to begin with the repeats: 10_name")
        )
        repeats, name = settings.repeats, folder.name
    if not name.strip():
        note = "has no name after the underscore, so pictures without a caption get an empty one"
        layout.problems.append(Problem("warning", "folder-name", folder, note, "rename it, for example to 10_cat"))
    layout.concepts.append(Concept(folder.name, _text(name), folder, repeats, is_regularization))


def _text(name: str) -> str:
    return normal_name(name).strip()


def _is_regularization(folder: Path) -> bool:
    return folder.name.lower() in REGULARIZATION_NAMES


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in {"thumbs.db", "desktop.ini", "__macosx"}


@dataclass(frozen=True)
class _Entries:
    """What is directly inside a folder, without what is hidden, in a fixed order; and why it cannot be read."""

    folders: tuple[Path, ...]
    files: tuple[Path, ...]
    problems: tuple[Problem, ...] = ()


def _entries(folder: Path) -> _Entries:
    problems: tuple[Problem, ...] = ()
    folders: list[Path] = []
    files: list[Path] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not _hidden(entry.name):
                    (folders if _is_folder(entry) else files).append(folder / entry.name)
    except OSError as error:
        note = f"cannot be read: {error.strerror}"
        problems = (Problem("error", "unreadable-folder", folder, note, "check its permissions"),)
    return _Entries(tuple(sorted(folders, key=_order)), tuple(sorted(files, key=_order)), problems)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link that leads to itself: reported as a file that cannot be read


def _has_images(folder: Path, *, deep: bool = True) -> bool:
    """Whether a file named like a picture is inside (``deep``: or in folders below)."""
    walk = _walk(folder, ()) if deep else iter(_entries(folder).files)
    files = (path for path in walk if not isinstance(path, Problem))
    return any(path.suffix.lower() in IMAGE_SUFFIXES or _looks_like_image(path) for path in files)


def _looks_like_image(path: Path) -> bool:
    """Whether a file without an image's suffix begins like one that can be read."""
    if path.suffix.lower() in {".txt", ".caption", ".json", ".npz", ".safetensors", ".toml", ".py", ".md"}:
        return False
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return signature(file.read(64)) in SUFFIXES
    except OSError:
        return False


def _walk(folder: Path, apart: Collection[Path], above: tuple[tuple[int, int], ...] = ()) -> Iterator[Path | Problem]:
    """Every file below ``folder``, and every folder that is not gone into; links are followed, but not in circles."""
    try:
        status = folder.stat()
    except OSError:
        return
    key = (status.st_dev, status.st_ino)
    if (key in above and key[1]) or len(above) > _MAX_DEPTH:
        note = "leads back to a folder above it" if key in above else "is nested too deep"
        yield Problem("warning", "folder-loop", folder, f"is not followed: it {note}", "remove the link")
        return
    inside = _entries(folder)
    yield from inside.problems
    yield from inside.files
    for child in inside.folders:
        if child not in apart:
            yield from _walk(child, apart, (*above, key))
