"""The run folder, the record of a run: ``settings.toml``, ``events.jsonl``, ``previews/``, ``weights/``, ``state/``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO, TypeVar

import tomlkit
from tomlkit.items import Table

from loraloom.errors import OutputError, SettingsError
from loraloom.events import Event, RunFailed, RunFinished, RunResumed, from_record, to_record
from loraloom.file_names import check_name
from loraloom.formats.files import make_folder, write_text
from loraloom.plain_data import shown
from loraloom.settings import Settings
from loraloom.studio.run_control import CONTROL_FILES

__all__ = ["EventLog", "RunFolder", "check_run_name", "with_absolute_paths"]

SettingsT = TypeVar("SettingsT", bound=Settings)
_HINT = "set output=FOLDER"
_PARTS = ("previews", "weights")


@dataclass(frozen=True)
class RunFolder:
    """One run on disk."""

    path: Path
    made: tuple[Path, ...] = field(default=(), compare=False, repr=False)
    """Parents that were made for it, innermost first."""

    @classmethod
    def create(cls, output: Path, name: str, settings: Settings) -> RunFolder:
        """A new folder ``output/name`` (``name-2``, ``name-3`` when taken: no run overwrites another).

        Raises SettingsError for a name that not every system can keep, OutputError where the folder cannot be made;
        neither leaves a folder behind.
        """
        check_run_name(name)
        path, number = output / name, 1
        new = [parent for parent in (output, *output.parents) if not _exists(parent)]
        try:
            while True:
                try:
                    make_folder(path, hint=_HINT, exclusive=True)
                    break
                except FileExistsError:
                    number += 1
                    path = output / f"{name}-{number}"
            for part in _PARTS:
                make_folder(path / part, hint=_HINT)
        except OutputError:
            _remove_empty(path / part for part in _PARTS)
            _remove_empty((path, *new))
            raise
        folder = cls(path, tuple(new))
        try:
            folder.write_settings(settings)
        except OutputError:
            folder.discard()
            raise
        return folder

    @property
    def settings_path(self) -> Path:
        """Every setting of the run."""
        return self.path / "settings.toml"

    def write_settings(self, settings: Settings) -> None:
        """Record the settings. What was left to be found out (the resolution) stays so, and is found out again."""
        document = tomlkit.parse(with_absolute_paths(settings).to_toml())
        dataset = getattr(settings, "dataset", None)
        if isinstance(dataset, Settings) and "resolution" not in dataset.model_fields_set:
            table = document["dataset"]
            assert isinstance(table, Table)
            table.remove("resolution")
        write_text(self.settings_path, tomlkit.dumps(document))

    def discard(self) -> None:
        """Take away a folder whose run never began; one that holds previews or weights stays."""
        if any(any((self.path / part).iterdir()) for part in _PARTS if (self.path / part).is_dir()):
            return
        with suppress(OSError):
            for name in ("settings.toml", "events.jsonl", *CONTROL_FILES):
                (self.path / name).unlink(missing_ok=True)
            for part in _PARTS:
                (self.path / part).rmdir()
            for folder in (self.path, *self.made):
                folder.rmdir()

    @property
    def events_path(self) -> Path:
        """One JSON event a line."""
        return self.path / "events.jsonl"

    def recorded_events(self) -> Iterator[Event]:
        """Every line of the log; a last line cut short by a crash is left out."""
        if not self.events_path.exists():
            return
        # Not splitlines(): a prompt may hold other characters that count as line ends.
        for line in self.events_path.read_text(encoding="utf-8", errors="replace").split("\n"):
            with suppress(ValueError, KeyError, TypeError):
                yield from_record(json.loads(line))

    def events(self) -> Iterator[Event]:
        """The events of the run as if it had never been interrupted.

        Where it was resumed from a step, what was recorded of later steps before that is superseded and left out, and
        so is that it had ended.
        """
        events: list[Event] = []
        for event in self.recorded_events():
            if isinstance(event, RunResumed):
                events = [earlier for earlier in events if not _superseded(earlier, event.step)]
            events.append(event)
        yield from events


def check_run_name(name: str) -> None:
    """Raise SettingsError for a name of a run that not every system can keep as that of a folder and of files."""
    try:
        check_name(name)
    except ValueError as error:
        raise SettingsError([f"name = {shown(name)}: {error}"]) from error


def _remove_empty(folders: Iterable[Path]) -> None:
    """Take away folders that were just made; one that holds something stays."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _superseded(event: Event, step: int) -> bool:
    return isinstance(event, (RunFailed, RunFinished)) or getattr(event, "step", 0) > step


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that the file system cannot hold; making it will say so
        return False


def with_absolute_paths(settings: SettingsT) -> SettingsT:
    """The same settings wherever their file lies: relative paths in a settings file are relative to it."""
    return settings.model_copy(
        update={name: _absolute(getattr(settings, name)) for name in type(settings).model_fields}
    )


def _absolute(value: Any) -> Any:
    if isinstance(value, Settings):
        return with_absolute_paths(value)
    if isinstance(value, tuple):
        return tuple(_absolute(item) for item in value)
    return value.expanduser().absolute() if isinstance(value, Path) else value


def _ends_torn(path: Path) -> bool:
    """Whether the last line was cut short by a crash: what is written next must begin a line of its own."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) != b"\n"


class EventLog:
    """The listener that writes a run's events to its folder, each as soon as it happens.

    Raises OutputError for an event that cannot be written; later ones are written again when that is possible.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._path = folder.events_path
        self._torn = False
        try:
            self._torn = _ends_torn(self._path)
            # Names of files that are no valid Unicode become JSON escapes, and come back as they were.
            self._file: TextIO = self._path.open("a", encoding="utf-8", errors="backslashreplace", newline="\n")
        except OSError as error:
            raise OutputError(f"{self._path} cannot be written: {error.strerror}", "set output=FOLDER") from error

    def __call__(self, event: Event) -> None:
        line = json.dumps(to_record(event), ensure_ascii=False) + "\n"
        try:
            self._file.write(f"\n{line}" if self._torn else line)
            self._file.flush()
            self._torn = False
        except OSError as error:
            self._torn = True
            raise OutputError(f"{self._path} cannot be written: {error.strerror}", "free some space") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # what could not be written was told when it happened
            self._file.close()
