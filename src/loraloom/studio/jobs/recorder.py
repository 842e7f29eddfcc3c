"""The listener that writes the log of a job."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from loraloom.errors import OutputError
from loraloom.events import Event, ImageSaved, JobProgressed, LatentsCached, PieceFinished, RunStarted, StepFinished
from loraloom.studio.runs.log import EventLog

__all__ = ["JobRecorder"]

TOLD_EVERY_S = 0.5
"""Progress is recorded no more often than this."""
_LEFT_OUT = frozenset(
    {"RunCreated", "RunTaken", "RunPaused", "RunResumed", "RunFinished", "RunFailed", "SamplerStepped"}
)
"""What a run inside a job says of itself is in its own folder, and would here be taken for the job's; and what comes
many times a second."""


class JobRecorder:
    """The listener that writes what happens in a job to its log: progress of any kind as JobProgressed, now and then.

    A log that cannot be written does not end the job.
    """

    def __init__(self, log: EventLog, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._steps: int | None = None
        self._what = ""
        self._began = (0.0, 0)
        self._told = -TOLD_EVERY_S

    def __call__(self, event: Event) -> None:
        match event:
            case PieceFinished():
                self._progress(event.what, event.done, event.total)
            case LatentsCached():
                self._progress("pictures encoded", event.done, event.total)
            case RunStarted():
                self._steps = event.total_steps
            case StepFinished():
                self._progress("steps", event.step, self._steps)
            case ImageSaved():
                self.record(event)
                self._progress("images", event.done, event.total)
            case _ if type(event).__name__ not in _LEFT_OUT:
                self.record(event)

    def _progress(self, what: str, done: int, total: int | None) -> None:
        now = self._clock()
        if what != self._what or done < self._began[1]:
            self._what, self._began, self._told = what, (now, done), now - TOLD_EVERY_S
        if now - self._told < TOLD_EVERY_S and done != total:
            return
        self._told = now
        began, first = self._began
        left = (now - began) / (done - first) * (total - done) if total is not None and done > first else None
        self.record(JobProgressed(what, done, total, left))

    def record(self, event: Event) -> None:
        """Write an event as it is."""
        try:
            self._log(event)
        except OutputError as error:
            sys.stderr.write(f"{error}; the job goes on without it\n")
