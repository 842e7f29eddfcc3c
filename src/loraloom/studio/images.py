"""Pictures from settings: open a checkpoint, find the LoRAs, paint, save numbered files."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from loraloom.control import Control, keep_going
from loraloom.errors import OutputError
from loraloom.events import ImageSaved, Listener, Notice, PictureChanged, ignore
from loraloom.formats.file_hashes import file_hashes
from loraloom.formats.files import make_folder
from loraloom.formats.image_info import save_image
from loraloom.formats.pictures import rgb_picture
from loraloom.formats.room import Need, picture_bytes, require_room
from loraloom.generation.loras import find_lora, other_loras
from loraloom.generation.painting import with_seeds
from loraloom.generation.passes import hires_settings
from loraloom.generation.prompts import PromptReader
from loraloom.generation.settings import GenerateSettings
from loraloom.models.loaded import LoadedModel
from loraloom.studio.painter import Loading, Painter

__all__ = ["SavedImage", "check_prompts", "generate_images", "model_hash", "pictures_need", "say_size"]

_NUMBER = re.compile(r"^(\d+)-")


@dataclass(frozen=True)
class SavedImage:
    """An image on disk."""

    path: Path
    seed: int
    width: int
    height: int


def generate_images(
    checkpoint: Path,
    settings: GenerateSettings,
    *,
    painter: Painter | None = None,
    listener: Listener = ignore,
    control: Control = keep_going,
) -> list[SavedImage]:
    """Paint ``settings.count`` images with a checkpoint and save each as soon as it is finished.

    Prompts, LoRAs, pictures and the output folder are looked at before the checkpoint is loaded. ``painter`` keeps the
    model for later; ``control`` is heeded between two steps, and images that are finished stay.
    """
    settings = with_seeds(settings)
    check_prompts(settings, listener=listener)
    for picture in (settings.init_image, settings.mask):
        if picture is not None:
            rgb_picture(picture)
    number = _next_number(settings.output_folder)
    require_room([pictures_need(settings.output_folder, [settings])], listener)
    preview = settings.output_folder / "preview.png"

    def watch(step: int, look: Callable[[], Image.Image]) -> None:
        if step % settings.preview_every == 0:
            save_image(look(), preview, f"step {step}")
            listener(PictureChanged(str(preview), step))

    saved = []
    with (painter or Painter()).job(checkpoint, Loading.of(settings), listener=listener, control=control) as job:
        say_size(job.model, settings, listener)
        digest = model_hash(checkpoint, control) if settings.model_hash else None
        images = job.paint(settings, model_hash=digest, watch=watch if settings.preview_every else None)
        for index, image in enumerate(images):
            path = settings.output_folder / f"{number + index:05d}-{image.seed}.{settings.format}"
            save_image(image.image, path, image.infotext)
            saved.append(SavedImage(path, image.seed, *image.image.size))
            listener(ImageSaved(str(path), index + 1, settings.count))
    return saved


def pictures_need(folder: Path, each: Sequence[GenerateSettings]) -> Need:
    """The room that the pictures of these settings take, ``count`` of each; where no size is set, that of SD 1."""
    sizes = [
        picture_bytes(
            int((one.width or 512) * (one.hires_scale or 1)),
            int((one.height or 512) * (one.hires_scale or 1)),
            one.count,
            one.format,
        )
        for one in each
    ]
    return Need(folder, sum(sizes), f"{sum(one.count for one in each)} pictures")


def say_size(model: LoadedModel, settings: GenerateSettings, listener: Listener) -> None:
    """Where the size is left to the checkpoint: what its file says, if it says anything."""
    if settings.width is not None and settings.height is not None:
        return
    own = model.checkpoint.own_resolution(model.prediction)
    if own.remark:
        listener(Notice(own.remark, "warning"))
    elif own.is_said:
        listener(Notice(f"{own.width} x {own.height} pixels: what {model.checkpoint.path.name} says of itself"))


def check_prompts(settings: GenerateSettings, *, listener: Listener = ignore) -> None:
    """Raise the error that painting would end with for a LoRA, a style, a wildcard file that is not there.

    A LoRA whose name other files have too is named with its file.
    """
    reader = PromptReader(settings)
    readers = [reader]
    if settings.hires_prompt or settings.hires_negative_prompt:
        readers.append(PromptReader(hires_settings(settings, (8, 8))))
    seeds = range(settings.seed, settings.seed + settings.count)
    for name in sorted({tag.name for one in readers for seed in seeds for tag in one.read(seed).loras}):
        path = find_lora(name, settings.lora_folders)
        if others := other_loras(name, settings.lora_folders):
            listed = ", ".join(map(str, others))
            listener(Notice(f"<lora:{name}> is {path}; {listed} has the name too and is not used", "warning"))


def model_hash(checkpoint: Path, control: Control = keep_going) -> str | None:
    """The first 10 digits of the file's SHA-256, as the web UI shows them; None for a folder.

    Hashing gigabytes takes seconds, so the result is remembered in the user's cache folder by path, size and time.
    """
    if not checkpoint.is_file():
        return None
    return file_hashes(checkpoint, control).sha256[:10]


def _next_number(folder: Path) -> int:
    """One more than the largest number in the folder, which is made if it does not exist."""
    make_folder(folder, hint="set output_folder")
    try:
        numbers = [int(match[1]) for path in folder.iterdir() if (match := _NUMBER.match(path.name))]
    except OSError as error:
        raise OutputError(f"{folder} cannot be used as output folder: {error.strerror}", "set output_folder") from error
    return max(numbers, default=-1) + 1
