"""One job as it is now: what its row of the table says, what its folder says, and whether a process works on it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from loraloom.actions import Action, Sentence
from loraloom.errors import FileError, LoraloomError
from loraloom.studio.detached import last_lines
from loraloom.studio.home import Home
from loraloom.studio.jobs.folder import RECORD_NAME, Attempt, read_job
from loraloom.studio.jobs.kinds import is_run
from loraloom.studio.jobs.status import ENDED, JobStatus, Progress, StatusReader
from loraloom.studio.runs.control import is_trained
from loraloom.studio.runs.log import LOG_NAME

__all__ = ["COLUMNS", "WORKER", "Entry", "Job", "JobReader", "at_work", "is_worker"]

WORKER = "loraloom.studio.jobs.worker"
"""The module that does a job in a process of its own."""
_BEING_STARTED_S = 10.0
"""A dispatcher that has not come further than this with starting a process has died."""


@dataclass(frozen=True)
class Job:
    """One job, as it is now."""

    id: int
    kind: str
    title: str
    folder: Path
    state: str
    """queued, preparing, running, paused, done, failed, stopped, interrupted."""
    position: int
    """Its place among those that wait, from 1; 0 for one that does not."""
    held: bool
    """Whether it waits for a release first."""
    progress: Progress | None
    problem: str
    hint: str
    """What to do about the problem; a sentence that proposes something keeps its actions."""
    created: float
    """Seconds since 1970, as the other times."""
    started: float | None
    ended: float | None
    result: Mapping[str, Any]
    """What came of it, as plain data."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens by itself."""
        return self.state in ENDED

    def output(self, lines: int = 40) -> list[str]:
        """The last lines that its process printed."""
        return last_lines(self.folder, lines)


@dataclass(frozen=True)
class Entry:
    """A row of the table."""

    id: int
    kind: str
    title: str
    folder: str
    device: str
    created: float
    waiting: int
    """Whether the dispatcher is to start it."""
    held: int
    position: float
    pid: int | None
    """The process that was started for it and has not been seen to end; 0 while it is being started."""
    started: float | None
    wish: str
    """What is to be asked of it as soon as its process listens."""
    stamp: str
    """Size and date of the log of which ``summary`` is kept."""
    summary: str


COLUMNS = ", ".join(field.name for field in fields(Entry))
"""Of the table, in the order of :class:`Entry`."""


class JobReader:
    """Makes jobs from the rows of a home's table; what was read of a log once is not read again."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._readers: dict[str, StatusReader] = {}
        self._to_keep: list[tuple[str, str, int]] = []
        self._lock = threading.Lock()

    def job(self, entry: Entry, position: int) -> Job:
        """The job of a row; ``position``: its place among those that wait."""
        folder = self._home.located(entry.folder)
        alive = is_trained(folder)
        seen = None if alive else _kept(entry, folder)
        if seen is None:
            seen = self._seen(entry, folder, alive=alive)
            if not alive and not entry.waiting and entry.pid is None and seen.status.state in ENDED:
                self._keep(entry, folder, seen)
        status = _told(entry, folder, seen.status, alive=alive)

        # What has ended has no time left, and only that has an end.
        is_over = status.state in ENDED
        if status.progress is not None and is_over:
            status = replace(status, progress=replace(status.progress, seconds_left=None))
        return Job(
            id=entry.id,
            kind=entry.kind,
            title=entry.title,
            folder=folder,
            state=status.state,
            position=position if status.state == "queued" else 0,
            held=bool(entry.held and entry.waiting),
            progress=status.progress,
            problem=status.problem,
            hint=status.hint,
            created=entry.created,
            started=seen.started,
            ended=seen.ended if is_over else None,
            result=status.result,
        )

    def status(self, folder: Path, kind: str, *, alive: bool | None = None) -> JobStatus:
        """What the log in the folder says. One that cannot be read is a failure that can be read."""
        alive = is_trained(folder) if alive is None else alive
        if not folder.is_dir():
            return JobStatus("failed", problem=f"{folder} is gone", hint="take the job from the list")
        with self._lock:
            reader = self._readers.setdefault(str(folder), StatusReader(folder, is_run=is_run(kind)))
            try:
                return reader.read(alive=alive)
            except FileError as error:
                return JobStatus("failed", problem=error.problem, hint=error.hint)

    def _seen(self, entry: Entry, folder: Path, *, alive: bool) -> _Seen:
        status = self.status(folder, entry.kind, alive=alive)
        last = _last_attempt(folder)
        if last is None:
            return _Seen(status, entry.started, _last_word(folder))
        return _Seen(_tried(status, last, folder), last.started, last.ended or _last_word(folder))

    def _keep(self, entry: Entry, folder: Path, seen: _Seen) -> None:
        text = json.dumps({"status": seen.status.to_record(), "started": seen.started, "ended": seen.ended})
        with self._lock:
            self._to_keep.append((_stamp(folder), text, entry.id))
            self._readers.pop(str(folder), None)

    def keep(self) -> None:
        """Keep in the table what was found of jobs that have ended, so that nobody need read their files again."""
        with self._lock:
            found, self._to_keep = self._to_keep, []
        if found:
            with suppress(LoraloomError), self._home.database.transaction() as connection:
                connection.executemany("UPDATE jobs SET stamp = ?, summary = ? WHERE id = ?", found)


@dataclass(frozen=True)
class _Seen:
    """What the files in the folder of a job say."""

    status: JobStatus
    started: float | None
    ended: float | None


def _kept(entry: Entry, folder: Path) -> _Seen | None:
    """What was kept of a job that had ended, where nothing has been recorded since."""
    if not entry.stamp or entry.stamp != _stamp(folder):
        return None
    with suppress(KeyError, TypeError, ValueError):
        told = json.loads(entry.summary)
        return _Seen(JobStatus.from_record(told["status"]), told["started"], told["ended"])
    return None


def _tried(status: JobStatus, last: Attempt, folder: Path) -> JobStatus:
    """The status with what the last process noted as it ended, where the log has no later word.

    A run that was to go on and could not keeps the log that it had, and one that was asked to end while it prepared
    says only that it was interrupted.
    """
    if last.ended is None or status.state not in (*ENDED, "queued") or status.state == "done":
        return status
    if (_last_word(folder) or 0.0) > last.ended:
        return status
    if last.problem:
        return JobStatus("failed", status.progress, last.problem, last.hint)
    return JobStatus("stopped", status.progress) if last.stopped else status


def _told(entry: Entry, folder: Path, status: JobStatus, *, alive: bool) -> JobStatus:
    """The status with what the table knows: that it waits, is being started, or died without a word."""
    if entry.waiting and not alive:
        return JobStatus("queued", status.progress)
    has_told = entry.pid is None or (_last_word(folder) or 0.0) > (entry.started or 0.0)
    if not alive and at_work(entry, folder):  # before it takes the lock, after it has let go of it
        return JobStatus("running" if has_told else "preparing", status.progress)
    if alive:
        return status if has_told else JobStatus("preparing", status.progress)
    if status.state == "queued":
        status = replace(status, state="interrupted")

    # It could not tell of this itself.
    if status.state == "interrupted" and not status.problem:
        hint = Sentence(Action.RETRY_JOB.of(job=entry.id), " goes on with it")
        problem = "its process ended without a word: it was killed, or the machine went down"
        return replace(status, problem=problem, hint=hint)
    return status


def at_work(entry: Entry, folder: Path) -> bool:
    """Whether a process that was started for the job is there, or is just being started, and has not noted its end."""
    if entry.pid is None:
        return False
    if entry.pid == 0:
        return time.time() - (entry.started or 0.0) < _BEING_STARTED_S
    last = _last_attempt(folder)
    is_noted = last is not None and last.ended is not None and last.started >= (entry.started or 0.0)
    return not is_noted and is_worker(entry.pid, folder)


def _last_attempt(folder: Path) -> Attempt | None:
    with suppress(LoraloomError):
        return next(reversed(read_job(folder).attempts), None)
    return None


def is_worker(pid: int, folder: Path) -> bool:
    """Whether the process does the job of this folder: numbers of processes are given again."""
    import psutil

    try:
        command = psutil.Process(pid).cmdline()
    except psutil.Error:
        return False
    return WORKER in command and str(folder.absolute()) in command


def _stamp(folder: Path) -> str:
    """What changes with every line of the log, and with the record."""
    try:
        found = [(folder / name).stat() for name in (LOG_NAME, RECORD_NAME)]
    except OSError:
        return ""
    return " ".join(f"{file.st_size}-{file.st_mtime_ns}" for file in found)


def _last_word(folder: Path) -> float | None:
    """When something was recorded last."""
    try:
        return (folder / LOG_NAME).stat().st_mtime
    except OSError:
        return None
