"""What an image shows, compared regardless of where, how large and on which background it stands."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter
from world import BACKGROUNDS

GRID = 24
_DIFFERENT = 40.0
_DARK = 90.0
_REACH_PX = 4
Array = np.ndarray


def background_colour(image: Image.Image) -> Array:
    """The median colour of the image's border, two pixels wide."""
    pixels = np.asarray(image.convert("RGB"), np.float32)
    border = np.concatenate(
        [
            pixels[:2].reshape(-1, 3),
            pixels[-2:].reshape(-1, 3),
            pixels[:, :2].reshape(-1, 3),
            pixels[:, -2:].reshape(-1, 3),
        ]
    )
    return np.median(border, axis=0)


def background_name(image: Image.Image) -> str:
    """The background of the world that is nearest to the image's border colour."""
    colour = background_colour(image)
    return min(BACKGROUNDS, key=lambda name: float(np.sum((colour - np.array(BACKGROUNDS[name])) ** 2)))


def foreground(image: Image.Image) -> Array:
    """(H, W) in [0, 1]: how surely a pixel is not background; colours that differ by 40 of 255 count half."""
    pixels = np.asarray(image.convert("RGB").filter(ImageFilter.MedianFilter(3)), np.float32)
    distance = np.sqrt(((pixels - background_colour(image)) ** 2).sum(-1))
    mask: Array = 1 / (1 + np.exp(-(distance - _DIFFERENT) / 8))
    return mask


def features(image: Image.Image) -> Array:
    """A vector of unit length: the shape and the colours of what stands in front of the background.

    The bounding square of the foreground is scaled to 24 x 24 cells; each cell gives its share of foreground and its
    colour (minus grey) times that share. Shape and colour weigh the same.
    """
    mask = foreground(image)
    box = _bounding_square(mask)
    pixels = np.asarray(image.convert("RGB"), np.float32) / 255 - 0.5
    layers = [mask, *(mask * pixels[..., channel] for channel in range(3))]
    cells = [_cut(layer, box) for layer in layers]
    shape = (cells[0] - cells[0].mean()).ravel()
    colour = np.concatenate([cell.ravel() for cell in cells[1:]])
    parts = [part / max(1e-6, float(np.linalg.norm(part))) for part in (shape, colour)]
    vector = np.concatenate(parts) / np.sqrt(2)
    return vector


def _bounding_square(mask: Array) -> tuple[float, float, float, float]:
    """The square around the middle 99 % of the foreground in both directions."""
    spans = []
    for axis in (0, 1):
        along = np.cumsum(np.where(mask > 0.5, mask, 0).sum(axis=axis))
        if along[-1] < 20:
            return (0.0, 0.0, float(mask.shape[1]), float(mask.shape[0]))
        spans.append(
            (int(np.searchsorted(along, 0.005 * along[-1])), int(np.searchsorted(along, 0.995 * along[-1])) + 1)
        )
    (left, right), (top, bottom) = spans
    side, x, y = max(right - left, bottom - top), (left + right) / 2, (top + bottom) / 2
    return (x - side / 2, y - side / 2, x + side / 2, y + side / 2)


def _cut(layer: Array, box: tuple[float, float, float, float]) -> Array:
    image = Image.fromarray(layer.astype(np.float32), "F")
    return np.asarray(
        image.transform((96, 96), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR).resize(
            (GRID, GRID), Image.Resampling.BOX
        )
    )


def outlined(image: Image.Image) -> float:
    """Share of the silhouette's edge that has a dark line: within 4 px a pixel whose channels are all below 90.

    The measure of OpenMoji's style. Unlike the share of black it does not depend on how large the thing is, on the
    background's colour, or on how far an autoencoder blurs the line.
    """
    pixels = np.asarray(image.convert("RGB"), np.float32)
    different = np.sqrt(((pixels - background_colour(image)) ** 2).sum(-1)) > _DIFFERENT
    shape = Image.fromarray((different * 255).astype(np.uint8)).filter(ImageFilter.MedianFilter(3))
    inside = np.asarray(shape) > 0
    edge = inside & ~(np.asarray(shape.filter(ImageFilter.MinFilter(3))) > 0)
    edge[:2] = edge[-2:] = False  # where the thing leaves the picture there is no line
    edge[:, :2] = edge[:, -2:] = False
    dark = Image.fromarray(((pixels.max(-1) < _DARK) * 255).astype(np.uint8))
    near = np.asarray(dark.filter(ImageFilter.MaxFilter(2 * _REACH_PX + 1))) > 0
    return float((near & edge).sum() / max(1, edge.sum()))


def auc(higher: list[float], lower: list[float]) -> float:
    """Probability that a value of ``higher`` is above one of ``lower`` (ties count half)."""
    a, b = np.array(higher)[:, None], np.array(lower)[None]
    return float(((a > b) + 0.5 * (a == b)).mean())
