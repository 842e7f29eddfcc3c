"""The log of a run, read from where a reader stopped; and what of it counts."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from loraloom.errors import FileFormatError, MissingFileError
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
from loraloom.studio.runs.log import LOG_NAME, EventLog, RunLog, current_events
from loraloom.studio.runs.status import RunStatus, last_changed, read_status

CREATED = RunCreated("runs/cat")
STARTED = RunStarted("runs/cat", 300, 30, 10, 4, 100)


def step(number: int) -> StepFinished:
    return StepFinished(number, 1 + (number - 1) // 30, 1 / number, 0.3 + 1 / number, {"unet": 1e-4}, 0.1 * number)


def write(folder: Path, *events: Event) -> RunLog:
    with EventLog(folder) as log:
        for event in events:
            log(event)
    return RunLog(folder)


def test_a_reader_goes_on_where_it_stopped(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    assert log.since() == ([], 0)
    write(tmp_path, CREATED, Notice("猫\u2028in \x85 two"))
    events, offset = log.since()
    assert events == [CREATED, Notice("猫\u2028in \x85 two")]
    assert offset == (tmp_path / LOG_NAME).stat().st_size
    assert log.since(offset) == ([], offset)
    write(tmp_path, STARTED, step(1))
    assert log.since(offset)[0] == [STARTED, step(1)]
    assert RunLog(tmp_path).since(offset)[0] == [STARTED, step(1)], "a position is good for any reader"


@pytest.mark.parametrize("cut", [1, 9, 40])
def test_a_torn_last_line_is_left_until_it_is_whole(cut: int, tmp_path: Path) -> None:
    log = write(tmp_path, STARTED)
    _, offset = log.since()
    line = b'{"event": "Notice", "text": "' + "größer".encode() + b'", "level": "info"}\n'
    with (tmp_path / LOG_NAME).open("ab", buffering=0) as file:
        file.write(line[:cut])
        assert log.since(offset) == ([], offset)
        file.write(line[cut:])
    assert log.since(offset) == ([Notice("größer")], offset + len(line))


def test_a_line_torn_by_a_crash_is_passed_over(tmp_path: Path) -> None:
    log = write(tmp_path, STARTED)
    _, offset = log.since()
    with (tmp_path / LOG_NAME).open("ab") as file:
        file.write(b'{"event": "StepFin')
    write(tmp_path, step(7))
    assert log.since(offset)[0] == [step(7)]


def test_a_log_that_was_cut_or_replaced_is_noticed(tmp_path: Path) -> None:
    log = write(tmp_path, STARTED, step(1), step(2))
    _, offset = log.since()
    path = tmp_path / LOG_NAME
    other = tmp_path / "other"
    other.write_bytes(path.read_bytes() + b'{"event": "Notice", "text": "x"}\n')
    other.replace(path)
    with pytest.raises(FileFormatError, match="replaced or truncated"):
        log.since(offset)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(FileFormatError, match="replaced or truncated"):
        RunLog(tmp_path).since(offset)
    path.write_bytes(b"x" * (offset + 10))  # long enough, but no line begins there
    with pytest.raises(FileFormatError, match="replaced or truncated"):
        RunLog(tmp_path).since(offset)
    path.unlink()
    with pytest.raises(FileFormatError, match="replaced or truncated"):
        RunLog(tmp_path).since(offset)


WORK = """
import sys, time
from pathlib import Path
from loraloom.events import RunFailed, RunStarted, StepFinished
from loraloom.studio.runs.control import RunLock
from loraloom.studio.runs.log import EventLog
with RunLock(Path(sys.argv[1])), EventLog(Path(sys.argv[1])) as log:
    log(RunStarted("runs/cat", 300, 30, 10, 4, 100))
    for number in range(1, 4):
        time.sleep(0.1)
        log(StepFinished(number, 1, 0.5, 0.5, {}, 0.1))
    if sys.argv[2] == "fail":
        log(RunFailed(3, "no memory", ""))
    else:
        import os
        os._exit(9)
"""


@pytest.mark.parametrize("end", ["fail", "die"])
def test_a_run_is_followed_until_it_ends_or_its_process_dies(end: str, tmp_path: Path) -> None:
    log = write(tmp_path, CREATED)
    process = subprocess.Popen([sys.executable, "-c", WORK, str(tmp_path), end])
    try:
        followed = list(log.follow())  # it is waited for, since it is queued
    finally:
        process.kill()
        process.wait()
    steps = [event.step for event in followed if isinstance(event, StepFinished)]
    assert (followed[0], steps) == (CREATED, [1, 2, 3])
    assert isinstance(followed[-1], RunFailed) == (end == "fail")
    assert read_status(tmp_path).state == ("failed" if end == "fail" else "interrupted")


DIES = """
import os, sys, time
from pathlib import Path
from loraloom.studio.runs.control import RunLock
with RunLock(Path(sys.argv[1])):
    print("has it", flush=True)
    sys.stdin.read()
    os._exit(9)
"""


def test_a_process_that_dies_before_it_tells_anything_ends_the_following(tmp_path: Path) -> None:
    log = write(tmp_path, CREATED)
    with subprocess.Popen(
        [sys.executable, "-c", DIES, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stdin
        assert process.stdout.readline() == "has it\n"
        events = log.follow()
        assert next(events) == CREATED
        process.stdin.close()
        assert list(events) == []


def test_a_folder_that_is_not_there_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="there is no folder"):
        next(RunLog(tmp_path / "nothing").follow())


def test_what_is_created_anew_supersedes_all() -> None:
    events = [CREATED, Notice("a"), STARTED, step(1), RunFailed(1, "x", ""), CREATED, Notice("b")]
    assert current_events(events) == [CREATED, Notice("b")]


def test_steps_that_come_again_without_a_word_supersede_too() -> None:
    events: list[Event] = [STARTED, *map(step, range(1, 6)), ValidationMeasured(5, 1, 0.5, {}, True), step(4)]
    assert current_events(events) == [STARTED, *map(step, range(1, 5))]


def random_step(rng: random.Random, at: int) -> list[Event]:
    events: list[Event] = [step(at)]
    if rng.random() < 0.07:
        events.append(ValidationMeasured(at, 1 + at // 30, 1 / at, {}, rng.random() < 0.7))
    if rng.random() < 0.07:
        events.append(PreviewSaved(f"{at}.png", "x", at, 1 + at // 30))
    return events


def random_events(rng: random.Random) -> list[Event]:
    """A run that is interrupted, resumed, paused and created anew, as it may be recorded."""
    events: list[Event] = [CREATED, Notice("reading"), STARTED]
    at = 0
    for _ in range(rng.randrange(1, 12)):
        taken = rng.randrange(0, 90)
        for number in range(at + 1, at + taken + 1):
            events += random_step(rng, number)
        at += taken
        match rng.randrange(5):
            case 0:
                events += [RunPaused(at), RunResumed(at)]
            case 1:
                events.append(RunPaused(at, freed=True))
            case 2:
                events.append(RunFailed(at, "no memory", "", rng.random() < 0.5))
            case 3:
                events += [RunCreated("runs/cat"), Notice("once more"), STARTED]
                at = 0
            case 4:
                events.append(RunFinished(at, 3.0, rng.random() < 0.5, 0.1))
        if rng.random() < 0.8:
            at = rng.randrange(0, at + 1)
            events += [RunTaken(), RunResumed(at), STARTED]
        elif rng.random() < 0.5:
            events.append(RunTaken())
    return events


@pytest.mark.parametrize("seed", range(12))
def test_a_status_kept_up_to_date_is_the_one_that_is_read(seed: int, tmp_path: Path) -> None:
    """Event by event, in pieces from an offset, from the whole file: one rule, one answer."""
    events = random_events(random.Random(seed))
    folder = tmp_path / "cat"
    folder.mkdir()
    log, offset = RunLog(folder), 0
    kept = RunStatus("cat", folder)
    for start in range(0, len(events), 37):
        write(folder, *events[start : start + 37])
        new, offset = log.since(offset)
        for event in new:
            kept = kept.after(event)
    assert replace(kept.seen(alive=False), changed=last_changed(folder)) == read_status(folder)
    current = log.events()
    steps = [event for event in current if isinstance(event, StepFinished)]
    best = [event for event in current if isinstance(event, ValidationMeasured) and event.is_best]
    previews = [event for event in current if isinstance(event, PreviewSaved)]
    assert kept.step == max([event.step for event in current if isinstance(event, (StepFinished, RunResumed))] or [0])
    assert kept.best_loss == (best[-1].loss if best else None)
    assert kept.last_preview == (previews[-1].path if previews else None)
    if kept.loss is not None:
        assert kept.loss == steps[-1].average_loss


def test_reading_a_log_of_a_pipe_does_not_wait(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no pipes among its files")
    os.mkfifo(tmp_path / LOG_NAME)
    with pytest.raises(FileFormatError):
        RunLog(tmp_path).since()
