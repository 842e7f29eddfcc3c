"""Comments: everything from ``#`` to the end of the line."""

from __future__ import annotations

import re

__all__ = ["strip_comments"]

_WHOLE_LINE = re.compile(r"^[ \t]*#.*(?:\n|\Z)", re.MULTILINE)
_REST_OF_LINE = re.compile(r"(?<!\\)#.*")


def strip_comments(prompt: str) -> str:
    r"""The prompt without comments; ``\#`` is a number sign. Lines that hold a comment alone go altogether."""
    return _REST_OF_LINE.sub("", _WHOLE_LINE.sub("", prompt)) if "#" in prompt else prompt
