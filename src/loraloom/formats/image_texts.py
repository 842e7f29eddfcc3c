"""Every text that a picture carries: PNG's text chunks, EXIF, XMP and comments, each under the name it has there.

Pixels are never decoded, so a damaged or huge picture still says how it was made.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from loraloom.errors import FileError
from loraloom.formats.user_comment import ByteOrder, decode_text, decode_user_comment
from loraloom.reading import open_file

__all__ = ["USER_COMMENT", "image_texts", "is_image"]

USER_COMMENT = "UserComment"
"""Name of EXIF's comment among the texts, wherever it stands."""

MAX_TEXT_BYTES = 1 << 24
MAX_TEXTS = 256
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286
_EXIF_TEXTS = {0x010E: "ImageDescription", 0x010F: "Make", 0x0110: "Model", 0x0131: "Software"}
# What Pillow raises on damaged files, besides OSError.
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error, zlib.error, OverflowError),
    Image.DecompressionBombError,
)


def is_image(path: Path) -> bool:
    """Whether a file begins as a PNG, JPEG, WebP, AVIF or GIF does; False also where there is no file."""
    try:
        with open_file(path) as file:
            head = file.read(16)
    except (OSError, FileError):
        return False
    return _kind(head) is not None


def image_texts(path: Path) -> dict[str, str]:
    """The texts inside an image; empty where there are none or the file is not an image.

    PNG's chunks under their keywords, EXIF's comment as ``UserComment`` (from EXIF or from XMP), ``ImageDescription``,
    ``Make``, ``Model``, ``Software``, and ``comment`` of a JPEG or GIF. An empty text is none. Raises MissingFileError,
    and FileFormatError for a folder, a pipe or a device.
    """
    texts: dict[str, str] = {}
    with open_file(path) as file:
        if file.read(8) == _SIGNATURE:
            texts.update(_png_texts(file))
        file.seek(0)
        try:
            with Image.open(file) as image:
                for name, text in _pillow_texts(image):
                    texts.setdefault(name, text)
        except _DAMAGE:
            pass  # what was found so far is all that can be read
    return {name: text for name, text in texts.items() if text}


def _kind(head: bytes) -> str | None:
    kinds = {b"\x89PNG\r\n": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif"}
    for start, kind in kinds.items():
        if head.startswith(start):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    return "avif" if head[4:12] in (b"ftypavif", b"ftypavis") else None


# ------------------------------------------------------------------------------------------------ PNG


@dataclass(frozen=True)
class _Chunk:
    kind: bytes
    data: bytes


def _png_texts(file: BinaryIO) -> Iterator[tuple[str, str]]:
    """Keyword and text of every text chunk, before or after the pixels; chunks that are too large are passed over."""
    for chunk in _chunks(file):
        if chunk.kind == b"eXIf":
            yield from _exif_texts(chunk.data)
            continue
        try:
            found = _READERS[chunk.kind](chunk.data)
        except (ValueError, zlib.error):
            continue
        if found is not None:
            yield found


def _chunks(file: BinaryIO) -> Iterator[_Chunk]:
    count = 0
    while count < MAX_TEXTS and len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IEND":
            return
        if (kind in _READERS or kind == b"eXIf") and length <= MAX_TEXT_BYTES:
            count += 1
            yield _Chunk(kind, file.read(length))
            file.seek(4, 1)
        else:
            file.seek(length + 4, 1)


def _latin(data: bytes) -> tuple[str, str] | None:
    """tEXt is Latin-1; programs that write UTF-8 or UTF-16 into it are known by the bytes."""
    keyword, zero, text = data.partition(b"\0")
    return (keyword.decode("latin-1"), decode_text(text)) if zero else None


def _compressed(data: bytes) -> tuple[str, str] | None:
    keyword, zero, text = data.partition(b"\0")
    return (keyword.decode("latin-1"), decode_text(_inflated(text[1:]))) if zero and text[:1] == b"\0" else None


def _international(data: bytes) -> tuple[str, str] | None:
    keyword, zero, rest = data.partition(b"\0")
    parts = rest[2:].split(b"\0", 2)
    if not zero or len(parts) != 3:
        return None
    text = _inflated(parts[2]) if rest[:1] == b"\1" else parts[2]
    return keyword.decode("latin-1"), text.decode("utf-8", "replace").lstrip("\ufeff")


_READERS: dict[bytes, Callable[[bytes], tuple[str, str] | None]] = {
    b"tEXt": _latin,
    b"zTXt": _compressed,
    b"iTXt": _international,
}


def _inflated(data: bytes) -> bytes:
    """At most so much of a compressed text as a text may have."""
    return zlib.decompressobj().decompress(data, MAX_TEXT_BYTES)


# ------------------------------------------------------------------------------------------------ EXIF, XMP, comments


def _pillow_texts(image: Image.Image) -> Iterator[tuple[str, str]]:
    info = image.info
    yield from _exif_texts(info.get("exif"))
    xmp = info.get("xmp", info.get("XML:com.adobe.xmp"))
    if isinstance(xmp, (bytes, str)):
        text = xmp.decode("utf-8", "replace") if isinstance(xmp, bytes) else xmp
        yield from _xmp_texts(text[:MAX_TEXT_BYTES])
    comment = info.get("comment")
    if isinstance(comment, (bytes, str)):
        yield "comment", decode_text(comment) if isinstance(comment, bytes) else comment


def _exif_texts(data: object) -> Iterator[tuple[str, str]]:
    """The texts of an EXIF block, with or without ``Exif`` in front."""
    if not isinstance(data, bytes) or len(data) > MAX_TEXT_BYTES:
        return
    exif = Image.Exif()
    try:
        exif.load(data)
        comment = exif.get_ifd(_EXIF_IFD).get(_USER_COMMENT, exif.get(_USER_COMMENT))
        others = {name: exif.get(tag) for tag, name in _EXIF_TEXTS.items()}
    except _DAMAGE:
        return
    tiff = data.removeprefix(b"Exif\0\0")[:2]
    order: ByteOrder | None = {b"II": "little", b"MM": "big"}.get(tiff)  # type: ignore[assignment]
    if isinstance(comment, bytes):
        yield USER_COMMENT, decode_user_comment(comment, order)
    elif isinstance(comment, str):
        yield USER_COMMENT, comment
    for name, value in others.items():
        if isinstance(value, (bytes, str)):
            yield name, (value if isinstance(value, str) else decode_text(value)).rstrip("\0")


_XMP_TEXTS = {
    "exif:UserComment": USER_COMMENT,
    "dc:description": "ImageDescription",
    "tiff:ImageDescription": "ImageDescription",
    "xmp:CreatorTool": "Software",
    "tiff:Software": "Software",
}


def _xmp_texts(xmp: str) -> Iterator[tuple[str, str]]:
    """The few properties of an XMP packet that programs put texts into: found as text, no XML parser needed."""
    for name, target in _XMP_TEXTS.items():
        element = _between(xmp, f"<{name}>", f"</{name}>")
        if element is not None:
            item = _between(element, "<rdf:li", "</rdf:li>")
            inner = element if item is None else item.partition(">")[2]
            yield target, unescape(inner.strip())
        elif (attribute := _between(xmp, f'{name}="', '"')) is not None:
            yield target, unescape(attribute)


def _between(text: str, start: str, end: str) -> str | None:
    _, found, rest = text.partition(start)
    inner, closed, _ = rest.partition(end)
    return inner if found and closed else None
