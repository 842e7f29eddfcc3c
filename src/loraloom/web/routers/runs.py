"""Runs: the list, one run's state, settings, curves, previews and files; and how it is asked to wait or to end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, Field
from starlette.responses import Response

from loraloom.control import Order
from loraloom.control import Request as Wish
from loraloom.events import Notice, PreviewSaved
from loraloom.plain_text import one_line
from loraloom.studio.curves import read_curves, thinned
from loraloom.studio.detached import last_lines
from loraloom.studio.results import to_record
from loraloom.studio.runs.control import ask, leave_order, let_go_on
from loraloom.studio.runs.creation import create_branch
from loraloom.studio.runs.differences import chosen_settings, different_settings
from loraloom.studio.runs.files import run_files
from loraloom.studio.runs.folder import RunFolder
from loraloom.studio.runs.following import LOOK_S, FollowedRun
from loraloom.studio.runs.log import RunLog
from loraloom.training.settings import TrainSettings
from loraloom.web.downloads import file_response, home_file
from loraloom.web.events import run_news
from loraloom.web.failures import Proposed, proposed
from loraloom.web.parts import TheRun, TheStudio
from loraloom.web.schemas import (
    FAILURES,
    Answer,
    JobAnswer,
    LineCount,
    OutputAnswer,
    PauseRequest,
    RunAnswer,
    job_answer,
    run_answer,
)

__all__ = ["router"]

router = APIRouter(prefix="/api/runs", tags=["runs"], responses=FAILURES)


class RunsAnswer(Answer):
    """Every run by name."""

    runs: list[RunAnswer]


class NoticeAnswer(Answer):
    """Something that a run said to a person. ``level``: info or warning."""

    text: str
    level: str
    actions: list[Proposed]


class OneRunAnswer(Answer):
    """A run. ``offset``: the byte of its log up to which this is told, to ask for the events after it."""

    run: RunAnswer
    offset: int
    notices: list[NoticeAnswer]


class RunSettingsAnswer(Answer):
    """A run's settings: all of them, as its file has them, and by dotted name those that differ from the defaults."""

    values: dict[str, Any]
    toml: str
    chosen: dict[str, Any]


class Difference(Answer):
    """A setting of which two runs have different values."""

    name: str
    mine: Any
    other: Any


class DifferencesAnswer(Answer):
    """The settings that differ."""

    differences: list[Difference]


class CurvesAnswer(Answer):
    """A run's curves, each value for a stretch of steps that ends with the one in ``steps``.

    ``losses``, ``lowest``, ``highest``: mean and range of the stretch; ``means``: the running mean; ``rates``: learning
    rates by part. ``total``: the steps that they stand for. ``offset``: as in a run.
    """

    steps: list[int]
    losses: list[float]
    lowest: list[float]
    highest: list[float]
    means: list[float]
    rates: dict[str, list[float]]
    validation: list[tuple[int, float]]
    total: int
    offset: int


class PreviewAnswer(Answer):
    """A preview picture: ``path`` in the run's folder, None where it lies elsewhere or is gone."""

    path: str | None
    prompt: str
    step: int
    epoch: int
    index: int
    weight: float


class PreviewsAnswer(Answer):
    """The previews that count, in the order in which they were painted."""

    previews: list[PreviewAnswer]


class FileAnswer(Answer):
    """A file of a run: its path in the run's folder."""

    path: str
    nbytes: int
    modified: float


class FilesAnswer(Answer):
    """The files of a run."""

    files: list[FileAnswer]


class BranchRequest(BaseModel):
    """A new run that goes on from a state of this one. ``step``: of which state, null: the newest; ``changes``:
    settings as ``name=value``."""

    step: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    changes: list[str] = []


class StopRequest(BaseModel):
    """``save``: keep the LoRA and the state."""

    save: bool = True


@router.get("")
def runs(studio: TheStudio) -> RunsAnswer:
    """Every run of the home."""
    return RunsAnswer(runs=[run_answer(status) for status in studio.runs.statuses()])


@router.get("/{run}")
def one_run(run: TheRun) -> OneRunAnswer:
    """One run, with everything it said to a person."""
    status, offset = run.look(at_most_every_s=LOOK_S)
    notices = [
        NoticeAnswer(text=str(event.text), level=event.level, actions=proposed(event.text))
        for event in RunLog(run.folder).events()
        if isinstance(event, Notice)
    ]
    return OneRunAnswer(run=run_answer(status), offset=offset, notices=notices)


@router.get("/{run}/settings")
def run_settings(run: TheRun) -> RunSettingsAnswer:
    """What the run is trained with."""
    folder = RunFolder(run.folder)
    settings = TrainSettings.load(folder.settings_path)
    return RunSettingsAnswer(values=to_record(settings), toml=folder.read_settings(), chosen=chosen_settings(settings))


@router.get("/{run}/differences")
def run_differences(run: TheRun, studio: TheStudio, other: str) -> DifferencesAnswer:
    """The settings in which the run and another one differ."""
    mine, its = (
        TrainSettings.load(RunFolder(folder).settings_path) for folder in (run.folder, studio.runs.run(other).folder)
    )
    found = different_settings(mine, its)
    return DifferencesAnswer(
        differences=[Difference(name=name, mine=one, other=two) for name, (one, two) in found.items()]
    )


@router.get("/{run}/curves")
def run_curves(
    run: TheRun,
    points: Annotated[int, Query(ge=2, le=5000, description="At most this many values a curve.")] = 600,
    first: Annotated[int, Query(ge=0, description="The first step.")] = 0,
    last: Annotated[int | None, Query(ge=0, description="The last step.")] = None,
) -> CurvesAnswer:
    """Loss, learning rates and validation, thinned for a screen."""
    events, offset = RunLog(run.folder).since()
    found = to_record(thinned(read_curves(events), points, first=first, last=last))
    return CurvesAnswer(**found, offset=offset)


@router.get("/{run}/events", response_class=EventSourceResponse)
async def run_events(
    run: TheRun,
    studio: TheStudio,
    after: Annotated[
        str, Query(max_length=40, description="A place in the log, such as the offset of an answer.")
    ] = "",
    last_event_id: Annotated[str, Header(max_length=40)] = "",
) -> AsyncIterator[ServerSentEvent]:
    """What happens in the run from a place on, as it happens."""
    async for message in run_news(run, last_event_id or after, studio.closing):
        yield message


@router.get("/{run}/previews")
def run_previews(run: TheRun) -> PreviewsAnswer:
    """The previews that were painted."""
    found = [event for event in RunLog(run.folder).events() if isinstance(event, PreviewSaved)]
    return PreviewsAnswer(previews=[_preview(run, event) for event in found])


@router.get("/{run}/files")
def list_run_files(run: TheRun) -> FilesAnswer:
    """What the run has written."""
    return FilesAnswer(files=[FileAnswer(**to_record(file)) for file in run_files(run.folder)])


@router.get("/{run}/files/{path:path}", response_class=Response)
def run_file(request: Request, run: TheRun, studio: TheStudio, path: str) -> Response:
    """One file of the run."""
    return file_response(request, home_file(studio.home, f"runs/{run.folder.name}", path))


@router.get("/{run}/output")
def run_output(run: TheRun, lines: LineCount = 100) -> OutputAnswer:
    """The end of what the run's process printed."""
    return OutputAnswer(lines=[one_line(line) for line in last_lines(run.folder, lines)])


@router.post("/{run}/pause")
def pause(run: TheRun, wish: PauseRequest) -> RunAnswer:
    """Let the run wait after the step in progress."""
    ask(run.folder, Wish.LEAVE if wish.free else Wish.PAUSE)
    return _now(run)


@router.post("/{run}/resume")
def resume(run: TheRun, studio: TheStudio) -> RunAnswer:
    """Let a run go on that waits; one that was left goes into the queue, and on exactly where it was."""
    if not let_go_on(run.folder):
        studio.queue.add_run(run.folder)
    return _now(run)


@router.post("/{run}/save")
def save(run: TheRun) -> RunAnswer:
    """Let the run write its LoRA and its state after the step in progress, and go on."""
    leave_order(run.folder, Order.SAVE)
    return _now(run)


@router.post("/{run}/preview")
def preview(run: TheRun) -> RunAnswer:
    """Let the run paint its previews after the step in progress, and go on."""
    leave_order(run.folder, Order.PREVIEW)
    return _now(run)


@router.post("/{run}/branch", status_code=201)
def branch(run: TheRun, studio: TheStudio, wish: BranchRequest) -> JobAnswer:
    """Put a new run into the queue that goes on from a saved step of this one with other settings."""
    folder = create_branch(run.folder, wish.step, [f"output='{studio.home.runs}'", *wish.changes])
    return job_answer(studio.queue.add_run(folder.path))


@router.post("/{run}/stop")
def stop(run: TheRun, wish: StopRequest) -> RunAnswer:
    """End the run after the step in progress."""
    ask(run.folder, Wish.STOP if wish.save else Wish.DISCARD)
    return _now(run)


def _now(run: FollowedRun) -> RunAnswer:
    return run_answer(run.look()[0])


def _preview(run: FollowedRun, event: PreviewSaved) -> PreviewAnswer:
    path = Path(event.path)
    # A run's folder may have been moved with the whole home: then its previews lie where they always do.
    inside = run.folder / "previews" / path.name
    return PreviewAnswer(
        path=f"previews/{path.name}" if inside.is_file() else None,
        prompt=event.prompt,
        step=event.step,
        epoch=event.epoch,
        index=event.index,
        weight=event.weight,
    )
