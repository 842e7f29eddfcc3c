"""The prompt language of the AUTOMATIC1111 web UI: LoRA tags, and weights by parentheses.

Whatever a person types is a prompt: brackets that do not match are text or closed at the end, never an error. Only a
LoRA tag can be wrong (PromptError), because an image without the LoRA would look like success.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from loraloom.errors import PromptError
from loraloom.models.conditioning import BREAK, Segment

__all__ = ["LoraTag", "extract_loras", "parse_attention"]


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


ROUND_WEIGHT = 1.1
SQUARE_WEIGHT = 1 / 1.1

_TOKEN = re.compile(
    r"""
      \\(?P<escaped>[()\[\]\\]?)                                         # a lone backslash disappears
    | (?P<open>[(\[])
    | : \s* (?P<weight> [+-]? (?: \d+ (?:\.\d*)? | \.\d+ ) ) \s* \)
    | (?P<close>[)\]])
    | (?P<text> [^\\()\[\]:]+ | : )
    """,
    re.VERBOSE,
)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")


def parse_attention(prompt: str) -> list[Segment]:
    """A prompt as stretches of equal weight; at least one.

    ``(x)`` 1.1, ``[x]`` 1/1.1, ``(x:1.3)`` 1.3, nested weights multiply, a backslash makes a bracket text. The word
    BREAK becomes conditioning.BREAK wherever it stands, also inside brackets.
    """
    segments: list[Segment] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def scale(since: int, weight: float) -> None:
        segments[since:] = [
            segment if segment is BREAK else replace(segment, weight=segment.weight * weight)
            for segment in segments[since:]
        ]

    for token in _TOKEN.finditer(prompt):
        if token["escaped"] is not None:
            segments.append(Segment(token["escaped"]))
        elif token["open"]:
            opened[token["open"]].append(len(segments))
        elif token["weight"] and opened["("]:
            scale(opened["("].pop(), float(token["weight"]))
        elif token["close"] == ")" and opened["("]:
            scale(opened["("].pop(), ROUND_WEIGHT)
        elif token["close"] == "]" and opened["["]:
            scale(opened["["].pop(), SQUARE_WEIGHT)
        else:
            segments.extend(_with_breaks(token.group(0)))
    _close(opened, scale)
    return _merged(segments)


def _close(opened: dict[str, list[int]], scale: Callable[[int, float], None]) -> None:
    for since in opened["("]:
        scale(since, ROUND_WEIGHT)
    for since in opened["["]:
        scale(since, SQUARE_WEIGHT)


def _with_breaks(text: str) -> list[Segment]:
    first, *others = _BREAK.split(text)
    return [Segment(first)] + [segment for part in others for segment in (BREAK, Segment(part))]


def _merged(segments: list[Segment]) -> list[Segment]:
    """Neighbours of equal weight joined, empty stretches dropped."""
    merged: list[Segment] = []
    for segment in segments:
        if segment is not BREAK and not segment.text:
            continue
        last = merged[-1] if merged else BREAK
        if segment is not BREAK and last is not BREAK and last.weight == segment.weight:
            merged[-1] = Segment(last.text + segment.text, last.weight)
        else:
            merged.append(segment)
    return merged or [Segment("")]
