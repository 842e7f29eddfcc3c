"""What a job has come to, folded from the log in its folder: that of a run, or that of any other job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loraloom.actions import parts_from_record
from loraloom.errors import FileFormatError
from loraloom.events import (
    Event,
    JobCancelled,
    JobCreated,
    JobFailed,
    JobFinished,
    JobPaused,
    JobProgressed,
    JobResumed,
    JobStarted,
)
from loraloom.studio.jobs.folder import text_to_record
from loraloom.studio.runs import status as runs_status
from loraloom.studio.runs.log import RunLog
from loraloom.studio.runs.status import RunStatus

__all__ = ["ENDED", "JobStatus", "Progress", "StatusReader"]

ENDED = ("done", "failed", "stopped", "interrupted")
"""States in which nothing more happens by itself."""
_OF_RUNS = {"finished": "done"}


@dataclass(frozen=True)
class Progress:
    """How far a job is: ``done`` of ``total`` ``what``; None: not known."""

    done: int
    total: int | None
    what: str
    seconds_left: float | None = None


@dataclass(frozen=True)
class JobStatus:
    """``state``: queued, preparing, running, paused, done, failed, stopped, interrupted."""

    state: str = "queued"
    progress: Progress | None = None
    problem: str = ""
    hint: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)
    needs_process: bool = field(default=False, repr=False)
    """Whether the state is one of a process: without one, the job was interrupted."""

    def after(self, event: Event) -> JobStatus:
        """The status once ``event``, the next one of the log, has happened."""
        match event:
            case JobCreated():
                return JobStatus()
            case JobStarted() | JobResumed():
                return JobStatus("running", self.progress, needs_process=True)
            case JobPaused():
                return replace(self, state="paused", needs_process=not event.freed)
            case JobProgressed():
                progress = Progress(event.done, event.total, event.what, event.seconds_left)
                return replace(self, progress=progress)
            case JobFinished():
                state = "stopped" if event.stopped else "done"
                return JobStatus(state, self.progress, result=event.result)
            case JobFailed():
                return JobStatus("failed", self.progress, event.problem, event.hint)
            case JobCancelled():
                return JobStatus("stopped")
        return self

    def seen(self, *, alive: bool) -> JobStatus:
        """What it means that a process works on it now, or (not ``alive``) that none does."""
        if alive:
            return replace(self, state="preparing") if self.state == "queued" else self  # it is about to tell
        return replace(self, state="interrupted") if self.needs_process else self

    def to_record(self) -> dict[str, Any]:
        """The status as JSON-ready data; a hint keeps what it proposes."""
        told = self.progress
        return {
            "state": self.state,
            "progress": [told.done, told.total, told.what] if told is not None else None,
            "problem": text_to_record(self.problem),
            "hint": text_to_record(self.hint),
            "result": dict(self.result),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> JobStatus:
        """The inverse of :meth:`to_record`. KeyError or TypeError for what another version wrote."""
        told = record["progress"]
        return cls(
            record["state"],
            Progress(*told) if told is not None else None,
            parts_from_record(record["problem"]),
            parts_from_record(record["hint"]),
            record["result"],
        )


def of_run(run: RunStatus) -> JobStatus:
    """The status of a job that trains a run."""
    progress = Progress(run.step, run.total_steps, "steps", run.seconds_left) if run.total_steps else None
    state = _OF_RUNS.get(run.state, run.state)
    return JobStatus(state, progress, run.problem, run.hint, needs_process=run.needs_process)


class StatusReader:
    """Reads the status of the job in ``folder`` as often as is wanted, each time only what was recorded since."""

    def __init__(self, folder: Path, *, is_run: bool) -> None:
        self._folder = folder
        self._run = runs_status.StatusReader(folder) if is_run else None
        self._begin()

    def _begin(self) -> None:
        self._log, self._offset, self._status = RunLog(self._folder), 0, JobStatus()

    def read(self, *, alive: bool) -> JobStatus:
        """The status now; ``alive``: whether a process works on it. FileError where the log cannot be read."""
        if self._run is not None:
            return of_run(self._run.read(alive=alive))
        try:
            events, self._offset = self._log.since(self._offset)
        except FileFormatError:  # it was replaced or cut
            self._begin()
            events, self._offset = self._log.since()
        for event in events:
            self._status = self._status.after(event)
        return self._status.seen(alive=alive)
