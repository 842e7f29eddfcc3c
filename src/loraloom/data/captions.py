"""Caption files: found beside a picture, decoded no matter which program wrote them, one line each.

Rules: the first ending of ``caption_extensions`` for which ``<stem><ending>`` exists is the caption; if none does,
``<picture's full name><ending>`` (cat.png.txt) is taken. The first line that is not blank is used (captions.lines: or
others), without spaces around it. A file with nothing in it is an empty caption (trains the picture without words); no
file at all gives the concept's name. What then becomes of a caption each time is in caption_operations.py.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from loraloom.data.problems import Problem, normal_name
from loraloom.errors import FileError
from loraloom.reading import open_file

__all__ = ["MOST_CHARACTERS", "Caption", "CaptionFiles", "caption_lines", "decode_text", "read_caption"]

_MAX_BYTES = 2**16
MOST_CHARACTERS = 8192
_BOMS = (
    (codecs.BOM_UTF8, "utf-8", "UTF-8 with a byte order mark"),
    (codecs.BOM_UTF32_LE, "utf-32-le", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32-be", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"),
)


@dataclass(frozen=True)
class Caption:
    """A caption file's text (its first line, None if the file is unusable) and what was odd about it."""

    text: str | None
    problems: tuple[Problem, ...] = ()
    lines: tuple[str, ...] = ()
    """Every line with text, the first is ``text``."""


class CaptionFiles:
    """Finds the caption file of a picture among the text files of one folder tree."""

    def __init__(self, texts: Iterable[Path], extensions: Sequence[str]) -> None:
        self._extensions = tuple(extensions)
        self._exact: dict[str, Path] = {}
        self._folded: dict[str, Path] = {}
        for path in texts:
            name = normal_name(path.with_suffix(path.suffix.lower()))
            self._exact.setdefault(name, path)
            self._folded.setdefault(name.casefold(), path)

    def of(self, image: Path) -> list[Path]:
        """The caption files that belong to ``image``, the one to use first."""
        names = [image.with_suffix("").as_posix() + extension for extension in self._extensions]
        names += [image.as_posix() + extension for extension in self._extensions]
        found = (self._lookup(normal_name(name)) for name in names)
        return list(dict.fromkeys(path for path in found if path is not None))

    def _lookup(self, name: str) -> Path | None:
        return self._exact.get(name) or self._folded.get(name.casefold())


def read_caption(path: Path, *, first_line_only: bool = True) -> Caption:
    """Read one caption file. Never raises for what a file may hold: the problems say what was odd.

    ``first_line_only``: further lines will not be used, which is a problem if there are some.
    """
    problems: list[Problem] = []

    def report(severity: str, kind: str, problem: str, hint: str = "") -> None:
        problems.append(Problem(severity, kind, path, problem, hint))  # type: ignore[arg-type]

    try:
        data, size = _read(path)
    except FileError as error:
        reason = error.problem.partition(": ")[2] or error.problem
        report("error", "caption-unreadable", f"cannot be read: {reason}", error.hint)
        return Caption(None, tuple(problems))
    except OSError as error:
        report("error", "caption-unreadable", f"cannot be read: {error.strerror or error}", "check its permissions")
        return Caption(None, tuple(problems))
    if size > _MAX_BYTES:
        report("warning", "caption-long", f"is {size / 1024:.0f} KiB; only its beginning is read", "is it a caption?")
    text, encoding = decode_text(data)
    if _is_binary(text):
        report("error", "caption-unreadable", "is not text", "replace it with a text file, or remove it")
        return Caption(None, tuple(problems))
    if encoding != "UTF-8":
        severity = "info" if "UTF" in encoding else "warning"
        report(severity, "caption-encoding", f"is read as {encoding}", "save it as UTF-8 without a byte order mark")
    lines = caption_lines(text)
    if not lines:
        report(
            "warning", "caption-empty", "is empty: the picture trains without words", "write a caption, or delete it"
        )
        return Caption("", tuple(problems))
    if len(lines) > 1 and first_line_only:
        note = f"has {len(lines)} lines with text; only the first is used"
        report("warning", "caption-lines", note, "write it on one line, or set captions.lines")
    longest = max(map(len, lines[:1] if first_line_only else lines))
    if longest > MOST_CHARACTERS:
        report("warning", "caption-long", f"has {longest} characters; {MOST_CHARACTERS} are used", "shorten it")
        lines = [line[:MOST_CHARACTERS] for line in lines]
    return Caption(lines[0], tuple(problems), tuple(lines))


def caption_lines(text: str) -> list[str]:
    """The lines that say something, without spaces around them and without control characters."""
    lines = (_clean(line).strip() for line in text.splitlines())
    return [line for line in lines if line]


def decode_text(data: bytes) -> tuple[str, str]:
    """The text and the name of its encoding. Every sequence of bytes gives some text."""
    for mark, codec, name in _BOMS:
        if data.startswith(mark):
            return data[len(mark) :].decode(codec, "replace"), name
    codec = _wide_codec(data)
    if codec:
        return data.decode(codec, "replace"), "UTF-16 without a byte order mark"
    try:
        return data.decode("utf-8"), "UTF-8"
    except UnicodeDecodeError as error:
        if error.end >= len(data) == _MAX_BYTES:  # cut inside a character
            return data[: error.start].decode("utf-8"), "UTF-8"
    return data.decode("cp1252", "replace"), "Windows-1252 (Latin-1)"


def _read(path: Path) -> tuple[bytes, int]:
    """The beginning of a file, and the size of all of it. FileError or OSError."""
    with open_file(path) as file:
        return file.read(_MAX_BYTES), path.stat().st_size


def _wide_codec(data: bytes) -> str:
    """UTF-16 betrays itself by zeros in every other byte of Latin text."""
    half = len(data) // 2
    if half < 2 or len(data) % 2:
        return ""
    zeros = {"utf-16-be": data[0::2].count(0), "utf-16-le": data[1::2].count(0)}
    codec, count = max(zeros.items(), key=lambda item: item[1])
    other = min(zeros.values())
    return codec if count > half * 0.6 and other < half * 0.1 else ""


def _is_binary(text: str) -> bool:
    odd = sum(character < " " and character not in "\t\n\r\f\v\x1c\x1d\x1e" for character in text)
    return odd > 0.05 * max(len(text), 1)


def _clean(line: str) -> str:
    """Control characters, stray byte order marks and tabs become spaces."""
    return "".join(" " if character < " " or character in "\x7f\ufeff\u2028\u2029" else character for character in line)
