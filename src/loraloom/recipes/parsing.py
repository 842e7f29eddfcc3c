"""Read the files in which other programs keep recipes. What a file is follows from its content, never from its name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loraloom import plain_data
from loraloom.actions import Action, Sentence
from loraloom.errors import FileFormatError
from loraloom.formats.image_texts import is_image
from loraloom.plain_data import parse_toml
from loraloom.reading import open_file, read_text

__all__ = ["Document", "parse_json", "read_document"]

MAX_BYTES = 16 * 2**20
_SCRIPT = re.compile(r"accelerate(?:\.exe)?\s+launch|\b[\w./\\-]+\.py\b|^\s*\$\w+\s*=|^\s*--\w+", re.MULTILINE)
_BEGINS_LIKE_JSON = re.compile(r"\{|\[\s*[\]{]")

Kind = Literal["lora", "json", "toml", "script", "text"]


@dataclass(frozen=True)
class Document:
    """A file as ``data`` (``json``, ``toml``) or as ``text``; a ``lora`` is neither.

    Text is a ``script`` where it has something like a command line in it.
    """

    path: Path
    kind: Kind
    data: Any = None
    text: str = ""
    problem: FileFormatError | None = None
    """Why text is not TOML, for a file that turns out to be nothing else either."""


def read_document(path: Path) -> Document:
    """Tell what a file is and parse it. Raises FileFormatError, which names the line and the column."""
    if _holds_tensors(path):
        return Document(path, "lora")
    if is_image(path):
        like_it = Sentence(Action.PAINT_LIKE.of(image=path), " paints one like it")
        raise FileFormatError(f"{path} is a picture, no recipe", like_it)
    text = read_text(path, limit=MAX_BYTES)
    bare = _without_comments(text).strip()
    if not bare:
        raise FileFormatError(f"{path} is empty", "the file was not written completely")
    if _BEGINS_LIKE_JSON.match(bare):
        return Document(path, "json", parse_json(text, path), text)
    try:
        return Document(path, "toml", parse_toml(text, str(path)), text)
    except FileFormatError as error:
        hint = "recipes are TOML, JSON, a command line, a PowerShell script or a LoRA file; text needs quotes in TOML"
        problem = FileFormatError(error.problem, hint)
        return Document(path, "script" if _SCRIPT.search(text) else "text", text=text, problem=problem)


def parse_json(text: str, path: Path) -> Any:
    """JSON as people write it by hand: comments, a comma after the last entry and ``C:\\train`` with single backslashes
    are allowed, a key twice is not."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise FileFormatError(f"{path} holds the key {key!r} twice in one object", "keep one of them")
            found[key] = value
        return found

    strict = _with_whole_backslashes(_without_extra_commas(_without_comments(text)))
    return plain_data.parse_json(strict, str(path), pairs=once)


def _holds_tensors(path: Path) -> bool:
    """Whether a file begins as safetensors, zip (.pt, .ckpt) and pickles do."""
    with open_file(path) as file:
        head = file.read(16)
    return head[:4] == b"PK\x03\x04" or head[:1] == b"\x80" or head[4:9] == b"\0\0\0\0{"


def _without_comments(text: str) -> str:
    """``//``, ``/* */`` and ``#`` comments outside strings become blanks, so that places stay the same."""
    token = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|#[^\n]*|/\*.*?(?:\*/|\Z)', re.DOTALL)
    return token.sub(lambda m: m.group() if m.group()[0] == '"' else re.sub(r"[^\n]", " ", m.group()), text)


def _without_extra_commas(text: str) -> str:
    token = re.compile(r'"(?:\\.|[^"\\\n])*"|,(?=\s*[\]}])', re.DOTALL)
    return token.sub(lambda m: m.group() if m.group()[0] == '"' else " ", text)


def _with_whole_backslashes(text: str) -> str:
    """``"C:\\train"`` means the folder, not C:, a tab and rain: backslashes of such a path are doubled."""
    path = re.compile(r'"[A-Za-z]:\\(?!\\)(?:[^"\n])*"')
    return path.sub(lambda m: re.sub(r"\\+", r"\\\\", m.group()), text)


def flattened(data: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Entries of a file with or without sections, in order; a section's name is dropped, as sd-scripts does."""
    entries: list[tuple[str, Any]] = []
    for key, value in data.items():
        if isinstance(value, Mapping):
            entries.extend(value.items())
        else:
            entries.append((key, value))
    return entries
