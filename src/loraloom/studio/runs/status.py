"""What the runs of a folder have come to, folded from their events: from their files alone, or kept up to date."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loraloom.errors import FileError, FileFormatError, MissingFileError
from loraloom.events import (
    Event,
    JobCancelled,
    PreviewSaved,
    RunCreated,
    RunFailed,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
    RunTaken,
    StepFinished,
    ValidationMeasured,
)
from loraloom.studio.runs.control import is_trained
from loraloom.studio.runs.folder import run_folders
from loraloom.studio.runs.log import LOG_NAME, RunLog, is_superseded, went_back_to

__all__ = [
    "RunStatus",
    "StatusReader",
    "last_changed",
    "list_runs",
    "read_status",
    "told_status",
    "unreadable_status",
]

_SPEED_STEPS = 50
"""The time left is estimated from this many of the last steps."""
_KINDS = frozenset(
    {"RunCreated", "RunTaken", "RunStarted", "RunResumed", "RunPaused", "RunFinished", "RunFailed", "JobCancelled"}
    | {"StepFinished", "PreviewSaved", "ValidationMeasured"}
)
"""Events that a status is made from."""


@dataclass(frozen=True)
class _History:
    """What counts of the past, to go back to where a run goes on from an earlier step."""

    steps: tuple[StepFinished, ...] = ()
    best: tuple[ValidationMeasured, ...] = ()
    previews: tuple[PreviewSaved, ...] = ()

    def until(self, step: int) -> _History:
        return _History(
            tuple(event for event in self.steps if not is_superseded(event, step)),
            tuple(event for event in self.best if not is_superseded(event, step)),
            tuple(event for event in self.previews if not is_superseded(event, step)),
        )


@dataclass(frozen=True)
class _State:
    """Where a run stands. ``needs_process``: it is the state of a process; without one, the run was interrupted."""

    name: str
    problem: str = ""
    hint: str = ""
    needs_process: bool = True


@dataclass(frozen=True)
class RunStatus:
    """One run. ``state``: queued, preparing, running, paused, stopped, finished, failed, interrupted.

    A run is interrupted when it was left, or its process died, before it could save.
    """

    name: str
    folder: Path
    state: str = "preparing"
    step: int = 0
    total_steps: int | None = None
    epoch: int = 0
    epochs: int | None = None
    loss: float | None = None
    seconds_per_step: float | None = None
    seconds_left: float | None = None
    best_loss: float | None = None
    """The best validation loss so far, and the epoch it was measured in."""
    best_epoch: int | None = None
    last_preview: str | None = None
    changed: float | None = None
    """When its log last grew, in seconds since 1970; None: not known."""
    problem: str = ""
    """Of a failed run."""
    hint: str = ""
    """What to do about it; a sentence that proposes something keeps its actions."""
    needs_process: bool = field(default=True, repr=False)
    """Whether the state is one of a process: without one, the run was interrupted."""
    before: _State | None = field(default=None, repr=False)
    """What the run is again where the process that has it ends before it tells of anything."""
    is_prepared: bool = field(default=False, repr=False)
    """Whether the process that has it came to the steps."""
    history: _History = field(default=_History(), repr=False, compare=False)

    @property
    def is_unfinished(self) -> bool:
        """Whether steps are left that may still come, so that the time for them says something."""
        return self.state in ("running", "paused", "interrupted", "stopped")

    def after(self, event: Event) -> RunStatus:
        """The status once ``event``, the next one of the log, has happened."""
        status = self
        step = went_back_to(event, self.step)
        if step is not None:
            status = replace(self, step=max(step, 0), history=self.history.until(step))
        return status._with(event)._told()

    def _with(self, event: Event) -> RunStatus:
        history = self.history
        match event:
            case RunCreated():
                return RunStatus(self.name, self.folder, "queued", needs_process=False)
            case RunTaken():
                return self._taken()
            case RunStarted():
                return self._in("running", total_steps=event.total_steps, epochs=event.epochs, is_prepared=True)
            case RunResumed():
                return self._in("running" if self.is_prepared else "preparing")
            case RunPaused():
                return self._in("paused", needs_process=not event.freed)
            case RunFinished() | RunFailed() | JobCancelled():
                return self._ended(event)
            case StepFinished():
                steps = (*history.steps, event)[-_SPEED_STEPS:]
                return replace(self, step=event.step, history=replace(history, steps=steps))
            case ValidationMeasured(is_best=True):
                return replace(self, history=replace(history, best=(*history.best, event)))
            case PreviewSaved():
                return replace(self, history=replace(history, previews=(*history.previews, event)))

        # Whatever else a run tells leaves it where it is: RunTaken says that somebody has it.
        return self

    def _in(self, state: str, *, needs_process: bool = True, **changes: Any) -> RunStatus:
        begun: dict[str, Any] = {"problem": "", "hint": "", "before": None}
        return replace(self, state=state, needs_process=needs_process, **(begun | changes))

    def _ended(self, event: RunFinished | RunFailed | JobCancelled) -> RunStatus:
        match event:
            case RunFailed():
                state = "interrupted" if event.interrupted else "failed"
                return self._in(state, needs_process=False, problem=event.problem, hint=event.hint)
            case RunFinished(stopped=False):
                return self._in("finished", needs_process=False)
        return self._in("stopped", needs_process=False)

    def _taken(self) -> RunStatus:
        """In the hands of a process that has told of nothing yet."""
        before = self.before or _State(self.state, self.problem, self.hint, self.needs_process)
        return self._in("preparing", before=None if before.name == "queued" else before, is_prepared=False)

    def _told(self) -> RunStatus:
        """The same with what follows from the history."""
        # A run that went back to an earlier state may have no step left, and then none of this is known again.
        steps, best, previews = self.history.steps, self.history.best, self.history.previews
        speed = sum(event.seconds for event in steps) / len(steps) if steps else None
        is_known = speed is not None and self.total_steps is not None

        return replace(
            self,
            epoch=steps[-1].epoch if steps else 0,
            loss=steps[-1].average_loss if steps else None,
            seconds_per_step=speed,
            seconds_left=(speed or 0.0) * max((self.total_steps or 0) - self.step, 0) if is_known else None,
            best_loss=best[-1].loss if best else None,
            best_epoch=best[-1].epoch if best else None,
            last_preview=previews[-1].path if previews else None,
        )

    def seen(self, *, alive: bool) -> RunStatus:
        """What it means that a process trains the run now, or (not ``alive``) that none does."""
        if alive:
            return replace(self, state="preparing") if self.state == "queued" else self  # it is about to tell
        if (was := self.before) is not None:
            status = self._in(was.name, problem=was.problem, hint=was.hint, needs_process=was.needs_process)
            return status.seen(alive=False)
        return replace(self, state="interrupted") if self.needs_process else self


def list_runs(folder: Path) -> list[RunStatus]:
    """Every run in ``folder``, by name. MissingFileError when there is no such folder."""
    if not folder.is_dir():
        raise MissingFileError(f"{folder} is not a folder of runs", "give the folder that was set as output=")
    return [_status_or_problem(path) for path in run_folders(folder)]


def _status_or_problem(folder: Path) -> RunStatus:
    """The state of a run; one whose log cannot be read says so, and the others are listed all the same."""
    try:
        return read_status(folder)
    except FileError as error:
        return unreadable_status(folder, error)


def unreadable_status(folder: Path, error: FileError) -> RunStatus:
    """The status of a run whose log raised an error."""
    return RunStatus(folder.name, folder, "failed", problem=f"its {LOG_NAME} cannot be read: {error.problem}")


def told_status(folder: Path, log: RunLog) -> tuple[RunStatus, int]:
    """What the log itself says of the run, before :meth:`RunStatus.seen`, and where the events after that begin.

    Raises FileError where the log cannot be read.
    """
    events, offset = log.outline(_KINDS, steps=_SPEED_STEPS)
    status = RunStatus(folder.name, folder)
    for event in events:
        status = status.after(event)
    return status, offset


class StatusReader:
    """Reads the status of the run in ``folder`` as often as is wanted, each time only what was recorded since."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._begin()

    def _begin(self) -> None:
        self._log, self._offset = RunLog(self._folder), 0
        self._status = RunStatus(self._folder.name, self._folder)

    def read(self, *, alive: bool | None = None) -> RunStatus:
        """The status now. ``alive``: whether a process trains it; None: to be found out.

        FileError where the log cannot be read.
        """
        try:
            events, self._offset = self._log.outline(_KINDS, steps=_SPEED_STEPS, offset=self._offset)
        except FileFormatError:  # it was replaced or cut
            self._begin()
            self._status, self._offset = told_status(self._folder, self._log)
            events = []
        for event in events:
            self._status = self._status.after(event)
        status = self._status.seen(alive=is_trained(self._folder) if alive is None else alive)
        return replace(status, changed=last_changed(self._folder))


def last_changed(folder: Path) -> float | None:
    """When the log of a run last grew, in seconds since 1970; None where it has none."""
    try:
        return (folder / LOG_NAME).stat().st_mtime
    except OSError:
        return None


def read_status(folder: Path, *, alive: bool | None = None) -> RunStatus:
    """The state of one run, in one pass over its log.

    ``alive``: whether a process trains it; None: to be found out. Raises MissingFileError where there is no such
    folder, FileError where the log cannot be read.
    """
    if not folder.is_dir():
        raise MissingFileError(f"there is no folder {folder}", "give the folder of a run")
    return StatusReader(folder).read(alive=alive)
