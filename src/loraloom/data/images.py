"""Pictures: what a file really is, and its pixels as training wants them.

Facts that other readers get wrong, and that the order of the steps here follows: ``Image.verify`` passes truncated
JPEGs, so a picture is known to be whole only when every pixel was decoded; reading EXIF of a PNG before decoding hides
damage; converting 16-bit pictures to RGB clips them; converting away an alpha channel shows the colours hidden
under it; CMYK and wide-gamut pictures need their ICC profile.
"""

from __future__ import annotations

import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from loraloom.data.buckets import Fit, Size, fit
from loraloom.data.problems import readable
from loraloom.data.variants import with_colours
from loraloom.errors import DatasetError, FileFormatError, MissingFileError

if TYPE_CHECKING:
    import torch

    from loraloom.data.dataset import Sample

__all__ = [
    "SUFFIXES",
    "ImageFacts",
    "inspect_image",
    "load_grey",
    "load_picture",
    "load_pixels",
    "quiet_decoders",
    "signature",
    "to_rgb",
]

SUFFIXES: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "AVIF": (".avif",),
}
"""The formats that are read, by content, and the suffixes that name them."""

# What Pillow's decoders raise on damaged files, besides OSError.
_DECODER_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    SyntaxError,
    ArithmeticError,
    RuntimeError,
    AssertionError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)

# EXIF 2.32, tag 0x0112: how the stored picture has to be turned to stand upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_BOXES = {
    b"avif": "AVIF",
    b"avis": "AVIF",
    b"heic": "HEIC",
    b"heix": "HEIC",
    b"hevc": "HEIC",
    b"mif1": "HEIC",
    b"msf1": "HEIC",
    b"crx ": "camera raw",
}


@dataclass(frozen=True)
class ImageFacts:
    """What a whole, readable picture file holds.

    ``size`` is (width, height) as seen, with the EXIF ``orientation`` (1 to 8) applied; ``mode`` is Pillow's.
    """

    digest: str
    size: Size
    orientation: int
    format: str
    mode: str
    alpha: Literal["none", "some", "all"]
    animated: bool


def signature(head: bytes) -> str:
    """The kind of file that begins with these bytes (16 or more), ``""`` if it is none that is known here."""
    if head[4:8] == b"ftyp":
        return _BOXES.get(head[8:12], "video")
    if head[:4] == b"RIFF":
        return "WEBP" if head[8:12] == b"WEBP" else "video" if head[8:12] == b"AVI " else "sound"
    table = {
        b"\xff\xd8\xff": "JPEG",
        b"\x89PNG\r\n\x1a\n": "PNG",
        b"BM": "BMP",
        b"GIF8": "GIF",
        b"II*\0": "TIFF",
        b"MM\0*": "TIFF",
        b"\xff\x0a": "JPEG XL",
        b"\0\0\0\x0cJXL ": "JPEG XL",
        b"\0\0\0\x0cjP  ": "JPEG 2000",
        b"8BPS": "Photoshop",
        b"gimp xcf": "GIMP",
        b"%PDF": "PDF",
        b"<svg": "SVG",
        b"<?xml": "XML",
        b"<!DOCTYPE": "HTML",
        b"<!doctype": "HTML",
        b"<html": "HTML",
        b"PK\x03\x04": "zip",
        b"\x1aE\xdf\xa3": "video",
        b"version https://git-lfs": "Git LFS pointer",
    }
    return next((kind for mark, kind in table.items() if head.startswith(mark)), "")


def inspect_image(path: Path, *, max_megapixels: float) -> ImageFacts:
    """Decode the whole file once to learn that it is usable.

    Raises MissingFileError or FileFormatError whose ``problem`` is the reason without the path.
    """
    data = _read(path, max_megapixels)
    image = _open(data, max_megapixels)
    form, animated = image.format or "", bool(getattr(image, "is_animated", False)) and image.format != "MPO"
    size, mode = image.size, image.mode
    try:
        # Every entropy-coded byte of a JPEG is read at an eighth of the size too, in a third of the time.
        image.draft(None, (1, 1))
        image.load()
        alpha = _alpha(image)
    except _DECODER_ERRORS as error:
        raise _undecodable(error) from error
    orientation = _orientation(image)
    if orientation >= 5:
        size = (size[1], size[0])
    form = "JPEG" if form == "MPO" else form
    return ImageFacts(sha256(data).hexdigest(), size, orientation, form, mode, alpha, animated)


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Inside: no Python warnings from Pillow about damaged metadata or sizes, which are reported as problems.

    For the thread that starts the work: the list of warning filters belongs to the whole process.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def load_picture(
    path: Path,
    *,
    bucket: Size,
    background: tuple[int, int, int],
    orientation: int | None = None,
    digest: str | None = None,
    max_megapixels: float = 178.0,
    placed: Fit | None = None,
) -> Image.Image:
    """The picture as 8-bit sRGB of exactly the bucket's size: upright, flattened, scaled to cover, centre cut out.

    ``orientation`` None reads it from the file (slower for large JPEGs). ``placed`` cuts out another place than the
    centre. Raises DatasetError if the file is gone, damaged, or (``digest`` given) not the one that was inspected.
    """
    with _named_errors(path):
        data = _read(path, max_megapixels)
        if digest is not None and sha256(data).hexdigest() != digest:
            name = readable(path)
            raise DatasetError(f"{name} was changed after the dataset was read", "start again to use the new picture")
        image = _open(data, max_megapixels)
        if orientation is not None:  # libjpeg can decode at 1/2, 1/4, 1/8; twice the size is left for Lanczos
            covering = bucket if placed is None else placed.resized
            width, height = covering if orientation < 5 else covering[::-1]
            image.draft(None, (2 * width, 2 * height))
        image.load()
        turn = _UPRIGHT.get(_orientation(image) if orientation is None else orientation)
        image = to_rgb(image, background)
        image = image if turn is None else image.transpose(turn)
    placed = fit(image.size, bucket) if placed is None else placed
    scale = (image.width / placed.resized[0], image.height / placed.resized[1])
    top, left = placed.crop
    box = (left * scale[0], top * scale[1], (left + bucket[0]) * scale[0], (top + bucket[1]) * scale[1])
    return image.resize(bucket, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


def load_grey(path: Path, *, alpha: bool = False, max_megapixels: float = 178.0) -> Image.Image:
    """A picture, upright, as one channel of 8 bits: its brightness (transparent parts count as black) or its alpha.

    Raises DatasetError if the file is gone or damaged.
    """
    with _named_errors(path):
        image = _open(_read(path, max_megapixels), max_megapixels)
        image.load()
        turn = _UPRIGHT.get(_orientation(image))
        if not alpha:
            image = to_rgb(image, (0, 0, 0)).convert("L")
        else:
            image = _eight_bit(image) if image.mode.startswith("I") else image
            image = image.convert("RGBA").getchannel("A")
        return image if turn is None else image.transpose(turn)


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Inside: whatever a file that cannot be read raises becomes a DatasetError that names it."""
    name = readable(path)
    try:
        yield
    except DatasetError:
        raise
    except (MissingFileError, FileFormatError) as error:
        raise DatasetError(f"{name}: {error.problem}", error.hint) from error
    except _DECODER_ERRORS as error:
        raise DatasetError(f"{name}: {_undecodable(error).problem}", "repair or remove the picture") from error


def load_pixels(sample: Sample, *, flipped: bool, variant: int = 0) -> torch.Tensor:
    """The sample's pixels, (3, height, width) float32 in [-1, 1], mirrored left to right if ``flipped``.

    Raises DatasetError if the file was removed, damaged or replaced since the dataset was read.
    """
    import torch

    image = load_picture(
        sample.path,
        bucket=sample.bucket,
        background=sample.background,
        orientation=sample.orientation,
        digest=sample.digest,
        placed=sample.fit_of(variant) if variant else None,
    )
    colours = sample.colours_of(variant)
    if colours is not None:
        image = with_colours(image, colours)
    if flipped:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)
    return pixels.to(torch.float32).div_(127.5).sub_(1.0).contiguous()


def to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Any decoded picture as 8-bit sRGB, transparency flattened onto ``background``."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = _to_srgb(image.convert("RGB"), profile)
        flat = Image.new("RGB", image.size, background)
        flat.paste(image, mask=alpha)
        return flat
    if image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("RGB")
    return _to_srgb(image, profile)


def _read(path: Path, max_megapixels: float) -> bytes:
    """The file's bytes. A pipe or device would block for ever, so only regular files are opened."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise FileFormatError("is not a regular file", "remove it")
        if status.st_size == 0:
            raise FileFormatError("is empty (zero bytes)", "copy or download the picture again")
        if status.st_size > max_megapixels * 8e6 + 2**24:  # 8 bytes a pixel is 16-bit RGBA, uncompressed
            raise FileFormatError(f"is too large a file ({status.st_size / 2**20:.0f} MiB)", "shrink the picture")
        with path.open("rb") as file:
            head: bytes = file.read(64)
            kind = signature(head)
            if kind not in SUFFIXES:
                raise _unreadable_kind(kind)
            rest: bytes = file.read()
            return head + rest
    except FileNotFoundError as error:
        raise MissingFileError("does not exist", "a broken link, or removed while it was being read") from error
    except OSError as error:
        raise FileFormatError(f"cannot be read: {error.strerror or error}", "check the file's permissions") from error


def _unreadable_kind(kind: str) -> FileFormatError:
    if not kind:
        return FileFormatError("is not an image", "remove it, or export the picture again as PNG or JPEG")
    if kind == "Git LFS pointer":
        return FileFormatError("is a Git LFS pointer, not the picture", "run git lfs pull")
    return FileFormatError(f"is a {kind} file, which is not read", "save it as PNG, JPEG, WebP, BMP or AVIF")


def _open(data: bytes, max_megapixels: float) -> Image.Image:
    try:
        image = Image.open(BytesIO(data), formats=list(SUFFIXES))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise FileFormatError("has too many pixels to be decoded safely", "shrink the picture") from error
    except _DECODER_ERRORS as error:
        raise _undecodable(error) from error
    megapixels = image.width * image.height / 1e6
    if megapixels > max_megapixels:
        raise FileFormatError(
            f"has {image.width} x {image.height} pixels, more than max_megapixels={max_megapixels:g}",
            "shrink the picture, or raise max_megapixels if it is genuine",
        )
    return image


def _undecodable(error: BaseException) -> FileFormatError:
    text = str(error)
    if "truncated" in text.lower():
        return FileFormatError("is truncated: part of the picture is missing", "copy or download it again")
    if isinstance(error, MemoryError):
        return FileFormatError("does not fit into memory", "shrink the picture")
    if isinstance(error, UnidentifiedImageError):
        return FileFormatError("is damaged: its header cannot be read", "copy or download it again")
    return FileFormatError(f"is damaged: {text or type(error).__name__}", "copy or download it again")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8 of a decoded picture; 1 where it is absent or nonsense."""
    try:
        value = image.getexif().get(0x0112, 1)
    except _DECODER_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _alpha(image: Image.Image) -> Literal["none", "some", "all"]:
    """How much of a decoded picture is transparent, by any means (channel, palette entry, colour key)."""
    if not image.has_transparency_data:
        return "none"
    if image.mode.startswith("I"):
        key = image.info["transparency"]
        return "all" if image.getextrema() == (key, key) else "some"
    histogram = image.convert("RGBA").getchannel("A").histogram()
    if histogram[255] == image.width * image.height:
        return "none"
    return "all" if histogram[0] == image.width * image.height else "some"


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit, rounded (65535 / 257 = 255); a transparent grey value becomes an alpha channel."""
    values = np.asarray(image).astype(np.float64)
    grey = Image.fromarray(np.clip(np.rint(values / 257), 0, 255).astype(np.uint8), "L")
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8), "L"))
    return grey


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB, L or CMYK with its embedded profile as sRGB. Damaged or foreign profiles are ignored, as browsers do."""
    transform = _transform(profile, image.mode) if profile else None
    if transform is None:
        return image.convert("RGB")
    converted = ImageCms.applyTransform(image, transform)
    return converted if converted is not None else image.convert("RGB")


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if space != {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}[mode]:
            return None
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, *_DECODER_ERRORS):
        return None
