"""``train`` as it is typed, from pictures to a LoRA, and what Ctrl-C leaves."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loraloom.events import RunFinished, RunStarted, StepFinished, WeightsSaved
from loraloom.formats.adapter_file import read_adapter_file
from loraloom.studio.runs.folder import RunFolder
from loraloom.studio.runs.log import RunLog
from loraloom.training.settings import TrainSettings
from work import HANGS_AFTER_S

Command = Callable[..., Any]


def arguments(files: Path, *more: str) -> list[str]:
    return [
        f"checkpoint={files / 'sd1.safetensors'}",
        f"dataset.folder={files / 'pictures'}",
        "dataset.resolution=64",
        "adapter.rank=2",
        "device=cpu",
        "name=red",
        *more,
    ]


def test_a_run_from_start_to_end(command: Command, files: Path) -> None:
    outcome = command("train", *arguments(files, "epochs=2", "preview.prompts=['a red square']", "preview.steps=2"))
    assert outcome.code == 0, outcome.err
    assert "run folder: runs" in outcome.out.replace("\\", "/")
    folder = RunFolder(Path("runs/red"))
    found = sorted(path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*") if path.is_file())
    assert {"events.jsonl", "settings.toml", "weights/red.safetensors", "weights/red-000001.safetensors"} <= set(found)
    previews = [name for name in found if name.startswith("previews/")]
    assert len(previews) == 4 and "previews/sheet.png" in previews  # before, after each epoch, and all on one sheet

    settings = TrainSettings.load(folder.path / "settings.toml")
    assert (settings.epochs, settings.adapter.rank, settings.name) == (2, 2, "red")
    assert settings.checkpoint == files / "sd1.safetensors"

    events = list(RunLog(folder.path).events())
    (started,) = (event for event in events if isinstance(event, RunStarted))
    steps = [event.step for event in events if isinstance(event, StepFinished)]
    assert steps == list(range(1, started.total_steps + 1))
    assert [event.final for event in events if isinstance(event, WeightsSaved)] == [False, True]
    assert isinstance(events[-1], RunFinished) or any(isinstance(event, RunFinished) for event in events)
    lora = read_adapter_file(folder.path / "weights" / "red.safetensors")
    assert int(lora.metadata["ss_steps"]) == started.total_steps


def test_a_settings_file_with_overrides_and_a_second_run(command: Command, files: Path) -> None:
    first = command("train", *arguments(files, "steps=1"))
    assert first.code == 0
    again = command("train", "runs/red/settings.toml", "seed=5")
    assert again.code == 0, again.err
    assert TrainSettings.load(Path("runs/red-2/settings.toml")).seed == 5
    assert sorted(path.name for path in Path("runs").iterdir()) == ["red", "red-2"]


def test_ctrl_c(files: Path, tmp_path: Path) -> None:
    """A real process: the step in progress is finished, the LoRA saved, and the exit code is 0."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if sys.platform == "win32" else {}
    process = subprocess.Popen(
        [sys.executable, "-m", "loraloom", "train", *arguments(files, "steps=100000", "saving.read_back=false")],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        **group,
    )
    try:
        log = tmp_path / "runs" / "red" / "events.jsonl"
        deadline = time.monotonic() + HANGS_AFTER_S
        while time.monotonic() < deadline and process.poll() is None:
            if log.exists() and '"StepFinished"' in log.read_text(encoding="utf-8"):
                break
            time.sleep(0.1)
        process.send_signal(signal.CTRL_BREAK_EVENT if sys.platform == "win32" else signal.SIGINT)
        output, _ = process.communicate(timeout=HANGS_AFTER_S)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert "Traceback" not in output
    assert "stopped as asked" in output
    events = list(RunLog(tmp_path / "runs" / "red").events())
    (finished,) = (event for event in events if isinstance(event, RunFinished))
    assert finished.stopped
    assert finished.step == max(event.step for event in events if isinstance(event, StepFinished))
    lora = read_adapter_file(tmp_path / "runs" / "red" / "weights" / "red.safetensors")
    assert int(lora.metadata["ss_steps"]) == finished.step
    assert re.search(r"run folder: ", output)
    assert json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
