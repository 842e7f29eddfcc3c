"""``runs``, ``pause``, ``resume``, ``stop``, ``train --resume`` and ``--branch`` as they are typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loraloom.events import StepFinished
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
        "saving.precision=float",
        *more,
    ]


def lora(name: str) -> dict[str, torch.Tensor]:
    return load_file(Path("runs") / name / "weights" / "red.safetensors")


def test_finished_then_longer_then_branched(command: Command, files: Path) -> None:
    flat = "lr_schedule.name=constant"
    assert command("train", *arguments(files, "steps=6", flat)).code == 0
    assert command("train", *arguments(files, "steps=4", "saving.state_every_steps=2", flat)).code == 0
    again = command("train", "--resume", "red-2")
    assert again.code == 1 and "finished after 4 steps" in again.err
    longer = command("train", "--resume", "red-2", "steps=6")
    assert longer.code == 0, longer.err
    whole, found = lora("red"), lora("red-2")
    assert all(torch.equal(whole[key], found[key]) for key in whole)
    folder = RunFolder(Path("runs/red-2"))
    assert [event.step for event in RunLog(folder.path).events() if isinstance(event, StepFinished)] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    assert TrainSettings.load(folder.settings_path).steps == 6
    assert TrainSettings.load(folder.path / "settings-until-step00000004.toml").steps == 4

    listed = command("runs")
    assert "red-2" in listed.out and "finished" in listed.out and "6/6" in listed.out
    (first, _) = map(json.loads, command("runs", "runs", "--json").out.splitlines())
    assert (first["name"], first["state"], first["step"]) == ("red", "finished", 6)

    other = command("train", "--resume", "red-2", "steps=8", "optimizer.lr=1")
    assert other.code == 1 and "optimizer.lr = 1.0" in other.err and "--branch" in other.err
    branched = command("train", "--branch", "red-2@4", "steps=5", "optimizer.lr=1e-3", "name=red")
    assert branched.code == 0, branched.err
    assert TrainSettings.load(Path("runs/red-3/settings.toml")).branched_from == "red-2@4"
    steps = [event.step for event in RunLog(Path("runs/red-3")).events() if isinstance(event, StepFinished)]
    assert steps == [5]


@pytest.mark.parametrize(
    ("typed", "problem"),
    [
        (["train", "--resume", "nothing"], "no run 'nothing'"),
        (["train", "--resume", "x", "--branch", "y"], "choose one of them"),
        (["train", "--resume", "x", "settings.toml"], "the settings come from the run"),
        (["train", "--force"], "--force goes with"),
        (["runs", "nowhere"], "not a folder of runs"),
        (["pause", "nothing"], "no run 'nothing'"),
        (["save", "nothing"], "no run 'nothing'"),
        (["preview", "nothing"], "no run 'nothing'"),
    ],
)
def test_mistakes(typed: list[str], problem: str, command: Command) -> None:
    outcome = command(*typed)
    assert outcome.code == 1 and problem in outcome.err


def trained(files: Path) -> subprocess.Popen[str]:
    """A process that trains a run of many steps, which has something to paint."""
    painted = ("preview.prompts=['red']", "preview.steps=1", "preview.at_start=false", "preview.every_epochs=0")
    more = ("steps=100000", "saving.every_epochs=0", "saving.read_back=false", *painted)
    return subprocess.Popen(
        [sys.executable, "-m", "loraloom", "train", *arguments(files, *more)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )


def made_at(step: int) -> list[Path]:
    """What is written where saving and painting are ordered at this step."""
    folder = Path("runs/red")
    return [
        folder / "weights" / f"red-kept-step{step:08d}.safetensors",
        folder / "previews" / f"red_s{step:08d}_00.png",
    ]


def test_paused_resumed_and_stopped_from_another_terminal(command: Command, files: Path) -> None:
    process = trained(files)

    def wait_until(state: str, step: int = 0) -> dict[str, Any]:
        deadline = time.monotonic() + HANGS_AFTER_S
        found: dict[str, Any] = {}
        while time.monotonic() < deadline and process.poll() is None:
            if Path("runs/red").exists():
                lines = command("runs", "runs", "--json").out.splitlines()
                found = json.loads(lines[0]) if lines else {}
                if found.get("state") == state and found["step"] >= step:
                    return found
            time.sleep(0.05)
        pytest.fail(f"never {state}, last: {found}")

    try:
        wait_until("running", 1)
        second = command("train", "--resume", "red")
        assert second.code == 1 and f"by process {process.pid}" in second.err
        assert command("pause", "red").code == 0
        paused = wait_until("paused")
        assert list(Path("runs/red/state").glob("step-*.safetensors"))
        time.sleep(0.3)
        assert wait_until("paused")["step"] == paused["step"]
        assert command("save", "red").code == 0 and command("preview", "red").code == 0
        while not all(path.exists() for path in made_at(paused["step"])):
            wait_until("paused")
        assert command("resume", "red").code == 0
        wait_until("running", paused["step"] + 1)
        assert command("stop", "red").code == 0
        output, _ = process.communicate(timeout=HANGS_AFTER_S)
    finally:
        process.kill()
    assert process.returncode == 0 and "stopped as asked" in output, output
    (stopped,) = map(json.loads, command("runs", "runs", "--json").out.splitlines())
    assert stopped["state"] == "stopped"
    assert command("resume", "red", "--help").code == 0
    assert command("stop", "red").code == 1
