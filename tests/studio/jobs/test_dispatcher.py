"""Jobs in processes of their own, with the embedded base: started, adopted, killed, resumed, told what to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from job_homes import home_with_drawings
from loraloom.studio.home import Home
from loraloom.studio.jobs.dispatcher import Dispatcher
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
