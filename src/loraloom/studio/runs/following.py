"""Runs that many readers follow at once: each log is read once, however many look at it, and only what is new in it."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

from loraloom.errors import FileError, FileFormatError, MissingFileError
from loraloom.events import Event, StepFinished
from loraloom.studio.runs.control import is_trained
from loraloom.studio.runs.folder import run_folders, run_in
from loraloom.studio.runs.log import RunLog, went_back_to
from loraloom.studio.runs.status import RunStatus, last_changed, told_status, unreadable_status

__all__ = ["LOOK_S", "FollowedRun", "FollowedRuns", "Happened"]

LOOK_S = 0.4
"""How old what is known of a run may be before its log is looked at again."""
_RECENT = 500
"""Events that are kept for readers that are nearly up to date."""


@dataclass(frozen=True)
class Happened:
    """An event of a run's log. ``place``: where a reader who has it goes on; ``end``: that place's byte.

    ``back_to``: the step behind which it supersedes what was recorded before (``log.went_back_to``), None: nothing.
    """

    event: Event
    place: str
    end: int
    back_to: int | None


class FollowedRun:
    """The run in ``folder``: its status kept up to date, its latest events at hand. Any number of threads may ask.

    ``generation`` counts how often its log was replaced by another file: then everything that was known is void.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.generation = 0
        self._lock = threading.Lock()
        self._looked = float("-inf")
        self._begin()

    def _begin(self) -> None:
        self._log = RunLog(self.folder)
        self._told = RunStatus(self.folder.name, self.folder)
        self._seen = self._told
        self._offset: int | None = None
        self._recent: deque[Happened] = deque(maxlen=_RECENT)
        self._recent_from = 0

    def look(self, *, at_most_every_s: float = 0.0) -> tuple[RunStatus, int]:
        """The status, and the byte of the log up to which it is told; read anew where it is older than that.

        Raises MissingFileError where there is no such folder, FileError where the log cannot be read.
        """
        with self._lock:
            if time.monotonic() - self._looked >= at_most_every_s:
                self._read()
                self._looked = time.monotonic()
            return self._seen, self._offset or 0

    def after(self, offset: int) -> list[Happened]:
        """What the log holds behind the byte ``offset``, as far as :meth:`look` has come.

        Raises FileFormatError where no line begins there, FileError where the log cannot be read.
        """
        with self._lock:
            end = self._offset or 0
            if offset >= self._recent_from:
                return [happened for happened in self._recent if happened.end > offset]
        placed, _ = RunLog(self.folder).placed(offset)
        return [happened for happened in _happened(placed, 0) if happened.end <= end]

    def offset_of(self, place: str) -> int:
        """The byte at which a reader goes on who was at ``place``. FileFormatError where the log is another one."""
        return RunLog(self.folder).offset_of(place)

    def _read(self) -> None:
        if not self.folder.is_dir():
            raise MissingFileError(f"there is no folder {self.folder}", "give the folder of a run")
        # In this order: what a process wrote before it ended is read before its end is believed.
        alive = is_trained(self.folder)
        try:
            self._read_log()
        except FileFormatError:
            if self._offset is None:
                raise
            self.generation += 1
            self._begin()
            self._read_log()
        self._seen = replace(self._told.seen(alive=alive), changed=last_changed(self.folder))

    def _read_log(self) -> None:
        if self._offset is None:
            # Of a long log a status needs few lines.
            self._told, self._offset = told_status(self.folder, self._log)
            self._recent_from = self._offset
            return
        placed, self._offset = self._log.placed(self._offset)
        for happened in _happened(placed, self._told.step):
            self._told = self._told.after(happened.event)
            if len(self._recent) == _RECENT:
                self._recent_from = self._recent[0].end
            self._recent.append(happened)


def _happened(placed: list[tuple[Event, str]], last_step: int) -> list[Happened]:
    found = []
    for event, place in placed:
        back_to = went_back_to(event, last_step)
        last_step = event.step if isinstance(event, StepFinished) else last_step if back_to is None else max(back_to, 0)
        found.append(Happened(event, place, int(place.partition("-")[0]), back_to))
    return found


class FollowedRuns:
    """The runs in ``folder``, each followed by one object for all who ask."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._runs: dict[Path, FollowedRun] = {}

    def run(self, name: str) -> FollowedRun:
        """The run of this name. MissingFileError where there is none."""
        return self._followed(run_in(self._folder, name))

    def statuses(self) -> list[RunStatus]:
        """Every run by name; one whose log cannot be read says so."""
        folders = run_folders(self._folder)
        with self._lock:
            for gone in self._runs.keys() - set(folders):
                del self._runs[gone]
        found = []
        for folder in folders:
            try:
                found.append(self._followed(folder).look(at_most_every_s=LOOK_S)[0])
            except MissingFileError:  # removed a moment ago
                continue
            except FileError as error:
                found.append(unreadable_status(folder, error))
        return found

    def _followed(self, folder: Path) -> FollowedRun:
        with self._lock:
            return self._runs.setdefault(folder, FollowedRun(folder))
