"""News as server-sent events: one look at the files for all windows, and a browser that comes back gets the rest.

The id of a message about a run is the place in ``events.jsonl`` behind its event; a browser sends the last one as
``Last-Event-ID`` when it connects again, and the server has nothing to remember.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from fastapi.sse import ServerSentEvent
from starlette.concurrency import run_in_threadpool

from loraloom.errors import FileError, FileFormatError
from loraloom.events import to_record
from loraloom.studio.jobs.queue import Queue
from loraloom.studio.jobs.watching import Listing, Watch
from loraloom.studio.results import to_record as to_plain
from loraloom.studio.runs.following import LOOK_S, FollowedRun, FollowedRuns, Happened
from loraloom.studio.runs.status import RunStatus
from loraloom.web.failures import failure_of
from loraloom.web.schemas import job_answer, run_answer, sendable

__all__ = ["home_news", "queue_news", "run_news"]

_HOME_LOOK_S = 1.0
"""How often all runs are looked at for one reader. Readers share what was found within ``LOOK_S``."""


async def run_news(run: FollowedRun, place: str, closing: asyncio.Event) -> AsyncIterator[ServerSentEvent]:
    """What has happened behind ``place``, and then what happens, until the server ends or the reader is gone.

    Messages: ``happened`` (an event of the log), ``status`` (after those, and where the process died), ``replaced``
    (the log is another one, so all that is known is void; the new one follows from its beginning) and ``failed`` (it
    cannot be read; the stream ends).
    """
    told: RunStatus | None = None
    generation = run.generation
    try:
        offset = await run_in_threadpool(run.offset_of, place) if place else 0
    except FileFormatError as error:
        yield _replaced(error)
        offset = 0
    while not closing.is_set():
        try:
            status, end = await run_in_threadpool(run.look, at_most_every_s=LOOK_S)
            if run.generation != generation:
                raise FileFormatError(f"the log of {run.folder.name} was replaced by another one", "it is read anew")
            for happened in await run_in_threadpool(run.after, offset) if end > offset else ():
                yield _message(happened)
                offset = happened.end
            offset = max(offset, end)
        except FileFormatError as error:
            if run.generation == generation and offset == 0:
                yield _failed(error)
                return
            generation, offset, told = run.generation, 0, None
            yield _replaced(error)
            continue
        except FileError as error:
            yield _failed(error)
            return
        if status != told:
            told = status
            yield ServerSentEvent(event="status", data=run_answer(status))
        with suppress(TimeoutError):
            await asyncio.wait_for(closing.wait(), LOOK_S)


async def queue_news(listing: Listing, queue: Queue, closing: asyncio.Event) -> AsyncIterator[ServerSentEvent]:
    """First all jobs, then those that have changed and the numbers of those that left the list, as messages ``jobs``.

    A browser that comes back gets all of them again. ``failed``: the home cannot be read; the stream ends.
    """
    watch = Watch(listing)
    stopped: bool | None = None
    while not closing.is_set():
        try:
            changes = await run_in_threadpool(watch.look)
            stops = await run_in_threadpool(lambda: queue.stop_after_this)
        except FileError as error:
            yield _failed(error)
            return
        if changes or stops is not stopped:
            stopped = stops
            changed = [job_answer(job).model_dump(mode="json") for job in changes.changed]
            data = {"changed": changed, "gone": list(changes.gone), "stop_after_this": stops}
            yield ServerSentEvent(event="jobs", data=data)
        with suppress(TimeoutError):
            await asyncio.wait_for(closing.wait(), LOOK_S)


async def home_news(runs: FollowedRuns, closing: asyncio.Event) -> AsyncIterator[ServerSentEvent]:
    """Every run, then what changes, until the server ends or the reader is gone.

    Messages: ``runs`` (those that are new or have changed; the first message has all, even where there is none) and
    ``gone`` (the names of those that are no more). A browser that comes back gets all of them again.
    """
    told: dict[str, RunStatus] | None = None
    while not closing.is_set():
        found = {status.name: status for status in await run_in_threadpool(runs.statuses)}
        known = told or {}
        changed = [run_answer(status) for name, status in found.items() if known.get(name) != status]
        if changed or told is None:
            yield ServerSentEvent(event="runs", data=[run.model_dump(mode="json") for run in changed])
        if gone := sorted(known.keys() - found.keys()):
            yield ServerSentEvent(event="gone", data=sendable(gone))
        told = found
        with suppress(TimeoutError):
            await asyncio.wait_for(closing.wait(), _HOME_LOOK_S)


def _message(happened: Happened) -> ServerSentEvent:
    record: dict[str, Any] = sendable(to_plain(to_record(happened.event)))
    return ServerSentEvent(event="happened", id=happened.place, data={**record, "back_to": happened.back_to})


def _replaced(error: FileFormatError) -> ServerSentEvent:
    return ServerSentEvent(event="replaced", id="0", data=failure_of(error).model_dump())


def _failed(error: FileError) -> ServerSentEvent:
    return ServerSentEvent(event="failed", data=failure_of(error).model_dump())
