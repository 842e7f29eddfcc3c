"""Masks: which parts of a picture are learned. White (255) is learned, black is not, grey in proportion.

A mask is cut exactly as its picture is and averaged over the area of each latent pixel. A picture without a mask is
learned whole.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from loraloom.data.concept_files import MASK_ENDINGS, Files, orphan_mask
from loraloom.data.concepts import Concept
from loraloom.data.folder_contents import IMAGE_SUFFIXES
from loraloom.data.images import load_grey
from loraloom.data.problems import Problem, normal_name, readable
from loraloom.data.sample import Sample
from loraloom.data.settings import DatasetSettings, MaskSource
from loraloom.errors import DatasetError

if TYPE_CHECKING:
    import torch

__all__ = ["MaskCache", "MaskFiles", "load_mask", "mask_problems"]

_STRETCHED = 1.03
_MEMORY = 2**28


class MaskFiles:
    """Finds the masks of pictures in folders, and knows which masks no picture used."""

    def __init__(self, settings: DatasetSettings) -> None:
        self._settings = settings
        self._found: dict[Path, dict[str, Path]] = {}
        self._users: dict[Path, Path] = {}

    def of(self, concept: Concept, relative: Path, files: Files, source: MaskSource) -> Path | None:
        """The mask of a picture of a concept whose masks come from ``source``; None if it has none, or no file."""
        own = concept.settings
        if source == "beside":
            mask = files.masks.get(relative)
            return None if mask is None else concept.folder / mask
        if source != "folder":
            return None
        stem = normal_name(relative.with_suffix(""))
        if own is not None and own.mask_folder is not None:
            return self._lookup(own.mask_folder, [stem], concept.folder / relative)
        assert self._settings.mask_folder is not None, "settings are validated"
        names = [f"{normal_name(concept.folder.name)}/{stem}", stem]
        return self._lookup(self._settings.mask_folder, names, concept.folder / relative)

    def problems(self) -> Iterator[Problem]:
        """Masks that belong to no picture, or to several."""
        for masks in self._found.values():
            for mask in dict.fromkeys(masks.values()):
                if mask not in self._users:
                    yield orphan_mask(mask)

    def _lookup(self, root: Path, names: Iterable[str], picture: Path) -> Path | None:
        masks = self._listed(root.expanduser().absolute())
        mask = next((masks[name.casefold()] for name in names if name.casefold() in masks), None)
        if mask is not None:
            self._users.setdefault(mask, picture)
        return mask

    def _listed(self, root: Path) -> dict[str, Path]:
        if root not in self._found:
            if not root.is_dir():
                what = "is not a folder" if root.exists() else "does not exist"
                raise DatasetError(f"mask folder {readable(root)} {what}", "check dataset.mask_folder")
            masks: dict[str, Path] = {}
            for folder, inner, names in os.walk(root):
                inner.sort()
                for name in sorted(names):
                    path = Path(folder) / name
                    if path.suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                        stem = normal_name(path.relative_to(root).with_suffix("")).casefold()
                        masks.setdefault(stem, path)
                        for ending in MASK_ENDINGS:
                            if stem.endswith(ending):
                                masks.setdefault(stem.removesuffix(ending), path)
            self._found[root] = masks
        return self._found[root]


def mask_problems(mask: Path, size: tuple[int, int], *, max_megapixels: float) -> tuple[list[Problem], bool]:
    """What is odd about a mask for a picture of ``size`` (width, height), and whether it can be used."""
    try:
        image = load_grey(mask, max_megapixels=max_megapixels)
    except DatasetError as error:
        problem = error.problem.partition(": ")[2] or error.problem
        return [Problem("error", "mask", mask, problem, error.hint)], False
    problems = []
    shape = (image.width * size[1]) / (image.height * size[0])
    if max(shape, 1 / shape) > _STRETCHED:
        note = f"has another shape ({image.width} x {image.height}) than its picture ({size[0]} x {size[1]})"
        problems.append(
            Problem("warning", "mask-shape", mask, f"{note}: it is stretched", "give it the proportions of the picture")
        )
    if image.getextrema() == (0, 0):
        hint = "white is what is learned; remove the picture, or the mask"
        problems.append(Problem("warning", "mask-black", mask, "is all black: nothing is learned", hint))
    return problems, True


def load_mask(
    sample: Sample, *, flipped: bool = False, variant: int = 0, size: tuple[int, int] | None = None
) -> torch.Tensor:
    """How much of each latent pixel of a sample is learned: (h, w) float32 in [0, 1].

    ``size`` is the latent's (height, width), an eighth of the bucket unless given. Ones where the sample has no mask.
    Raises DatasetError if the file was removed or damaged since the dataset was read.
    """
    import torch

    height, width = size or (sample.bucket[1] // 8, sample.bucket[0] // 8)
    if sample.mask_path is None and not sample.has_alpha_mask:
        return torch.ones(height, width)
    path = sample.mask_path or sample.path
    image = load_grey(path, alpha=sample.mask_path is None).convert("F")
    placed = sample.fit_of(variant)
    across, down = image.width / placed.resized[0], image.height / placed.resized[1]
    top, left = placed.crop
    box = (left * across, top * down, (left + sample.bucket[0]) * across, (top + sample.bucket[1]) * down)
    small = image.resize((width, height), Image.Resampling.BOX, box=box)
    if flipped:
        small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(small, dtype=np.float32)).div_(255).clamp_(0, 1)


class MaskCache:
    """Masks on the latent grid, kept in memory; those unused for longest are dropped first."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, bool, int, tuple[int, int]], torch.Tensor] = OrderedDict()
        self._bytes = 0

    def get(self, sample: Sample, *, flipped: bool, variant: int, size: tuple[int, int]) -> torch.Tensor:
        """See :func:`load_mask`."""
        key = (sample.identity, flipped, variant, size)
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        mask = load_mask(sample, flipped=flipped, variant=variant, size=size)
        self._known[key] = mask
        self._bytes += mask.nbytes
        while self._bytes > _MEMORY and len(self._known) > 1:
            self._bytes -= self._known.popitem(last=False)[1].nbytes
        return mask
