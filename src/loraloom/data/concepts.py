"""Which folders hold what: n_name concept folders, and regularization images.

``10_cat`` means: every picture inside is shown ten times an epoch, and "cat" is the caption of pictures without one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from loraloom.data.folder_contents import entries, has_images
from loraloom.data.problems import Problem, normal_name, readable
from loraloom.data.settings import ConceptSettings, DatasetSettings
from loraloom.errors import DatasetError

__all__ = ["REGULARIZATION_NAMES", "Concept", "Layout", "find_layout"]

REGULARIZATION_NAMES = ("regularization_images", "regularization", "reg_images", "reg", "class_images")
"""Folder names that mean regularization images, in any case."""

_IGNORED_FOLDERS = frozenset({"__pycache__", "__macosx", "model", "models", "log", "logs", "sample", "samples"})
_MAX_REPEATS = 9999
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


def _mask_folders(settings: DatasetSettings) -> frozenset[Path]:
    folders = [settings.mask_folder, *(concept.mask_folder for concept in settings.concepts)]
    return frozenset(folder.expanduser().absolute() for folder in folders if folder is not None)


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
    """The concepts in a folder, by the first of :data:`_RULES` that fits."""
    inside = entries(folder)
    masks = _mask_folders(settings)
    children = tuple(child for child in inside.folders if child not in masks)
    place = _Place(folder, children, has_images(folder, deep=False), settings, depth)
    layout = next(found for rule in _RULES if (found := rule(place)) is not None)
    layout.problems[:0] = inside.problems
    return layout


@dataclass(frozen=True)
class _Place:
    """A folder that is to be understood, ``depth`` folders below the one that was given.

    ``children``: the folders in it, but for those of masks; ``is_loose``: pictures are directly in it.
    """

    folder: Path
    children: tuple[Path, ...]
    is_loose: bool
    settings: DatasetSettings
    depth: int

    @property
    def named(self) -> list[Path]:
        """The concept folders."""
        return [child for child in self.children if _N_NAME.fullmatch(child.name)]

    @property
    def plain(self) -> list[Path]:
        """The folders that may hold the dataset, or be a concept."""
        return [child for child in self.children if not _is_regularization(child)]


def _concepts_inside(place: _Place) -> Layout | None:
    """n_name folders. What stands beside them is not used, which a person might expect."""
    if not place.named:
        return None
    layout = Layout(place.folder)
    for child in place.named:
        _add_concept(layout, child, place.settings, is_regularization=False)
    for child in place.plain:
        if child not in place.named and child.name.lower() not in _IGNORED_FOLDERS and has_images(child):
            note = "is not used: its name does not begin with a number of repeats and an underscore"
            hint = f"rename it to 1_{readable(child.name)} to use it as a concept"
            layout.problems.append(Problem("warning", "folder-name", child, note, hint))
    if place.is_loose:
        note = "pictures beside the concept folders are not used"
        layout.problems.append(
            Problem("warning", "loose-images", place.folder, note, "move them into a concept folder such as 1_name")
        )
    return layout


def _concept_itself(place: _Place) -> Layout | None:
    """The folder that was given is an n_name folder."""
    folder = place.folder
    if place.depth > 0 or not _N_NAME.fullmatch(folder.name) or not has_images(folder):
        return None
    layout = Layout(folder.parent)
    _add_concept(layout, folder, place.settings, is_regularization=False)
    note = "is a concept folder itself; its neighbours are not used"
    hint = f"give {readable(folder.parent)} to use all of them"
    layout.problems.append(Problem("info", "layout", folder, note, hint))
    return layout


def _dataset_inside(place: _Place) -> Layout | None:
    """One folder in it holds n_name folders. DatasetError where several do: which one is meant?"""
    if place.is_loose:
        return None
    deeper = [child for child in place.plain if any(_N_NAME.fullmatch(c.name) for c in entries(child).folders)]
    if len(deeper) > 1:
        names = ", ".join(readable(child.name) for child in deeper)
        raise DatasetError(f"{readable(place.folder)} holds several datasets: {names}", "give one of these folders")
    if not deeper:
        return None
    layout = _training_layout(deeper[0], place.settings, place.depth + 1)
    note = f"holds the concept folders in {readable(deeper[0].name)!r}, which is used as the dataset"
    layout.problems.insert(0, Problem("info", "layout", place.folder, note))
    return layout


def _plain_folders(place: _Place) -> Layout | None:
    """Folders of pictures whose names say nothing: each is a concept."""
    if place.is_loose:
        return None
    with_images = [c for c in place.plain if c.name.lower() not in _IGNORED_FOLDERS and has_images(c)]

    # An archive that was unpacked into a folder of its own name is one level deeper, or two.
    if len(with_images) == 1 and place.depth < 3 and not has_images(with_images[0], deep=False):
        return _training_layout(with_images[0], place.settings, place.depth + 1)
    return _plain_concepts(place.folder, with_images, place.settings) if with_images else None


def _pictures(place: _Place) -> Layout:
    """The folder itself is the only concept."""
    folder, repeats = place.folder, place.settings.repeats
    note = f"is one folder of pictures; each is shown {repeats} time(s) an epoch"
    hint = "put pictures into folders like 10_cat for repeats of their own"
    concept = Concept(folder.name, _text(folder.name), folder, repeats)
    return Layout(folder, concepts=[concept], problems=[Problem("info", "layout", folder, note, hint)])


_RULES: tuple[Callable[[_Place], Layout | None], ...] = (
    _concepts_inside,
    _concept_itself,
    _dataset_inside,
    _plain_folders,
    _pictures,
)
"""How the concepts of a folder are found, from what says most to what says least; the last one always fits."""


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
    inside = entries(folder)
    layout.problems += inside.problems

    named = [child for child in inside.folders if _N_NAME.fullmatch(child.name)]
    # Counted from here, to see whether this folder adds anything at all.
    found = len(layout.concepts)
    for child in named:
        _add_concept(layout, child, settings, is_regularization=True)
    if not named and has_images(folder):
        if _N_NAME.fullmatch(folder.name):
            _add_concept(layout, folder, settings, is_regularization=True)
        else:
            layout.concepts.append(Concept(folder.name, _text(folder.name), folder, 1, is_regularization=True))

    if named and has_images(folder, deep=False):
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
        found = {child.name.lower(): child for child in entries(place).folders if _is_regularization(child)}
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
