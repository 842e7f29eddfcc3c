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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from loraloom.errors import OutputError
from loraloom.formats.files import atomic_writer
from loraloom.formats.image_texts import USER_COMMENT, image_texts

__all__ = ["Parameters", "format_parameters", "parse_parameters", "read_parameters", "save_image", "size_of"]

_NEGATIVE = "Negative prompt:"
_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286
_PAIR = re.compile(
    r"""\s*(\w[\w \-/]+):\s*
    ( "(?:\\.|[^\\"])*"               # quoted
    | [+-]?\d+,\d+ (?=\s*(?:,|$))     # a number with a decimal comma: a comma between pairs has a blank behind it
    | [^,]*
    )(?:,|$)""",
    re.VERBOSE,
)
_JSON_VALUE = re.compile(r"\s*(\w[\w \-/]+):\s*(?=[\[{])")
_END_OF_PAIR = re.compile(r"\s*(?:,|$)")
_MINIMUM_PAIRS = 3
_KNOWN_KEYS = frozenset(
    {
        *("Steps", "Sampler", "Schedule type", "CFG scale", "Seed", "Size", "Model hash", "Model", "Clip skip"),
        *("Denoising strength", "Version", "Face restoration", "Hires upscale", "Hires upscaler", "ENSD", "RNG"),
    }
)
"""Keys by which a line of settings is known wherever it stands."""
_STEPS = re.compile(r"\s*Steps:\s*\d+\s*(?:,|$)")
_LINE_KEY = re.compile(r"(\w[\w \-/]{0,60}):(?!//)\s*(.*)$")
_TEMPLATES = ("Template", "Negative Template")
"""Fields whose text is a prompt, in which colons and commas separate nothing."""
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_SIZE = re.compile(r"\s*(\d{1,6})\s*[xX×*]\s*(\d{1,6})\s*")


@dataclass(frozen=True)
class Parameters:
    """An infotext taken apart. ``fields`` keeps the order and the spelling of the text."""

    prompt: str = ""
    negative_prompt: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    rest: str = ""
    """Lines after the settings that are not settings."""
    program: str = ""
    """The program whose own form it was, where it is none of the web UI's family."""
    remarks: tuple[str, ...] = ()
    """What the image says and these parameters cannot express."""

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) in pixels, where the text says so."""
        return size_of(self.fields.get("Size", ""))


def size_of(text: str) -> tuple[int, int] | None:
    """(width, height) of ``512x768`` as any program writes it (``512 x 768``, ``512×768``); None for other texts."""
    match = _SIZE.fullmatch(text)
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
    """Take any text apart; what does not look like parameters is prompt. Never fails.

    The line of settings is known by what is in it, and text may follow it: pairs become fields, each with the lines
    below it (``Template:`` of the Dynamic Prompts extension), anything else is ``rest``.
    """
    lines = text.lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n").rstrip().split("\n")
    found = _settings_lines(lines)
    if found is None:
        prompt, negative = _prompts(lines)
        return Parameters(prompt, negative)
    start, end, fields = found
    prompt, negative = _prompts(lines[:start])
    behind, rest = _behind(lines[end:])
    if not negative:
        negative = behind.pop(_NEGATIVE.rstrip(":"), "")
    # Another value of a setting is not a setting: that of the line of settings counts.
    again = [f"{key}: {value}" for key, value in behind.items() if fields.get(key, value) != value]
    rest = "\n".join(filter(None, [rest, *again]))
    return Parameters(prompt, negative, {**behind, **fields}, rest)


def save_image(image: Image.Image, path: Path, parameters: str) -> None:
    """Write the image with its parameters, whole or not at all. PNG, JPEG or WebP by suffix, else OutputError."""
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise OutputError(f"{path}: images cannot be written as {path.suffix or 'a file without suffix'}", "use .png")
    parameters = parameters.encode("utf-8", "replace").decode("utf-8")
    options: dict[str, Any] = {"quality": 95, "exif": _exif(parameters)}
    if kind == "PNG":
        info = PngInfo()
        if _reads_as_utf8(parameters):
            info.add_itxt("parameters", parameters)
        else:
            info.add_text("parameters", parameters)
        options = {"pnginfo": info}
    if len(options.get("exif", b"")) > 0xFFFF - 8 and kind == "JPEG":
        raise OutputError(f"{path}: the parameters are too long for a JPEG file (64 KB)", "use .png")
    with atomic_writer(path) as file:
        image.save(file, kind, **options)


def read_parameters(path: Path) -> str | None:
    """The web UI's text inside an image, None where there is none (or the file is not an image); MissingFileError.

    ``image_programs.read_image`` reads those of other programs too.
    """
    texts = image_texts(path)
    return next((texts[name] for name in ("parameters", USER_COMMENT, "comment") if name in texts), None)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,\n:]|^"', value) else value


def _unquoted(value: str) -> str:
    if len(value) < 2 or not (value.startswith('"') and value.endswith('"')):
        return value.strip()
    try:
        return str(json.loads(value))
    except ValueError:
        return value


def _reads_as_utf8(text: str) -> bool:
    """Whether a Latin-1 text would be taken for UTF-8, which other programs write where PNG wants Latin-1."""
    try:
        return not text.isascii() and bool(text.encode("latin-1").decode("utf-8"))
    except UnicodeError:
        return False


def _prompts(lines: Sequence[str]) -> tuple[str, str]:
    start = next((index for index, line in enumerate(lines) if _is_negative(line)), len(lines))
    negative = "\n".join(lines[start:]).lstrip()[len(_NEGATIVE) :].removeprefix(" ")
    return "\n".join(lines[:start]), negative


def _is_negative(line: str) -> bool:
    return line.lstrip()[: len(_NEGATIVE)].casefold() == _NEGATIVE.casefold()


def _settings_lines(lines: Sequence[str]) -> tuple[int, int, dict[str, str]] | None:
    """First and end of the lines of settings, and what they say.

    Usually one line: the last one that begins with the steps, else the last one with known keys, else the last of all
    where that has three pairs (the web UI's rule). Some programs write a line for each setting.
    """
    read = [_fields(line) for line in lines]
    full = [index for index in range(len(lines)) if len(read[index]) >= _MINIMUM_PAIRS]
    usual = [index for index in full if _STEPS.match(lines[index])]
    known = [index for index in full if len(_KNOWN_KEYS & read[index].keys()) >= _MINIMUM_PAIRS - 1]
    last = [index for index in full if index == len(lines) - 1]

    # The order matters: a prompt may hold pairs too, so the surest sign of a line of settings is asked first.
    for found in (usual, known, last):
        if found:
            return found[-1], found[-1] + 1, read[found[-1]]
    return _settings_column(lines, read)


def _settings_column(lines: Sequence[str], read: Sequence[dict[str, str]]) -> tuple[int, int, dict[str, str]] | None:
    steps = next((index for index in range(len(lines) - 1, -1, -1) if _STEPS.match(lines[index])), None)
    if steps is None:
        return None

    # Lines above the steps need keys that are known, since the prompt ends somewhere among them.
    start = end = steps
    while start > 0 and _KNOWN_KEYS & read[start - 1].keys():
        start -= 1
    while end < len(lines) and read[end]:
        end += 1

    fields = {key: value for found in read[start:end] for key, value in found.items()}
    return (start, end, fields) if len(_KNOWN_KEYS & fields.keys()) >= _MINIMUM_PAIRS else None


def _behind(lines: Sequence[str]) -> tuple[dict[str, str], str]:
    """Fields that follow the settings, each with the lines below it, and what stands before the first of them."""
    fields: dict[str, str] = {}
    below: dict[str, list[str]] = {}
    rest: list[str] = []
    key = ""
    for line in lines:
        match = _LINE_KEY.match(line.strip())
        pairs = _fields(line) if match else {}
        # Several known pairs are fields, not one field with a long text; a template may hold colons as a prompt
        # does.
        if match and match[1] not in _TEMPLATES and _KNOWN_KEYS & pairs.keys():
            fields |= pairs
            key = ""
        elif match:
            key = match[1]
            fields[key], below[key] = _unquoted(match[2]), []
        elif key:
            below[key].append(line)
        else:
            rest.append(line)

    fields = {name: "\n".join([value, *below.get(name, ())]) for name, value in fields.items()}
    if negative := next((name for name in fields if _is_negative(name + ":")), None):
        fields[_NEGATIVE.rstrip(":")] = fields.pop(negative)
    return {name: value.strip() for name, value in fields.items()}, "\n".join(rest).strip()


def _fields(line: str) -> dict[str, str]:
    """The ``key: value`` pairs of a line; what is between commas and is not a pair is passed over."""
    fields: dict[str, str] = {}
    position = 0
    while 0 <= position < len(line):
        if (found := _json_pair(line, position)) is not None:
            key, fields[key], position = found[0], found[1], found[2]
        elif match := _PAIR.match(line, position):
            fields[match[1]] = _unquoted(match[2])
            position = match.end()
        else:
            position = line.find(",", position) + 1 or len(line)
    return fields


def _json_pair(line: str, position: int) -> tuple[str, str, int] | None:
    """``Civitai resources: [{...}, {...}]``: a value with commas of its own that nobody quoted."""
    match = _JSON_VALUE.match(line, position)
    if match is None:
        return None
    try:
        _, end = json.JSONDecoder().raw_decode(line, match.end())
    except (ValueError, RecursionError):
        return None
    behind = _END_OF_PAIR.match(line, end)
    return (match[1], line[match.end() : end], behind.end()) if behind else None


def _exif(parameters: str) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = b"UNICODE\0" + parameters.encode("utf-16-be")
    return exif.tobytes()
