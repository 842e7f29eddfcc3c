"""A new run: a folder with its settings, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from loraloom.errors import FileError, OutputError, ResumeError
from loraloom.events import Listener, RunCreated, ignore
from loraloom.studio.runs.control import RunLock
from loraloom.studio.runs.folder import RunFolder, check_run_name
from loraloom.studio.runs.log import EventLog
from loraloom.studio.runs.status import read_status
from loraloom.training.settings import TrainSettings

__all__ = ["create_branch", "create_run"]


def create_run(settings: TrainSettings) -> RunFolder:
    """A run that is queued: its folder in ``settings.output``, with the settings and a log that says it was created.

    Nothing is loaded or looked at yet. No run overwrites another (``name-2``, ``name-3``), but one that ended before
    its first step and holds nothing is taken over: mistyping five times does not leave five folders. Raises
    SettingsError for a name that not every system can keep, OutputError where the folder cannot be written.
    """
    return _create(settings, "", 0)


def create_branch(
    run: Path, step: int | None, overrides: Sequence[str] = (), *, listener: Listener = ignore
) -> RunFolder:
    """A run that is queued and goes on from a state of another one, with other settings.

    ``step``: that of the state, None for the newest that is whole; ``listener`` hears of those that are not. Raises
    ResumeError where there is none, otherwise as :func:`create_run`.
    """
    from loraloom.training.state import find_state

    given = TrainSettings.load(RunFolder(run).settings_path, overrides)
    state = find_state(run / "state", listener, step=step)
    if state is None:
        raise ResumeError(f"{run} has kept no state to branch from", "saving.state=true keeps them")
    settings = given.model_copy(update={"branched_from": f"{run.name}@{state.step}"})
    return _create(settings, str(run.absolute()), state.step)


def _create(settings: TrainSettings, source: str, source_step: int) -> RunFolder:
    check_run_name(settings.name)
    for path in _folders_of(settings.output, settings.name):
        if _take_over(path, settings, source, source_step):
            return RunFolder(path)
    folder = RunFolder.create(settings.output, settings.name, settings)
    try:
        _record(folder.path, source, source_step)
    except OutputError:
        folder.discard()
        raise
    return folder


def _record(path: Path, source: str, source_step: int) -> None:
    with EventLog(path) as log:
        log(RunCreated(str(path), source, source_step))


def _folders_of(output: Path, name: str) -> Iterator[Path]:
    """The runs of this name that are there: ``name``, ``name-2``, ``name-3``."""
    path, number = output / name, 1
    while RunFolder(path).is_there:
        yield path
        number += 1
        path = output / f"{name}-{number}"


def _take_over(path: Path, settings: TrainSettings, source: str, source_step: int) -> bool:
    """Make the folder of a run that came to nothing that of a new one; False where it may be worth something."""
    if not _came_to_nothing(path):
        return False
    try:
        with RunLock(path):
            if not _came_to_nothing(path, alive=False):  # somebody was quicker
                return False
            RunFolder(path).write_settings(settings)
            _record(path, source, source_step)
    except (ResumeError, OutputError):  # it is trained again, or is somebody else's
        return False
    return True


def _came_to_nothing(path: Path, *, alive: bool | None = None) -> bool:
    """Whether a run has ended before its first step and holds nothing that was made."""
    try:
        status = read_status(path, alive=alive)
    except FileError:
        return False
    return status.state in ("failed", "interrupted") and not status.step and RunFolder(path).holds_nothing
