"""The queue of a home without anybody who works through it: order, holding, what lasts, what is found again."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from job_homes import home_with_drawings, run_settings
from loraloom.actions import Action, Sentence
from loraloom.control import Request
from loraloom.errors import LoraloomError, ResumeError, SettingsError, UnknownNameError
from loraloom.events import (
    Event,
    JobFailed,
    JobFinished,
    JobPaused,
    JobProgressed,
    JobStarted,
    RunFailed,
    RunFinished,
    RunStarted,
    StepFinished,
)
from loraloom.studio.home import Home
from loraloom.studio.jobs.folder import RECORD_NAME, read_job, write_job
from loraloom.studio.jobs.queue import Job, Limits, Queue
from loraloom.studio.jobs.watching import Watch
from loraloom.studio.results import to_record
from loraloom.studio.runs.control import RunLock
from loraloom.studio.runs.creation import create_run
from loraloom.studio.runs.log import EventLog
from loraloom.studio.runs.status import read_status

BASE = Path("base.safetensors")


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(home_with_drawings(tmp_path / "home"))


def add(queue: Queue, *names: str) -> list[Job]:
    return [queue.add("train", run_settings(BASE, name)) for name in names]


def order(queue: Queue) -> list[str]:
    return [job.title for job in queue.jobs() if job.state == "queued"]


def record(job: Job, *events: Event) -> None:
    """What a process told of the job, and that it is at work no more."""
    with RunLock(job.folder), EventLog(job.folder) as log:
        for event in events:
            log(event)


def begun(queue: Queue, job: Job, *events: Event) -> Job:
    """The job as a dispatcher leaves it behind that started it, and its process, which has ended."""
    with queue.home.database.transaction() as connection:
        connection.execute("UPDATE jobs SET waiting = 0 WHERE id = ?", (job.id,))
    record(job, *events)
    return queue.job(job.id)


# -- order -----------------------------------------------------------------------------------------------------------


def test_jobs_wait_in_their_order(queue: Queue) -> None:
    a, b, c, d = add(queue, "a", "b", "c", "d")
    assert [(job.position, job.state, job.held) for job in (a, d)] == [(1, "queued", False), (4, "queued", False)]
    assert a.folder == queue.home.runs / "a" and read_status(a.folder).state == "queued"
    assert queue.move(d.id, before=b.id).position == 2 and order(queue) == ["a", "d", "b", "c"]
    assert queue.move(a.id).position == 4 and order(queue) == ["d", "b", "c", "a"]
    assert queue.move(d.id, before=d.id).position == 4, "before itself is the end"
    queue.move(c.id, before=b.id)
    assert order(queue) == ["c", "b", "a", "d"]
    assert [job.position for job in queue.jobs()] == [1, 2, 3, 4]
    assert order(Queue(Home.open(queue.home.path))) == ["c", "b", "a", "d"]
    for number in (77, 0):
        with pytest.raises(UnknownNameError, match="unknown job"):
            queue.move(a.id, before=number)
        with pytest.raises(UnknownNameError, match="unknown job"):
            queue.hold(number)
    assert order(queue) == ["c", "b", "a", "d"]


def test_two_windows_that_press_at_the_same_moment(queue: Queue) -> None:
    jobs = add(queue, *"abcdef")
    others = [Queue(Home.open(queue.home.path)) for _ in range(3)]
    failed: list[Exception] = []

    def press(window: Queue, shift: int) -> None:
        try:
            for number in range(8):
                job = jobs[(number + shift) % 6]
                window.move(job.id, before=jobs[(number * 3 + shift) % 6].id)
                (window.hold if number % 2 else window.release)(job.id)
        except LoraloomError as error:
            failed.append(error)

    threads = [threading.Thread(target=press, args=(window, shift)) for shift, window in enumerate(others)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert sorted(order(queue)) == list("abcdef")
    assert [job.position for job in queue.jobs()] == [1, 2, 3, 4, 5, 6]


def test_held_jobs_keep_their_place(queue: Queue) -> None:
    a, b = add(queue, "a", "b")
    assert queue.hold(a.id).held and queue.hold(a.id).held
    assert order(queue) == ["a", "b"]
    assert not queue.release(a.id).held and not queue.job(b.id).held
    assert queue.add("train", run_settings(BASE, "c"), held=True, title="later").held


def test_what_is_wrong_is_not_put_into_the_queue(queue: Queue) -> None:
    with pytest.raises(UnknownNameError, match="unknown kind of job 'trian'"):
        queue.add("trian", {})
    with pytest.raises(SettingsError, match="rank"):
        queue.add("train", {"checkpoint": "x.ckpt", "dataset": {"folder": "x"}, "adapter": {"rank": 0}})
    with pytest.raises(SettingsError, match="several values"):
        queue.add("sweep", {"train": run_settings(BASE).model_dump(), "axes": []})
    with pytest.raises(SettingsError, match="rank"):
        queue.add("sweep", {"train": run_settings(BASE).model_dump(), "axes": ["adapter.rank=2,none"]})
    assert queue.jobs() == [] and not list(queue.home.runs.iterdir()) and not list(queue.home.jobs.iterdir())


def test_what_a_job_needs_and_is_not_there_yet(queue: Queue) -> None:
    settings = run_settings(BASE)
    assert queue.missing("train", settings) == [queue.home.path / BASE]
    (queue.home.path / BASE).write_bytes(b"x")
    assert queue.missing("train", settings) == []


def test_a_title_is_one_line(queue: Queue) -> None:
    paint = {"prompt": "a cat\n\x1b[31mred"}
    given = {"checkpoint": "x.ckpt", "dataset": {"folder": "x"}, "paint": paint}
    assert queue.add("class_images", given).title == "a cat\\n\\x1b[31mred"
    assert queue.add("demo", {}, title="mine\n").title == "mine\\n"


# -- what a job has come to ------------------------------------------------------------------------------------------


def step(number: int) -> StepFinished:
    return StepFinished(number, 1, 0.3, 0.4, {"unet": 1e-4}, 2.5)


def test_a_run_tells_how_far_it_is(queue: Queue) -> None:
    (job,) = add(queue, "a")
    started = RunStarted(str(job.folder), 40, 10, 4, 3, 1000)
    ended = begun(queue, job, started, step(1), step(2))
    assert ended.state == "interrupted" and "killed" in ended.problem and ended.is_over
    assert isinstance(ended.hint, Sentence) and ended.hint.actions == (Action.RETRY_JOB.of(job=job.id),)
    assert ended.progress is not None and to_record(ended.progress) == {
        "done": 2,
        "total": 40,
        "what": "steps",
        "seconds_left": None,
    }
    with RunLock(job.folder):
        running = queue.job(job.id)
        assert running.state == "running" and running.problem == "" and running.ended is None
        assert running.progress is not None and running.progress.seconds_left == 2.5 * 38
    record(job, RunFinished(2, 5.0, stopped=False, average_loss=0.4))
    done = queue.job(job.id)
    assert done.state == "done" and done.ended is not None and done.problem == "" and done.position == 0
    assert Queue(Home.open(queue.home.path)).job(job.id) == done, "from the table"
    record(job, RunFailed(2, "no memory", Sentence("try ", Action.LIMIT_MEMORY.of(size="8GB"))))
    failed = Queue(Home.open(queue.home.path)).job(job.id)
    assert failed.state == "failed" and failed.problem == "no memory", "what was kept counts no more"
    again = Queue(Home.open(queue.home.path)).job(job.id)
    assert isinstance(again.hint, Sentence) and again.hint.actions == (Action.LIMIT_MEMORY.of(size="8GB"),)


def test_any_other_job_tells_how_far_it_is(queue: Queue) -> None:
    job = queue.add("demo", {"epochs": 1})
    assert (job.kind, job.title, job.folder) == ("demo", "a style", queue.home.jobs / "1-demo")
    going = (JobStarted(), JobProgressed("images", 3, 12, 4.5))
    assert begun(queue, job, *going).state == "interrupted"
    record(job, *going, JobPaused(freed=True))
    assert queue.job(job.id).state == "paused" and not queue.job(job.id).is_over
    assert queue.ask(job.id, Request.GO).state == "queued", "its process has ended, so another one is to go on"
    assert begun(queue, job, *going, JobFailed("no room", "make some")).problem == "no room"
    record(job, *going, JobFinished(stopped=True, result={}))
    assert queue.job(job.id).state == "stopped"
    record(job, *going, JobFinished(stopped=False, result={"folder": "x"}))
    done = queue.job(job.id)
    assert done.state == "done" and done.result == {"folder": "x"}
    assert done.progress is not None and (done.progress.done, done.progress.what) == (3, "images")


def test_a_process_that_writes_down_how_it_ended_is_still_at_work(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lets go of the lock first: nobody takes the job for interrupted in between."""
    (job,) = add(queue, "a")
    begun(queue, job, RunStarted(str(job.folder), 40, 10, 4, 3, 1000), step(1))
    with queue.home.database.transaction() as connection:
        connection.execute("UPDATE jobs SET pid = 12345, started = 5")
    monkeypatch.setattr("loraloom.studio.jobs.job.is_worker", lambda pid, folder: pid == 12345)
    assert queue.job(job.id).state == "running"
    with pytest.raises(ResumeError, match="runs now"):
        queue.retry(job.id)
    noted = read_job(job.folder).begun().ended(problem="no memory")
    write_job(job.folder, noted)
    assert (queue.job(job.id).state, queue.job(job.id).problem) == ("failed", "no memory"), "it only has to go"
    write_job(job.folder, replace(noted, attempts=()))
    monkeypatch.setattr("loraloom.studio.jobs.job.is_worker", lambda pid, folder: False)
    assert queue.job(job.id).state == "interrupted" and queue.retry(job.id).state == "queued"


def test_a_log_that_cannot_be_understood_is_a_failure_of_that_job_alone(queue: Queue) -> None:
    a, b = add(queue, "a", "b")
    begun(queue, a)
    (a.folder / "events.jsonl").unlink()
    (a.folder / "events.jsonl").mkdir()
    assert queue.job(a.id).state == "failed" and "events.jsonl" in queue.job(a.id).problem
    assert [job.id for job in queue.jobs()] == [b.id, a.id]


# -- taking out, putting back ----------------------------------------------------------------------------------------


def test_a_job_that_waits_is_cancelled_and_put_back(queue: Queue) -> None:
    a, b, c = add(queue, "a", "b", "c")
    assert queue.cancel(b.id).state == "stopped" and order(queue) == ["a", "c"]
    with pytest.raises(ResumeError, match="does not wait, it is stopped"):
        queue.hold(b.id)
    with pytest.raises(ResumeError, match="does not run now"):
        queue.cancel(b.id)
    assert queue.retry(b.id).position == 1 and order(queue) == ["b", "a", "c"]
    assert queue.retry(c.id).position == 3, "it waits already"
    queue.cancel(b.id)
    queue.forget(b.id)
    with pytest.raises(ResumeError, match="job 1 is queued"):
        queue.forget(a.id)
    assert [job.id for job in queue.jobs()] == [a.id, c.id] and b.folder.is_dir()
    assert [job.id for job in Queue(Home.open(queue.home.path)).jobs()] == [a.id, c.id]


def test_a_cancelled_demo(queue: Queue) -> None:
    job = queue.add("demo", {})
    assert queue.cancel(job.id).state == "stopped"


def test_one_that_is_put_back_and_cancelled_is_what_it_was(queue: Queue) -> None:
    (job,) = add(queue, "a")
    started = RunStarted(str(job.folder), 40, 10, 4, 3, 1000)
    begun(queue, job, started, step(1))
    assert queue.retry(job.id).state == "queued"
    assert queue.cancel(job.id).state == "interrupted"


def test_what_is_done_is_not_done_again(queue: Queue) -> None:
    (job,) = add(queue, "a")
    begun(queue, job, RunStarted("a", 3, 3, 1, 3, 9), step(3), RunFinished(3, 1.0, False, 0.3))
    for act in (queue.retry, queue.cancel):
        with pytest.raises(ResumeError):
            act(job.id)
    settings = run_settings(BASE, "of the terminal").model_copy(update={"output": queue.home.runs})
    run = create_run(settings).path
    with EventLog(run) as log:
        log(RunFinished(7, 2.5, stopped=False, average_loss=0.3))
    with pytest.raises(ResumeError, match="is finished after 7 steps"):
        queue.add_run(run)


def test_a_run_that_came_to_nothing_gives_its_place_to_the_next(queue: Queue) -> None:
    (first,) = add(queue, "a")
    begun(queue, first, RunFailed(0, "no such checkpoint", ""))
    (second,) = add(queue, "a")
    assert second.folder == first.folder and second.state == "queued" and second.problem == ""
    assert [job.id for job in queue.jobs()] == [second.id]


def test_a_run_of_the_terminal_is_put_into_the_queue(queue: Queue) -> None:
    settings = run_settings(BASE, "mine").model_copy(update={"output": queue.home.runs})
    run = create_run(settings).path
    job = queue.add_run(run)
    assert (job.kind, job.title, job.folder, job.state) == ("train", "mine", run, "queued")
    assert queue.add_run(run).id == job.id
    with RunLock(create_run(settings).path), pytest.raises(ResumeError, match="is being trained already"):
        queue.add_run(queue.home.runs / "mine-2")


# -- the folders are the record --------------------------------------------------------------------------------------


def test_a_lost_database_is_made_anew_from_the_folders(queue: Queue) -> None:
    a, b, c = add(queue, "a", "b", "c")
    demo = queue.add("demo", {"character": True})
    begun(queue, b, RunStarted("b", 3, 3, 1, 3, 9), step(1))
    queue.cancel(c.id)
    queue.forget(c.id)
    queue.home.close()
    for path in queue.home.path.glob("studio.db*"):
        path.unlink()

    again = Queue(Home.open(queue.home.path))
    found = {job.title: job for job in again.jobs()}
    assert {title: (job.state, job.held) for title, job in found.items()} == {
        "a": ("queued", True),
        "b": ("interrupted", False),
        "a character": ("queued", True),
    }
    assert [job.folder for job in found.values()] == [demo.folder, a.folder, b.folder]
    assert found["a"].created == a.created and found["a character"].id == demo.id
    assert again.add("demo", {}).folder.name.partition("-")[0] == str(max(job.id for job in again.jobs()))
    assert again.find_again() == []


def test_what_a_killed_process_left_between_folder_and_table_is_found(queue: Queue) -> None:
    (job,) = add(queue, "a")
    with queue.home.database.transaction() as connection:
        connection.execute("DELETE FROM jobs")
    (found,) = queue.find_again()
    assert (found.title, found.state, found.held) == ("a", "queued", True)
    (job.folder / RECORD_NAME).write_text("{", encoding="utf-8")
    with queue.home.database.transaction() as connection:
        connection.execute("DELETE FROM jobs")
    assert queue.find_again() == []


def test_a_home_that_was_moved_keeps_its_queue(queue: Queue, tmp_path: Path) -> None:
    add(queue, "a")
    queue.add("class_images", {"checkpoint": "m.ckpt", "dataset": {"folder": "datasets/x"}, "paint": {"prompt": "cat"}})
    queue.home.close()
    queue.home.path.rename(tmp_path / "moved")
    again = Queue(Home.open(tmp_path / "moved"))
    assert [job.folder.parent for job in again.jobs()] == [tmp_path / "moved" / "runs", tmp_path / "moved" / "jobs"]
    assert [job.state for job in again.jobs()] == ["queued", "queued"]
    told = json.loads((again.jobs()[1].folder / RECORD_NAME).read_text(encoding="utf-8"))
    assert told["settings"]["dataset"]["folder"] == str(Path("datasets/x"))


# -- the whole -------------------------------------------------------------------------------------------------------


def test_what_holds_for_the_whole_queue(queue: Queue) -> None:
    assert queue.limits == Limits(1, 2) and not queue.stop_after_this and not queue.is_worked_through
    queue.limits = Limits(device=2, beside=3)
    queue.stop_after_this = True
    other = Queue(Home.open(queue.home.path))
    assert other.limits == Limits(2, 3) and other.stop_after_this
    with pytest.raises(SettingsError, match="fewer than one"):
        queue.limits = Limits(0, 1)


def test_a_watcher_hears_of_what_changes_only(queue: Queue) -> None:
    a, b = add(queue, "a", "b")
    watch = Watch(Queue(Home.open(queue.home.path)))
    assert [job.id for job in watch.look().changed] == [a.id, b.id]
    assert not watch.look()
    queue.hold(b.id)
    assert watch.look().changed == (queue.job(b.id),)
    queue.cancel(a.id)
    assert [(job.id, job.position) for job in watch.look().changed] == [(b.id, 1), (a.id, 0)]
    queue.forget(a.id)
    assert watch.look().gone == (a.id,)
