"""Captions of many pictures in one file: JSON, JSON lines, or a table of comma, semicolon, tab or bar separated values.

A row names a picture and gives its caption, or its tags, or both (then the tags come behind the caption). Several rows
of one picture are several lines of its caption. Which program wrote the file is not asked: names of columns are
compared without regard to case, spaces and underscores, and the usual ones of image folders of Hugging Face's datasets,
of sd-scripts, of taggers and of collections such as COCO and Flickr are known. A file of which no row gives a caption
is an error: training without captions because of one unknown word would be noticed only by its result.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from loraloom.data.captions import MOST_CHARACTERS, caption_lines, decode_text
from loraloom.data.problems import Problem, normal_name, readable
from loraloom.errors import FileError, FileFormatError, MissingFileError
from loraloom.formats.pictures import SUFFIXES
from loraloom.reading import read_bytes

__all__ = ["FOUND_BY_THEMSELVES", "CaptionTable"]

FOUND_BY_THEMSELVES = ("metadata.jsonl", "metadata.csv")
"""Files in a folder of pictures that are taken for a table without being named, in any case."""

_MOST_BYTES = 2**26
_FIRST = 2**16
"""Characters in which the first line is looked for."""
_NAMES = (
    *("file_name", "image_path", "image", "file", "filename", "path", "file_path", "filepath", "image_name"),
    *("image_file", "image_filename", "image_id", "img", "img_path", "img_name", "picture", "photo", "local_path"),
    *("name", "key"),
)
_CAPTIONS = (
    *("caption", "text", "prompt", "description", "additional_feature", "captions", "texts", "prompts", "txt"),
    *("caption_text", "long_caption", "short_caption", "generated_caption", "blip_caption", "alt_text", "alt"),
    *("sentence", "sentences", "comment", "annotation", "content", "title"),
)
_TAGS = ("tags", "tag_string", "tag", "keywords")
_HINT = (
    f"a table has a column {', '.join(_NAMES[:5])} or {_NAMES[5]}, and one {', '.join(_CAPTIONS[:4])} or {_TAGS[0]};"
    " or it is sd-scripts' JSON"
)
_DELIMITERS = (",", ";", "\t", "|")
_PICTURE = re.compile(r"\.(?:" + "|".join(end[1:] for ends in SUFFIXES.values() for end in ends) + r")(?:#\d+)?$", re.I)
_HASH_NUMBER = re.compile(r"#\d+$")


class CaptionTable:
    """The captions of one file by picture: by whole path, else by path below the file, else by name, else by stem.

    ``problems``: what was odd about it.
    """

    def __init__(self, path: Path, rows: Iterable[_Row], encoding: str = "UTF-8") -> None:
        self.path = path
        self._encoding = encoding
        self._rows: dict[str, str] = {}
        for row in rows:
            key = _posix(row.picture)
            if row.caption is not None:
                before = self._rows.get(key)
                self._rows[key] = f"{before}\n{row.caption}" if before else row.caption
        self._used: set[str] = set()
        names: dict[str, list[str]] = {}
        for key in self._rows:
            name = PurePosixPath(key).name
            for short in {name, PurePosixPath(name).stem}:
                names.setdefault(short.casefold(), []).append(key)
        self._by_name = {short: keys[0] for short, keys in names.items() if len(keys) == 1}
        self.problems = tuple(self._odd())

    @classmethod
    def read(cls, path: Path) -> CaptionTable:
        """Tell what the file is by its content.

        Raises MissingFileError; FileFormatError that names the line, or the columns if none of them is understood;
        FileError.
        """
        try:
            data = read_bytes(path, limit=_MOST_BYTES)
        except MissingFileError as error:
            raise MissingFileError(f"captions.table: {path} does not exist", "check the path") from error
        except FileError as error:
            raise type(error)(f"captions.table: {error.problem}", error.hint) from error
        try:
            text, encoding = decode_text(data)
            rows = list(_rows(text))
            if not rows:
                raise ValueError("has no row with a picture below its first line")
            if not any(row.caption for row in rows):
                columns = dict.fromkeys(column for row in rows for column in row.columns)
                raise ValueError(f"gives no picture a caption; its columns are {_quoted(columns)}")
        except (ValueError, csv.Error, RecursionError) as error:
            raise FileFormatError(f"captions.table: {path}: {error}", _HINT) from error
        return cls(path, rows, encoding)

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
        return tuple(line[:MOST_CHARACTERS] for line in caption_lines(self._rows[key])) or ("",)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def unused(self) -> list[str]:
        """Names in the table that no picture has."""
        return [key for key in self._rows if key not in self._used]

    def _odd(self) -> Iterator[Problem]:
        if "UTF" not in self._encoding:
            yield Problem("warning", "caption-encoding", self.path, f"is read as {self._encoding}", "save it as UTF-8")
        empty = [key for key, text in self._rows.items() if not text.strip()]
        if empty:
            note = (
                f"gives {len(empty)} pictures an empty caption, such as {readable(empty[0])}: they train without words"
            )
            yield Problem("warning", "caption-empty", self.path, note, "write captions, or leave these rows out")
        long = [
            key for key, text in self._rows.items() if max(map(len, text.splitlines()), default=0) > MOST_CHARACTERS
        ]
        if long:
            note = f"has {len(long)} captions of more than {MOST_CHARACTERS} characters, such as that of"
            note = f"{note} {readable(long[0])}; so many are used"
            yield Problem("warning", "caption-long", self.path, note, "shorten them")


@dataclass(frozen=True)
class _Row:
    """``caption`` None: the row has none. ``columns``: what its columns are called in the file."""

    picture: str
    caption: str | None
    columns: tuple[str, ...]


def _rows(text: str) -> Iterator[_Row]:
    """Every row; ValueError that says where and what is wrong."""
    begins = text.lstrip()[:1]
    if not begins:
        raise ValueError("is empty")
    if begins not in "{[":
        return _separated_rows(text)
    first = text.lstrip().splitlines()[0]
    try:
        row = _json(first)
    except ValueError:
        row = None
    several = bool(text.lstrip()[len(first) :].strip())
    is_row = isinstance(row, dict) and not all(isinstance(value, (dict, list)) for value in row.values())
    if is_row and (several or any(_plain(key) in _NAMES for key in row)):
        return _json_lines(text)
    return _json_rows(_json(text))


def _json(text: str) -> Any:
    """JSON of which no object has a key twice: only one of two captions could be used. ValueError."""
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found and found[key] != value:
            raise ValueError(f"holds {readable(key)!r} twice, with different values")
        found[key] = value
    return found


def _json_lines(text: str) -> Iterator[_Row]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = _json(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
        yield _named_row(row, f"line {number}")


def _json_rows(data: Any) -> Iterator[_Row]:
    """Rows of one JSON value: a list of rows, rows by picture, columns, COCO's lists, or one of these in a table."""
    if isinstance(data, list):
        for number, row in enumerate(data, 1):
            yield _named_row(row, f"entry {number}")
        return
    if not isinstance(data, dict):
        raise ValueError("is JSON, but no table")

    # Programs agree on no form: COCO's two lists are known by their names, and one list of tables is the table.
    lists = [key for key, value in data.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if {"images", "annotations"} <= set(lists):
        yield from _coco_rows(data["images"], data["annotations"])
    elif len(lists) == 1:
        yield from _json_rows(data[lists[0]])
    elif _is_by_columns(data):
        yield from _json_rows(_transposed(data))
    else:
        for key, row in data.items():
            row = {"caption": row} if isinstance(row, str) else row
            yield _Row(str(key), _caption(row, repr(key)), tuple(map(str, row)))


def _is_by_columns(data: Mapping[str, Any]) -> bool:
    names = {_plain(key) for key in data}
    known = names & set(_NAMES) and names & {*_CAPTIONS, *_TAGS}
    return bool(known) and all(isinstance(value, (dict, list)) for value in data.values())


def _transposed(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of a table that was written column by column: lists, or tables by number."""
    listed = {key: list(value.values()) if isinstance(value, dict) else value for key, value in columns.items()}
    count = min(map(len, listed.values()))
    return [{key: values[index] for key, values in listed.items()} for index in range(count)]


def _coco_rows(images: Sequence[Any], annotations: Sequence[Any]) -> Iterator[_Row]:
    """COCO: pictures have numbers, captions have the number of their picture."""
    names = {image.get("id"): image.get("file_name") for image in images if isinstance(image, dict)}
    for number, row in enumerate(annotations, 1):
        name = names.get(row.get("image_id")) if isinstance(row, dict) else None
        if isinstance(name, str):
            yield _Row(name, _caption(row, f"annotation {number}"), tuple(map(str, row)))


def _separated_rows(text: str) -> Iterator[_Row]:
    """Rows of separated values. What separates them is what makes the first line understood."""
    text = text.lstrip("\r\n")
    delimiters: Sequence[str] = _DELIMITERS
    stated = re.match(r"sep=(.)\r?\n", text, re.I)  # as Excel writes it
    if stated:
        delimiters, text = stated[1], text[stated.end() :]
    readings = [(delimiter, _cells(text, delimiter)) for delimiter in delimiters]
    delimiter, first = max(readings, key=lambda reading: _understood(reading[1]))
    _check_quotes(text, delimiter)

    reader = csv.reader(io.StringIO(text, newline=""), **_form(text, delimiter))
    start = 0
    if any(_plain(cell) in _NAMES for cell in first):
        header = next(reader)
        start = reader.line_num
        _check_columns(header)
    elif len(first) > 1 and _PICTURE.search(first[0].strip()):
        header = ["file_name", "text"]
    else:
        shown = f"; its first line has the columns {_quoted(first)}" if len(first) > 1 else ""
        raise ValueError(f"no JSON, and its first line does not name a column file_name{shown}")

    for cells in reader:
        where = f"line {start + 1}"
        start = reader.line_num
        if any(cell.strip() for cell in cells):
            yield _named_row(_joined(header, cells, delimiter, where), where)


def _check_columns(header: Sequence[str]) -> None:
    """Of two columns of one name only one could be used: ValueError, unless nothing is read from them."""
    names = [_plain(cell) for cell in header]
    for name in (*_NAMES, *_CAPTIONS, *_TAGS):
        if names.count(name) > 1:
            raise ValueError(f"has the column {name!r} twice; give one of them another name")


def _understood(cells: Sequence[str]) -> tuple[int, int]:
    """How much of a first line is understood: known columns, or a picture and something behind it; then its length."""
    plain = [_plain(cell) for cell in cells]
    known = any(name in _NAMES for name in plain) * 2 + any(name in (*_CAPTIONS, *_TAGS) for name in plain)
    if not known and len(cells) > 1 and _PICTURE.search(cells[0].strip()):
        known = 2
    return known, len(cells)


def _cells(text: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader(io.StringIO(text[:_FIRST], newline=""), **_form(text, delimiter)), [])
    except csv.Error:
        return []


def _form(text: str, delimiter: str) -> dict[str, Any]:
    quote = "'" if text.startswith("'") else '"'
    return {"delimiter": delimiter, "skipinitialspace": True, "quotechar": quote}


def _joined(header: Sequence[str], cells: Sequence[str], delimiter: str, where: str) -> dict[str, str]:
    """A row by its columns. A caption in the last column may hold the delimiter without quotes."""
    if len(cells) > len(header):
        if any(cell.strip() for cell in cells[len(header) :]) and _plain(header[-1]) not in (*_CAPTIONS, *_TAGS):
            raise ValueError(f"{where} has {len(cells)} cells for {len(header)} columns; put quotes around captions")
        blank = "" if delimiter == "\t" else " "
        rest = (cell.strip() for cell in cells[len(header) - 1 :])
        cells = [*cells[: len(header) - 1], f"{delimiter}{blank}".join(rest).rstrip(delimiter + " ")]
    return dict(zip(header, cells, strict=False))


def _check_quotes(text: str, delimiter: str) -> None:
    """A quotation mark that is never closed takes all that follows into one caption: ValueError."""
    lines = text.splitlines(keepends=True)
    reader = csv.reader(lines, **_form(text, delimiter))
    start = end = 0
    for _ in reader:
        start, end = end, reader.line_num
    try:
        list(csv.reader(lines[start:end], **_form(text, delimiter), strict=True))
    except csv.Error as error:
        if "end of data" in str(error):
            raise ValueError(f"line {start + 1}: its quotation marks are not closed") from error


def _named_row(row: Any, where: str) -> _Row:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} is not a row with names")
    plain = {_plain(key): value for key, value in row.items()}
    given = (plain[name] for name in _NAMES if isinstance(plain.get(name), str) and plain[name].strip())
    name = next(given, None)
    if name is None:
        known = any(column in _NAMES for column in plain)
        shown = "" if known else f"; its columns are {_quoted(row)}"
        raise ValueError(f"{where} names no picture (file_name){shown}")
    return _Row(_HASH_NUMBER.sub("", name.strip()), _caption(row, where), tuple(map(str, row)))


def _caption(row: Any, where: str) -> str | None:
    """The caption of a row, tags behind it; None if it has neither."""
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} has neither caption nor tags")

    plain = {_plain(key): value for key, value in row.items()}
    captions = _first_text(plain, _CAPTIONS, "\n", where)
    tags = _first_text(plain, _TAGS, ", ", where)

    if captions and tags:  # the tags belong to each line
        return "\n".join(f"{line}, {tags}" for line in captions.splitlines() if line.strip())
    return captions or tags or (None if captions is None and tags is None else "")


def _first_text(row: Mapping[str, Any], columns: Sequence[str], between: str, where: str) -> str | None:
    """The first text that is not empty, "" if all are, None if there is none. Lists are put together."""
    found = None
    for value in (row[column] for column in columns if column in row):
        if value is None or value != value:  # JSON's null, and NaN for it
            continue
        text = between.join(_texts_of(value, where)) if isinstance(value, list) else value
        if not isinstance(text, str):
            raise ValueError(f"{where}: caption and tags are text")
        if text.strip():
            return text.strip()
        found = ""
    return found


def _texts_of(values: Sequence[Any], where: str) -> Iterator[str]:
    """The texts of a list: texts, numbers, or objects with a text (``raw`` in Karpathy's split of COCO)."""
    for value in values:
        if isinstance(value, Mapping):
            named = {_plain(key): text for key, text in value.items()}
            value = next((named[name] for name in ("raw", *_CAPTIONS) if isinstance(named.get(name), str)), value)
        if isinstance(value, (Mapping, list, bool)):
            raise ValueError(f"{where}: caption and tags are text")
        if value is not None and value == value:
            yield str(value)


def _plain(column: Any) -> str:
    """The name of a column without what people write differently: ``" File Name"`` is ``file_name``."""
    return re.sub(r"[\s_\-]+", "_", str(column).strip(" \t\r\n\"'\ufeff").casefold())


def _quoted(columns: Iterable[Any]) -> str:
    shown = [repr(readable(str(column)))[:40] for column in columns]
    return ", ".join(shown[:12]) + (" ..." if len(shown) > 12 else "")


def _posix(name: str) -> str:
    """With forward slashes, composed; a name of Windows keeps its drive."""
    windows = "\\" in name
    return normal_name(PureWindowsPath(name).as_posix() if windows else name).removeprefix("./")
