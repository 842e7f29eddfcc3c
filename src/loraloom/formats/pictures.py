"""Pictures that people give: what a file really is, opened within limits, and its colours as 8-bit sRGB.

One way in for all of them: training pictures, masks, the picture that painting starts from, previews. The content
decides what a file is, not its name. Nothing that the pixels do not need is read (see
:mod:`loraloom.formats.picture_parts`), and a small file that claims to be huge is refused before it is decoded.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageCms, UnidentifiedImageError

from loraloom.errors import FileError, FileFormatError, MissingFileError
from loraloom.formats.memory_budget import MemoryBudget, MemoryShare
from loraloom.formats.picture_parts import picture_parts
from loraloom.hardware import return_freed_memory
from loraloom.reading import open_file

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "DAMAGE",
    "MAX_MEGAPIXELS",
    "MOST_MEGAPIXELS",
    "SUFFIXES",
    "OpenPicture",
    "colour_bytes",
    "damage_error",
    "grey_picture",
    "named_damage",
    "opened",
    "orientation_of",
    "picture_budget",
    "quiet_decoders",
    "rgb_of",
    "rgb_picture",
    "signature",
    "to_grey",
    "to_rgb",
    "upright",
]

MAX_MEGAPIXELS = 128.0
"""More million pixels than this are refused unless somebody says otherwise."""
MOST_MEGAPIXELS = 178.0
"""The most that Pillow decodes at all."""
_BUDGET = 2**30
_WORTH_RETURNING = 2**26

Colour = tuple[int, int, int]
WHITE: Colour = (255, 255, 255)

SUFFIXES: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "AVIF": (".avif",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
}
"""The formats that are read, by content, and the suffixes that name them."""

DAMAGE = (
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
"""What Pillow's decoders raise on damaged files."""

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

_BRANDS = {
    b"avif": "AVIF",
    b"avis": "AVIF",
    b"heic": "HEIC",
    b"heix": "HEIC",
    b"hevc": "HEIC",
    b"mif1": "HEIC",
    b"msf1": "HEIC",
    b"crx ": "camera raw",
}
_MARKS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"BM": "BMP",
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
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
    b"\0\0\x01\0": "icon",
    b"DDS ": "DDS",
    b"qoif": "QOI",
    **{f"P{number}\n".encode(): "PPM" for number in range(1, 8)},
    b"\n\x05\x01": "PCX",
    b"v/1\x01": "OpenEXR",
    b"IIRO": "camera raw",
    b"IIU\0": "camera raw",
    b"FUJIFILMCCD-RAW": "camera raw",
    b"version https://git-lfs": "Git LFS pointer",
}

_SAVE = "save it as PNG, JPEG, WebP, BMP, AVIF, GIF or TIFF"
_WAYS_OUT = {
    "": "remove it, or export the picture again as PNG or JPEG",
    "HEIC": "convert it to JPEG or PNG, for example with `heif-convert picture.heic picture.png`; an iPhone takes JPEG"
    " under Settings, Camera, Formats, Most Compatible",
    "JPEG XL": "convert it, for example with `djxl picture.jxl picture.png`",
    "JPEG 2000": "open it in GIMP, Krita or ImageMagick and export it as PNG",
    "camera raw": "develop it and export the result as PNG or JPEG",
    "video": "save the frames you want as PNG",
    "zip": "unpack it",
    "SVG": "export it as PNG in the size you want",
    "PDF": "export its pages as PNG",
    "Git LFS pointer": "run git lfs pull",
}

# Modes of TIFF files whose numbers have no agreed meaning as colours.
_NO_COLOURS = {
    "F": "holds floating-point numbers, which say no colours without a program's own scale",
    "I": "holds 32-bit or signed numbers, which say no colours without a program's own scale",
    "LAB": "holds Lab colours",
}
# Tags of TIFF 6.0 and DNG 1.4.
_KIND_OF_PAGE, _TILE_WIDTH, _TILE_LENGTH, _DNG_VERSION = 254, 322, 323, 50706
_BYTES_A_PIXEL = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}


@dataclass
class OpenPicture:
    """A picture whose header was read. ``data``: the file as it is; ``image``: not decoded yet.

    ``form`` is one of SUFFIXES. ``animated``: a PNG's header says that it has several frames.
    """

    data: bytes
    image: Image.Image
    form: str
    animated: bool
    memory: MemoryShare

    def decode(self, *, working_bytes: int = 0) -> Image.Image:
        """The picture, decoded; ``working_bytes`` a pixel will be needed to work on it. Raises what is in DAMAGE."""
        pixels = self.image.width * self.image.height
        self.memory.take(pixels * (_BYTES_A_PIXEL.get(self.image.mode, 4) + working_bytes))
        self.image.load()
        return self.image

    @property
    def more_frames(self) -> bool:
        """Whether there is more than the one picture that is used. Asked last: it may move on to the next frame."""
        try:
            return self.animated or bool(getattr(self.image, "is_animated", False))
        except DAMAGE:  # the second frame is damaged, which takes nothing from the first
            return True


def picture_budget() -> MemoryBudget:
    """A new budget for threads that decode at the same time."""
    return MemoryBudget(_BUDGET)


def colour_bytes(image: Image.Image) -> int:
    """Bytes a pixel that :func:`to_rgb` needs at its height, besides the picture itself."""
    return 16 if image.has_transparency_data else 8


def signature(head: bytes) -> str:
    """The kind of file that begins with these bytes (16 or more), ``""`` if it is none that is known here."""

    # HEIC, AVIF and films share one container: only its brands say which of them it is.
    if head[4:8] == b"ftyp":
        size = min(int.from_bytes(head[:4], "big"), len(head))
        brands = [head[8:12], *(head[start : start + 4] for start in range(16, size - 3, 4))]
        if brands[0] in (b"mif1", b"msf1") and any(_BRANDS.get(brand) == "AVIF" for brand in brands):
            return "AVIF"
        return _BRANDS.get(brands[0], "video")

    if head[:4] == b"RIFF":
        return "WEBP" if head[8:12] == b"WEBP" else "video" if head[8:12] == b"AVI " else "sound"
    if head[:4] in (b"II*\0", b"MM\0*") and head[8:10] == b"CR":  # Canon's CR2
        return "camera raw"

    return next((kind for mark, kind in _MARKS.items() if head.startswith(mark)), "")


@contextmanager
def opened(
    path: Path, *, max_megapixels: float = MAX_MEGAPIXELS, budget: MemoryBudget | None = None
) -> Iterator[OpenPicture]:
    """Read a picture file and its header. Memory of ``budget`` that it takes goes back at the end of the block.

    The picture is closed then: what is made of it has to be made inside.
    Raises MissingFileError, FileFormatError or FileError whose ``problem`` is the reason without the path.
    """
    with (budget or picture_budget()).share() as memory:
        data, kind = _read(path, max_megapixels, memory)
        parts = picture_parts(data, kind)
        image = _image_of(parts.data, kind, max_megapixels)
        if parts.profile is not None:
            image.info["icc_profile"] = parts.profile
        try:
            yield OpenPicture(data, image, kind, parts.animated, memory)
        finally:
            image.close()
            if memory.nbytes > _WORTH_RETURNING:
                # glibc keeps for each thread what it freed, so that eight threads in turn would hold eight pictures.
                return_freed_memory()


def rgb_of(data: bytes, *, max_megapixels: float = MAX_MEGAPIXELS) -> Image.Image:
    """A picture's file in memory, upright, as 8-bit sRGB on white. FileFormatError without a name."""
    kind = signature(data[:64])
    if kind not in SUFFIXES:
        raise _unreadable_kind(kind)
    try:
        with quiet_decoders():
            image = _image_of(picture_parts(data, kind).data, kind, max_megapixels)
            image.load()
            return upright(to_rgb(image, WHITE), orientation_of(image))
    except DAMAGE as error:
        raise damage_error(error) from error


def rgb_picture(path: Path, *, background: Colour = WHITE, max_megapixels: float = MAX_MEGAPIXELS) -> Image.Image:
    """A picture file, upright, as 8-bit sRGB on ``background``.

    Raises MissingFileError, FileFormatError or FileError that names the file.
    """
    with named_damage(path), quiet_decoders(), opened(path, max_megapixels=max_megapixels) as picture:
        image = picture.decode()
        return upright(to_rgb(image, background), orientation_of(image))


def grey_picture(path: Path, *, max_megapixels: float = MAX_MEGAPIXELS) -> Image.Image:
    """A picture file, upright, as its brightness in 8 bits; transparent parts are black.

    Raises MissingFileError, FileFormatError or FileError that names the file.
    """
    with named_damage(path), quiet_decoders(), opened(path, max_megapixels=max_megapixels) as picture:
        image = picture.decode()
        return upright(to_grey(image), orientation_of(image))


@contextmanager
def named_damage(path: Path | str) -> Iterator[None]:
    """Inside: whatever a picture that cannot be read raises becomes a FileError that names it."""
    try:
        yield
    except FileError as error:
        raise type(error)(f"{path}: {error.problem}", error.hint) from error
    except DAMAGE as error:
        found = damage_error(error)
        raise FileFormatError(f"{path}: {found.problem}", found.hint) from error


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Inside: no Python warnings from Pillow about damaged metadata or sizes, which are reported as problems.

    For the thread that starts the work: the list of warning filters belongs to the whole process.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def damage_error(error: BaseException) -> FileFormatError:
    """What a decoder's exception means to a person."""
    text = str(error)
    if "truncated" in text.lower():
        return FileFormatError("is truncated: part of the picture is missing", "copy or download it again")
    if isinstance(error, MemoryError):
        return FileFormatError("does not fit into memory", "shrink the picture")
    if isinstance(error, UnidentifiedImageError):
        return FileFormatError("is damaged: its header cannot be read", "copy or download it again")
    return FileFormatError(f"is damaged: {text or type(error).__name__}", "copy or download it again")


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation 1 to 8 of a decoded picture; 1 where it is absent or nonsense."""
    if image.format == "TIFF":  # turned by the decoder
        return 1
    try:
        value = image.getexif().get(0x0112, 1)
    except DAMAGE:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """The picture turned as its EXIF orientation says."""
    turn = _UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image, background: Colour) -> Image.Image:
    """Any decoded picture as 8-bit sRGB, transparency flattened onto ``background``."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):
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


def to_grey(image: Image.Image, *, alpha: bool = False) -> Image.Image:
    """Any decoded picture as one channel of 8 bits: its brightness, with transparent parts black, or its ``alpha``."""
    if not alpha:
        return to_rgb(image, (0, 0, 0)).convert("L")
    image = _eight_bit(image) if image.mode.startswith("I") else image
    return image.convert("RGBA").getchannel("A")


def _read(path: Path, max_megapixels: float, memory: MemoryShare) -> tuple[bytes, str]:
    """The file's bytes and what it is."""
    limit = int(max_megapixels * 8e6 + 2**24)  # 8 bytes a pixel is 16-bit RGBA, uncompressed
    try:
        with open_file(path) as file:
            head: bytes = file.read(64)
            if not head:
                raise FileFormatError("is empty (zero bytes)", "copy or download the picture again")
            kind = signature(head)
            if kind not in SUFFIXES:
                raise _unreadable_kind(kind)
            size = path.stat().st_size
            if size > limit:
                raise FileFormatError(f"is too large a file ({size / 2**20:.0f} MiB)", "shrink the picture")
            memory.take(2 * size)  # the file, and the file without what is not needed
            rest: bytes = file.read(limit)
            return head + rest, kind
    except MissingFileError as error:
        raise MissingFileError("does not exist", "a broken link, or removed while it was being read") from error
    except FileFormatError as error:
        raise FileFormatError(error.problem.removeprefix(f"{path}: "), error.hint) from error
    except FileError as error:
        raise FileFormatError(error.problem.removeprefix(f"{str(path)!r}: "), error.hint) from error
    except OSError as error:
        raise FileFormatError(f"cannot be read: {error.strerror or error}", "check the file's permissions") from error


def _unreadable_kind(kind: str) -> FileFormatError:
    hint = _WAYS_OUT.get(kind, _SAVE)
    if not kind:
        return FileFormatError("is not an image", hint)
    if kind == "Git LFS pointer":
        return FileFormatError("is a Git LFS pointer, not the picture", hint)
    return FileFormatError(f"is a {kind} file, which is not read", hint)


def _image_of(data: bytes, kind: str, max_megapixels: float) -> Image.Image:
    try:
        image = Image.open(BytesIO(data), formats=[kind])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise FileFormatError("has too many pixels to be decoded safely", "shrink the picture") from error
    except UnidentifiedImageError as error:
        if kind == "TIFF":
            note = "is a TIFF picture of a sort that is not read, or damaged"
            raise FileFormatError(note, "open it in GIMP, Krita or ImageMagick and save it as PNG") from error
        raise damage_error(error) from error
    except DAMAGE as error:
        raise damage_error(error) from error
    _check_size(image, max_megapixels)
    if kind == "TIFF":
        _check_tiff(image, max_megapixels)
    return image


def _check_size(image: Image.Image, max_megapixels: float) -> None:
    if image.width * image.height > max_megapixels * 1e6:
        raise FileFormatError(
            f"has {image.width} x {image.height} pixels, more than max_megapixels={max_megapixels:g}",
            "shrink the picture, or raise max_megapixels if it is genuine",
        )


def _check_tiff(image: Image.Image, max_megapixels: float) -> None:
    """FileFormatError for what a TIFF can be besides a picture: the formats of cameras are TIFF files too."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    if _DNG_VERSION in tags:
        raise _unreadable_kind("camera raw")
    kind = tags.get(_KIND_OF_PAGE, 0)
    if not isinstance(kind, int) or kind & 1:
        note = "begins with a small preview of the picture, as the files of cameras do; the preview is not used"
        raise FileFormatError(note, _WAYS_OUT["camera raw"])
    tile = [tags.get(tag, 1) for tag in (_TILE_WIDTH, _TILE_LENGTH)]
    if not all(isinstance(side, int) for side in tile) or tile[0] * tile[1] > max_megapixels * 1e6:
        raise FileFormatError("has tiles that are larger than any picture", "save it as PNG")
    if image.mode in _NO_COLOURS:
        raise FileFormatError(_NO_COLOURS[image.mode], "save it as PNG with 8 or 16 bits a channel")


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit, rounded (65535 / 257 = 255); a transparent grey value becomes an alpha channel."""
    import numpy as np

    values: np.ndarray = np.asarray(image).astype(np.float32)
    # No whole number is nearer to a half than 0.5 / 257, which float32 can tell: it rounds as exact numbers would.
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


@lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if space != {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}[mode]:
            return None
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, *DAMAGE):
        return None
