"""The parts of a picture's file that decide about pixels; everything else is left out before a decoder sees it.

Workflows, prompts, thumbnails and editing histories travel inside pictures, some larger than the picture and some
damaged. Decoders read them too, and refuse the whole file over a text that is too long or a checksum that is wrong.
What is kept, within limits: the pixels, transparency, the colour profile, and the places where an orientation can be.
From the point where a file cannot be taken apart it is passed on as it is, and the decoder decides.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["PictureParts", "picture_parts"]

_MOST_TEXT = 2**20
_MOST_PROFILE = 2**24
"""Colour profiles of printers have a few MiB."""

_PNG_MARK = b"\x89PNG\r\n\x1a\n"
# Chunks (PNG 1.2, chapter 4) that are needed besides those whose name says that they are (a capital in front).
_PNG_NEEDED = frozenset({b"tRNS", b"eXIf"})
_PNG_TEXTS = frozenset({b"Raw profile type exif", b"Raw profile type APP1", b"XML:com.adobe.xmp"})
"""Keywords of texts in which an orientation can stand (ImageMagick, XMP)."""

_JPEG_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_JPEG_START_OF_SCAN = 0xDA
_JPEG_APP = range(0xE0, 0xF0)
_JPEG_COMMENT = 0xFE
# APP0 and APP14 say which colours the components are; APP1 holds EXIF or XMP, APP2 the profile (or other things).
_JPEG_NEEDED = {
    0xE0: (b"JFIF\0", b"JFXX\0"),
    0xE1: (b"Exif\0", b"http://ns.adobe.com/xap/1.0/\0"),
    0xE2: (b"ICC_PROFILE\0",),
    0xEE: (b"Adobe",),
}

_WEBP_NEEDED = frozenset({b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP", b"EXIF"})
# Flags in the first byte of VP8X for the chunks that may be missing afterwards.
_WEBP_FLAGS = {b"ICCP": 0x20, b"EXIF": 0x08, b"XMP ": 0x04}


@dataclass(frozen=True)
class PictureParts:
    """``data``: a file of the same pixels without what they do not need. ``animated``: more than one frame was in it.

    ``profile``: an ICC profile that was taken out of a PNG, because decoders refuse long ones.
    """

    data: bytes
    profile: bytes | None = None
    animated: bool = False


def picture_parts(data: bytes, form: str) -> PictureParts:
    """The parts of a picture file of a format (``"PNG"``, ``"JPEG"``, ``"WEBP"``; others are given back as they are).

    Never fails: what cannot be understood is left to the decoder.
    """
    if form == "PNG":
        return _png(data)
    if form == "JPEG":
        return PictureParts(_jpeg(data))
    if form == "WEBP":
        return PictureParts(_webp(data))
    return PictureParts(data)


def _png(data: bytes) -> PictureParts:
    kept = _Kept(data)
    profile: bytes | None = None
    animated = False
    texts: set[bytes] = set()

    for kind, start, end in _png_chunks(data):
        content = memoryview(data)[start + 8 : end - 4]
        if kind == b"acTL" and len(content) >= 4:
            animated = int.from_bytes(content[:4], "big") > 1
        elif kind == b"iCCP":
            profile = profile or _png_profile(bytes(content))

        # PNG marks critical chunks by a capital. Of the others only transparency and a sound orientation change a
        # picture.
        if kind[:1].isupper() or (kind in _PNG_NEEDED and (kind != b"eXIf" or _sound(data, start, end))):
            continue
        keyword = bytes(content[:80]).partition(b"\0")[0]
        if keyword in _PNG_TEXTS - texts and _sound(data, start, end) and _is_short(kind, bytes(content)):
            texts.add(keyword)
            continue
        kept.leave_out(start, end)

    return PictureParts(kept.joined(), profile, animated)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(name, start, end) of every whole chunk up to the last, or to the first that is none."""
    place = len(_PNG_MARK)
    while place + 12 <= len(data):
        kind = data[place + 4 : place + 8]
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if not kind.isalpha() or kind == b"IEND" or end > len(data):
            return
        yield kind, place, end
        place = end


def _sound(data: bytes, start: int, end: int) -> bool:
    """Whether the checksum of a PNG chunk is right."""
    return zlib.crc32(memoryview(data)[start + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")


def _is_short(kind: bytes, content: bytes) -> bool:
    """Whether a text chunk holds at most ``_MOST_TEXT`` bytes, unpacked."""
    text = content.partition(b"\0")[2]
    if kind == b"iTXt" and text[:1] == b"\1":
        text = text[2:].split(b"\0", 2)[-1]
    elif kind == b"zTXt":
        text = text[1:]
    else:
        return len(content) <= _MOST_TEXT
    return _unpacked(text, _MOST_TEXT) is not None


def _png_profile(content: bytes) -> bytes | None:
    return _unpacked(content.partition(b"\0")[2][1:], _MOST_PROFILE)


def _unpacked(packed: bytes, limit: int) -> bytes | None:
    """Inflated, None if it is damaged or longer than ``limit``; never more than that is held."""
    try:
        inflater = zlib.decompressobj()
        unpacked = inflater.decompress(packed, limit)
    except zlib.error:
        return None
    return None if inflater.unconsumed_tail else unpacked


def _jpeg(data: bytes) -> bytes:
    """Without comments and without application segments that are not understood, as far as the first scan."""
    kept = _Kept(data)
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF or marker in _JPEG_STANDALONE:  # fill bytes, and marks without content
            place += 1 if marker == 0xFF else 2
            continue

        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == _JPEG_START_OF_SCAN or end < place + 4 or end > len(data):
            break
        if marker == _JPEG_COMMENT or (marker in _JPEG_APP and not _known_segment(data, place, marker)):
            kept.leave_out(place, end)
        place = end

    return kept.joined()


def _known_segment(data: bytes, place: int, marker: int) -> bool:
    return data.startswith(_JPEG_NEEDED.get(marker, ()), place + 4)


def _webp(data: bytes) -> bytes:
    """Without chunks that no picture needs, whole or cut off; the head says then what is left."""
    body: list[bytes] = []
    kinds: set[bytes] = set()
    place = 12

    while place + 8 <= len(data):
        kind, length = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        end = place + 8 + length + length % 2
        whole = end <= len(data) + length % 2
        # Pixels that are cut off still show something; half a profile, or a second one, only confuses decoders.
        pixels = kind in _WEBP_NEEDED and kind not in _WEBP_FLAGS
        if pixels or (whole and kind in _WEBP_NEEDED and kind not in kinds):
            body.append(data[place:end])
            kinds.add(kind)
        place = end
    if not body:
        return data

    # The head's flags promise what follows, and what was left out must not be promised.
    if body[0].startswith(b"VP8X") and len(body[0]) >= 18:
        gone = sum(flag for kind, flag in _WEBP_FLAGS.items() if kind not in kinds)
        body[0] = body[0][:8] + bytes([body[0][8] & ~gone & 0xFF]) + body[0][9:]

    content = b"WEBP" + b"".join(body)
    return b"RIFF" + struct.pack("<I", len(content)) + content


class _Kept:
    """Bytes without some stretches of them; the same object when nothing is left out."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._parts: list[memoryview] = []
        self._from = 0

    def leave_out(self, start: int, end: int) -> None:
        """Stretches come in order."""
        self._parts.append(memoryview(self._data)[self._from : start])
        self._from = end

    def joined(self) -> bytes:
        """All that was not left out."""
        if not self._parts:
            return self._data
        return b"".join([*self._parts, memoryview(self._data)[self._from :]])
