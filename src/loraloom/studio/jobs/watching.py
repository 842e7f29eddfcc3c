"""What has changed in a queue since one looked last: for a list that is kept up to date."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Protocol

from loraloom.studio.jobs.queue import Job, Queue

__all__ = ["Changes", "Listing", "Watch"]


@dataclass(frozen=True)
class Changes:
    """What is different: jobs as they are now, in the order of the list, and numbers of those that left it."""

    changed: tuple[Job, ...] = ()
    gone: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.changed or self.gone)


class Lists(Protocol):
    """Whatever gives the jobs in the order of the list."""

    def jobs(self) -> list[Job]:
        """All of them."""


class Listing:
    """The list of a queue for many who look at it: read anew at most every ``every_s``, by any number of threads."""

    def __init__(self, queue: Queue, every_s: float) -> None:
        self._queue = queue
        self._every_s = every_s
        self._lock = threading.Lock()
        self._read = float("-inf")
        self._jobs: list[Job] = []

    def jobs(self) -> list[Job]:
        """The jobs in the order of the list. FileError where the home cannot be read."""
        with self._lock:
            if time.monotonic() - self._read >= self._every_s:
                self._jobs = self._queue.jobs()
                self._read = time.monotonic()
            return list(self._jobs)


class Watch:
    """Looks at a queue as often as is wanted. The first look finds every job changed."""

    def __init__(self, queue: Lists) -> None:
        self._queue = queue
        self._known: dict[int, Job] = {}

    def look(self) -> Changes:
        """What has changed since the last look. FileError where the home cannot be read."""
        jobs = {job.id: job for job in self._queue.jobs()}
        changes = Changes(
            tuple(job for job in jobs.values() if self._known.get(job.id) != job),
            tuple(number for number in self._known if number not in jobs),
        )
        self._known = jobs
        return changes
