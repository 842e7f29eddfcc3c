"""Which width and height a picture is trained at.

sd-scripts has one fixed list of buckets with sides in steps of 64 and takes the one with the least difference of
width/height, so that at 512 a 3:2 photograph loses a tenth of its height. Here sides go in steps of 8, which fits
every usual shape to about one percent, and pictures of nearly the same shape then share a bucket, so that the fine
steps do not scatter a small dataset into batches of one. Shapes are compared by the logarithm of width/height:
landscape and portrait are treated alike.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log, sqrt

from loraloom.data.settings import DatasetSettings

__all__ = ["Fit", "Size", "assign_buckets", "bucket_sizes", "cropped_share", "fit"]

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True)
class Fit:
    """How a picture comes into its bucket: enlarge or shrink to ``resized``, then cut the bucket out at ``crop``."""

    resized: Size
    crop: tuple[int, int]  # top, left, in resized pixels


def fit(size: Size, bucket: Size) -> Fit:
    """Scale ``size`` until it just covers ``bucket`` and cut from the centre."""
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    width, height = (max(side, round(length * scale)) for side, length in zip(bucket, size, strict=True))
    return Fit((width, height), ((height - bucket[1]) // 2, (width - bucket[0]) // 2))


def cropped_share(size: Size, bucket: Size) -> float:
    """Share of the picture's area, 0 to 1, that lies outside the bucket."""
    ratio = (size[0] * bucket[1]) / (size[1] * bucket[0])
    return 1 - min(ratio, 1 / ratio)


def bucket_sizes(settings: DatasetSettings) -> list[Size]:
    """Every allowed bucket, from the tallest to the widest.

    For each side the other is as long as the area allows, so no bucket wastes more than a few percent of it.
    """
    step = settings.bucket_step
    if not settings.buckets:
        width, height = (max(step, side // step * step) for side in settings.size)
        return [(width, height)]
    area = settings.size[0] * settings.size[1]
    low, high = settings.bucket_limits
    square = max(low, int(area**0.5) // step * step)
    sizes = {(square, square)}
    for side in range(low, high + 1, step):
        other = min(high, area // side // step * step)
        if other >= low:
            sizes |= {(side, other), (other, side)}
    return sorted(sizes, key=lambda size: (_shape(size), size))


def assign_buckets(sizes: Iterable[Size], settings: DatasetSettings) -> dict[Size, Size]:
    """A bucket for each picture size, the fewest with which none is cropped more than it must or ``max_crop`` allows.

    A picture accepts the buckets that crop at most ``max_crop`` of it (or, if there are none, its best one): a stretch
    of the list sorted by shape. The fewest points that touch every stretch are found from left to right; the pictures
    of one point get the bucket, among those all of them accept, that crops the least in total.
    With ``upscale=false`` a picture that would be enlarged, or that every bucket crops by more than ``max_crop``, gets
    a bucket of its own shape instead.
    """
    buckets = bucket_sizes(settings)
    shapes = [_shape(bucket) for bucket in buckets]
    result: dict[Size, Size] = {}
    pending: list[tuple[Size, int, int]] = []

    for size in sorted(set(sizes), key=lambda size: (_shape(size), size)):
        best = _nearest(_shape(size), shapes)
        if not settings.upscale and not _suits(buckets[best], size, settings.max_crop):
            result[size] = _own_bucket(size, buckets[best], settings)
        else:
            pending.append((size, *_accepted(_shape(size), shapes, best, settings.max_crop)))

    # The stretch that ends first has to be touched somewhere, and its end is the place that touches most others.
    while pending:
        point = min(last for _, _, last in pending)
        group = [size for size, first, _ in pending if first <= point]
        start = max(first for _, first, _ in pending if first <= point)
        bucket = _least_cropping(group, buckets[start : point + 1])
        result.update(dict.fromkeys(group, bucket))
        pending = [entry for entry in pending if entry[1] > point]
    return result


def _area(size: Size) -> int:
    return size[0] * size[1]


def _shape(size: Size) -> float:
    return log(size[0] / size[1])


def _nearest(shape: float, shapes: Sequence[float]) -> int:
    right = min(bisect_left(shapes, shape), len(shapes) - 1)
    left = max(right - 1, 0)
    return left if abs(shapes[left] - shape) < abs(shapes[right] - shape) else right


def _accepted(shape: float, shapes: Sequence[float], best: int, max_crop: float) -> tuple[int, int]:
    """First and last index of the buckets that crop at most ``max_crop`` of the picture, or ``best`` alone."""
    reach = -log(1 - max_crop) + 1e-9  # covering a bucket crops 1 - exp(-|difference of log shapes|)
    first, last = bisect_left(shapes, shape - reach), bisect_right(shapes, shape + reach) - 1
    return (first, last) if first <= last else (best, best)


def _least_cropping(sizes: Sequence[Size], choices: Sequence[Size]) -> Size:
    return min(choices, key=lambda choice: (round(sum(cropped_share(s, choice) for s in sizes), 9), -_area(choice)))


def _suits(bucket: Size, size: Size, max_crop: float) -> bool:
    """Whether a picture of ``size`` fills the bucket without being enlarged, and loses little enough."""
    return _covers(size, bucket) and cropped_share(size, bucket) <= max_crop


def _covers(size: Size, bucket: Size) -> bool:
    return size[0] >= bucket[0] and size[1] >= bucket[1]


def _own_bucket(size: Size, best: Size, settings: DatasetSettings) -> Size:
    """The bucket that crops a picture the least, without enlarging it, and with the area that it has or is allowed.

    The picture is thought of as shrunk to the allowed area. One side is rounded down to whole steps, which moves the
    other along with it, so that this one can be rounded up as well as down. Rounding both sides down on their own
    would lose up to a step of each: a tenth of the picture with steps of 64.
    """
    step, area = settings.bucket_step, settings.size[0] * settings.size[1]
    scale = min(1.0, sqrt(area / _area(size)))
    width, height = (max(step, _whole_steps(length * scale, step)) for length in size)
    choices = {(width, height), best}
    for more in (0, step):
        choices.add((width, max(step, _whole_steps(width * size[1] / size[0], step) + more)))
        choices.add((max(step, _whole_steps(height * size[0] / size[1], step) + more), height))
    allowed = [choice for choice in choices if _covers(size, choice) and _area(choice) <= area]
    # A picture smaller than a step has no bucket that it fills.
    return _least_cropping([size], sorted(allowed) or [(width, height)])


def _whole_steps(length: float, step: int) -> int:
    """``length`` rounded down to a multiple of ``step``; what is a hair below one by rounding counts as that."""
    return int(length / step + 1e-9) * step
