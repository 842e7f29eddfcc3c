"""Pictures of a dataset: what is in a file, and its pixels as training wants them.

Facts that other readers get wrong, and that the order of the steps here follows: ``Image.verify`` passes truncated
JPEGs, so a picture is known to be whole only when every pixel was decoded; reading EXIF of a PNG before decoding hides
damage; converting 16-bit pictures to RGB clips them; converting away an alpha channel shows the colours hidden
under it; CMYK and wide-gamut pictures need their ICC profile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from PIL import Image

from loraloom.data.buckets import Fit, Size, fit
from loraloom.data.problems import readable
from loraloom.errors import DatasetError, FileError
from loraloom.formats.memory_budget import MemoryBudget
from loraloom.formats.pictures import (
    DAMAGE,
    MOST_MEGAPIXELS,
    colour_bytes,
    damage_error,
    named_damage,
    opened,
    orientation_of,
    to_grey,
    to_rgb,
    upright,
)

__all__ = ["ImageFacts", "inspect_image", "load_grey", "load_picture"]


@dataclass(frozen=True)
class ImageFacts:
    """What a whole, readable picture file holds.

    ``size`` is (width, height) as seen, with the EXIF ``orientation`` (1 to 8) applied; ``mode`` is Pillow's.
    ``animated``: it has several frames, or pages.
    """

    digest: str
    size: Size
    orientation: int
    format: str
    mode: str
    alpha: Literal["none", "some", "all"]
    animated: bool


def inspect_image(path: Path, *, max_megapixels: float, budget: MemoryBudget | None = None) -> ImageFacts:
    """Decode the whole file once to learn that it is usable, within a ``budget`` that other threads share.

    Raises MissingFileError or FileFormatError whose ``problem`` is the reason without the path.
    """
    with opened(path, max_megapixels=max_megapixels, budget=budget) as picture:
        size, mode = picture.image.size, picture.image.mode
        try:
            # Every entropy-coded byte of a JPEG is read at an eighth of the size too, in a third of the time.
            picture.image.draft(None, (1, 1))
            image = picture.decode(working_bytes=_alpha_bytes(picture.image))
            alpha = _alpha(image)
        except DAMAGE as error:
            raise damage_error(error) from error
        orientation = orientation_of(image)
        if orientation >= 5:
            size = (size[1], size[0])
        digest = sha256(picture.data).hexdigest()
        return ImageFacts(digest, size, orientation, picture.form, mode, alpha, picture.more_frames)


def load_picture(
    path: Path,
    *,
    bucket: Size,
    background: tuple[int, int, int],
    orientation: int | None = None,
    digest: str | None = None,
    max_megapixels: float = MOST_MEGAPIXELS,
    placed: Fit | None = None,
    budget: MemoryBudget | None = None,
) -> Image.Image:
    """The picture as 8-bit sRGB of exactly the bucket's size: upright, flattened, scaled to cover, centre cut out.

    ``orientation`` None reads it from the file (slower for large JPEGs). ``placed`` cuts out another place than the
    centre. Raises DatasetError if the file is gone, damaged, or (``digest`` given) not the one that was inspected.
    """
    with _named_errors(path), opened(path, max_megapixels=max_megapixels, budget=budget) as picture:
        if digest is not None and sha256(picture.data).hexdigest() != digest:
            name = readable(path)
            raise DatasetError(f"{name} was changed after the dataset was read", "start again to use the new picture")
        if orientation is not None:  # libjpeg can decode at 1/2, 1/4, 1/8; twice the size is left for Lanczos
            covering = bucket if placed is None else placed.resized
            width, height = covering if orientation < 5 else covering[::-1]
            picture.image.draft(None, (2 * width, 2 * height))
        image = picture.decode(working_bytes=colour_bytes(picture.image))
        turn = orientation_of(image) if orientation is None else orientation
        # No name for the whole picture in colours: it is to be gone when its memory is given back.
        return _cut_out(upright(to_rgb(image, background), turn), bucket, placed)


def _cut_out(image: Image.Image, bucket: Size, placed: Fit | None) -> Image.Image:
    placed = fit(image.size, bucket) if placed is None else placed
    scale = (image.width / placed.resized[0], image.height / placed.resized[1])
    top, left = placed.crop
    box = (left * scale[0], top * scale[1], (left + bucket[0]) * scale[0], (top + bucket[1]) * scale[1])
    return image.resize(bucket, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


def load_grey(path: Path, *, alpha: bool = False, max_megapixels: float = MOST_MEGAPIXELS) -> Image.Image:
    """A picture, upright, as one channel of 8 bits: its brightness (transparent parts count as black) or its alpha.

    Raises DatasetError if the file is gone or damaged.
    """
    with _named_errors(path), opened(path, max_megapixels=max_megapixels) as picture:
        image = picture.decode(working_bytes=colour_bytes(picture.image))
        return upright(to_grey(image, alpha=alpha), orientation_of(image))


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Inside: whatever a file that cannot be read raises becomes a DatasetError that names it."""
    try:
        with named_damage(readable(path)):
            yield
    except FileError as error:
        raise DatasetError(error.problem, error.hint) from error


def _alpha_bytes(image: Image.Image) -> int:
    """Bytes a pixel that :func:`_alpha` needs besides the picture."""
    if not image.has_transparency_data:
        return 0
    return 1 if "A" in image.getbands() else 5


def _alpha(image: Image.Image) -> Literal["none", "some", "all"]:
    """How much of a decoded picture is transparent, by any means (channel, palette entry, colour key)."""
    if not image.has_transparency_data:
        return "none"
    if image.mode.startswith("I"):
        key = image.info["transparency"]
        return "all" if image.getextrema() == (key, key) else "some"
    alpha = image if "A" in image.getbands() else image.convert("RGBA")
    histogram = alpha.getchannel("A").histogram()
    if histogram[255] == image.width * image.height:
        return "none"
    return "all" if histogram[0] == image.width * image.height else "some"
