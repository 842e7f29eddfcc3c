"""Captions of many pictures in one file: sd-scripts' JSON of its fine-tuning sets, JSON lines, or CSV.

A row names a picture and says its caption, or its tags, or both (then the tags come behind the caption). Rows of JSON
lines and CSV have a ``file_name``, as in the image folders of Hugging Face's datasets and diffusers' examples, or an
``image_path``, as in sd-scripts; names may be whole paths, of another computer too.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from loraloom.data.captions import caption_lines, decode_text
from loraloom.data.problems import normal_name
from loraloom.errors import FileFormatError, MissingFileError

__all__ = ["FOUND_BY_THEMSELVES", "CaptionTable"]

FOUND_BY_THEMSELVES = ("metadata.jsonl", "metadata.csv")
"""Files in a folder of pictures that are taken for a table without being named."""
_MAX_BYTES = 2**28
_NAMES = ("file_name", "image_path", "image", "file", "filename", "path")
_CAPTIONS = ("caption", "text", "prompt", "additional_feature")
_HINT = "a table of captions is sd-scripts' JSON, or JSON lines or CSV with file_name and text"


class CaptionTable:
    """The captions of one file by picture: by whole path, else by path below the file, else by name, else by stem."""

    def __init__(self, path: Path, rows: Mapping[str, str]) -> None:
        self.path = path
        self._rows = {_posix(key): text for key, text in rows.items()}
        self._used: set[str] = set()
        names: dict[str, list[str]] = {}
        for key in self._rows:
            name = PurePosixPath(key).name
            for short in {name, PurePosixPath(name).stem}:
                names.setdefault(short.casefold(), []).append(key)
        self._by_name = {short: keys[0] for short, keys in names.items() if len(keys) == 1}

    @classmethod
    def read(cls, path: Path) -> CaptionTable:
        """Tell what the file is by its content. MissingFileError, or FileFormatError that names the line."""
        try:
            data = path.read_bytes() if path.stat().st_size <= _MAX_BYTES else None
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingFileError(f"captions.table: {path} does not exist", "check the path") from error
        except OSError as error:
            raise FileFormatError(f"captions.table: {path} cannot be read: {error.strerror}", _HINT) from error
        if data is None:
            raise FileFormatError(f"captions.table: {path} is larger than {_MAX_BYTES // 2**20} MB", _HINT)
        text = decode_text(data)[0]
        try:
            return cls(path, dict(_rows(text)))
        except (ValueError, csv.Error, RecursionError) as error:
            raise FileFormatError(f"captions.table: {path}: {error}", _HINT) from error

    def of(self, folder: Path, relative: Path) -> tuple[str, ...] | None:
        """The lines of a picture's caption, ("",) for an empty one; None if the table does not have the picture."""
        absolute = (folder / relative).absolute()
        whole = _posix(str(absolute))
        candidates = [whole, str(PurePosixPath(whole).with_suffix(""))]
        if absolute.is_relative_to(self.path.parent.absolute()):
            below = _posix(str(absolute.relative_to(self.path.parent.absolute())))
            candidates += [below, str(PurePosixPath(below).with_suffix(""))]
        key = next((candidate for candidate in candidates if candidate in self._rows), None)
        if key is None:
            name = normal_name(Path(relative.name)).casefold()
            key = self._by_name.get(name) or self._by_name.get(PurePosixPath(name).stem)
        if key is None:
            return None
        self._used.add(key)
        return tuple(caption_lines(self._rows[key])) or ("",)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def unused(self) -> list[str]:
        """Names of pictures that nobody asked for."""
        return [key for key in self._rows if key not in self._used]


def _rows(text: str) -> Iterator[tuple[str, str]]:
    """(picture, caption) of every row; ValueError that says where and what is wrong."""
    begins = text.lstrip()[:1]
    if not begins:
        raise ValueError("is empty")
    if begins != "{":
        yield from _csv_rows(text)
        return
    first = text.lstrip().splitlines()[0]
    try:
        is_lines = any(name in json.loads(first) for name in _NAMES)
    except ValueError:
        is_lines = False
    yield from _json_lines(text) if is_lines else _json_object(text)


def _json_lines(text: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is no row with names")
        yield _named(row, f"line {number}"), _caption(row, f"line {number}")


def _json_object(text: str) -> Iterator[tuple[str, str]]:
    data = json.loads(text)
    for key, row in data.items():
        yield str(key), row if isinstance(row, str) else _caption(row, repr(key))


def _csv_rows(text: str) -> Iterator[tuple[str, str]]:
    reader = csv.DictReader(io.StringIO(text), delimiter="\t" if "\t" in text.splitlines()[0] else ",")
    if not set(reader.fieldnames or ()) & set(_NAMES):
        raise ValueError("no JSON, and its first line does not name a column file_name")
    for row in reader:
        yield _named(row, f"line {reader.line_num}"), _caption(row, f"line {reader.line_num}")


def _named(row: Mapping[str, Any], where: str) -> str:
    name = next((row[key] for key in _NAMES if isinstance(row.get(key), str) and row[key].strip()), None)
    if name is None:
        raise ValueError(f"{where} names no picture (file_name)")
    return str(name).strip()


def _caption(row: Any, where: str) -> str:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} has neither caption nor tags")
    caption = next((row[key] for key in _CAPTIONS if row.get(key) is not None), None)
    tags = row.get("tags")
    tags = ", ".join(map(str, tags)) if isinstance(tags, list) else tags
    if not all(part is None or isinstance(part, str) for part in (caption, tags)):
        raise ValueError(f"{where}: caption and tags are text")
    if caption and tags:  # the tags belong to each line
        return "\n".join(f"{line}, {tags}" for line in str(caption).splitlines() if line.strip())
    return str(caption or tags or "")


def _posix(name: str) -> str:
    """With forward slashes, composed; a name of Windows keeps its drive."""
    windows = "\\" in name
    return normal_name(PureWindowsPath(name).as_posix() if windows else name).removeprefix("./")
