"""Where the captions of a concept's pictures come from: a table, text files, names; and what is odd about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from loraloom.data.caption_operations import file_words
from loraloom.data.caption_table import FOUND_BY_THEMSELVES, CaptionTable
from loraloom.data.captions import CaptionFiles, read_caption
from loraloom.data.concept_files import Files
from loraloom.data.concepts import Concept
from loraloom.data.nearby_captions import setting_of_everydream
from loraloom.data.problems import Problem, normal_name, readable
from loraloom.data.settings import DatasetSettings
from loraloom.errors import FileError

__all__ = ["CaptionTables", "ConceptCaptions", "FoundCaption"]


@dataclass(frozen=True)
class FoundCaption:
    """The caption of one picture: its lines, the file that they come from, and what is odd about it."""

    lines: tuple[str, ...]
    path: Path | None
    problems: tuple[Problem, ...] = ()


class CaptionTables:
    """The tables of a dataset's captions, each read once, and what is odd about those that are used."""

    def __init__(self) -> None:
        self._read: dict[Path, CaptionTable | FileError] = {}
        self._several: dict[Path, list[Path]] = {}

    def read(self, path: Path, *, must: bool) -> CaptionTable | None:
        """The table of a file; None where it cannot be used. FileError instead where it ``must``."""
        if path not in self._read:
            try:
                self._read[path] = CaptionTable.read(path)
            except FileError as error:
                if must:
                    raise
                self._read[path] = error
        table = self._read[path]
        return table if isinstance(table, CaptionTable) else None

    def error_of(self, path: Path) -> FileError | None:
        """Why a table that was read cannot be used."""
        error = self._read.get(path)
        return error if isinstance(error, FileError) else None

    def note_several(self, table: CaptionTable, picture: Path) -> None:
        """Remember a picture that has several lines there, of which one is used."""
        self._several.setdefault(table.path, []).append(picture)

    def problems(self) -> Iterator[Problem]:
        """What is odd about them, when all pictures were looked up."""
        for read in self._read.values():
            if isinstance(read, CaptionTable):
                yield from _table_problems(read)
        for path, pictures in self._several.items():
            such_as = f"{len(pictures)} pictures, such as {readable(pictures[0])}"
            note = f"has several lines for {such_as}; the first are used"
            yield Problem("warning", "caption-lines", path, note, "set captions.lines to use the others")


class ConceptCaptions:
    """The captions of one concept; ``settings`` are those of the dataset as the concept has them."""

    def __init__(self, concept: Concept, files: Files, settings: DatasetSettings, tables: CaptionTables) -> None:
        self._concept = concept
        self._settings = settings
        self._named = settings.captions.table
        self._tables = tables
        self._texts = files.texts
        self._files = CaptionFiles(files.texts, settings.caption_extensions)
        self._used: set[Path] = set()
        self._lying = self._lying_tables() if settings.captions.source == "file" and self._named is None else []
        path = self._table_path
        self._table = None if path is None else tables.read(path, must=self._named is not None)

    @property
    def _table_path(self) -> Path | None:
        """The table that is named, or one that lies in the folder."""
        if self._settings.captions.source != "file":
            return None
        if self._named is not None:
            return self._named.expanduser().absolute()
        return next(iter(self._lying), None)

    def _lying_tables(self) -> list[Path]:
        """Tables in the folder that are found by their names, the one to use first."""
        try:
            lying = {path.name.casefold(): path for path in self._concept.folder.iterdir()}
        except OSError:
            return []
        return [lying[name].absolute() for name in FOUND_BY_THEMSELVES if name in lying]

    def belong_to(self, relative: Path) -> None:
        """The text files of this picture belong to one, whether it can be used or not."""
        self._used.update(self._files.of(relative))

    def of(self, relative: Path) -> FoundCaption:
        """The caption of a usable picture; the concept's name where there is none."""
        table, captions = self._table, self._settings.captions
        in_table = None if table is None else table.of(self._concept.folder, relative)

        # A table that was named counts before text files, one that merely lies there behind them.
        if table is None or in_table is None or (self._named is None and self._files.of(relative)):
            return self._without_table(relative)
        if len(in_table) > 1 and captions.lines == "first":
            self._tables.note_several(table, relative)
        return FoundCaption(in_table, table.path)

    def _without_table(self, relative: Path) -> FoundCaption:
        source, name = self._settings.captions.source, self._concept.name
        if source == "folder":
            return FoundCaption((name,), None)
        if source == "file":
            return self._of_text_files(relative)
        words = file_words(normal_name(relative.stem))
        if words:
            return FoundCaption((words,), None)
        note = f"has no words in its name; the concept's name is used: {name!r}"
        problem = Problem("info", "caption-missing", self._concept.folder / relative, note)
        return FoundCaption((name,), None, (problem,))

    def _of_text_files(self, relative: Path) -> FoundCaption:
        folder = self._concept.folder
        image = folder / relative
        problems: list[Problem] = []
        texts: dict[Path, str] = {}
        lines: dict[Path, tuple[str, ...]] = {}
        for candidate in self._files.of(relative):
            caption = read_caption(folder / candidate, first_line_only=self._settings.captions.lines == "first")
            if not texts:
                problems.extend(caption.problems)
            if caption.text is not None:
                texts[candidate] = caption.text
                lines[candidate] = caption.lines or (caption.text,)

        if not texts:
            problems.extend(_caption_folders(image, self._settings.caption_extensions))
            note = f"has no caption; the concept's name is used: {self._concept.name!r}"
            hint = "write one into a .txt file with the picture's name beside it"
            problems.append(Problem("info", "caption-missing", image, note, hint))
            return FoundCaption((self._concept.name,), None, tuple(problems))

        source, text = next(iter(texts.items()))
        if source.name.lower().startswith(relative.name.lower() + "."):
            note = f"its caption is read from {readable(source.name)}"
            hint = "rename it to the picture's name without its suffix, where other trainers look for it"
            problems.append(Problem("info", "caption-name", image, note, hint))
        others = [readable(path.name) for path, other in texts.items() if other != text]
        if others:
            note = f"has several captions; {readable(source.name)} is used, not {', '.join(others)}"
            problems.append(Problem("warning", "caption-several", image, note, "keep one, or set caption_extensions"))
        return FoundCaption(lines[source], folder / source, tuple(problems))

    def problems(self, *, all_captioned: bool) -> Iterator[Problem]:
        """What was left over when all pictures had theirs; ``all_captioned``: every usable picture found a caption."""
        if self._settings.captions.source == "file":
            named = None if self._named is None else self._named.expanduser().absolute()
            for path in (self._concept.folder / text for text in self._texts if text not in self._used):
                if named is None or path.absolute() != named:
                    yield _orphan(path)
        yield from self._passed_over()
        yield from self._unusable_table(all_captioned=all_captioned)

    def _passed_over(self) -> Iterator[Problem]:
        """Tables that lie beside the one that is used."""
        for path in self._lying[1:]:
            note = f"is not used, because {readable(self._lying[0].name)} lies beside it"
            yield Problem("warning", "caption-table", path, note, "keep one of them, or set captions.table")

    def _unusable_table(self, *, all_captioned: bool) -> Iterator[Problem]:
        """A table that lies in the folder and cannot be used: an error where pictures would need it."""
        path = self._table_path
        error = None if path is None else self._tables.error_of(path)
        if path is None or error is None:
            return
        reason = error.problem.removeprefix("captions.table: ").removeprefix(f"{path}").removeprefix(": ")
        if all_captioned:
            yield Problem("warning", "caption-table", path, f"is not used: {reason}", error.hint)
            return
        note = f"cannot be used, and pictures without a caption need it: {reason}"
        hint = f"repair it, or rename it to train without it; {error.hint}"
        yield Problem("error", "caption-table", path, note, hint)


def _table_problems(table: CaptionTable) -> Iterator[Problem]:
    yield from table.problems
    count, unused = len(table), table.unused
    if len(unused) == count:
        note = f"has captions of {count} pictures, none of which is here; one is called {readable(unused[0])}"
        hint = "compare its names with those of the pictures: as it is, it has no effect"
        yield Problem("warning", "caption-orphan", table.path, note, hint)
    elif unused:
        note = f"has captions of {len(unused)} pictures that are not there, such as {readable(unused[0])}"
        yield Problem("info", "caption-orphan", table.path, note)


def _caption_folders(image: Path, extensions: Sequence[str]) -> Iterator[Problem]:
    """Folders that have the name of a picture's caption file."""
    for extension in extensions:
        for path in (image.with_suffix(extension), image.with_name(image.name + extension)):
            if path.is_dir():
                note = "is a folder, not a caption file"
                yield Problem("error", "caption-unreadable", path, note, "put the caption into a file of that name")


def _orphan(path: Path) -> Problem:
    hint = "rename it to match its picture, or remove it"
    orphan = Problem("warning", "caption-orphan", path, "belongs to no picture", hint)
    return setting_of_everydream(path) or orphan
