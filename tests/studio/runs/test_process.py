"""The example of docs/python.md: one process trains while another follows its log, pauses, resumes and stops it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from loraloom.control import Request
from loraloom.errors import FileFormatError, MissingFileError, ResumeError
from loraloom.events import RunFinished, RunPaused, RunResumed, RunStarted, StateSaved, StepFinished
from loraloom.studio.demo import make_checkpoint
from loraloom.studio.runs import control
from loraloom.studio.runs.control import RunLock, ask
from loraloom.studio.runs.creation import create_run
from loraloom.studio.runs.log import EventLog, RunLog
from loraloom.studio.runs.process import OUTPUT_NAME, start_run
from loraloom.studio.runs.status import read_status
from loraloom.training.settings import TrainSettings
from work import HANGS_AFTER_S

ROOT = Path(__file__).parents[3]
PICTURES = ROOT / "tests" / "data_files" / "embedded_base" / "openmoji"


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """Settings of a run that would take hours, on three drawings and the embedded base."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for path in sorted(PICTURES.glob("*.png"))[:3]:
        (pictures / path.name).write_bytes(path.read_bytes())
    file = tmp_path / "mystyle.toml"
    given = [
        f"checkpoint='{make_checkpoint(tmp_path / 'base.safetensors')}'",
        f"dataset.folder='{pictures}'",
        f"output='{tmp_path / 'runs'}'",
        "name=mystyle",
        "device=cpu",
        "steps=20000",
        "saving.every_epochs=0",  # else the room for all these files is asked for before the first step
        "saving.read_back=false",
    ]
    file.write_text(TrainSettings.load(None, given).to_toml(), encoding="utf-8")
    return file


def example() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.DOTALL)
    return str(code)


def test_the_example_of_the_docs(settings: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Every wish is heard within a step: whatever the log tells when it was made, the run takes one more at most."""
    run = settings.parent / "runs" / "mystyle"
    last: list[int] = []

    def ask_and_look(folder: Path, request: Request) -> None:
        ask(folder, request)
        last.append(read_status(run).step)

    monkeypatch.setattr(control, "ask", ask_and_look)
    monkeypatch.chdir(settings.parent)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert len(example().split("\n\n")[-1].splitlines()) == 11
    exec(compile(example(), "docs/python.md", "exec"), {})
    assert capsys.readouterr().out == "ended with 0\n"
    events = RunLog(run).recorded()
    (paused,) = [event.step for event in events if isinstance(event, RunPaused)]
    (resumed,) = [event.step for event in events if isinstance(event, RunResumed)]
    (finished,) = [event for event in events if isinstance(event, RunFinished)]
    assert 3 <= paused == resumed <= last[0] + 1
    assert last[1] == paused, "it waited until it was asked to go on"
    assert finished.stopped and paused <= last[2] <= finished.step <= last[2] + 1
    assert [event.step for event in events if isinstance(event, StepFinished)] == list(range(1, finished.step + 1))
    assert read_status(run).state == "stopped" and (run / "weights" / "mystyle.safetensors").is_file()
    assert (run / OUTPUT_NAME).read_text(encoding="utf-8") == ""


START = """
import sys
from pathlib import Path
from loraloom.studio.runs.process import start_run
print(start_run(Path(sys.argv[1])).pid, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_a_run_outlives_whoever_started_it_and_a_signal_ends_it_well(settings: Path) -> None:
    run = create_run(TrainSettings.load(settings)).path
    starter = [sys.executable, "-c", START, str(run)]
    pid = int(subprocess.run(starter, capture_output=True, text=True, check=True, timeout=HANGS_AFTER_S).stdout)
    with pytest.raises(ResumeError, match="is being trained already"):
        start_run(run)
    for event in RunLog(run).follow():
        if isinstance(event, StepFinished) and event.step == 2:
            os.kill(pid, signal.SIGTERM)
    assert read_status(run).state == "stopped"
    assert [event for event in RunLog(run).events() if isinstance(event, (RunStarted, StateSaved))]


def test_what_keeps_a_run_from_being_trained_is_an_error_here(settings: Path) -> None:
    with pytest.raises(MissingFileError, match="nothing"):
        start_run(settings.parent / "nothing")
    assert not (settings.parent / "nothing").exists()

    run = create_run(TrainSettings.load(settings)).path
    with EventLog(run) as log:
        log(RunFinished(7, 2.5, stopped=False, average_loss=0.3))
    with pytest.raises(ResumeError, match="is finished after 7 steps"):
        start_run(run)

    (run / "settings.toml").write_text("name = \n", encoding="utf-8")
    with pytest.raises(FileFormatError, match="is not valid TOML"):
        start_run(run)
    assert not (run / OUTPUT_NAME).exists()


def test_of_two_that_are_started_at_once_the_later_is_refused(settings: Path) -> None:
    run = create_run(TrainSettings.load(settings)).path
    held, done = threading.Event(), threading.Event()

    def be_quicker() -> None:
        while not (run / OUTPUT_NAME).exists():
            time.sleep(0.001)
        with RunLock(run):
            held.set()
            done.wait(HANGS_AFTER_S)

    other = threading.Thread(target=be_quicker, daemon=True)
    other.start()
    try:
        with pytest.raises(ResumeError, match="is being trained already"):
            start_run(run)
        assert held.is_set()
    finally:
        done.set()
        other.join(HANGS_AFTER_S)
    assert "by process" in (run / OUTPUT_NAME).read_text(encoding="utf-8")
    assert read_status(run).state == "queued"


def test_what_a_process_fails_of_is_in_its_log_and_its_output(settings: Path) -> None:
    given = TrainSettings.load(settings).model_copy(update={"checkpoint": settings.parent / "no.ckpt"})
    run = create_run(given).path
    process = start_run(run)
    assert process.wait(HANGS_AFTER_S) == 1
    status = read_status(run)
    assert status.state == "failed" and "no.ckpt" in status.problem
    assert "no.ckpt" in (run / OUTPUT_NAME).read_text(encoding="utf-8")
