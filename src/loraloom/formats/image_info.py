"""The generation parameters that travel inside an image, in the text form of the AUTOMATIC1111 web UI ("infotext").

::

    prompt, possibly of many lines
    Negative prompt: possibly of many lines
    Steps: 20, Sampler: Euler a, Seed: 1, Size: 512x512, Lora hashes: "a: 0123456789ab"

PNG keeps it in the text chunk ``parameters`` (tEXt, or iTXt beyond Latin-1), JPEG and WebP in EXIF's UserComment.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from loraloom.errors import FileError, MissingFileError, OutputError
from loraloom.formats.files import atomic_writer
from loraloom.reading import open_file

__all__ = ["Parameters", "format_parameters", "is_image", "parse_parameters", "read_parameters", "save_image"]

_NEGATIVE = "Negative prompt:"
_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286
_PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_MINIMUM_PAIRS = 3
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
# What Pillow raises on damaged files, besides OSError.
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error, zlib.error, OverflowError)


@dataclass(frozen=True)
class Parameters:
    """An infotext taken apart. ``fields`` keeps the order and the spelling of the text."""

    prompt: str = ""
    negative_prompt: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) in pixels, where the text says so."""
        match = re.fullmatch(r"(\d{1,6})x(\d{1,6})", self.fields.get("Size", ""))
        return (int(match[1]), int(match[2])) if match else None


def format_parameters(prompt: str, negative_prompt: str, fields: Mapping[str, object]) -> str:
    """The infotext. Fields that are None are left out; values with a comma, colon or line break are quoted."""
    lines = [prompt]
    if negative_prompt:
        lines.append(f"{_NEGATIVE} {negative_prompt}")
    pairs = [
        key if key == str(value) else f"{key}: {_quoted(str(value))}"
        for key, value in fields.items()
        if value is not None
    ]
    return "\n".join([*lines, ", ".join(pairs)])


def parse_parameters(text: str) -> Parameters:
    """Take any text apart; what does not look like parameters is prompt. Never fails."""
    lines = text.rstrip().split("\n")
    fields = _fields(lines[-1])
    if len(fields) < _MINIMUM_PAIRS:
        fields = {}
    else:
        lines.pop()
    start = next((index for index, line in enumerate(lines) if line.lstrip().startswith(_NEGATIVE)), len(lines))
    negative = "\n".join(lines[start:]).lstrip().removeprefix(_NEGATIVE).removeprefix(" ")
    return Parameters("\n".join(lines[:start]), negative, fields)


def save_image(image: Image.Image, path: Path, parameters: str) -> None:
    """Write the image with its parameters, whole or not at all. PNG, JPEG or WebP by suffix, else OutputError."""
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise OutputError(f"{path}: images cannot be written as {path.suffix or 'a file without suffix'}", "use .png")
    parameters = parameters.encode("utf-8", "replace").decode("utf-8")
    options: dict[str, Any] = {"quality": 95, "exif": _exif(parameters)}
    if kind == "PNG":
        info = PngInfo()
        info.add_text("parameters", parameters)
        options = {"pnginfo": info}
    if len(options.get("exif", b"")) > 0xFFFF - 8 and kind == "JPEG":
        raise OutputError(f"{path}: the parameters are too long for a JPEG file (64 KB)", "use .png")
    with atomic_writer(path) as file:
        image.save(file, kind, **options)


def is_image(path: Path) -> bool:
    """Whether a file begins as a PNG, JPEG or WebP does; False also where there is no file."""
    try:
        with open_file(path) as file:
            head = file.read(12)
    except (FileError, OSError):
        return False
    return head.startswith((b"\x89PNG\r\n", b"\xff\xd8\xff")) or (head[:4] == b"RIFF" and head[8:] == b"WEBP")


def read_parameters(path: Path) -> str | None:
    """The infotext inside an image, None where there is none (or the file is no image); MissingFileError."""
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist", "check the path")
    try:
        with Image.open(path) as image:
            return _from_text(image) or _from_exif(image)
    except (Image.DecompressionBombError, *_DAMAGE):
        return None


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,\n:]|^"', value) else value


def _unquoted(value: str) -> str:
    if len(value) < 2 or not (value.startswith('"') and value.endswith('"')):
        return value.strip()
    try:
        return str(json.loads(value))
    except ValueError:
        return value


def _fields(line: str) -> dict[str, str]:
    """The ``key: value`` pairs of a line; what is between commas and is no pair is passed over."""
    fields: dict[str, str] = {}
    position = 0
    while 0 <= position < len(line):
        match = _PAIR.match(line, position)
        if match:
            fields[match[1]] = _unquoted(match[2])
            position = match.end()
        else:
            position = line.find(",", position) + 1 or len(line)
    return fields


def _exif(parameters: str) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = b"UNICODE\0" + parameters.encode("utf-16-be")
    return exif.tobytes()


def _from_text(image: Image.Image) -> str | None:
    info = image.info
    if "parameters" not in info and image.format == "PNG":
        image.load()  # text may also stand after the pixels
        info = image.info
    if isinstance(info.get("parameters"), str):
        return str(info["parameters"])
    if info.get("Software") == "NovelAI" and isinstance(info.get("Comment"), str):
        return _novel_ai(str(info.get("Description", "")), info["Comment"])
    comment = info.get("comment")
    if image.format == "GIF" and isinstance(comment, bytes):
        return comment.decode("utf-8", "replace")
    return None


def _novel_ai(prompt: str, comment: str) -> str | None:
    try:
        data = json.loads(comment)
    except ValueError:
        return None
    if not isinstance(data, dict):
        return None
    fields = {"Steps": data.get("steps"), "CFG scale": data.get("scale"), "Seed": data.get("seed")}
    return format_parameters(prompt, str(data.get("uc") or ""), {**fields, "Clip skip": 2, "ENSD": 31337})


def _from_exif(image: Image.Image) -> str | None:
    comment = image.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    if isinstance(comment, str):
        return comment or None
    if not isinstance(comment, bytes):
        return None
    prefix, content = comment[:8], comment[8:]
    if prefix == b"UNICODE\0":
        # The standard leaves the byte order open; in text of any language most code units share their high byte.
        little = content[1::2].count(0) > content[0::2].count(0)
        text = content.decode("utf-16-le" if little else "utf-16-be", "replace")
    elif prefix in (b"ASCII\0\0\0", b"\0" * 8):
        text = content.decode("utf-8", "replace")
    else:
        text = comment.decode("utf-8", "replace")
    return text.strip("\0") or None
