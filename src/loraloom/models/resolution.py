"""The size of the pictures that a checkpoint was made for: what its file says, or else its family's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loraloom.diffusion.objectives import Prediction
from loraloom.models.family import Family

__all__ = ["OwnResolution", "own_resolution", "resolution_metadata"]

SMALLEST_SIDE, LARGEST_SIDE = 64, 4096
LARGEST_RATIO = 4
STEP = 8
_KEY = "modelspec.resolution"
_SIZE = re.compile(r"\s*(\d{1,6})\s*(?:[xX×*,]\s*(\d{1,6})\s*)?", re.ASCII)


@dataclass(frozen=True)
class OwnResolution:
    """``width`` and ``height`` in pixels, multiples of 8.

    ``is_said``: the file says so; else it is the family's. ``remark``: what the file says instead, where that cannot be
    a size to paint at.
    """

    width: int
    height: int
    is_said: bool = False
    remark: str = ""

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @property
    def setting(self) -> int | tuple[int, int]:
        """As ``dataset.resolution`` has it: one number for a square."""
        return self.width if self.width == self.height else (self.width, self.height)


def own_resolution(family: Family, metadata: Mapping[str, str], prediction: Prediction | None) -> OwnResolution:
    """``modelspec.resolution`` of a checkpoint's metadata, where it is a size that pictures can have.

    Sides from 64 to 4096 in steps of 8, one at most four times the other. Anything else is passed over with a remark.
    """
    usual = family.default_resolution_for(prediction or "epsilon")
    said = metadata.get(_KEY, "").strip()
    if not said:
        return OwnResolution(usual, usual)
    match = _SIZE.fullmatch(said)
    if match is not None:
        width, height = int(match[1]), int(match[2] or match[1])
        if _is_paintable(width, height):
            return OwnResolution(width, height, is_said=True)
    return OwnResolution(
        usual, usual, remark=f"{_KEY} of the checkpoint is {said[:40]!r}, which is not a size to paint at"
    )


def resolution_metadata(config: Mapping[str, Any], family: Family) -> dict[str, str]:
    """What ``sample_size`` of a U-Net's diffusers configuration (in latents: eighths of a pixel) says.

    Nothing where it is the first one of the family, because that is written into folders of every resolution.
    """
    value = config.get("sample_size")
    sides = [side for side in (value if isinstance(value, list) else [value, value]) if type(side) is int]
    if len(sides) != 2:
        return {}
    height, width = (side * STEP for side in sides)
    if (width, height) == (family.default_resolution,) * 2 or not _is_paintable(width, height):
        return {}
    return {_KEY: f"{width}x{height}"}


def _is_paintable(width: int, height: int) -> bool:
    low, high = sorted((width, height))
    in_steps = width % STEP == height % STEP == 0
    return in_steps and low >= SMALLEST_SIDE and high <= min(LARGEST_SIDE, low * LARGEST_RATIO)
