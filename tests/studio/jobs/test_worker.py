"""Each kind of job done in this process, with its record: what it tells, how it is paused, left and done again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from job_homes import home_with_drawings, run_settings
from loraloom.control import Interrupted, Request, keep_going
from loraloom.errors import LoraloomError, OutputError, ResumeError
from loraloom.events import (
    Event,
    ImageSaved,
    JobFinished,
    JobPaused,
    JobProgressed,
    JobResumed,
    JobStarted,
    LatentsCached,
    Notice,
    PieceFinished,
    RunCreated,
    RunFinished,
    RunStarted,
    SamplerStepped,
    StepFinished,
)
from loraloom.studio.jobs import kinds
from loraloom.studio.jobs.folder import RECORD_NAME, read_job, read_settings
from loraloom.studio.jobs.kinds import KINDS
from loraloom.studio.jobs.queue import Job, Queue
from loraloom.studio.jobs.recorder import JobRecorder
from loraloom.studio.jobs.settings import ClassImagesSettings
from loraloom.studio.jobs.worker import do_job
from loraloom.studio.runs.control import RunLock
from loraloom.studio.runs.log import EventLog, RunLog


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(home_with_drawings(tmp_path / "home"))


def after(pieces: int, *requests: Request) -> Callable[[], Request]:
    """A control that lets ``pieces`` pass, then asks for one thing after another, the last for ever."""
    asked = 0

    def control() -> Request:
        nonlocal asked
        asked += 1
        return Request.GO if asked <= pieces else requests[min(asked - pieces, len(requests)) - 1]

    return control


def started(queue: Queue, job: Job) -> None:
    """As a dispatcher marks it."""
    with queue.home.database.transaction() as connection:
        connection.execute("UPDATE jobs SET waiting = 0 WHERE id = ?", (job.id,))


def do_instead(monkeypatch: pytest.MonkeyPatch, work: Callable[..., object]) -> None:
    """Let a job of the kind demo do something that is quick."""
    monkeypatch.setattr(kinds, "KINDS", {**KINDS, "demo": replace(KINDS["demo"], run=work)})


def test_regularization_images(queue: Queue, base: Path) -> None:
    """Left after some, they are gone on with; done, they are not painted again."""
    paint = {"prompt": "a fox", "steps": 1, "width": 64, "height": 64, "batch_size": 1, "device": "cpu"}
    given = {"checkpoint": str(base), "dataset": {"folder": "datasets/drawings"}, "paint": paint, "count": 4}
    job = queue.add("class_images", given)
    started(queue, job)
    assert job.title == "a fox" and job.folder == queue.home.jobs / "1-class_images"
    found = read_settings(job.folder, ClassImagesSettings)
    assert found.dataset.folder == queue.home.datasets / "drawings" and found.checkpoint == base

    painted: list[str] = []

    def leave() -> Request:
        events = [event for event in RunLog(job.folder).recorded() if isinstance(event, ImageSaved)]
        painted[:] = [Path(event.path).name for event in events]
        return Request.STOP if len(painted) == 2 else Request.GO

    with pytest.raises(Interrupted):
        do_job(job.folder, control=leave)
    assert queue.job(job.id).state == "stopped" and len(painted) == 2
    do_job(job.folder, control=keep_going)
    done = queue.job(job.id)
    assert done.state == "done" and done.progress is not None
    assert (done.progress.done, done.progress.total, done.progress.what) == (4, 4, "images")
    assert done.result == {"folder": done.result["folder"], "found": 2, "painted": 2}
    assert len(list(Path(done.result["folder"]).glob("*.png"))) == 4
    assert len(read_job(job.folder).attempts) == 2
    do_job(job.folder, control=keep_going)
    assert len(read_job(job.folder).attempts) == 2, "it is done"


def test_a_sweep(queue: Queue, base: Path) -> None:
    """Its runs tell in their own folders; here they are steps of the whole."""
    settings = {"train": run_settings(base, "rank", "steps=3").model_dump(), "axes": ["adapter.rank=2,4"]}
    job = queue.add("sweep", settings)
    started(queue, job)
    assert job.title == "rank: adapter.rank=2,4"
    do_job(job.folder, control=keep_going)
    done = queue.job(job.id)
    assert done.state == "done" and done.progress is not None
    assert (done.progress.done, done.progress.total, done.progress.what) == (6, 6, "steps")
    sweep = queue.home.runs / "rank-sweep"
    assert done.result["folder"] == str(sweep) and Path(done.result["table"]).is_file()
    assert {path.name for path in sweep.iterdir() if path.is_dir()} >= {"rank-rank2", "rank-rank4"}
    events = RunLog(job.folder).recorded()
    told = {type(event).__name__ for event in events}
    assert "RunFinished" not in told and "StepFinished" not in told and "WeightsSaved" in told


def test_a_job_that_fails_keeps_its_problem(queue: Queue, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"checkpoint": "gone.ckpt", "dataset": {"folder": "datasets/drawings"}, "paint": {"prompt": "x"}}
    job = queue.add("class_images", given)
    started(queue, job)
    with pytest.raises(LoraloomError):
        do_job(job.folder, control=keep_going)
    failed = queue.job(job.id)
    assert failed.state == "failed" and str(queue.home.path / "gone.ckpt") in failed.problem

    def fault(folder: Path, listener: object, control: object) -> object:
        raise ZeroDivisionError("by nought")

    demo = queue.add("demo", {})
    started(queue, demo)
    do_instead(monkeypatch, fault)
    with pytest.raises(ZeroDivisionError):
        do_job(demo.folder, control=keep_going)
    assert queue.job(demo.id).problem == "a fault in Loraloom itself: ZeroDivisionError: by nought"


def test_a_job_is_paused_and_left(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    from loraloom.control import heed

    def work(folder: Path, listener: Callable[[Event], None], control: Callable[[], Request]) -> object:
        for number in range(1, 4):
            heed(control, sleep=lambda seconds: None)
            listener(PieceFinished("pieces", number, 3))
        return {"made": 3}

    do_instead(monkeypatch, work)
    job = queue.add("demo", {})
    started(queue, job)
    with pytest.raises(Interrupted):
        do_job(job.folder, control=after(1, Request.PAUSE, Request.PAUSE, Request.LEAVE))
    assert queue.job(job.id).state == "paused"
    do_job(job.folder, control=after(0, Request.PAUSE, Request.GO))
    assert queue.job(job.id).result == {"made": 3}
    events = [event for event in RunLog(job.folder).recorded() if not isinstance(event, JobProgressed)][1:]
    assert events == [
        *(JobStarted(), JobPaused(), JobResumed(), JobPaused(freed=True)),
        *(JobStarted(), JobPaused(), JobResumed(), JobFinished(stopped=False, result={"made": 3})),
    ]


def test_a_second_worker_gives_way(queue: Queue) -> None:
    demo, run = queue.add("demo", {}), queue.add("train", run_settings(Path("x.ckpt")))
    for job in (demo, run):
        with RunLock(job.folder), pytest.raises(ResumeError, match="being trained already"):
            do_job(job.folder, control=keep_going)
        assert read_job(job.folder).attempts == ()


def test_progress_is_told_now_and_then(tmp_path: Path) -> None:
    now = 100.0
    with EventLog(tmp_path) as log:
        recorder = JobRecorder(log, clock=lambda: now)
        for done in range(1, 31):
            recorder(LatentsCached(done, 30))
            now += 0.2
        recorder(RunCreated("x"))
        recorder(RunStarted("x", 3, 3, 1, 3, 9))
        for step in range(1, 4):
            recorder(StepFinished(step, 1, 0.3, 0.4, {}, 2.5))
            recorder(SamplerStepped(1, 2, 1, 1))
        recorder(RunFinished(3, 1.0, False, 0.3))
        recorder(Notice("x"))
    events = RunLog(tmp_path).recorded()
    encoded = [event for event in events if isinstance(event, JobProgressed) and event.what == "pictures encoded"]
    assert [event.done for event in encoded] == [1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 30]
    assert encoded[0].seconds_left is None
    assert encoded[3].seconds_left == pytest.approx(20 * 0.2)
    assert events[len(encoded) :] == [JobProgressed("steps", 1, 3), JobProgressed("steps", 3, 3, 0.0), Notice("x")]


def test_a_record_that_cannot_be_written_ends_no_job(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OutputError("no space left", "free some")

    job = queue.add("demo", {})
    monkeypatch.setattr(EventLog, "__call__", full)
    monkeypatch.setattr("loraloom.studio.jobs.worker.write_job", full)
    do_instead(monkeypatch, lambda folder, listener, control: {})
    do_job(job.folder, control=keep_going)
    assert json.loads((job.folder / RECORD_NAME).read_text(encoding="utf-8"))["attempts"] == []
