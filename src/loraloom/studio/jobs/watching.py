"""What has changed in a queue since one looked last: for a list that is kept up to date."""

from __future__ import annotations

from dataclasses import dataclass

from loraloom.studio.jobs.queue import Job, Queue

__all__ = ["Changes", "Watch"]


@dataclass(frozen=True)
class Changes:
    """What is different: jobs as they are now, in the order of the list, and numbers of those that left it."""

    changed: tuple[Job, ...] = ()
    gone: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.changed or self.gone)


class Watch:
    """Looks at a queue as often as is wanted. The first look finds every job changed."""

    def __init__(self, queue: Queue) -> None:
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
