"""Which names a run, and with it its folder and all its files, can have: those that every system can keep and show."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["LONGEST_NAME", "check_name"]

LONGEST_NAME = 200
"""Bytes of UTF-8. File systems keep 255, and what is written behind a name (-last-good-step00001234-raw.safetensors)
takes up to 43."""
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
