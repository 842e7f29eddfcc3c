"""Who starts jobs: it looks at the queue now and then, starts what may start, and notes what has ended.

Jobs run in processes of their own, so nothing happens to them when the dispatcher ends; the next one finds what runs
by the locks of the folders. Of several dispatchers on one home, one works and the others look on.
"""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from loraloom.control import Control, Request, heed, keep_going
from loraloom.errors import FileError, LoraloomError
from loraloom.events import JobFailed, Listener, Notice, RunFailed, ignore
from loraloom.studio.detached import last_lines, start_detached
from loraloom.studio.home import Home, HomeLock
from loraloom.studio.jobs.folder import read_job
from loraloom.studio.jobs.job import WORKER, Entry, is_worker
from loraloom.studio.jobs.kinds import is_run
from loraloom.studio.jobs.queue import BESIDE, DEVICE, QUEUE_LOCK, Queue
from loraloom.studio.jobs.status import StatusReader
from loraloom.studio.runs.control import PROCESS, RunLock, ask, is_trained
from loraloom.studio.runs.folder import run_folders
from loraloom.studio.runs.log import EventLog

__all__ = ["Dispatcher", "Look"]

LOOK_S = 0.5
"""How often it looks at the queue."""
FIND_AGAIN_S = 30.0
"""How often it looks for jobs in folders that are not in the list."""


@dataclass(frozen=True)
class Look:
    """What one look at the queue came to."""

    works: bool
    """Whether this dispatcher is the one that works; the other numbers are of that one only."""
    running: int = 0
    waiting: int = 0
    """Jobs that wait and are not held."""
    started: int = 0
    problem: str = ""
    """Why the home could not be looked at."""


def _nothing(look: Look) -> None:
    """What is done after a look unless something else is asked for."""


class Dispatcher:
    """The dispatcher of ``home``. Close it, or use it as a context manager: another one may then work."""

    def __init__(self, home: Home, *, listener: Listener = ignore) -> None:
        self.queue = Queue(home)
        self._home = home
        self._listener = listener
        self._lock = HomeLock(home.path, QUEUE_LOCK)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._found_again = time.monotonic()
        self._problem = ""

    def __enter__(self) -> Dispatcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Work no more; what runs goes on."""
        self._lock.leave()

    def run(
        self, control: Control = keep_going, *, until_done: bool = False, each: Callable[[Look], None] = _nothing
    ) -> None:
        """Look at the queue until ``control`` asks for the end (Interrupted), or ``until_done`` nothing runs or waits.

        A home that cannot be read or written for a while (a full disk) is said once and tried again.
        """
        while True:
            heed(control)
            look = self._look_again()
            each(look)
            if until_done and look.works and not look.running and (not look.waiting or self.queue.stop_after_this):
                return
            time.sleep(LOOK_S)

    def _look_again(self) -> Look:
        try:
            look = self.step()
        except FileError as error:
            if error.problem != self._problem:
                self._listener(Notice(str(error), "warning"))
            self._problem = error.problem
            return Look(works=False, problem=error.problem)
        self._problem = ""
        return look

    def step(self) -> Look:
        """One look: note what has ended, tell the running what was asked, start what may start.

        Raises FileError where the home cannot be read or written.
        """
        if not self._lock.try_enter():
            return Look(works=False)
        if time.monotonic() - self._found_again > FIND_AGAIN_S:
            self._found_again = time.monotonic()
            self.queue.find_again()
        busy: Counter[str] = Counter()
        for entry in self.queue.entries():
            if self._is_busy(entry):
                busy[entry.device] += 1
        busy[DEVICE] += self._strangers()
        running = sum(busy.values())
        started = 0
        if not self.queue.stop_after_this:
            started = self._start(busy)
        left = [entry for entry in self.queue.entries() if entry.waiting and not entry.held]
        return Look(True, running + started, len(left), started)

    # -- what runs

    def _is_busy(self, entry: Entry) -> bool:
        """Whether a process works on the job, or is about to; what is to be noted of one that ended is noted."""
        folder = self._home.located(entry.folder)
        if is_trained(folder):
            self._note_running(entry, folder)
            return True
        if entry.pid is None:
            return False
        if entry.pid == 0 and entry.id not in self._processes:
            # A dispatcher died as it started it. If it came as far as that, there are two now, and one gives way.
            self._set(entry, "pid = NULL, waiting = 1")
            return False
        if self._still_begins(entry, folder):
            return True
        self._note_ended(entry, folder)
        return False

    def _note_running(self, entry: Entry, folder: Path) -> None:
        if entry.waiting:  # somebody trains the run in a terminal
            self._set(entry, "waiting = 0")
        if entry.wish:
            with suppress(LoraloomError):  # it has ended just now
                ask(folder, Request(entry.wish))
            self._set(entry, "wish = ''")

    def _still_begins(self, entry: Entry, folder: Path) -> bool:
        process = self._processes.get(entry.id)
        if process is not None:
            return process.poll() is None
        return is_worker(entry.pid or 0, folder)

    def _note_ended(self, entry: Entry, folder: Path) -> None:
        """A process that ended by itself before it could say anything has failed; one that was killed is interrupted.

        Every other one has told how it ended.
        """
        process = self._processes.pop(entry.id, None)
        code = process.returncode if process is not None else None
        if code is not None and code >= 0 and folder.is_dir() and self._told_nothing(entry, folder):
            said = next((line for line in reversed(last_lines(folder)) if line.strip()), "")
            problem = f"its process ended with code {code} before it began{': ' if said else ''}{said}"
            _record_failure(entry, folder, LoraloomError(problem, "the last lines of its log say more"))
        self._set(entry, "pid = NULL, wish = ''")

    def _told_nothing(self, entry: Entry, folder: Path) -> bool:
        """Whether neither log nor record of a job say anything of the process that has ended."""
        if StatusReader(folder, is_run=is_run(entry.kind)).read(alive=False).state != "queued":
            return False
        try:
            attempts = read_job(folder).attempts
        except LoraloomError:
            return True
        return not attempts or attempts[-1].ended is None or attempts[-1].ended < (entry.started or 0.0)

    def _strangers(self) -> int:
        """Runs of the home that are trained by processes that no job has started: they use the device as well."""
        known = {self._home.located(entry.folder) for entry in self.queue.entries()}
        folders = (path for path in run_folders(self._home.runs) if path not in known and (path / PROCESS).is_file())
        return sum(map(is_trained, folders))

    # -- what starts

    def _start(self, busy: Counter[str]) -> int:
        limits = self.queue.limits
        started = 0
        for entry in self.queue.entries():
            limit = limits.beside if entry.device == BESIDE else limits.device
            if entry.waiting and not entry.held and busy[entry.device] < limit and self._began(entry):
                busy[entry.device] += 1
                started += 1
        return started

    def _began(self, entry: Entry) -> bool:
        """Start the process of a job, unless it was held or cancelled a moment ago."""
        with self._home.database.transaction() as connection:
            changed = connection.execute(
                "UPDATE jobs SET waiting = 0, pid = 0, started = ?, wish = '' WHERE id = ? AND waiting AND NOT held",
                (time.time(), entry.id),
            ).rowcount
        if not changed:
            return False
        folder = self._home.located(entry.folder)
        try:
            process = start_detached(WORKER, folder)
        except LoraloomError as error:
            self._listener(Notice(str(error), "warning"))
            with suppress(LoraloomError):  # a folder that takes no file takes no record either
                _record_failure(entry, folder, error)
            self._set(entry, "pid = NULL")
            return False
        self._processes[entry.id] = process
        self._set(entry, f"pid = {process.pid:d}")
        return True

    def _set(self, entry: Entry, changes: str) -> None:
        with self._home.database.transaction() as connection:
            connection.execute(f"UPDATE jobs SET {changes} WHERE id = ?", (entry.id,))


def _record_failure(entry: Entry, folder: Path, error: LoraloomError) -> None:
    """Write into a job's log why it came to nothing, where its own process could not."""
    with RunLock(folder), EventLog(folder) as log:
        log(RunFailed(0, error.problem, error.hint) if is_run(entry.kind) else JobFailed(error.problem, error.hint))
