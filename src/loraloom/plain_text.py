"""Text that strangers may have written, made fit for one line of a terminal, of JSON or of TOML."""

from __future__ import annotations

import re

__all__ = ["one_line"]

_UNSHOWN = re.compile("[\x00-\x08\n-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udc7f\udd00-\udfff]")
"""Controls, ends of lines, what turns the direction of text, and halves of letters, which JSON can spell."""


def one_line(text: str) -> str:
    """The text with such characters, and bytes that are not text, as escapes.

    Names in strangers' files must not steer a terminal, and every stream and file must be able to hold them.
    """
    escaped = _UNSHOWN.sub(lambda found: ascii(found[0])[1:-1], text)
    # A file's name that is not UTF-8 comes from the system with half a surrogate pair for each byte of it.
    return escaped.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
