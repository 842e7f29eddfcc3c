"""Runs as other processes see them: locks, wishes, and what the files tell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loraloom.control import Order, Request
from loraloom.errors import MissingFileError, ResumeError, SettingsError
from loraloom.events import (
    Event,
    Notice,
    PreviewSaved,
    RunCreated,
    RunFailed,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
    RunTaken,
    StepFinished,
    ValidationMeasured,
)
from loraloom.studio.results import to_record
from loraloom.studio.runs import control as run_control
from loraloom.studio.runs.control import FolderControl, RunLock, ask, is_trained, is_trained_by
from loraloom.studio.runs.folder import RunFolder, find_run
from loraloom.studio.runs.log import EventLog, RunLog
from loraloom.studio.runs.orders import give_order
from loraloom.studio.runs.status import list_runs, read_status

CREATED, TAKEN = RunCreated("x"), RunTaken()
STARTED = RunStarted("x", 20, 5, 4, 4, 100)


def step(number: int, loss: float = 0.5) -> StepFinished:
    return StepFinished(number, 1 + (number - 1) // 5, loss, loss, {"unet": 1e-4}, 2.0)


def run(folder: Path, *events: Event) -> RunFolder:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.toml").write_text("", encoding="utf-8")
    found = RunFolder(folder)
    with EventLog(found.path) as log:
        for event in events:
            log(event)
    return found


HOLD = """
import sys
from pathlib import Path
from loraloom.studio.runs.control import RunLock
with RunLock(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_two_processes_never_train_one_run_and_a_dead_one_lets_go(tmp_path: Path) -> None:
    run(tmp_path, STARTED)
    assert not is_trained(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        assert is_trained(tmp_path)
        assert read_status(tmp_path).state == "running"
        with pytest.raises(ResumeError, match=f"trained already by process {process.pid}"), RunLock(tmp_path):
            pass
        process.kill()
        process.wait()
    finally:
        process.kill()
        process.communicate()
    assert (tmp_path / "process.json").exists()  # it had no time to clear up
    assert not is_trained(tmp_path)
    assert read_status(tmp_path).state == "interrupted"
    with RunLock(tmp_path):
        assert is_trained(tmp_path)
    assert not is_trained(tmp_path)


def test_a_run_of_another_machine_is_told_by_its_heartbeat(tmp_path: Path) -> None:
    path = tmp_path / "process.json"
    path.write_text(json.dumps({"pid": 1, "host": "another machine"}), encoding="utf-8")
    assert is_trained(tmp_path)
    os.utime(path, (time.time() - 300, time.time() - 300))
    assert not is_trained(tmp_path)
    path.write_text("{", encoding="utf-8")
    assert not is_trained(tmp_path)


def test_a_wish_of_the_first_moment_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sees that the run is trained may ask at once."""
    real = run_control.write_text

    def write_and_ask(path: Path, text: str) -> None:
        real(path, text)
        if path.name == "process.json":
            ask(tmp_path, Request.STOP)

    (tmp_path / "control.json").write_text('{"request": "pause"}', encoding="utf-8")  # for one that is gone
    monkeypatch.setattr(run_control, "write_text", write_and_ask)
    with RunLock(tmp_path):
        assert FolderControl(tmp_path)() is Request.STOP
    monkeypatch.undo()
    (tmp_path / "control.json").write_text('{"request": "pause"}', encoding="utf-8")
    with RunLock(tmp_path):
        assert FolderControl(tmp_path)() is Request.GO


def test_who_trains_a_run_is_told_by_the_number_of_the_process(tmp_path: Path) -> None:
    assert not is_trained_by(tmp_path, os.getpid())
    with RunLock(tmp_path):
        assert is_trained_by(tmp_path, os.getpid()) and is_trained_by(tmp_path, os.getppid())
        assert not is_trained_by(tmp_path, 4_000_003)
    assert not is_trained_by(tmp_path, os.getpid())


def test_wishes_arrive(tmp_path: Path) -> None:
    run(tmp_path)
    control = FolderControl(tmp_path)
    assert control() is Request.GO
    with pytest.raises(ResumeError, match="not being trained"):
        ask(tmp_path, Request.STOP)
    (tmp_path / "control.json").write_text(json.dumps({"request": "stop"}), encoding="utf-8")
    with RunLock(tmp_path):
        assert control() is Request.GO  # a wish for an earlier process counts no more
        for request in (Request.PAUSE, Request.GO, Request.LEAVE, Request.DISCARD, Request.STOP):
            ask(tmp_path, request)
            assert control() is request and control() is request
        (tmp_path / "control.json").write_text("not JSON", encoding="utf-8")
        assert control() is Request.STOP
        (tmp_path / "control.json").unlink()
        assert control() is Request.GO
    assert not (tmp_path / "control.json").exists()


def test_orders_arrive_once_and_are_for_the_process_that_is_there(tmp_path: Path) -> None:
    settings = '[dataset]\nfolder = "pictures"\n'
    (tmp_path / "settings.toml").write_text(f'checkpoint = "a.ckpt"\n{settings}', encoding="utf-8")
    control = FolderControl(tmp_path)
    with pytest.raises(ResumeError, match="not being trained"):
        give_order(tmp_path, Order.SAVE)
    (tmp_path / "save.order").touch()  # for one that is gone
    with RunLock(tmp_path):
        assert control.take_orders() == ()
        with pytest.raises(SettingsError, match="has no prompts to paint"):
            give_order(tmp_path, Order.PREVIEW)
        preview = '[preview]\nprompts = ["a cat"]\n'
        (tmp_path / "settings.toml").write_text(f'checkpoint = "a.ckpt"\n{settings}{preview}', encoding="utf-8")
        for _ in range(3):
            give_order(tmp_path, Order.PREVIEW)
        give_order(tmp_path, Order.SAVE)
        ask(tmp_path, Request.PAUSE)
        assert control() is Request.PAUSE, "an order takes the place of no wish"
        assert control.take_orders() == (Order.SAVE, Order.PREVIEW)
        assert control.take_orders() == () and control() is Request.PAUSE
        give_order(tmp_path, Order.SAVE)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "settings.toml"]


@pytest.mark.parametrize(
    ("events", "state", "at"),
    [
        ([], "interrupted", 0),
        ([STARTED, step(1), step(2)], "interrupted", 2),
        ([STARTED, step(1), RunPaused(1, freed=True)], "paused", 1),
        ([STARTED, step(1), RunPaused(1)], "interrupted", 1),
        ([STARTED, step(1), RunFinished(1, 2.0, True, 0.5)], "stopped", 1),
        ([STARTED, step(20), RunFinished(20, 2.0, False, 0.5)], "finished", 20),
        ([STARTED, step(3), RunFailed(3, "no memory", "buy some")], "failed", 3),
        ([STARTED, step(3), RunFailed(3, "x", ""), RunResumed(2), STARTED], "interrupted", 2),
        ([STARTED, *map(step, range(1, 8)), RunResumed(4), STARTED, step(5)], "interrupted", 5),
        ([CREATED], "queued", 0),
        ([CREATED, TAKEN], "interrupted", 0),
        ([CREATED, TAKEN, RunFailed(0, "no such file", ""), CREATED, TAKEN], "interrupted", 0),
        ([STARTED, step(1), RunPaused(1), TAKEN], "interrupted", 1),
        ([STARTED, step(1), RunPaused(1, freed=True), TAKEN, TAKEN], "paused", 1),
        ([STARTED, step(1), RunPaused(1, freed=True), TAKEN, RunPaused(1)], "interrupted", 1),
        ([STARTED, step(1), RunFinished(1, 2.0, True, 0.5), TAKEN], "stopped", 1),
        ([STARTED, step(3), RunFailed(3, "no memory", "buy some"), TAKEN], "failed", 3),
        ([STARTED, step(3), RunFailed(3, "x", ""), TAKEN, RunResumed(2), STARTED], "interrupted", 2),
    ],
)
def test_the_state_of_a_run_that_nobody_trains(events: list[Event], state: str, at: int, tmp_path: Path) -> None:
    run(tmp_path / "cat", *events)
    found = read_status(tmp_path / "cat")
    assert (found.state, found.step) == (state, at)


@pytest.mark.parametrize(
    ("events", "state", "at"),
    [
        ([CREATED, TAKEN], "preparing", 0),
        ([STARTED, step(1), RunPaused(1), TAKEN], "preparing", 1),
        ([STARTED, step(1), RunPaused(1, freed=True), TAKEN], "preparing", 1),
        ([STARTED, step(3), RunFailed(3, "no memory", "buy some"), TAKEN], "preparing", 3),
        ([STARTED, step(3), RunFinished(3, 2.0, True, 0.5), TAKEN, Notice("reading")], "preparing", 3),
        ([STARTED, step(3), TAKEN, RunPaused(3)], "paused", 3),
        ([STARTED, step(3), TAKEN, RunPaused(3), RunResumed(3)], "preparing", 3),
        ([STARTED, step(3), TAKEN, RunResumed(2), STARTED], "running", 2),
        ([STARTED, step(3), RunPaused(3), RunResumed(3)], "running", 3),
        ([CREATED], "preparing", 0),
        ([STARTED, step(20), RunFinished(20, 2.0, False, 0.5)], "finished", 20),  # it draws the curves still
    ],
)
def test_the_state_of_a_run_that_a_process_has(events: list[Event], state: str, at: int, tmp_path: Path) -> None:
    run(tmp_path / "cat", *events)
    with RunLock(tmp_path / "cat"):
        found = read_status(tmp_path / "cat")
    assert (found.state, found.step, found.problem) == (state, at, "")
    assert read_status(tmp_path / "cat").problem == (
        "no memory" if RunFailed(3, "no memory", "buy some") in events else ""
    )


def test_what_is_told_of_a_run(tmp_path: Path) -> None:
    preview = PreviewSaved("previews/2.png", "a cat", 5, 1)
    measured = [ValidationMeasured(i, i, loss, {}, best) for i, loss, best in ((1, 0.3, True), (2, 0.25, True))]
    worse = ValidationMeasured(3, 3, 0.27, {}, False)
    run(tmp_path / "b", Notice("x"), STARTED, *(step(i, 1 / i) for i in range(1, 9)), preview, *measured, worse)
    run(tmp_path / "a", STARTED, RunFailed(0, "no memory", ""))
    (tmp_path / "c").mkdir()
    first, second = list_runs(tmp_path)
    assert (first.name, first.state, first.problem) == ("a", "failed", "no memory")
    assert (second.step, second.total_steps, second.epoch, second.epochs) == (8, 20, 2, 4)
    assert (second.loss, second.seconds_per_step, second.seconds_left) == (1 / 8, 2.0, 24.0)
    assert second.last_preview == "previews/2.png"
    assert (second.best_loss, second.best_epoch) == (0.25, 2)
    assert (first.best_loss, first.best_epoch) == (None, None)
    assert json.loads(json.dumps(to_record(second)))["name"] == "b"
    with RunLock(tmp_path / "b"):
        assert read_status(tmp_path / "b").state == "running"
        run(tmp_path / "b", RunPaused(8))
        assert read_status(tmp_path / "b").state == "paused"
    with pytest.raises(MissingFileError):
        list_runs(tmp_path / "none")


def test_runs_are_found_by_name_or_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "runs" / "cat")
    assert find_run("cat").resolve() == (tmp_path / "runs" / "cat").resolve()
    assert find_run(str(tmp_path / "runs" / "cat")) == tmp_path / "runs" / "cat"
    with pytest.raises(MissingFileError, match="no run 'car'") as caught:
        find_run("car")
    assert "'cat'" in caught.value.hint


def test_events_of_a_resumed_run_read_as_one_run(tmp_path: Path) -> None:
    folder = run(tmp_path, STARTED, step(1), step(2), step(3), PreviewSaved("p", "x", 3, 1), RunFailed(3, "x", ""))
    run(tmp_path, RunResumed(2, "state"), STARTED, step(3, 0.25), RunFinished(3, 6.0, True, 0.25))
    run(tmp_path, RunResumed(3), STARTED, step(4))
    assert [event for event in RunLog(folder.path).events() if isinstance(event, StepFinished)] == [
        step(1), step(2), step(3, 0.25), step(4)
    ]  # fmt: skip
    assert not [
        event for event in RunLog(folder.path).events() if isinstance(event, (RunFailed, RunFinished, PreviewSaved))
    ]
    assert len(list(RunLog(folder.path).recorded())) == 13


def test_a_torn_last_line_does_not_swallow_the_next(tmp_path: Path) -> None:
    folder = run(tmp_path, STARTED, step(1))
    with (folder.path / "events.jsonl").open("ab") as file:
        file.write(b'{"event": "StepFin')
    run(tmp_path, RunResumed(1), step(2))
    assert [event.step for event in RunLog(folder.path).events() if isinstance(event, StepFinished)] == [1, 2]


def damaged(**values: object) -> str:
    """The line of a step in which these values are wrong."""
    return json.dumps({"event": "StepFinished", **vars(step(3)), **values})


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "StepFinished"}',
        damaged(step="two"),
        damaged(step=10**400),
        damaged(epoch=None),
        damaged(seconds=[]),
        damaged(learning_rates={"unet": "fast"}),
        damaged()[:-9],
        damaged().replace("unet", "\xff"),
        '{"event": "StepFinished", "step": 7, "epoch": ' + "[" * 9000,
        '{"event": "RunPaused", "step": []}',
        '{"event": "RunPaused", "step": 1, "freed": "no"}',
        '{"event": "RunFailed", "step": 1, "problem": null, "hint": ""}',
        '{"event": "ValidationMeasured", "step": 1, "epoch": 1, "loss": "low", "by_timestep": {}, "is_best": true}',
        '{"event": ["RunPaused"]}',
        "[]",
        "7",
    ],
)
def test_a_damaged_line_is_left_out_by_every_reader(tmp_path: Path, line: str) -> None:
    run(tmp_path / "a", STARTED, step(1))
    with (tmp_path / "a" / "events.jsonl").open("ab") as log:
        log.write(line.encode("latin-1") + b"\n")
    run(tmp_path / "a", step(2))
    log = RunLog(tmp_path / "a")
    is_whole = "\xff" in line  # JSON all the same, with a letter that nobody knows
    steps = [1, 3, 2] if is_whole else [1, 2]
    assert [event.step for event in log.recorded() if isinstance(event, StepFinished)] == steps
    assert [event.step for event in log.since()[0] if isinstance(event, StepFinished)] == steps
    assert [event.step for event in log.events() if isinstance(event, StepFinished)] == [1, 2]
    outlined, _ = log.outline(frozenset(Event.kinds), steps=9)
    assert [event.step for event in outlined if isinstance(event, StepFinished)] == steps
    (status,) = list_runs(tmp_path)
    assert (status.state, status.step, status.problem) == ("interrupted", 2, "")


def test_a_proposal_that_is_damaged_leaves_the_words(tmp_path: Path) -> None:
    run(tmp_path, STARTED)
    with (tmp_path / "events.jsonl").open("a", encoding="utf-8") as log:
        for proposed in ("[]", '{"text": [5]}', '{"text": 5}', '{"text": [{"action": []}]}'):
            log.write(f'{{"event": "Notice", "text": "x", "level": "info", "proposed": {proposed}}}\n')
    assert RunLog(tmp_path).events() == [STARTED, *[Notice("x")] * 4]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes among its files")
def test_a_log_that_is_a_pipe_is_no_log(tmp_path: Path) -> None:
    run(tmp_path / "a", STARTED, step(3))
    run(tmp_path / "b", STARTED)
    (tmp_path / "b" / "events.jsonl").unlink()
    os.mkfifo(tmp_path / "b" / "events.jsonl")
    assert [status.step for status in list_runs(tmp_path)] == [3, 0]


def test_a_folder_that_is_not_there_has_no_status(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no folder"):
        read_status(tmp_path / "gone")
