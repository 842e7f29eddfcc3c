"""Names that every system can keep and show: which a run can have, and what is made of those that strangers give."""

from __future__ import annotations

import re
import unicodedata
from hashlib import sha256
from pathlib import Path

__all__ = ["LONGEST_NAME", "check_name", "clean_name", "entry_of"]

LONGEST_NAME = 200
"""Bytes of UTF-8. File systems keep 255, and what is written behind a name (-last-good-step00001234-raw.safetensors)
takes up to 43."""
_LONGEST_ENTRY = 255
"""Bytes of a name that any file system keeps."""
_SEPARATORS = r"/\:*?\"<>|"
_DEVICES = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|clock\$|(?:com|lpt)[0-9¹²³])", re.IGNORECASE)
_TURNS_TEXT = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that turn the direction of what follows: a name with them is shown as another one."""


def check_name(name: str) -> str:
    """The name as it is. Raises ValueError with the reason for one that cannot be the name of a file everywhere."""
    reason = _reason(name)
    if reason:
        raise ValueError(f"{reason}; choose a plain name, such as my-style_2")
    return name


def clean_name(name: str, *, longest: int = LONGEST_NAME) -> str:
    """The name as it is, or the nearest one that passes :func:`check_name` and has at most ``longest`` bytes (40 or
    more).

    What follows the last dot stays. Two long names that are cut stay two: a part of their checksum ends them.
    """
    name = unicodedata.normalize("NFC", name)
    name = "".join("_" if mark in _SEPARATORS or _is_invisible(mark) else mark for mark in name)
    name = name.strip().lstrip(".").rstrip(". ").lstrip() or "unnamed"
    stem, dot, ending = name.partition(".")
    if _DEVICES.fullmatch(stem.rstrip()):
        name = f"{stem.rstrip()}_{dot}{ending}"
    if len(name.encode("utf-8")) <= longest:
        return name
    stem, dot, ending = name.rpartition(".")
    ending = f".{ending}" if dot and len(ending.encode("utf-8")) <= 16 else ""
    mark = f"-{sha256(name.encode('utf-8')).hexdigest()[:8]}{ending}"
    room = longest - len(mark.encode("utf-8"))
    return name.encode("utf-8")[:room].decode("utf-8", "ignore").rstrip(". ") + mark


def entry_of(folder: Path, name: str) -> Path | None:
    """The entry ``name`` of a folder, whether it exists or not; None for a name that leads anywhere else, by dots,
    separators, a drive or a link."""
    path = folder / name
    if len(name.encode("utf-8", "surrogatepass")) > _LONGEST_ENTRY:
        return None
    try:
        lies_there = "\0" not in name and path.name == name and path.resolve().parent == folder.resolve()
    except (OSError, ValueError, RuntimeError):  # too long, no text, links in a circle
        return None
    return path if lies_there else None


def _reason(name: str) -> str:
    if not name.strip():
        return "a name cannot be empty"
    wrong = [character for character in name if character in _SEPARATORS]
    if wrong:
        return f"a file name cannot have {wrong[0]} in it"

    if any(_is_invisible(character) for character in name):
        return "a name cannot have control characters or line ends in it"
    # Windows removes spaces and dots at the end, so two names there would be one file.
    if name != name.strip():
        return "a name cannot begin or end with a space"
    if name.startswith("."):
        return "a name cannot begin with a dot: the folder would be hidden"
    if name.endswith("."):
        return "a name cannot end with a dot: Windows removes it"
    if _DEVICES.fullmatch(name.partition(".")[0].rstrip()):
        return f"{name.partition('.')[0]} is a device on Windows, where no file can have this name"

    size = len(name.encode("utf-8"))
    return f"a name has at most {LONGEST_NAME} bytes, this has {size}" if size > LONGEST_NAME else ""


def _is_invisible(character: str) -> bool:
    """Controls, line and paragraph separators, halves of characters, and what turns the direction of text."""
    return unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs") or character in _TURNS_TEXT
