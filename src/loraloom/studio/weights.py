"""Merge and inspect, as a person asks for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from loraloom.errors import SettingsError
from loraloom.events import Listener, ignore

if TYPE_CHECKING:
    from loraloom.weights.inspect import FileReport
    from loraloom.weights.merge import LoraWeight, MergeReport

__all__ = ["inspect_file", "merge_loras", "parse_lora_weight"]


def parse_lora_weight(text: str) -> LoraWeight:
    """``LORA``, ``LORA:0.8`` (both parts) or ``LORA:te:unet``; a path may hold colons itself (``C:\\loras\\x.pt``)."""
    from loraloom.weights.merge import LoraWeight

    path, numbers = text, list[float]()
    while len(numbers) < 2 and ":" in path and not _exists(path):
        rest, _, last = path.rpartition(":")
        try:
            numbers.insert(0, float(last))
        except ValueError:
            break
        path = rest
    before, _, last = path.rpartition(":")
    is_typing_error = bool(before) and not _exists(path) and _exists(before)
    if not path or is_typing_error or not all(math.isfinite(number) for number in numbers):
        what = f": {last!r} is no number" if is_typing_error and not numbers else ""
        raise SettingsError(
            [f"{text!r} is not LORA:weight or LORA:text_encoder:unet{what}"], "for example style.safetensors:0.8"
        )
    text_encoder, unet = (numbers or [1.0])[0], (numbers or [1.0])[-1]
    return LoraWeight(Path(path), unet=unet, text_encoder=text_encoder)


def _exists(path: str) -> bool:
    with suppress(OSError, ValueError):  # a name that the file system cannot hold
        return Path(path).exists()
    return False


def merge_loras(
    checkpoint: Path, loras: Sequence[str], output: Path, *, precision: str | None = None, listener: Listener = ignore
) -> MergeReport:
    """Merge the LoRAs (as :func:`parse_lora_weight` reads them) into a checkpoint."""
    from loraloom.weights.merge import merge

    weights = [parse_lora_weight(text) for text in loras]
    return merge(checkpoint, weights, output, precision=precision, listener=listener)


def inspect_file(path: Path, *, hashes: bool = False) -> FileReport:
    """Tell what a file is; ``hashes`` reads all of it for the hashes that other programs show."""
    from loraloom.weights.inspect import inspect_file as inspect

    return inspect(path, hashes=hashes)
