"""The run folder, the record of a run: ``settings.toml``, ``events.jsonl``, ``previews/``, ``weights/``, ``state/``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from loraloom.actions import Action, Sentence
from loraloom.errors import MissingFileError, OutputError, SettingsError, nearest
from loraloom.file_names import check_name, entry_of
from loraloom.formats.files import make_folder, write_text
from loraloom.plain_data import shown
from loraloom.reading import read_text
from loraloom.settings import MAX_TOML_BYTES, Settings
from loraloom.studio.runs.control import CONTROL_FILES
from loraloom.studio.runs.log import LOG_NAME

__all__ = [
    "RunFolder",
    "check_run_name",
    "find_run",
    "run_and_step",
    "run_folders",
    "run_in",
    "with_absolute_paths",
    "with_each_path",
]

SettingsT = TypeVar("SettingsT", bound=Settings)
_HINT = "set output=FOLDER"
_SETTINGS = "settings.toml"
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
        return self.path / _SETTINGS

    @property
    def is_there(self) -> bool:
        """Whether there is a run in the folder."""
        try:
            return self.settings_path.is_file()
        except OSError:  # somebody else's, and closed to us
            return False

    @property
    def holds_nothing(self) -> bool:
        """Whether no weights, previews or states were written into it."""
        return not any(any((self.path / part).glob("*")) for part in (*_PARTS, "state"))

    def write_settings(self, settings: Settings) -> None:
        """Record the settings. What was left to be found out (the resolution) stays so, and is found out again."""
        write_text(self.settings_path, with_absolute_paths(settings).to_toml())

    def read_settings(self) -> str:
        """The settings as their file has them. FileError where it cannot be read."""
        return read_text(self.settings_path, limit=MAX_TOML_BYTES)

    def discard(self) -> None:
        """Remove a folder whose run never began; one that holds previews or weights stays."""
        if any(any((self.path / part).iterdir()) for part in _PARTS if (self.path / part).is_dir()):
            return
        with suppress(OSError):
            for name in (_SETTINGS, LOG_NAME, *CONTROL_FILES):
                (self.path / name).unlink(missing_ok=True)
            for part in _PARTS:
                (self.path / part).rmdir()
            for folder in (self.path, *self.made):
                folder.rmdir()


def find_run(text: str, output: Path = Path("runs")) -> Path:
    """The run folder that ``text`` means: a path, or the name of a run in ``output``. MissingFileError otherwise."""
    for candidate in (Path(text).expanduser(), output / text):
        if RunFolder(candidate).is_there:
            return candidate
    names = [path.name for path in run_folders(output)]
    close = nearest(text, names)
    listed = Sentence(Action.LIST_RUNS, " lists them; give the folder of the run")
    raise MissingFileError(f"there is no run {text!r}", f"did you mean {close[0]!r}?" if close else listed)


def run_in(folder: Path, name: str) -> Path:
    """The run ``name`` that lies in ``folder`` itself. MissingFileError where there is none, also for a name that
    would lead elsewhere: this is for names that come from strangers."""
    path = entry_of(folder, name)
    if path is None or not RunFolder(path).is_there:
        raise MissingFileError(f"there is no run {shown(name)}", Sentence(Action.LIST_RUNS, " lists them"))
    return path


def run_and_step(text: str) -> tuple[str, int | None]:
    """``RUN`` or ``RUN@STEP`` taken apart; the name of a run may hold an @ itself."""
    run, at, step = text.rpartition("@")
    return (run, int(step)) if at and step.isdecimal() else (text, None)


def run_folders(folder: Path) -> list[Path]:
    """Every run folder in ``folder``, by name."""
    try:
        inside = sorted(folder.iterdir())
    except OSError:
        return []
    return [path for path in inside if RunFolder(path).is_there]


def check_run_name(name: str) -> None:
    """Raise SettingsError for a name of a run that not every system can keep as that of a folder and of files."""
    try:
        check_name(name)
    except ValueError as error:
        raise SettingsError([f"name = {shown(name)}: {error}"]) from error


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders that were just made; one that holds something stays."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that the file system cannot hold; making it will say so
        return False


def with_absolute_paths(settings: SettingsT) -> SettingsT:
    """The same settings wherever their file lies: relative paths in a settings file are relative to it."""
    return with_each_path(settings, lambda path: path.expanduser().absolute())


def with_each_path(settings: SettingsT, change: Callable[[Path], Path]) -> SettingsT:
    """The same settings with ``change`` made to every path in them."""
    return settings.model_copy(
        update={name: _changed(getattr(settings, name), change) for name in type(settings).model_fields}
    )


def _changed(value: Any, change: Callable[[Path], Path]) -> Any:
    if isinstance(value, Settings):
        return with_each_path(value, change)
    if isinstance(value, tuple):
        return tuple(_changed(item, change) for item in value)
    return change(value) if isinstance(value, Path) else value
