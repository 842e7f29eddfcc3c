"""Merge and inspect, as a person asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loraloom.errors import SettingsError

if TYPE_CHECKING:
    from loraloom.weights.inspect import FileReport
    from loraloom.weights.merge import LoraWeight, MergeReport

__all__ = ["inspect_file", "merge_loras", "parse_lora_weight"]


def parse_lora_weight(text: str) -> LoraWeight:
    """``LORA``, ``LORA:0.8`` (both parts) or ``LORA:te:unet``; a path may hold colons itself (``C:\\loras\\x.pt``)."""
    from loraloom.weights.merge import LoraWeight

    path, numbers = text, list[float]()
    while len(numbers) < 2 and ":" in path:
        rest, _, last = path.rpartition(":")
        try:
            numbers.insert(0, float(last))
        except ValueError:
            break
        path = rest
    if not path or any(number != number or number in (float("inf"), float("-inf")) for number in numbers):
        raise SettingsError(
            [f"{text!r} is not LORA:weight or LORA:text_encoder:unet"], "for example style.safetensors:0.8"
        )
    text_encoder, unet = (numbers or [1.0])[0], (numbers or [1.0])[-1]
    return LoraWeight(Path(path), unet=unet, text_encoder=text_encoder)


def merge_loras(checkpoint: Path, loras: Sequence[str], output: Path, *, precision: str | None) -> MergeReport:
    """Merge the LoRAs (as :func:`parse_lora_weight` reads them) into a checkpoint."""
    from loraloom.weights.merge import merge

    return merge(checkpoint, [parse_lora_weight(text) for text in loras], output, precision=precision)


def inspect_file(path: Path) -> FileReport:
    """Tell what a file is."""
    from loraloom.weights.inspect import inspect_file as inspect

    return inspect(path)
