"""LoRA tags of a prompt: ``<lora:name:0.8>``.

Only a LoRA tag can be wrong (PromptError), because an image without the LoRA would look like success.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from loraloom.errors import PromptError

__all__ = ["LoraTag", "extract_loras"]


@dataclass(frozen=True)
class LoraTag:
    """``<lora:name:0.8>``: a LoRA by name or path, and its weights."""

    name: str
    text_encoder: float
    unet: float


_TAG = re.compile(r"<(?:lora|lyco):([^<>]*)>")
_DRIVE = re.compile(r"^([A-Za-z]):(?=[\\/])")


def extract_loras(prompt: str) -> tuple[str, tuple[LoraTag, ...]]:
    """The prompt without its LoRA tags (nothing is put in their place), and the tags in order.

    ``<lora:NAME>``, ``<lora:NAME:WEIGHT>``, ``<lora:NAME:TEXT_ENCODER:UNET>``; weights can be named ``te=`` and
    ``unet=``; the U-Net's is the text encoder's unless given, which is 1 unless given. ``<lyco:`` means the same.
    """
    tags = tuple(_read_tag(match.group(0), match.group(1)) for match in _TAG.finditer(prompt))
    return _TAG.sub("", prompt), tags


def _read_tag(tag: str, content: str) -> LoraTag:
    drive = _DRIVE.match(content)
    name, *arguments = content[drive.end() :].split(":") if drive else content.split(":")
    name = (drive.group(0) + name if drive else name).strip()
    if not name:
        raise PromptError(f"{tag} names no LoRA", "write <lora:name:weight>")
    positional = [argument for argument in arguments if "=" not in argument]
    weights: dict[str, float] = {}
    if len(positional) > 2:
        raise PromptError(f"{tag} has {len(positional)} weights", "write <lora:name:weight> or <lora:name:te:unet>")
    for key, text in zip(("te", "unet"), positional, strict=False):
        if text.strip():
            weights[key] = _weight(tag, text)
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if equals and key.strip() not in ("te", "unet"):
            raise PromptError(f"{tag}: {key.strip()!r} is not something that can be set", "te= and unet= are")
        if equals:
            weights[key.strip()] = _weight(tag, text)
    text_encoder = weights.get("te", 1.0)
    return LoraTag(name, text_encoder, weights.get("unet", text_encoder))


def _weight(tag: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise PromptError(f"{tag}: {text.strip()!r} is not a weight", "a weight is a number such as 0.8")
    return weight
