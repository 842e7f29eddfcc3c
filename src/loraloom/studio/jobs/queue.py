"""The queue of a home: what waits and in which order, what runs, what has ended. Any number of processes may use it.

The record of a job is its folder; the table holds what folders do not say (order, what is held, who works on it) and
an index of them. What is asked here is done by the dispatcher of the home, which may be another process.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from loraloom.actions import Action, Sentence
from loraloom.control import Order, Request
from loraloom.errors import LoraloomError, MissingFileError, ResumeError, SettingsError, UnknownNameError
from loraloom.events import JobCancelled
from loraloom.plain_text import one_line
from loraloom.settings import Settings
from loraloom.studio.home import Home, HomeLock
from loraloom.studio.jobs.folder import RECORD_NAME, JobRecord, read_job, settings_record, write_job
from loraloom.studio.jobs.job import COLUMNS, Entry, Job, JobReader, at_work
from loraloom.studio.jobs.kinds import KINDS, find_kind, is_run
from loraloom.studio.runs.control import RunLock, ask, is_trained, leave_order
from loraloom.studio.runs.folder import RunFolder
from loraloom.studio.runs.log import EventLog
from loraloom.studio.runs.training import check_run

__all__ = ["BESIDE", "DEVICE", "QUEUE_LOCK", "Job", "Limits", "Queue"]

QUEUE_LOCK = "queue"
"""What of the home a dispatcher locks."""
DEVICE, BESIDE = "device", ""
"""Where jobs run: on the device that is chosen for them (also by its name), or beside it. Another GPU has its name."""
_THE_DEVICE = ("auto", "cuda", "cuda:0", "mps", "cpu", "xpu")
_LIMITS, _STOPPED = "jobs.limits", "jobs.stop_after_this"


@dataclass(frozen=True)
class Limits:
    """How many jobs run at once."""

    device: int = 1
    """On each device."""
    beside: int = 2
    """Of those that need none."""


class Queue:
    """The queue of ``home``. Jobs are named by their number; UnknownNameError for one that there is not."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self._reader = JobReader(home)
        self.find_again()

    # -- putting in

    def add(self, kind: str, settings: Settings | Mapping[str, Any], *, title: str = "", held: bool = False) -> Job:
        """Put a new job at the end of the queue; relative paths in ``settings`` are relative to the home.

        Raises UnknownNameError for a kind that there is not, SettingsError for settings that are wrong, OutputError
        where the folder of the job cannot be written.
        """
        found = find_kind(kind)
        if not isinstance(settings, found.settings):
            given = settings.model_dump() if isinstance(settings, Settings) else settings
            settings = found.settings.parse(given)
        found.check(settings)
        folder = found.create(self.home, settings)
        record = JobRecord(
            kind,
            one_line(title or found.title(settings)),
            time.time(),
            None if found.is_run else settings_record(settings, self.home.path),
        )
        return self._put(folder, record, found.device(settings), waiting=True, held=held)

    def missing(self, kind: str, settings: Settings) -> list[Path]:
        """What a job with these settings needs and is not there now: it may still come before the job starts."""
        paths = (self.home.path / path.expanduser() for path in find_kind(kind).inputs(settings))
        return [path for path in paths if not path.exists()]

    def add_run(self, folder: Path, *, title: str = "", held: bool = False) -> Job:
        """Put a run that exists into the queue: a new one, a branch, or one that is to go on exactly where it was.

        Raises ResumeError where it is being trained or is finished, MissingFileError where there is none.
        """
        known = self._entry_of(folder)
        if known is not None:
            return self.retry(known.id)
        kind = find_kind("train")
        check_run(folder)
        if is_trained(folder):
            raise ResumeError(f"{folder} is being trained already", "it can be asked to stop, or be waited for")
        settings = kind.settings.load(RunFolder(folder).settings_path)
        record = JobRecord(kind.name, one_line(title or folder.name), time.time())
        return self._put(folder, record, kind.device(settings), waiting=True, held=held)

    def _put(self, folder: Path, record: JobRecord, device: str, *, waiting: bool, held: bool) -> Job:
        write_job(folder, record)
        where = self.home.stored(folder)
        with self.home.database.transaction() as connection:
            # A run that came to nothing gives its folder to the next one of that name, and so its place here.
            connection.execute("DELETE FROM jobs WHERE folder = ?", (where,))
            number = self._insert(connection, where, record, device, waiting=waiting, held=held)
        return self.job(number)

    def _insert(
        self,
        connection: sqlite3.Connection,
        where: str,
        record: JobRecord,
        device: str,
        *,
        waiting: bool,
        held: bool,
        number: int | None = None,
    ) -> int:
        place = DEVICE if device in _THE_DEVICE else device
        if record.kind in KINDS and not KINDS[record.kind].needs_device:
            place = BESIDE
        known = record.attempts[-1].started if record.attempts else None
        cursor = connection.execute(
            "INSERT INTO jobs (id, kind, title, folder, device, created, waiting, held, position, started) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, (SELECT coalesce(max(position), 0) + 1 FROM jobs), ?)",
            (number, record.kind, record.title, where, place, record.created, waiting, held, known),
        )
        return int(cursor.lastrowid or 0)

    def find_again(self) -> list[Job]:
        """Take jobs into the list that lie in the home and are not in it, as after a damaged database.

        Those that would wait are held, since nobody has said that they are to start now. A record that cannot be read
        is left out.
        """
        known = {entry.folder for entry in self.entries()}
        new = [folder for folder in self._folders() if self.home.stored(folder) not in known]
        found = [number for folder in new if (number := self._taken_in(folder)) is not None]
        return [self.job(number) for number in found]

    def _taken_in(self, folder: Path) -> int | None:
        """The number of a job that was found in this folder; None where there is none to be taken into the list."""
        where = self.home.stored(folder)
        try:
            record = read_job(folder)
        except LoraloomError:
            return None
        if record.forgotten:
            return None
        waits = self._reader.status(folder, record.kind).state == "queued"
        device = self._device_of(folder, record)
        with self.home.database.transaction() as connection:
            rows = connection.execute("SELECT id, folder FROM jobs").fetchall()
            if where in {row[1] for row in rows}:  # another process was quicker
                return None
            number = _number_of(folder)
            if number in {row[0] for row in rows}:
                number = None
            return self._insert(connection, where, record, device, waiting=waits, held=waits, number=number)

    def _folders(self) -> list[Path]:
        """Every folder of the home with the record of a job: those first that have a number in their name."""
        places = [place for parent in (self.home.jobs, self.home.runs) for place in _inside(parent)]
        records = [(path.stat().st_mtime, path.parent) for place in places if (path := place / RECORD_NAME).is_file()]
        return sorted((folder for _, folder in sorted(records)), key=lambda folder: _number_of(folder) is None)

    def _device_of(self, folder: Path, record: JobRecord) -> str:
        with suppress(LoraloomError):
            kind = find_kind(record.kind)
            if kind.is_run:
                return kind.device(kind.settings.load(RunFolder(folder).settings_path))
            return kind.device(kind.settings.parse(record.settings or {}))
        return DEVICE

    # -- looking

    def jobs(self) -> list[Job]:
        """Every job: those that run, those that wait in their order, and those that have ended, the latest first."""
        entries = self.entries()
        places = _places(entries)
        found = [self._reader.job(entry, places.get(entry.id, 0)) for entry in entries]
        self._reader.keep()
        return sorted(found, key=_in_the_list)

    def job(self, number: int) -> Job:
        """One job."""
        entries = self.entries()
        places = _places(entries)
        entry = next((entry for entry in entries if entry.id == number), None)
        if entry is None:
            self._unknown(number)
        return self._reader.job(entry, places.get(number, 0))

    def entry(self, number: int) -> Entry:
        """The row of one job."""
        rows = self.home.database.rows(f"SELECT {COLUMNS} FROM jobs WHERE id = ?", (number,))
        if not rows:
            self._unknown(number)
        return Entry(*rows[0])

    def entries(self) -> list[Entry]:
        """The rows of all jobs, those that wait in the order in which they are to run."""
        rows = self.home.database.rows(f"SELECT {COLUMNS} FROM jobs ORDER BY position, id")
        return [Entry(*row) for row in rows]

    def _entry_of(self, folder: Path) -> Entry | None:
        where = self.home.stored(folder)
        return next((entry for entry in self.entries() if entry.folder == where), None)

    def _unknown(self, number: int) -> NoReturn:
        raise UnknownNameError("job", str(number), [str(entry.id) for entry in self.entries()])

    # -- changing

    def move(self, number: int, before: int | None = None) -> Job:
        """Let a job that waits run before another one that waits, or (None) as the last."""
        with self._changing(number) as (connection, entry):
            self._must_wait(entry)
            waiting = [other for other in self.entries() if other.waiting and other.id != number]
            if before is None:
                place = len(waiting)
            else:
                self._must_wait(self.entry(before))
                place = next((i for i, other in enumerate(waiting) if other.id == before), len(waiting))
            order = [*waiting[:place], entry, *waiting[place:]]
            places = sorted(other.position for other in order)
            connection.executemany(
                "UPDATE jobs SET position = ? WHERE id = ?",
                [(position, other.id) for position, other in zip(places, order, strict=True)],
            )
        return self.job(number)

    def hold(self, number: int) -> Job:
        """Keep a job that waits from being started until it is released."""
        return self._set_held(number, 1)

    def release(self, number: int) -> Job:
        """Let a job that was held be started when its turn comes."""
        return self._set_held(number, 0)

    def _set_held(self, number: int, held: int) -> Job:
        with self._changing(number) as (connection, entry):
            self._must_wait(entry)
            connection.execute("UPDATE jobs SET held = ? WHERE id = ?", (held, number))
        return self.job(number)

    def cancel(self, number: int, *, save: bool = True) -> Job:
        """End a job: one that waits is not started, one that runs is asked to stop after the step in progress.

        ``save``: a run saves what there is first. One that was put back to go on later stays as it was before. Raises
        ResumeError for a job that is over.
        """
        with self._changing(number) as (connection, entry):
            folder = self.home.located(entry.folder)
            if entry.waiting:
                connection.execute("UPDATE jobs SET waiting = 0, held = 0 WHERE id = ?", (number,))
                if self._reader.status(folder, entry.kind).state == "queued":
                    with RunLock(folder), EventLog(folder) as log:
                        log(JobCancelled())
                return self._reader.job(replace(entry, waiting=0, held=0), 0)
        return self.ask(number, Request.STOP if save else Request.DISCARD)

    def ask(self, number: int, request: Request) -> Job:
        """Ask the process of a job to pause, to go on, to leave, to stop; it obeys after the piece in progress.

        A process that is only being started hears of it as soon as it listens. A paused job whose process has ended
        goes back into the queue when it is asked to go on. Raises ResumeError for a job that does not run.
        """
        entry = self.entry(number)
        folder = self.home.located(entry.folder)
        if is_trained(folder):
            ask(folder, request)
        elif at_work(entry, folder):
            with self._changing(number) as (connection, _):
                connection.execute("UPDATE jobs SET wish = ? WHERE id = ?", (request.value, number))
        elif request is Request.GO and self.job(number).state == "paused":
            return self.retry(number)
        else:
            raise ResumeError(f"job {number} does not run now", Sentence(Action.LIST_JOBS, " shows its state"))
        return self.job(number)

    def order(self, number: int, order: Order) -> Job:
        """Let a run save or paint its previews once, after the step in progress. ResumeError where none runs."""
        leave_order(self.home.located(self.entry(number).folder), order)
        return self.job(number)

    def retry(self, number: int) -> Job:
        """Put a job that has ended back into the queue, as the first: it goes on exactly where its kind can.

        One that waits already stays where it is. Raises ResumeError for one that runs or is done.
        """
        job = self.job(number)
        if job.state == "done":
            raise ResumeError(f"job {number} is done", "a new job does it once more")
        with self._changing(number) as (connection, entry):
            if is_trained(job.folder) or at_work(entry, job.folder):
                raise ResumeError(f"job {number} runs now", Sentence(Action.CANCEL_JOB.of(job=number), " ends it"))
            if not entry.waiting:
                if is_run(job.kind):
                    check_run(job.folder)
                connection.execute(
                    "UPDATE jobs SET waiting = 1, held = 0, wish = '', pid = NULL, "
                    "position = (SELECT min(position) - 1 FROM jobs) WHERE id = ?",
                    (number,),
                )
        return self.job(number)

    def forget(self, number: int) -> None:
        """Take a job that has ended out of the list; its folder stays. Raises ResumeError for one that has not."""
        job = self.job(number)
        if not job.is_over and not (job.state == "paused" and not is_trained(job.folder)):
            raise ResumeError(f"job {number} is {job.state}", Sentence(Action.CANCEL_JOB.of(job=number), " ends it"))
        with suppress(MissingFileError):
            write_job(job.folder, replace(read_job(job.folder), forgotten=True))
        with self.home.database.transaction() as connection:
            connection.execute("DELETE FROM jobs WHERE id = ?", (number,))

    @contextmanager
    def _changing(self, number: int) -> Iterator[tuple[sqlite3.Connection, Entry]]:
        """Inside, the row of a job stays as it is given, but for what is changed there."""
        with self.home.database.transaction() as connection:
            row = connection.execute(f"SELECT {COLUMNS} FROM jobs WHERE id = ?", (number,)).fetchone()
            if row is None:
                self._unknown(number)
            yield connection, Entry(*row)

    def _must_wait(self, entry: Entry) -> None:
        if not entry.waiting:
            state = self._reader.job(entry, 0).state
            raise ResumeError(f"job {entry.id} does not wait, it is {state}", "only jobs that wait have an order")

    # -- the whole

    @property
    def stop_after_this(self) -> bool:
        """Whether nothing more is started: what runs goes on to its end."""
        return bool(self.home.preferences.get(_STOPPED, False))

    @stop_after_this.setter
    def stop_after_this(self, value: bool) -> None:
        self.home.preferences[_STOPPED] = value

    @property
    def is_worked_through(self) -> bool:
        """Whether a dispatcher works on the home now, in this process or another."""
        return HomeLock(self.home.path, QUEUE_LOCK).is_taken()

    @property
    def limits(self) -> Limits:
        """How many jobs run at once."""
        told = self.home.preferences.get(_LIMITS, {})
        return Limits(**{name: told[name] for name in ("device", "beside") if isinstance(told.get(name), int)})

    @limits.setter
    def limits(self, value: Limits) -> None:
        if value.device < 1 or value.beside < 1:
            raise SettingsError(["fewer than one job at once"], "holding the jobs keeps them from being started")
        self.home.preferences[_LIMITS] = {"device": value.device, "beside": value.beside}


def _places(entries: list[Entry]) -> dict[int, int]:
    """The place of each job that waits, from 1."""
    return {entry.id: place for place, entry in enumerate((entry for entry in entries if entry.waiting), start=1)}


def _in_the_list(job: Job) -> tuple[int, float]:
    if job.is_over:
        return 2, -(job.ended or 0.0)
    return (1, float(job.position)) if job.state == "queued" else (0, job.started or 0.0)


def _number_of(folder: Path) -> int | None:
    """The number of a job that stands in the name of its folder; None for a run."""
    number = folder.name.partition("-")[0]
    return int(number) if folder.parent.name == "jobs" and number.isdecimal() else None


def _inside(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir()]
    except OSError:
        return []
