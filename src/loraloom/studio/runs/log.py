"""A run's log, ``events.jsonl``: one writer, one reader, and the one rule of what in it is superseded."""

from __future__ import annotations

import json
import os
import re
import time
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from loraloom.control import POLL_S
from loraloom.errors import FileFormatError, MissingFileError, OutputError
from loraloom.events import (
    Event,
    JobCreated,
    RunCreated,
    RunFailed,
    RunFinished,
    RunResumed,
    StepFinished,
    from_record,
    to_record,
)
from loraloom.reading import open_file
from loraloom.studio.runs.control import is_trained

__all__ = ["LOG_NAME", "EventLog", "RunLog", "current_events", "is_superseded", "went_back_to"]

LOG_NAME = "events.jsonl"
_CHECKED = 200
_LONGEST_CHECKED = _CHECKED + 1
"""Bytes before a place that are looked at."""
_STEP = b'{"event": "StepFinished"'
_KIND = re.compile(rb'\{"event": "(\w+)"')
"""How every line of ours begins, so that lines of other kinds need not be parsed."""
_TURNS = frozenset(
    {"RunCreated", "RunTaken", "RunStarted", "RunResumed", "RunPaused", "RunFinished", "RunFailed", "JobCancelled"}
)
"""Events whose order matters: an earlier one is passed on earlier."""


# -- the rule ----------------------------------------------------------------------------------------------------


def went_back_to(event: Event, last_step: int) -> int | None:
    """The step behind which ``event`` supersedes what was recorded before it; None: it supersedes nothing.

    A run that is created begins before its first step (-1: nothing of what came before counts). A run that is resumed
    goes on behind a step, and a step that was taken before is taken again.
    """
    match event:
        case RunCreated():
            return -1
        case RunResumed():
            return event.step
        case StepFinished() if event.step <= last_step:
            return event.step - 1
    return None


def is_superseded(event: Event, step: int) -> bool:
    """Whether an event counts no more since the run went back to ``step``: it is of a later one, or an end."""
    return step < 0 or isinstance(event, (RunFailed, RunFinished)) or getattr(event, "step", 0) > step


def current_events(recorded: Iterable[Event]) -> list[Event]:
    """The events of a run as if it had never been interrupted."""
    events: list[Event] = []
    last_step = 0
    for event in recorded:
        step = went_back_to(event, last_step)
        if step is not None:
            events = [earlier for earlier in events if not is_superseded(earlier, step)]
            last_step = max(step, 0)
        if isinstance(event, StepFinished):
            last_step = event.step
        events.append(event)
    return events


# -- reading -----------------------------------------------------------------------------------------------------


class RunLog:
    """The log of the run in ``folder``, read whole or from where a reader stopped.

    One object follows one file: where that was replaced or cut, FileFormatError is raised; a new object begins anew.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / LOG_NAME
        self._file: tuple[int, int] | None = None

    def since(self, offset: int = 0) -> tuple[list[Event], int]:
        """The events recorded from the byte ``offset`` on, which a call before gave, and where the next ones begin.

        A last line that is not whole yet is left for the next call; a damaged one is left out, as everywhere. Without a
        log there are none. Raises FileFormatError where no line begins at ``offset``, FileError where the log cannot be
        read.
        """
        placed, end = self.placed(offset)
        return [event for event, _ in placed], end

    def placed(self, offset: int = 0) -> tuple[list[tuple[Event, str]], int]:
        """:meth:`since` with the :meth:`place` behind each event; FileError as there."""
        data = self._bytes(offset)
        whole = data.rfind(b"\n") + 1
        found: list[tuple[Event, str]] = []
        position = offset
        for line in data[:whole].split(b"\n")[:-1]:
            position += len(line) + 1
            found += [(event, _place(position, line)) for event in _events([line])]
        return found, offset + whole

    def place(self, offset: int) -> str:
        """The byte ``offset`` with a check of the line that ends there: where a reader goes on who comes back to it.

        A log that was replaced by another one has other lines. FileError as in :meth:`since`.
        """
        if not offset:
            return "0"
        start = max(0, offset - _LONGEST_CHECKED)
        before = self._bytes(start, exact=False)[: offset - start - 1]
        return _place(offset, before[before.rfind(b"\n") + 1 :])

    def offset_of(self, place: str) -> int:
        """The byte that a :meth:`place` means; a number without its check is taken where a line begins.

        Raises FileFormatError where that is no place in this log, FileError as in :meth:`since`.
        """
        number, _, check = place.partition("-")
        self._check(number.isascii() and number.isdecimal() and len(number) < 19)
        offset = int(number)
        self._bytes(offset)
        self._check(not check or self.place(offset) == place)
        return offset

    def recorded(self) -> list[Event]:
        """Every event of the log, those that are superseded too; FileError as in :meth:`since`."""
        return list(_events(self._bytes(0).split(b"\n")))

    def events(self) -> list[Event]:
        """The events that count (:func:`current_events`); FileError as in :meth:`since`."""
        return current_events(self.recorded())

    def follow(self, offset: int = 0) -> Iterator[Event]:
        """The events from ``offset`` on as they come, until the run has ended or its process has died.

        A run that nobody trains yet is waited for. MissingFileError where there is no such folder, FileError as in
        :meth:`since`.
        """
        if not self._folder.is_dir():
            raise MissingFileError(f"there is no folder {self._folder}", "give the folder of a run")
        has_begun = False
        while True:
            # In this order: what a process wrote before it ended is read before its end is believed.
            alive = is_trained(self._folder)
            has_begun = has_begun or alive  # it may die before it has told anything
            events, offset = self.since(offset)
            for event in events:
                has_begun = alive or not isinstance(event, RunCreated | JobCreated)
                yield event
            if not events and not alive and has_begun:
                return
            if not events:
                time.sleep(POLL_S)

    def outline(self, kinds: frozenset[str], *, steps: int, offset: int = 0) -> tuple[list[Event], int]:
        """:meth:`since` for the events of some kinds, but of the steps only the last ``steps`` before each turn.

        A log may hold many thousand lines, of which a reader who wants to know what a run has come to needs few.
        """
        data = self._bytes(offset)
        whole = data.rfind(b"\n") + 1
        return list(_events(_outline(data[:whole].split(b"\n"), kinds, steps))), offset + whole

    def _bytes(self, offset: int, *, exact: bool = True) -> bytes:
        """What follows ``offset``, with the checks that this is still the file that was read before.

        ``exact``: a line has to begin there.
        """
        try:
            with open_file(self._path) as file:
                found = os.fstat(file.fileno())
                self._check(self._file in (None, (found.st_dev, found.st_ino)) and offset <= found.st_size)
                self._file = found.st_dev, found.st_ino
                file.seek(max(offset - 1, 0))
                self._check(not offset or file.read(1) == b"\n" or not exact)
                return file.read()
        except MissingFileError:
            self._check(not offset and self._file is None)
            return b""

    def _check(self, is_same: bool) -> None:
        if not is_same:
            raise FileFormatError(
                f"{self._path} has changed: it was replaced or truncated", "read it from the beginning"
            )


def _outline(lines: Iterable[bytes], kinds: frozenset[str], steps: int) -> Iterator[bytes]:
    held: deque[bytes] = deque(maxlen=steps)
    for line in lines:
        if line.startswith(_STEP):
            held.append(line)
            continue
        kind = _kind(line)
        if kind in kinds:
            if kind in _TURNS:
                yield from held
                held.clear()
            yield line
    yield from held


def _place(offset: int, line: bytes) -> str:
    """A place in a log: the byte behind a line, and a checksum of the line's end."""
    return f"{offset}-{zlib.crc32(line[-_CHECKED:]):08x}"


def _kind(line: bytes) -> str:
    found = _KIND.match(line)
    return found[1].decode() if found else ""


def _events(lines: Iterable[bytes]) -> Iterator[Event]:
    """The events of these lines. What is none is left out: a line that a crash cut short, an event of a newer version,
    one whose values somebody has damaged."""
    for line in lines:
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            yield from_record(json.loads(line.decode("utf-8", "replace")))


# -- writing -----------------------------------------------------------------------------------------------------


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

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOG_NAME
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
        with suppress(OSError):  # what could not be written was reported when it happened
            self._file.close()
