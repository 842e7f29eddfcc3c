"""The files of one concept: its pictures, their masks and captions."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from loraloom.data.concepts import Concept, Layout
from loraloom.data.folder_contents import FOREIGN_SUFFIXES, IMAGE_SUFFIXES, files_below, looks_like_image, order
from loraloom.data.problems import Problem, readable

__all__ = ["MASK_ENDINGS", "Files", "list_files", "orphan_mask"]

MASK_ENDINGS = ("-masklabel", ".mask")
"""What the names of masks beside pictures end with, before the suffix (OneTrainer, cloneofsimo)."""
_CONDITION_ENDING = "-condlabel"  # OneTrainer: pictures for inpainting


@dataclass
class Files:
    """The files of one concept, relative paths sorted by composed Unicode name. ``masks``: those of the pictures."""

    images: list[Path] = field(default_factory=list)
    masks: dict[Path, Path] = field(default_factory=dict)
    texts: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def list_files(concept: Concept, layout: Layout, caption_extensions: Collection[str], *, beside: bool = False) -> Files:
    """Pictures, captions and the rest inside a concept folder.

    Plain folders inside belong to the concept; other concepts' folders and regularization folders do not. ``beside``:
    what is named as a mask is one, even where its picture is gone.
    """
    files = Files()
    for path in files_below(concept.folder, _apart(concept, layout)):
        if isinstance(path, Problem):
            files.problems.append(path)
        elif path.suffix.lower() in caption_extensions:
            files.texts.append(path.relative_to(concept.folder))
        elif path.suffix.lower() in IMAGE_SUFFIXES | FOREIGN_SUFFIXES or looks_like_image(path):
            files.images.append(path.relative_to(concept.folder))
    files.images.sort(key=order)
    files.texts.sort(key=order)
    files.problems.extend(_nested_folders(concept, files))
    _set_masks_apart(files)
    if beside:
        _set_orphans_apart(concept, files)
    return files


def _apart(concept: Concept, layout: Layout) -> set[Path]:
    """Folders inside the concept that are not of it.

    Pictures of another concept would be shown twice, and regularization images trained as the subject.
    """
    apart = {other.folder for other in layout.concepts if other.folder != concept.folder} | layout.apart
    if layout.regularization_folder is not None and layout.regularization_folder != concept.folder:
        apart.add(layout.regularization_folder)
    return apart


def _nested_folders(concept: Concept, files: Files) -> list[Problem]:
    inner = {path.parent for path in files.images if len(path.parts) > 1}
    note = f"its pictures are used as part of concept {readable(concept.label)!r}"
    hint = "name a folder n_name (10_cat) to make it a concept with repeats of its own"
    return [Problem("info", "nested-folder", concept.folder / folder, note, hint) for folder in sorted(inner)]


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


def _set_orphans_apart(concept: Concept, files: Files) -> None:
    orphans = [path for path in files.images if path.stem.lower().endswith(MASK_ENDINGS)]
    files.images = [path for path in files.images if path not in orphans]
    files.problems.extend(orphan_mask(concept.folder / path) for path in orphans)


def orphan_mask(mask: Path) -> Problem:
    """The sentence about a mask without its picture."""
    return Problem(
        "warning", "mask-orphan", mask, "is the mask of no picture", "give it the name of its picture, or remove it"
    )
