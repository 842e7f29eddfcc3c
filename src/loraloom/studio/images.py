"""What ``loraloom generate`` does: open a checkpoint, find the LoRAs, paint, save numbered files."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from loraloom.errors import LoraloomError, OutputError
from loraloom.events import Listener, Notice, ignore
from loraloom.folders import cache_folder
from loraloom.formats.files import sha256_of, write_text
from loraloom.formats.image_info import save_image
from loraloom.generation.loras import find_lora
from loraloom.generation.prompts import PromptReader
from loraloom.generation.settings import GenerateSettings
from loraloom.generation.text_to_image import paint, with_seeds
from loraloom.hardware import choose_device, choose_precision
from loraloom.models.checkpoint import open_checkpoint
from loraloom.models.loaded import load_model

__all__ = ["SavedImage", "generate_images", "model_hash"]

_NUMBER = re.compile(r"^(\d+)-")


@dataclass(frozen=True)
class SavedImage:
    """An image on disk."""

    path: Path
    seed: int
    width: int
    height: int


def generate_images(checkpoint: Path, settings: GenerateSettings, *, listener: Listener = ignore) -> list[SavedImage]:
    """Paint ``settings.count`` images with a checkpoint and save each as soon as it is finished.

    Prompts, LoRAs and the output folder are looked at before the checkpoint is loaded.
    """
    settings = with_seeds(settings)
    reader = PromptReader(settings)
    names = {tag.name for index in range(settings.count) for tag in reader.read(settings.seed + index).loras}
    for name in sorted(names):
        find_lora(name, settings.lora_folders)
    device = choose_device(settings.device)
    precision = choose_precision(device, settings.precision)
    opened = open_checkpoint(checkpoint)
    number = _next_number(settings.output_folder)
    model = load_model(
        opened,
        device=device,
        compute=precision.compute,
        keep_file_precision=settings.keep_file_precision,
        prediction=settings.prediction,
        zero_terminal_snr=settings.zero_terminal_snr,
        offload=settings.low_memory,
        listener=listener,
    )
    listener(Notice(f"{checkpoint.name} is {model.family.title}, on {device} with precision {precision.name}"))
    digest = model_hash(checkpoint) if settings.model_hash else None
    saved = []
    for index, image in enumerate(paint(model, settings, listener=listener, model_hash=digest)):
        path = settings.output_folder / f"{number + index:05d}-{image.seed}.{settings.format}"
        save_image(image.image, path, image.infotext)
        saved.append(SavedImage(path, image.seed, *image.image.size))
    return saved


def model_hash(checkpoint: Path) -> str | None:
    """The first 10 digits of the file's SHA-256, as the web UI shows them; None for a folder.

    Hashing gigabytes takes seconds, so the result is remembered in the user's cache folder by path, size and time.
    """
    if not checkpoint.is_file():
        return None
    status = checkpoint.stat()
    key = f"{checkpoint.resolve()}|{status.st_size}|{status.st_mtime_ns}"
    remembered = cache_folder() / "hashes.json"
    known = _read_hashes(remembered)
    if key not in known:
        known[key] = sha256_of(checkpoint)
        with suppress(OSError, LoraloomError):  # a cache that cannot be written is only slower
            remembered.parent.mkdir(parents=True, exist_ok=True)
            write_text(remembered, json.dumps(known, indent=1))
    return known[key][:10]


def _read_hashes(path: Path) -> dict[str, str]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(data, dict):
        return {}
    return {
        key: value for key, value in data.items() if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value)
    }


def _next_number(folder: Path) -> int:
    """One more than the largest number in the folder, which is made if it does not exist."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        numbers = [int(match[1]) for path in folder.iterdir() if (match := _NUMBER.match(path.name))]
    except OSError as error:
        raise OutputError(f"{folder} cannot be used as output folder: {error.strerror}", "set output_folder") from error
    return max(numbers, default=-1) + 1
