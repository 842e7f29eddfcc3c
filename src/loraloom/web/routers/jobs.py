"""The queue: what waits, runs and has ended, new jobs, their order, and news of all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, Field

from loraloom.control import Request as Wish
from loraloom.errors import MissingFileError, UnknownNameError
from loraloom.plain_text import one_line
from loraloom.studio.jobs.kinds import KINDS
from loraloom.studio.jobs.queue import Job, Limits
from loraloom.studio.results import to_record
from loraloom.web.events import queue_news
from loraloom.web.parts import TheStudio
from loraloom.web.schemas import FAILURES, Answer, JobAnswer, LineCount, OutputAnswer, PauseRequest, job_answer

__all__ = ["router"]

router = APIRouter(prefix="/api/jobs", tags=["jobs"], responses=FAILURES)

_LARGEST = 2**63 - 1
Number = Annotated[int, Field(ge=1, le=_LARGEST)]


class KindAnswer(Answer):
    """A kind of job."""

    name: str
    summary: str
    needs_device: bool


class LimitsBody(BaseModel):
    """How many jobs run at once: on each device, and of those that need none."""

    device: Annotated[int, Field(ge=1, le=64)] = 1
    beside: Annotated[int, Field(ge=1, le=64)] = 2


class JobsAnswer(Answer):
    """The queue. ``works``: whether somebody starts what waits; ``stop_after_this``: nothing more is started."""

    jobs: list[JobAnswer]
    works: bool
    stop_after_this: bool
    limits: LimitsBody
    kinds: list[KindAnswer]


class JobRequest(BaseModel):
    """A new job: its kind, and its settings as tables."""

    kind: str
    settings: dict[str, Any]
    title: Annotated[str, Field(max_length=300)] = ""
    held: bool = False


class MoveRequest(BaseModel):
    """``before``: the job that it is to run before; null: the last."""

    before: Number | None = None


class CancelRequest(BaseModel):
    """``save``: let a run save what there is first."""

    save: bool = True


class StopAfterRequest(BaseModel):
    """``stop``: start nothing more; false lets the queue go on."""

    stop: bool


def _job(job: Annotated[int, Path(ge=1, le=_LARGEST)], studio: TheStudio) -> Job:
    try:
        return studio.queue.job(job)
    except UnknownNameError as error:
        raise MissingFileError(f"there is no job {job}", "the queue may have changed: look at it again") from error


TheJob = Annotated[Job, Depends(_job)]


@router.get("")
def jobs(studio: TheStudio) -> JobsAnswer:
    """What runs, what waits in its order, and what has ended."""
    queue = studio.queue
    return JobsAnswer(
        jobs=[job_answer(job) for job in studio.listing.jobs()],
        works=queue.is_worked_through,
        stop_after_this=queue.stop_after_this,
        limits=LimitsBody(**to_record(queue.limits)),
        kinds=[KindAnswer(name=one.name, summary=one.summary, needs_device=one.needs_device) for one in KINDS.values()],
    )


@router.post("", status_code=201)
def new_job(studio: TheStudio, wish: JobRequest) -> JobAnswer:
    """Put a job at the end of the queue."""
    return job_answer(studio.queue.add(wish.kind, wish.settings, title=one_line(wish.title), held=wish.held))


@router.get("/events", response_class=EventSourceResponse)
async def job_events(studio: TheStudio) -> AsyncIterator[ServerSentEvent]:
    """Which jobs have changed, as it happens; first all of them."""
    async for message in queue_news(studio.listing, studio.queue, studio.closing):
        yield message


@router.post("/stop-after", status_code=204)
def stop_after(studio: TheStudio, wish: StopAfterRequest) -> None:
    """Start nothing more, or go on."""
    studio.queue.stop_after_this = wish.stop


@router.post("/limits")
def set_limits(studio: TheStudio, wish: LimitsBody) -> LimitsBody:
    """Set how many jobs run at once."""
    studio.queue.limits = replace(Limits(), **wish.model_dump())
    return wish


@router.get("/{job}")
def one_job(job: TheJob) -> JobAnswer:
    """One job."""
    return job_answer(job)


@router.delete("/{job}", status_code=204)
def forget(job: TheJob, studio: TheStudio) -> None:
    """Take a job that has ended out of the list; its files stay."""
    studio.queue.forget(job.id)


@router.get("/{job}/output")
def job_output(job: TheJob, lines: LineCount = 100) -> OutputAnswer:
    """The end of what the job's process printed."""
    return OutputAnswer(lines=[one_line(line) for line in job.output(lines)])


@router.post("/{job}/move")
def move(job: TheJob, studio: TheStudio, wish: MoveRequest) -> JobAnswer:
    """Change the order of those that wait."""
    return job_answer(studio.queue.move(job.id, wish.before))


@router.post("/{job}/hold")
def hold(job: TheJob, studio: TheStudio) -> JobAnswer:
    """Keep a job that waits from being started."""
    return job_answer(studio.queue.hold(job.id))


@router.post("/{job}/release")
def release(job: TheJob, studio: TheStudio) -> JobAnswer:
    """Let a job that was held be started when its turn comes."""
    return job_answer(studio.queue.release(job.id))


@router.post("/{job}/cancel")
def cancel(job: TheJob, studio: TheStudio, wish: CancelRequest) -> JobAnswer:
    """End a job after the step in progress, or let it not begin."""
    return job_answer(studio.queue.cancel(job.id, save=wish.save))


@router.post("/{job}/retry")
def retry(job: TheJob, studio: TheStudio) -> JobAnswer:
    """Put a job that has ended back into the queue; it goes on exactly where its kind can."""
    return job_answer(studio.queue.retry(job.id))


@router.post("/{job}/pause")
def pause(job: TheJob, studio: TheStudio, wish: PauseRequest) -> JobAnswer:
    """Let a job wait after the step in progress."""
    return job_answer(studio.queue.ask(job.id, Wish.LEAVE if wish.free else Wish.PAUSE))


@router.post("/{job}/resume")
def resume(job: TheJob, studio: TheStudio) -> JobAnswer:
    """Let a job that waits go on."""
    return job_answer(studio.queue.ask(job.id, Wish.GO))
