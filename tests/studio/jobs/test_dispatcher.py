"""Jobs in processes of their own, with the embedded base: started, adopted, killed, resumed, told what to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from job_homes import home_with_drawings, run_settings
from loraloom.studio.home import Home
from loraloom.studio.jobs.dispatcher import Dispatcher, Look
from loraloom.studio.jobs.queue import Job, Queue
from work import HANGS_AFTER_S

BASE = Path("no.safetensors")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return home_with_drawings(tmp_path / "home")


@pytest.fixture
def dispatcher(home: Home) -> Iterator[Dispatcher]:
    with Dispatcher(home) as dispatcher:
        yield dispatcher


def until(dispatcher: Dispatcher, condition: Callable[[], bool]) -> None:
    """Look at the queue until something is so."""
    deadline = time.monotonic() + HANGS_AFTER_S
    while not condition():
        assert time.monotonic() < deadline, [(job.id, job.state, job.output()) for job in dispatcher.queue.jobs()]
        dispatcher.step()
        time.sleep(0.05)


def is_at(queue: Queue, number: int, *states: str, step: int = 0) -> Callable[[], bool]:
    def look() -> bool:
        job = queue.job(number)
        return job.state in states and (job.progress.done if job.progress else 0) >= step

    return look


def lora(job: Job) -> bytes:
    return (job.folder / "weights" / f"{job.title}.safetensors").read_bytes()


def test_runs_one_after_another(dispatcher: Dispatcher, base: Path) -> None:
    """The second waits for the first, the held one for its release; what fails says why and keeps nobody waiting."""
    queue = dispatcher.queue
    held = queue.add("train", run_settings(base, "held"), held=True)
    gone = queue.add("train", run_settings(Path("gone.safetensors"), "gone"))
    good = queue.add("train", run_settings(base, "good"))
    look = dispatcher.step()
    assert look == Look(works=True, running=1, waiting=1, started=1)
    assert [job.state for job in map(queue.job, (held.id, gone.id, good.id))] == ["queued", "preparing", "queued"]
    assert queue.is_worked_through

    until(dispatcher, is_at(queue, good.id, "done"))
    failed, done = queue.job(gone.id), queue.job(good.id)
    assert failed.state == "failed" and "gone.safetensors" in failed.problem and failed.hint
    assert any("gone.safetensors" in line for line in failed.output())
    assert failed.started and failed.ended and done.started and done.ended
    assert failed.created <= failed.started <= failed.ended <= done.ended
    assert done.progress is not None and (done.progress.done, done.progress.total) == (6, 6)
    assert lora(done) and queue.job(held.id).state == "queued"
    assert dispatcher.step() == Look(works=True)
