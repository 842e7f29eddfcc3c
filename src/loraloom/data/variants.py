"""Versions of a picture, made before training: other crops, slightly other colours.

Random crops and colours in every step would mean encoding every picture in every step. A handful of fixed versions of
each picture gives nearly the same variety, and every one of them is encoded once. Version 0 is the picture as it is.
A version is a pure function of the picture's bytes, its bucket and the version's number, so caches serve every run.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from loraloom.data.buckets import Fit, Size, fit
from loraloom.randomness import seed_of, uniform

__all__ = ["PLAIN", "Colours", "Variation", "colours_of", "fit_of", "with_colours"]

_HUE_DEGREES = 12.0
_GAMMA = (0.95, 1.05)


@dataclass(frozen=True)
class Variation:
    """How a picture's versions differ: ``count`` of them, cut at random (enlarged up to ``zoom``), recoloured."""

    count: int = 1
    crop: bool = False
    zoom: float = 1.0
    colours: bool = False


PLAIN = Variation()
"""One version, the picture as it is."""


@dataclass(frozen=True)
class Colours:
    """A small change of colour: hue turned by ``hue`` degrees, values raised to ``gamma``."""

    hue: float
    gamma: float


def fit_of(size: Size, bucket: Size, digest: str, variation: Variation, variant: int) -> Fit:
    """How version ``variant`` of the picture with these bytes comes into its bucket."""
    if variant == 0 or not variation.crop:
        return fit(size, bucket)
    key = ("variant", digest, *bucket, variant)
    zoom = 1 + (variation.zoom - 1) * uniform(*key, "zoom")
    scale = zoom * max(bucket[0] / size[0], bucket[1] / size[1])
    width, height = (max(side, round(length * scale)) for side, length in zip(bucket, size, strict=True))
    top = seed_of(*key, "top") % (height - bucket[1] + 1)
    left = seed_of(*key, "left") % (width - bucket[0] + 1)
    return Fit((width, height), (top, left))


def colours_of(digest: str, variation: Variation, variant: int) -> Colours | None:
    """How version ``variant`` is recoloured, None if it is not."""
    if variant == 0 or not variation.colours:
        return None
    low, high = _GAMMA
    hue = round(_HUE_DEGREES * (2 * uniform("variant", digest, variant, "hue") - 1), 2)
    return Colours(hue, round(low + (high - low) * uniform("variant", digest, variant, "gamma"), 4))


def with_colours(image: Image.Image, colours: Colours) -> Image.Image:
    """An RGB picture recoloured."""
    hue, saturation, value = image.convert("HSV").split()
    turn = round(colours.hue / 360 * 256)
    hue = hue.point([(level + turn) % 256 for level in range(256)])
    value = value.point([round(255 * (level / 255) ** colours.gamma) for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")
