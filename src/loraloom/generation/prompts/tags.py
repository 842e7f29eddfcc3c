"""LoRA tags of a prompt: ``<lora:name:0.8>``.

Only a LoRA tag can be wrong (PromptError), because an image without the LoRA would look like success.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import pairwise

from loraloom.adapters.block_weights import BlockWeights, parse_block_weights
from loraloom.adapters.strength import LoraStrength
from loraloom.errors import PromptError, SettingsError

__all__ = ["LoraTag", "WeightCurve", "extract_loras", "without_broken_loras"]


@dataclass(frozen=True)
class LoraTag:
    """``<lora:name:0.8>``: a LoRA by name or path, and how strongly it acts."""

    name: str
    strength: LoraStrength
    curve: WeightCurve | None = None
    """The U-Net's weight where it changes over the steps; that of ``strength`` is then its largest."""
    mask: str | None = None
    """Path of a picture that is white where the U-Net's part acts."""


@dataclass(frozen=True)
class WeightCurve:
    """A weight over the steps: straight lines between ``points`` (share of the steps, weight), jumps between equals.

    Constant before the first point and after the last.
    """

    points: tuple[tuple[float, float], ...]

    def at(self, progress: float) -> float:
        """The weight when this share of the steps is done."""
        before = [point for point in self.points if point[0] <= progress]
        after = [point for point in self.points if point[0] > progress]
        if not before or not after:
            return (before or after)[-1 if before else 0][1]
        (start, low), (end, high) = before[-1], after[0]
        return low + (high - low) * (progress - start) / (end - start)


_TAG = re.compile(r"<(?:lora|lyco):([^<>]*)>")
_MASK = re.compile(r":\s*mask\s*=\s*((?:[A-Za-z]:[\\/])?[^:]+)")
_DRIVE = re.compile(r"^([A-Za-z]):(?=[\\/])")


def extract_loras(prompt: str) -> tuple[str, tuple[LoraTag, ...]]:
    """The prompt without its LoRA tags (nothing is put in their place), and the tags in order.

    ``<lora:NAME>``, ``<lora:NAME:WEIGHT>``, ``<lora:NAME:TEXT_ENCODER:UNET>``; weights can be named ``te=`` and
    ``unet=``; the U-Net's is the text encoder's unless given, which is 1 unless given. ``<lyco:`` means the same.
    The U-Net's weight may change over the steps: ``0.8@0-0.5`` is 0.8 for the first half and then nothing,
    ``0.2@0,1@0.5`` rises from 0.2 to 1 until the middle; the text encoder's cannot. ``lbw=OUTD`` (a preset, or numbers)
    weighs the blocks, ``mask=left.png`` keeps the U-Net's part to where that picture is white.
    """
    tags = tuple(_read_tag(match.group(0), match.group(1)) for match in _TAG.finditer(prompt))
    return _TAG.sub("", prompt), tags


def without_broken_loras(prompt: str) -> tuple[str, list[str]]:
    """The prompt of another program without the LoRA tags that cannot be read here, and why, a sentence each."""
    problems: list[str] = []

    def kept(match: re.Match[str]) -> str:
        try:
            _read_tag(match.group(0), match.group(1))
        except PromptError as error:
            problems.append(error.problem)
            return ""
        return match.group(0)

    return _TAG.sub(kept, prompt), problems


def _read_tag(tag: str, content: str) -> LoraTag:
    mask = _MASK.search(content)
    content = content if mask is None else content[: mask.start()] + content[mask.end() :]
    drive = _DRIVE.match(content)
    name, *arguments = content[drive.end() :].split(":") if drive else content.split(":")
    name = (drive.group(0) + name if drive else name).strip()

    if not name:
        raise PromptError(f"{tag} names no LoRA", "write <lora:name:weight>")
    positional = [argument for argument in arguments if "=" not in argument]
    weights: dict[str, float] = {}
    curve: WeightCurve | None = None
    blocks: BlockWeights | None = None
    if len(positional) > 2:
        raise PromptError(f"{tag} has {len(positional)} weights", "write <lora:name:weight> or <lora:name:te:unet>")

    # One weight alone is that of both parts, and what changes over the steps can only be the U-Net's.
    places = ("unet",) if len(positional) == 1 and "@" in positional[0] else ("te", "unet")
    given = list(zip(places, positional, strict=False))
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if equals and key.strip() == "lbw":
            blocks = _blocks(tag, text)
        elif equals and key.strip() not in ("te", "unet"):
            raise PromptError(
                f"{tag}: {key.strip()!r} is not an option of a LoRA tag", "te=, unet=, lbw= and mask= are"
            )
        elif equals:
            given.append((key.strip(), text))

    for key, text in given:
        if "@" in text:
            if key == "te":
                raise PromptError(
                    f"{tag}: the text encoder's weight cannot change over the steps, since texts are encoded once",
                    "write unet=0.2@0,1@0.5 for the U-Net, and one number for te=",
                )
            curve = _curve(tag, text)
        elif text.strip():
            weights[key] = _weight(tag, text)
            curve = None if key == "unet" else curve

    # Texts are encoded with the curve's largest weight, or with that which is given.
    text_encoder = weights.get("te", 1.0 if curve is None else _largest(curve))
    unet = weights.get("unet", text_encoder) if curve is None else _largest(curve)
    strength = LoraStrength(unet, text_encoder, blocks)
    return LoraTag(name, strength, curve, mask and mask[1].strip())


def _blocks(tag: str, text: str) -> BlockWeights:
    try:
        return parse_block_weights(text)
    except SettingsError as error:
        raise PromptError(f"{tag}: {error.problems[0]}", error.hint) from error


def _curve(tag: str, text: str) -> WeightCurve:
    """``0.2@0,1@0.5`` are points with straight lines between them, ``0.8@0-0.3,0.5@0.6-1`` stretches with nothing
    between them: a tag has either. A semicolon separates as a comma does."""
    pieces = [piece.partition("@") for piece in re.split("[,;]", text)]
    for value, at, _ in pieces:
        if not at:
            raise PromptError(f"{tag}: {value.strip()!r} names no step", "write weight@share, for example 0.2@0,1@0.5")
    are_stretches = ["-" in place.strip()[1:] for _, _, place in pieces]
    if any(are_stretches) and not all(are_stretches):
        raise PromptError(
            f"{tag}: {text.strip()!r} has points and stretches",
            "write points (0.2@0,1@0.5: straight lines between them) or stretches (0.8@0-0.3,0.5@0.6-1: else nothing)",
        )

    points: list[tuple[float, float]] = []
    for value, _, place in pieces:
        weight = _weight(tag, value)
        if not any(are_stretches):
            points.append((_share(tag, place), weight))
            continue

        # It rises from nothing at once and falls back, whatever stands before and behind it.
        start, _, end = place.partition("-")
        first, last = _share(tag, start), _share(tag, end)
        if first >= last:
            raise PromptError(f"{tag}: {place.strip()!r} ends before it begins", "write 0.8@0-0.5")
        points += [(first, 0.0), (first, weight), (last, weight), *([(last, 0.0)] if last < 1 else [])]
    if any(before[0] > after[0] for before, after in pairwise(points)):
        raise PromptError(f"{tag}: the steps are not in order", "write the earliest first")
    return WeightCurve(tuple(points))


def _largest(curve: WeightCurve) -> float:
    return max((weight for _, weight in curve.points), key=abs)


def _share(tag: str, text: str) -> float:
    share = _weight(tag, text)
    if not 0 <= share <= 1:
        raise PromptError(
            f"{tag}: {text.strip()!r} is not a share of the steps", "shares are from 0 to 1: step 5 of 20 is 0.25"
        )
    return share


def _weight(tag: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise PromptError(f"{tag}: {text.strip()!r} is not a weight", "a weight is a number such as 0.8")
    return weight
