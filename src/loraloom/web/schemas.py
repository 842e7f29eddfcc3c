"""What answers have in common, and those that several routes give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, model_validator

from loraloom.studio.jobs.kinds import is_run
from loraloom.studio.jobs.queue import Job
from loraloom.studio.results import to_record
from loraloom.studio.runs.status import RunStatus
from loraloom.web.failures import Failure, Proposed, proposed

__all__ = [
    "FAILURES",
    "Answer",
    "JobAnswer",
    "LineCount",
    "OutputAnswer",
    "PauseRequest",
    "RunAnswer",
    "job_answer",
    "run_answer",
    "sendable",
]

LineCount = Annotated[int, Query(ge=1, le=2000, description="How many lines.")]

FAILURES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Failure, "description": "What went wrong and what to do."},
    "5XX": {"model": Failure, "description": "What went wrong and what to do."},
}
"""What every route may answer besides what it is for."""


class Answer(BaseModel):
    """A body of the server. Text of files and folders that is no valid Unicode becomes escapes."""

    @model_validator(mode="before")
    @classmethod
    def _text_is_text(cls, data: Any) -> Any:
        return sendable(data)


class RunAnswer(Answer):
    """What a run has come to (``studio.runs.status.RunStatus``)."""

    name: str
    folder: str
    state: str
    step: int
    total_steps: int | None
    epoch: int
    epochs: int | None
    loss: float | None
    seconds_per_step: float | None
    seconds_left: float | None
    best_loss: float | None
    best_epoch: int | None
    last_preview: str | None
    changed: float | None
    problem: str
    hint: str
    actions: list[Proposed]


def run_answer(status: RunStatus) -> RunAnswer:
    """A run's status as a body."""
    return RunAnswer(**to_record(status), actions=proposed(status.hint))


class ProgressAnswer(Answer):
    """How far a job is; null: not known."""

    done: int
    total: int | None
    what: str
    seconds_left: float | None


class JobAnswer(Answer):
    """A job of the queue (``studio.jobs.job.Job``). ``run``: the name of the run that it is, where it is one."""

    id: int
    kind: str
    title: str
    folder: str
    run: str | None
    state: str
    position: int
    held: bool
    progress: ProgressAnswer | None
    problem: str
    hint: str
    actions: list[Proposed]
    created: float
    started: float | None
    ended: float | None
    result: dict[str, Any]


class OutputAnswer(Answer):
    """The last lines that a process printed."""

    lines: list[str]


class PauseRequest(BaseModel):
    """``free``: keep the state and end the process, which gives all memory back."""

    free: bool = False


def job_answer(job: Job) -> JobAnswer:
    """A job as a body."""
    run = job.folder.name if is_run(job.kind) else None
    return JobAnswer(**to_record(job), run=run, actions=proposed(job.problem) + proposed(job.hint))


def sendable(data: Any) -> Any:
    """Plain data whose text every browser can take: a name that is not UTF-8 comes from the system as halves of
    characters."""
    if isinstance(data, str):
        return data if data.isascii() else _text(data)
    if isinstance(data, Mapping):
        return {sendable(key): sendable(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [sendable(value) for value in data]
    return data


def _text(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text
