"""EXIF's UserComment as text: eight bytes name its encoding, and half of the programs name it wrongly or not at all."""

from __future__ import annotations

import codecs
import unicodedata
from typing import Literal

__all__ = ["decode_text", "decode_user_comment"]

ByteOrder = Literal["little", "big"]

_PREFIX_BYTES = 8
_UNICODE, _ASCII, _JIS, _UNDEFINED = b"UNICODE", b"ASCII", b"JIS", b""
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def decode_user_comment(comment: bytes, order: ByteOrder | None = None) -> str:
    """The text of a UserComment; ``order`` is that of the TIFF header, which decides where the content does not.

    A byte order mark goes first, then what the content looks like, then the prefix: ``UNICODE`` is UTF-16 in either
    byte order, ``JIS`` is ISO-2022-JP, ``ASCII`` and eight zeros are UTF-8 or Latin-1. Zeros at the end are dropped.
    """
    name = comment[:_PREFIX_BYTES].rstrip(b"\0 ").upper()
    if name not in (_UNICODE, _ASCII, _JIS, _UNDEFINED):
        return decode_text(comment, order)
    content = comment[_PREFIX_BYTES:]
    if name == _UNICODE and not _has_mark(content):
        return _trimmed(_unmarked_utf16(content, order))
    if name == _JIS and not _has_mark(content):
        return _trimmed(_decoded(content, "iso2022_jp", "shift_jis", "utf-8"))
    return decode_text(content, order)


def decode_text(data: bytes, order: ByteOrder | None = None) -> str:
    """Bytes whose encoding nobody names: a byte order mark, UTF-16 that its zeros show, UTF-8, or else Latin-1."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _trimmed(data[len(mark) :].decode(encoding, "replace"))
    if b"\0" in data.rstrip(b"\0"):
        return _trimmed(_unmarked_utf16(data, order))
    return _trimmed(_decoded(data, "utf-8", "latin-1"))


def _trimmed(text: str) -> str:
    return text.lstrip("\ufeff").rstrip("\0")


def _has_mark(data: bytes) -> bool:
    return any(data.startswith(mark) for mark, _ in _MARKS)


def _decoded(data: bytes, *encodings: str) -> str:
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return data.decode(encodings[-1], "replace")


def _unmarked_utf16(content: bytes, order: ByteOrder | None) -> str:
    if b"\0" not in content and _is_sentence(content):
        return content.decode("utf-8")  # written as UTF-8 under the name of UTF-16
    whole = content[: len(content) // 2 * 2]
    ranked: list[tuple[tuple[int, int, bool], str]] = []
    for name in ("big", "little"):
        text = whole.decode(f"utf-16-{name[0]}e", "replace")
        # Most text has blanks and commas; in text of any one language most code units share their high byte.
        high = whole[0::2] if name == "big" else whole[1::2]
        ranked.append(((_familiar(text), -len(set(high)), name == order), text))
    return max(ranked, key=lambda entry: entry[0])[1]


def _familiar(text: str) -> int:
    """How many more characters are ASCII or common punctuation than are none at all."""
    known = sum(mark.isascii() and (mark.isprintable() or mark.isspace()) for mark in text)
    return known - sum(unicodedata.category(mark) in ("Cn", "Co", "Cs", "Cc") and not mark.isspace() for mark in text)


def _is_sentence(content: bytes) -> bool:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return len(content) % 2 == 1 or any(mark in text for mark in (": ", ", ", "{"))
