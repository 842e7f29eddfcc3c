"""Jobs in processes of their own, with the embedded base: started, adopted, killed, resumed, told what to do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import waiting
from job_homes import home_with_drawings, lora, run_settings
from loraloom.control import Interrupted, Request
from loraloom.events import RunFailed, RunPaused, RunResumed, RunStarted, StepFinished
from loraloom.studio.home import Home
from loraloom.studio.jobs.dispatcher import Dispatcher, Look
from loraloom.studio.jobs.folder import read_job
from loraloom.studio.jobs.job import Job
from loraloom.studio.jobs.queue import Limits, Queue
from loraloom.studio.runs.control import PROCESS, RunLock
from loraloom.studio.runs.creation import create_run
from loraloom.studio.runs.folder import with_each_path
from loraloom.studio.runs.log import EventLog, RunLog
from loraloom.studio.runs.process import start_run
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

    def is_so() -> bool:
        if condition():
            return True
        dispatcher.step()
        return False

    waiting.until(is_so, lambda: [(job.id, job.state, job.output()) for job in dispatcher.queue.jobs()])


def is_at(queue: Queue, number: int, *states: str, step: int = 0) -> Callable[[], bool]:
    def look() -> bool:
        job = queue.job(number)
        return job.state in states and (job.progress.done if job.progress else 0) >= step

    return look


def lora_of(job: Job) -> Path:
    return job.folder / "weights" / f"{job.title}.safetensors"


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
    assert lora_of(done).is_file() and queue.job(held.id).state == "queued"
    until(dispatcher, lambda: dispatcher.step() == Look(works=True))
    assert not Dispatcher(queue.home).step().works, "one of two works, the other looks on"


def test_what_is_gone_when_a_job_starts_is_said(dispatcher: Dispatcher, base: Path, tmp_path: Path) -> None:
    """Also of a run that was to go on, of which its log says nothing; and once it is there again, all is well."""
    queue = dispatcher.queue
    damaged = queue.add("train", run_settings(base, "damaged"))
    (damaged.folder / "settings.toml").write_text("name = \n", encoding="utf-8")
    vanishing = shutil.copy(base, tmp_path / "vanishing.safetensors")
    run = queue.add("train", run_settings(Path(vanishing), "mystyle", "steps=4"))
    begun = RunStarted(str(run.folder), 4, 3, 2, 3, 1000)
    with EventLog(run.folder) as log:
        for event in (begun, StepFinished(1, 1, 0.3, 0.4, {"unet": 1e-4}, 2.5), RunFailed(1, "no memory", "")):
            log(event)
    Path(vanishing).unlink()
    until(dispatcher, lambda: all(queue.job(job.id).is_over for job in (damaged, run)))
    said = {job.title: (job.state, job.problem) for job in queue.jobs()}
    assert said["damaged"][0] == "failed" and "settings.toml is not valid TOML" in said["damaged"][1]
    assert said["mystyle"][0] == "failed" and "vanishing.safetensors" in said["mystyle"][1]
    assert Queue(queue.home).job(run.id).problem == said["mystyle"][1], "from the table"

    shutil.copy(base, vanishing)
    assert queue.retry(run.id).problem == ""
    until(dispatcher, is_at(queue, run.id, "done"))


# -- killed ----------------------------------------------------------------------------------------------------------

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
SMALL = ("dataset.resolution=64", "steps=40", "saving.state_every_steps=4", "saving.precision=float")


def start_work(home: Home) -> subprocess.Popen[bytes]:
    """``loraloom work`` as a process of its own."""
    command = [sys.executable, "-m", "loraloom", "work", "--home", str(home.path)]
    with (home.path / "work.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)


def kill(*numbers: int) -> None:
    for number in numbers:
        os.kill(number, signal.SIGKILL)


def worker_of(job: Job) -> int:
    return int(json.loads((job.folder / PROCESS).read_text(encoding="utf-8"))["pid"])


def left_in_peace(home: Home, base: Path, output: Path) -> Path:
    """The folder of the same run, trained in a process of its own that nobody disturbs."""
    settings = with_each_path(run_settings(base, "mystyle", *SMALL), lambda path: home.path / path)
    peaceful = create_run(settings.model_copy(update={"output": output})).path
    assert start_run(peaceful).wait(HANGS_AFTER_S) == 0
    return peaceful


@posix
def test_whatever_is_killed_nothing_is_lost(home: Home, base: Path, tmp_path: Path) -> None:
    """The dispatcher, the worker, both: the run goes on or is put back, and ends as one that was left in peace."""
    peaceful = left_in_peace(home, base, tmp_path / "reference")
    queue = Queue(home)
    job = queue.add("train", run_settings(base, "mystyle", *SMALL))
    next_one = queue.add("train", run_settings(Path("gone.safetensors"), "next"))

    # The dispatcher: the run goes on, and the next dispatcher knows it.
    work = start_work(home)
    waiting.until(is_at(queue, job.id, "running", step=3))
    kill(work.pid)
    work.wait()
    before = queue.job(job.id).progress
    waiting.until(is_at(queue, job.id, "running", step=(before.done if before else 0) + 2))
    with Dispatcher(home) as dispatcher:
        assert dispatcher.step() == Look(works=True, running=1, waiting=1)
        assert dispatcher.queue.job(job.id).state == "running"

        # The worker: interrupted, and the next job is not kept waiting.
        kill(worker_of(job))
        until(dispatcher, is_at(queue, next_one.id, "failed"))
    killed = queue.job(job.id)
    assert killed.state == "interrupted" and "killed" in killed.problem and killed.ended is not None

    # Both, after it went on from its state.
    assert queue.retry(job.id).state == "queued"
    work = start_work(home)
    waiting.until(is_at(queue, job.id, "running", step=(killed.progress.done if killed.progress else 0) + 3))
    kill(work.pid, worker_of(job))
    work.wait()
    with Dispatcher(Home.open(home.path)) as dispatcher:
        until(dispatcher, is_at(dispatcher.queue, job.id, "interrupted"))
        dispatcher.queue.retry(job.id)
        until(dispatcher, is_at(dispatcher.queue, job.id, "done"))
    header, tensors = lora(lora_of(job))
    expected_header, expected_tensors = lora(peaceful / "weights" / "mystyle.safetensors")
    assert header == expected_header
    assert tensors == expected_tensors
    steps = [event.step for event in RunLog(job.folder).events() if isinstance(event, StepFinished)]
    assert steps == list(range(1, 41)), "no gap in the curve"
    assert len(read_job(job.folder).attempts) == 3


@posix
def test_a_dispatcher_that_dies_as_it_starts_a_job_leaves_it_to_the_next(home: Home, base: Path) -> None:
    """Before its process: another is started. After it: there are two for a moment, and one gives way."""
    queue = Queue(home)
    job = queue.add("train", run_settings(base))

    def mark() -> None:
        with home.database.transaction() as connection:
            connection.execute("UPDATE jobs SET waiting = 0, pid = 0, started = ?", (time.time(),))

    mark()
    assert queue.job(job.id).state == "preparing"
    with Dispatcher(home) as dispatcher:
        assert dispatcher.step() == Look(works=True, running=1, started=1)
        until(dispatcher, is_at(queue, job.id, "preparing", "running", step=1))
    mark()
    with Dispatcher(home) as dispatcher:
        until(dispatcher, is_at(queue, job.id, "done"))
    assert len(read_job(job.folder).attempts) == 1


# -- asked -----------------------------------------------------------------------------------------------------------


def test_a_running_job_is_asked(dispatcher: Dispatcher, base: Path) -> None:
    """Also before its process listens; paused, it keeps its place on the device."""
    queue = dispatcher.queue
    job = queue.add("train", run_settings(base, "mystyle", "steps=5000"))
    other = queue.add("train", run_settings(base, "other"))
    dispatcher.step()
    assert queue.ask(job.id, Request.PAUSE).state == "preparing"
    until(dispatcher, is_at(queue, job.id, "paused"))
    assert dispatcher.step() == Look(works=True, running=1, waiting=1)
    queue.ask(job.id, Request.GO)
    until(dispatcher, is_at(queue, job.id, "running", step=3))
    queue.stop_after_this = True
    queue.ask(job.id, Request.LEAVE)
    until(dispatcher, lambda: not dispatcher.step().running)
    left = queue.job(job.id)
    assert left.state == "paused" and left.progress is not None and left.progress.done >= 3
    assert queue.job(other.id).state == "queued", "nothing more is started"

    assert queue.ask(job.id, Request.GO).position == 1
    queue.stop_after_this = False
    until(dispatcher, is_at(queue, job.id, "running", step=left.progress.done + 1))
    queue.cancel(job.id)
    until(dispatcher, is_at(queue, job.id, "stopped"))
    queue.cancel(other.id)
    assert lora_of(job).is_file()
    kinds = [type(event) for event in RunLog(job.folder).recorded()]
    assert kinds.count(RunPaused) == 2 and kinds.count(RunResumed) == 2


def test_a_home_that_cannot_be_written_for_a_while(home: Home) -> None:
    """It is said once, and the queue goes on when it can."""
    said: list[str] = []
    dispatcher = Dispatcher(home, listener=lambda event: said.append(str(event)))
    dispatcher.queue.add("train", run_settings(BASE, "later"), held=True)
    looks: list[Look] = []

    def each(look: Look) -> None:
        looks.append(look)
        path = home.database.path
        if len(looks) == 1:
            home.database.close()
            path.rename(path.with_name("away"))
            path.mkdir()
        elif len(looks) == 3:
            path.rmdir()
            path.with_name("away").rename(path)

    with dispatcher, pytest.raises(Interrupted):
        dispatcher.run(lambda: Request.STOP if len(looks) == 4 else Request.GO, each=each)
    assert [bool(look.problem) for look in looks] == [False, True, True, False]
    assert len(said) == 1 and "studio.db" in said[0]


# -- places ----------------------------------------------------------------------------------------------------------


def test_how_many_at_once(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """One on each device; more where that is allowed; a run of the terminal has its place too."""
    started: list[Path] = []

    def start(module: str, folder: Path) -> subprocess.Popen[bytes]:
        started.append(folder)
        return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

    monkeypatch.setattr("loraloom.studio.jobs.dispatcher.start_detached", start)
    dispatcher = Dispatcher(home)
    queue = dispatcher.queue
    names = {"a": "auto", "b": "cpu", "c": "cuda:1", "d": "cuda:0", "e": "cuda:1"}
    for name, device in names.items():
        queue.add("train", run_settings(BASE, name, f"device={device}"))
    stranger = create_run(run_settings(BASE, "mine").model_copy(update={"output": home.runs})).path
    try:
        with RunLock(stranger):
            assert dispatcher.step() == Look(works=True, running=2, waiting=4, started=1)
            assert [folder.name for folder in started] == ["c"], "the device is taken, the other GPU is free"
        assert dispatcher.step().started == 1
        assert dispatcher.step().started == 0
        assert [folder.name for folder in started] == ["c", "a"]
        queue.limits = Limits(device=2)
        dispatcher.step()
        assert [folder.name for folder in started] == ["c", "a", "b", "e"]
        assert dispatcher.step() == Look(works=True, running=4, waiting=1)
    finally:
        queue.stop_after_this = True
        dispatcher._processes[5].kill()
        for process in dispatcher._processes.values():
            process.communicate(b"\n")
    until(dispatcher, lambda: not dispatcher.step().running)
    ended = {job.title: job for job in queue.jobs() if job.is_over}
    assert sorted(ended) == ["a", "b", "c", "e"]
    killed = "failed" if sys.platform == "win32" else "interrupted"  # where a code does not tell
    assert {title: job.state for title, job in ended.items()} == dict.fromkeys("abc", "failed") | {"e": killed}
    assert "ended with code 0 before it began" in ended["a"].problem
    dispatcher.close()
