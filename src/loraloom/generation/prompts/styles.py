"""Styles: pieces of prompts by name, kept in the web UI's ``styles.csv``."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loraloom.errors import FileFormatError, PromptError, nearest
from loraloom.reading import read_text

__all__ = ["Style", "apply_styles", "find_styles", "read_styles"]

_PLACE = "{prompt}"
_MOST_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Style:
    """What a style adds to the prompt and to the negative prompt."""

    name: str
    prompt: str = ""
    negative_prompt: str = ""


def read_styles(path: Path) -> dict[str, Style]:
    """The styles of a file, by name; the last one of a name counts, rows without a name are dividers.

    Columns ``name``, ``prompt`` (before 2023 ``text``) and ``negative_prompt``, UTF-8 or UTF-16 with its mark. Raises
    FileError (missing, no text, too large, no such table).
    """
    text = read_text(path, limit=_MOST_BYTES)
    try:
        table = csv.DictReader(io.StringIO(text, newline=""))
        rows = list(table)
    except csv.Error as error:
        raise FileFormatError(f"{path}: is not a table with commas: {error}", "expected styles.csv") from error
    if "name" not in (table.fieldnames or ()):
        raise FileFormatError(f"{path}: has no column 'name'", "the columns are name,prompt,negative_prompt")
    styles = (
        Style(row["name"], row.get("prompt") or row.get("text") or "", row.get("negative_prompt") or "")
        for row in rows
        if row.get("name")
    )
    return {style.name: style for style in styles}


def find_styles(names: Sequence[str], paths: Sequence[Path]) -> tuple[Style, ...]:
    """The styles of these names from the files; later files win. PromptError for a name that no file has."""
    if not names:
        return ()
    known: dict[str, Style] = {}
    for path in paths:
        known |= read_styles(path)
    for name in names:
        if name not in known:
            close = nearest(name, known)
            searched = ", ".join(str(path) for path in paths) or "no file"
            raise PromptError(
                f"there is no style {name!r} (searched: {searched})",
                f"did you mean {close[0]!r}?" if close else "set style_files",
            )
    return tuple(known[name] for name in names)


def apply_styles(prompt: str, pieces: Sequence[str]) -> str:
    """The prompt with the pieces of styles, one after another: put around it by ``{prompt}``, else added to it."""
    for piece in pieces:
        if _PLACE in piece:
            prompt = piece.replace(_PLACE, prompt)
        else:
            prompt = ", ".join(text for text in (prompt.strip(), piece.strip()) if text)
    return prompt
