"""Where no picture of a folder has a caption: what lies around that may hold them, and what to set to use it.

Nothing that is found here is used by itself. A caption from a file that was never named would be a surprise; a run
without captions, next to a file that holds all of them, is a worse one. So it is named before anything is trained.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from loraloom.data.caption_operations import file_words
from loraloom.data.caption_table import FOUND_BY_THEMSELVES, CaptionTable
from loraloom.data.problems import Problem, normal_name, readable
from loraloom.errors import FileError

__all__ = ["captions_nearby", "setting_of_everydream"]

_TABLE_SUFFIXES = frozenset({".json", ".jsonl", ".ndjson", ".jsonlines", ".csv", ".tsv", ".json1", ".jsonl1", ".txt"})
_TABLE_WORDS = ("metadata", "meta", "caption", "prompt", "label", "description", "tags", "dataset", "annotation")
_OTHER_TABLES = frozenset({".parquet", ".xlsx", ".xls", ".ods", ".db", ".sqlite", ".arrow"})
_TEXT_SUFFIXES = frozenset(
    {".txt", ".caption", ".cap", ".captions", ".tags", ".tag", ".text", ".prompt", ".description", ".desc", ".md"}
)
_SIDE_FILES = frozenset({".json", ".yaml", ".yml", ".xml", ".toml"})
_MOST_ENTRIES = 20_000
"""Files of a folder that are looked at."""
_MOST_TABLES = 12
"""Files that are read to see whether they are tables."""
_MOST_FOLDERS = 30

# Files by which EveryDream sets things for all pictures of a folder: what, and how to set it here.
_EVERYDREAM = {
    "multiply.txt": ("repeats", "begin the folder's name with a whole number (10_name), or set repeats"),
    "cond_dropout.txt": ("how often captions are left out", "set captions.dropout"),
    "flip_p.txt": ("how often pictures are mirrored", "set flip=true for half of the time"),
    "batch_id.txt": ("which pictures share a batch", "remove it"),
}


def setting_of_everydream(path: Path) -> Problem | None:
    """What is to be known of a file by which EveryDream sets something for a folder; None for other files."""
    if path.name.lower() not in _EVERYDREAM:
        return None
    meaning, hint = _EVERYDREAM[path.name.lower()]
    return Problem("warning", "foreign-setting", path, f"is EveryDream's way to set {meaning}, which is not read", hint)


def captions_nearby(folder: Path, pictures: Sequence[Path], extensions: Collection[str]) -> Iterator[Problem]:
    """What may hold the captions of the ``pictures`` (relative to ``folder``), none of which has one.

    ``extensions``: the endings of caption files that were looked for.
    """
    tables = list(_tables(folder, pictures))
    yield from tables
    yield from _other_endings(folder, pictures, extensions)
    yield from _other_folders(folder, pictures)
    yield from _other_names(folder, pictures, extensions, {problem.path for problem in tables})
    yield from _words_in_names(folder, pictures)


def _nearby(path: Path, note: str, hint: str) -> Problem:
    return Problem("warning", "captions-nearby", path, note, hint)


def _tables(folder: Path, pictures: Sequence[Path]) -> Iterator[Problem]:
    """Files with the captions of many pictures, in the folder or the one above it."""
    tried = 0
    stems = {_stem(picture.name) for picture in pictures}
    for path in [*_files(folder), *_files(folder.parent)]:
        suffix, words = path.suffix.lower(), path.stem.lower()
        named = any(word in words for word in _TABLE_WORDS)
        if suffix in _OTHER_TABLES and named:
            note = f"may hold captions; {suffix} files are not read"
            yield _nearby(path, note, "export it as CSV with the columns file_name and text")
        if path.parent == folder and path.name.lower() in FOUND_BY_THEMSELVES:
            continue  # reported as a table that cannot be used
        if suffix not in _TABLE_SUFFIXES or _stem(path.name) in stems or path.name.lower() in _EVERYDREAM:
            continue
        if tried == _MOST_TABLES or (not named and (suffix == ".txt" or path.parent != folder)):
            continue

        tried += 1
        yield from _table(path, folder, pictures, named)


def _table(path: Path, folder: Path, pictures: Sequence[Path], named: bool) -> Iterator[Problem]:
    try:
        table = CaptionTable.read(path)
    except FileError as error:
        if named and path.suffix.lower() != ".txt":
            reason = error.problem.removeprefix(f"captions.table: {path}").removeprefix(": ")
            yield _nearby(path, f"looks like a table of captions, but {reason}", error.hint)
        return
    count = sum(table.of(folder, picture) is not None for picture in pictures)
    if count:
        yield _nearby(path, f"has captions of {count} of the {len(pictures)} pictures", f"set captions.table={path}")
    elif named and path.suffix.lower() != ".txt":
        note = f"has captions of {len(table)} pictures, none of which is here"
        yield _nearby(path, note, "compare its names with those of the pictures")


def _other_endings(folder: Path, pictures: Sequence[Path], extensions: Collection[str]) -> Iterator[Problem]:
    """Files of the pictures' names with endings that are not looked for."""
    found: dict[str, list[Path]] = {}
    for place in dict.fromkeys(picture.parent for picture in pictures):
        stems = {name for picture in pictures if picture.parent == place for name in _names_of(picture)}
        for path in _files(folder / place):
            suffix = path.suffix.lower()
            if suffix not in extensions and suffix in _TEXT_SUFFIXES | _SIDE_FILES and _stem(path.name) in stems:
                found.setdefault(suffix, []).append(path)

    # One sentence for each ending: thousands of files with the same one are one mistake.
    for suffix, paths in found.items():
        which = f"is one of {len(paths)} {suffix} files with the names of pictures"
        if suffix in _TEXT_SUFFIXES:
            yield _nearby(paths[0], f"{which}, which are not looked for", f"set caption_extensions={suffix}")
        else:
            hint = "write the captions they hold into .txt files, or all of them into one metadata.jsonl"
            yield _nearby(paths[0], f"{which}, which are not read", hint)


def _other_folders(folder: Path, pictures: Sequence[Path]) -> Iterator[Problem]:
    """Folders inside or beside this one with texts of the pictures' names."""
    stems = {name for picture in pictures for name in _names_of(picture)}
    inside = [*_folders(folder), *(path for path in _folders(folder.parent) if path != folder)]
    for path in inside[:_MOST_FOLDERS]:
        files = [file for file in _files(path) if file.suffix.lower() in _TEXT_SUFFIXES | _SIDE_FILES]
        count = sum(_stem(file.name) in stems for file in files)
        # Folders of pictures have captions of their own, and often the same numbers for names.
        if not count or any(file.suffix.lower() in {".png", ".jpg", ".jpeg", ".webp"} for file in _files(path)):
            continue

        note = f"holds {count} files with the names of pictures; captions are looked for beside the pictures"
        yield _nearby(path, note, f"copy them into {readable(folder.name)}")


def _other_names(
    folder: Path, pictures: Sequence[Path], extensions: Collection[str], tables: Collection[Path]
) -> Iterator[Problem]:
    """Caption files whose names are not those of the pictures, and that are no ``tables``."""
    stems = {name for picture in pictures for name in _names_of(picture)}
    texts = [path for path in _files(folder) if path.suffix.lower() in extensions and _stem(path.name) not in stems]
    texts = [path for path in texts if path.name.lower() not in _EVERYDREAM and path not in tables]
    if texts:
        note = f"is one of {len(texts)} caption files that have the name of no picture"
        hint = f"give each the name of its picture; one picture is called {readable(pictures[0].name)}"
        yield _nearby(texts[0], note, hint)


def _words_in_names(folder: Path, pictures: Sequence[Path]) -> Iterator[Problem]:
    """Pictures that are named like sentences or lists of tags."""
    words = [file_words(normal_name(picture.stem)) for picture in pictures]
    told = [text for text in words if len(text.split()) >= 3 or "," in text]
    repeated = Counter(" ".join(text.split()[:2]) for text in told)

    # Cameras number their pictures, so names that all begin alike say nothing about what is seen.
    different = len(told) < 4 or max(repeated.values(), default=0) < len(told) or any("," in text for text in told)
    if len(told) * 2 > len(pictures) and different:
        note = f"has pictures whose names look like captions, such as {readable(told[0])!r}"
        yield _nearby(folder, note, "set captions.source=filename to use them")


def _names_of(picture: Path) -> tuple[str, str]:
    """What a file beside a picture can be called: cat.json or cat.png.json."""
    return _stem(picture.name), normal_name(picture.name).casefold()


def _stem(name: str) -> str:
    return normal_name(Path(name).stem).casefold()


def _files(folder: Path) -> list[Path]:
    return [path for path, is_folder in _entries(folder) if not is_folder]


def _folders(folder: Path) -> list[Path]:
    return [path for path, is_folder in _entries(folder) if is_folder]


def _entries(folder: Path) -> list[tuple[Path, bool]]:
    """What is in a folder by name, without hidden things; nothing where it cannot be read."""
    found: list[tuple[Path, bool]] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and len(found) < _MOST_ENTRIES:
                    found.append((Path(entry.path), entry.is_dir()))
    except OSError:
        return []
    return sorted(found)
