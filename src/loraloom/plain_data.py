"""Plain data (tables, lists, numbers, text) out of files that anybody may have written, within limits.

A parser reads what its format allows: a number of 400 digits, which no floating-point number holds; a list 900 deep,
at which the next function that walks it runs out of stack. Both end here, with a sentence that names the place.
:func:`shown` puts such data into sentences.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import tomlkit
from tomlkit.exceptions import ParseError, TOMLKitError

from loraloom.errors import FileFormatError

__all__ = [
    "LARGEST_WHOLE",
    "check_plain",
    "finite",
    "is_slow_expression",
    "parse_json",
    "parse_toml",
    "shown",
    "size_text",
    "too_large",
]

LARGEST_WHOLE = 2**63 - 1
"""The largest whole number that a setting takes: seeds and counts are 64 bits wide in every library."""
MAX_DEPTH = 32
MAX_BITS = 1000
"""Whole numbers up to here (300 digits) can be calculated with as floating-point numbers."""
_TOO_DEEP = "settings are two or three levels deep"
_LONGEST = 60


_MOST_REPEATS = 3
"""Repetitions in an expression for names of layers: each one more multiplies the time by a name's length."""


def is_slow_expression(pattern: str) -> bool:
    """Whether matching a regular expression with names of layers could take forever.

    Repetitions inside repetitions, and very many of them, make some texts take hours. What is refused here could be
    harmless; everything that is let through takes milliseconds.
    """
    repeats = len(re.findall(r"[*+{]", pattern))
    return len(pattern) > 300 or repeats > _MOST_REPEATS or re.search(r"\)[*+{]", pattern) is not None


def parse_toml(text: str, what: str) -> dict[str, Any]:
    """TOML as plain data. FileFormatError, which begins with ``what``, for text that is not TOML or goes beyond the
    limits."""
    try:
        data: dict[str, Any] = tomlkit.parse(text).unwrap()
    except ParseError as error:
        sentence = str(error).partition(" at line ")[0].replace(r"Unexpected character: '\x00'", "it ends too early")
        place = f"line {error.line} column {error.col}"
        hint = "text values need quotes; Windows paths single ones"
        raise FileFormatError(f"{what} is not valid TOML: {place}: {sentence}", hint) from error
    except RecursionError as error:
        raise FileFormatError(f"{what} is nested too deeply", _TOO_DEEP) from error
    except (TOMLKitError, ValueError) as error:  # a key twice; a number too long to convert, a day that does not exist
        raise FileFormatError(f"{what} is not valid TOML: {error}", "compare it with a file that works") from error
    check_plain(data, what)
    return data


def parse_json(text: str, what: str, *, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """JSON as plain data; ``pairs`` makes its objects. Raises FileFormatError as :func:`parse_toml` does."""
    try:
        data = json.loads(text, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        hint = "write a backslash as \\\\ or use /" if "escape" in error.msg else "compare it with the line above it"
        raise FileFormatError(f"{what}, line {error.lineno} column {error.colno}: {error.msg}", hint) from error
    except RecursionError as error:
        raise FileFormatError(f"{what} is nested too deeply", _TOO_DEEP) from error
    except ValueError as error:  # more digits than Python converts
        raise FileFormatError(f"{what} holds a number of thousands of digits", "write a number") from error
    check_plain(data, what)
    return data


def check_plain(data: Any, what: str) -> None:
    """Raise FileFormatError for data that is nested too deeply, or that holds a number too large to calculate with."""
    waiting: list[tuple[str, Any, int]] = [("", data, 0)]
    # A list of what waits, not recursion: how deep it goes is the very thing that is checked.
    while waiting:
        path, value, depth = waiting.pop()

        if depth > MAX_DEPTH:
            raise FileFormatError(f"{what} is nested too deeply", _TOO_DEEP)
        if isinstance(value, Mapping):
            waiting += [(f"{path}.{key}" if path else str(key), inner, depth + 1) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{path}[{index}]", inner, depth + 1) for index, inner in enumerate(value)]
        elif isinstance(value, float) and not math.isfinite(value):
            word = "NaN" if math.isnan(value) else "infinity"
            raise FileFormatError(f"{what}: {path} is {word}, which is not a number to train with", "write a number")
        elif isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise FileFormatError(f"{what}: {path} is {shown(value)}", "write a finite number")


def too_large(value: Any) -> bool:
    """Whether a whole number in ``value`` is beyond :data:`LARGEST_WHOLE`."""
    if isinstance(value, Mapping):
        return any(too_large(inner) for inner in value.values())
    if isinstance(value, (list, tuple)):
        return any(too_large(inner) for inner in value)
    return isinstance(value, int) and abs(value) > LARGEST_WHOLE


def finite(value: Any) -> float | None:
    """A number, or text that is one, as a floating-point number; None for everything else, infinity and NaN too."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def shown(value: Any) -> str:
    """A value in a sentence for people: text in quotes, words for yes, no and nothing, never a dump of tables."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    # Python refuses to turn very long numbers into digits, so these are described by their length.
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        return f"a whole number of {_digits(value)} digits"
    if isinstance(value, str):
        return repr(value if len(value) <= _LONGEST else f"{value[: _LONGEST - 1]}…")

    if isinstance(value, Mapping):
        return f"a group of settings ({_few(map(str, value))})" if value else "an empty group"
    if isinstance(value, (list, tuple)):
        return _few(shown(inner) for inner in value) if value else "an empty list"
    return str(value)


def _digits(value: int) -> str:
    if value.bit_length() < 14_000:
        return str(len(str(abs(value))))
    return f"about {value.bit_length() * math.log10(2):.0f}"  # Python converts no longer ones into text


def _few(parts: Iterable[str], count: int = 6) -> str:
    found = list(parts)
    more = f" and {len(found) - count} more" if len(found) > count else ""
    return ", ".join(found[:count]) + more


def size_text(nbytes: int) -> str:
    """A size for people: ``1.5 GB`` (decimal units)."""
    if nbytes < 1000:
        return f"{nbytes} bytes"
    size, units = nbytes / 1000, ["kB", "MB", "GB", "TB"]
    while size >= 999.95 and len(units) > 1:
        size /= 1000
        del units[0]
    return f"{size:.1f} {units[0]}"
