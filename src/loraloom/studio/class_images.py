"""Regularization images that a checkpoint paints itself: as many as the training pictures, in the same shapes.

What the guide says to do by hand in a web page: images of the class ("photo of a man"), so that training on one man
does not turn every man into him.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from loraloom.actions import Action, Sentence
from loraloom.control import Control, keep_going
from loraloom.data.dataset import load_dataset
from loraloom.data.sample import Sample
from loraloom.data.settings import DatasetSettings
from loraloom.errors import DatasetError, FileError, SettingsError
from loraloom.events import ImageSaved, Listener, Notice, ignore
from loraloom.formats.files import make_folder, write_text
from loraloom.formats.image_info import parse_parameters, read_parameters, save_image
from loraloom.formats.pictures import SUFFIXES
from loraloom.formats.room import require_room
from loraloom.generation.prompts import extract_loras
from loraloom.generation.settings import GenerateSettings
from loraloom.generation.text_to_image import GeneratedImage
from loraloom.studio.images import model_hash, pictures_need
from loraloom.studio.painter import Job, Loading, Painter

__all__ = ["FILEWORDS", "ClassImages", "make_class_images"]

FILEWORDS = "[filewords]"
"""In a prompt: the caption of a training picture, without the trigger word (sd_dreambooth_extension's name for it)."""
_SUFFIXES = frozenset(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
_OURS = re.compile(r"\d{5}-\d+\.(png|jpg|webp)")


@dataclass(frozen=True)
class ClassImages:
    """What there is now in ``folder``: ``found`` pictures that were there before, ``painted`` new ones."""

    folder: Path
    found: int
    painted: int


@dataclass(frozen=True)
class _Plan:
    """One image to be: its place in the series, what it shows, its size (width, height) in pixels."""

    index: int
    prompt: str
    size: tuple[int, int]


def make_class_images(
    checkpoint: Path,
    dataset: DatasetSettings,
    settings: GenerateSettings,
    *,
    count: int | None = None,
    folder: Path | None = None,
    trigger: str = "",
    painter: Painter | None = None,
    listener: Listener = ignore,
    control: Control = keep_going,
) -> ClassImages:
    """Paint ``settings.prompt`` until ``folder`` holds ``count`` pictures (unset: one for each training picture).

    ``folder`` unset: ``regularization_images/1_class`` in the dataset folder, where training finds it. Image i has the
    seed ``settings.seed + i`` (from 0 unless set), the prompt of training picture i and the shape of its bucket, so an
    interrupted series goes on where it stopped and ends with the images of an uninterrupted one. Every image gets a
    caption file. ``[filewords]`` in the prompt stands for the training picture's caption without ``trigger``.
    Nothing that is there is ever changed. ``painter`` keeps the model for later; ``control`` is heeded between two
    steps, and pictures that are finished stay. Raises SettingsError, DatasetError, and what painting raises.
    """
    if not settings.prompt.strip():
        raise SettingsError(["the class prompt is empty"], 'say what the class is, for example "photo of a man"')
    samples = load_dataset(
        dataset.model_copy(update={"use_regularization": False}), listener=listener, control=control
    ).training
    count = len(samples) if count is None else count
    folder = folder or dataset.folder / "regularization_images" / f"1_{_class_name(settings.prompt, samples)}"
    if folder.exists() and not folder.is_dir():
        raise DatasetError(f"{folder} is a file, not a folder", Sentence("name another folder ", Action.NAME_OUTPUT))
    there = _pictures(folder)
    _remark_on_others(there, checkpoint, settings, listener)
    if len(there) >= count:
        return ClassImages(folder, len(there), 0)

    # A random seed (-1) would be another one after an interruption, and the series would not go on.
    settings = settings.model_copy(update={"seed": max(settings.seed, 0)})
    done = {path.name for path in there}
    plans = list(_plans(settings, samples, trigger, done, count - len(there)))
    wanted = [settings.model_copy(update={"width": plan.size[0], "height": plan.size[1], "count": 1}) for plan in plans]
    require_room([pictures_need(folder, wanted)], listener)
    make_folder(folder)

    painted = 0
    with (painter or Painter()).job(checkpoint, Loading.of(settings), listener=listener, control=control) as job:
        digest = model_hash(checkpoint, control) if settings.model_hash else None
        for plan, image in _paint(job, settings, plans, digest):
            path = folder / _name(plan.index, settings)
            # The caption first: an image without one would be trained with the folder's name.
            write_text(path.with_suffix(".txt"), image.prompt.text.strip() + "\n")
            save_image(image.image, path, image.infotext)
            painted += 1
            listener(ImageSaved(str(path), len(there) + painted, count))
    return ClassImages(folder, len(there), painted)


def _paint(
    job: Job, settings: GenerateSettings, plans: Sequence[_Plan], digest: str | None
) -> Iterator[tuple[_Plan, GeneratedImage]]:
    """The images of the plans, series by series."""
    for part in _series(plans):
        first = part[0]
        of_part = {
            "prompt": first.prompt,
            "width": first.size[0],
            "height": first.size[1],
            "seed": settings.seed + first.index,
            "count": len(part),
        }
        yield from zip(part, job.paint(settings.model_copy(update=of_part), model_hash=digest), strict=True)


def _plans(
    settings: GenerateSettings, samples: Sequence[Sample], trigger: str, done: set[str], missing: int
) -> Iterator[_Plan]:
    index = 0
    while missing:
        if _name(index, settings) not in done:
            sample = samples[index % len(samples)]
            prompt = settings.prompt.replace(FILEWORDS, _without(trigger, sample.caption))
            size = settings.width or sample.bucket[0], settings.height or sample.bucket[1]
            yield _Plan(index, prompt, size)
            missing -= 1
        index += 1


def _series(plans: Sequence[_Plan]) -> Iterator[list[_Plan]]:
    """Runs of neighbours with one prompt and one size: they can share a batch."""
    for _, run in groupby(enumerate(plans), lambda item: (item[1].index - item[0], item[1].prompt, item[1].size)):
        yield [plan for _, plan in run]


def _name(index: int, settings: GenerateSettings) -> str:
    return f"{index:05d}-{settings.seed + index}.{settings.format}"


def _class_name(prompt: str, samples: Sequence[Sample]) -> str:
    """A folder name from the prompt's words."""
    words = prompt.replace(FILEWORDS, " ")
    words = re.sub(r"[^\w\s-]+", " ", extract_loras(words)[0])
    return " ".join(words.split())[:60] or samples[0].concept.name or "class"


def _without(trigger: str, caption: str) -> str:
    if not trigger:
        return caption
    parts = (part.strip() for part in re.sub(rf"(?<!\w){re.escape(trigger)}(?!\w)", "", caption).split(","))
    return ", ".join(" ".join(part.split()) for part in parts if part)


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)


def _remark_on_others(there: Sequence[Path], checkpoint: Path, settings: GenerateSettings, listener: Listener) -> None:
    """Say when pictures of an earlier series were painted from something else; they are kept and counted."""
    if FILEWORDS in settings.prompt:
        return
    different = 0
    for path in there:
        if not _OURS.fullmatch(path.name):
            continue
        try:
            text = read_parameters(path)
        except FileError:
            continue
        if text is None:
            continue
        found = parse_parameters(text)
        different += found.prompt != settings.prompt or found.fields.get("Model", checkpoint.stem) != checkpoint.stem
    if different:
        listener(
            Notice(
                Sentence(
                    f"{different} of the pictures that are there were painted with another prompt or checkpoint; "
                    "they are kept and counted (remove them, or name another folder ",
                    Action.NAME_OUTPUT,
                    ", for a series of one kind)",
                ),
                "warning",
            )
        )
