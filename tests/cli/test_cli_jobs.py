"""``jobs``, ``work`` and ``train --queue`` as they are typed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loraloom.studio.home import Home
from loraloom.studio.jobs.queue import Queue
from waiting import until
from work import HANGS_AFTER_S

Command = Callable[..., Any]


def queued(command: Command, files: Path, name: str, *more: str) -> Any:
    result = command(
        "train",
        "--queue",
        f"checkpoint={files / 'sd1.safetensors'}",
        f"dataset.folder={files / 'pictures'}",
        f"name={name}",
        "device=cpu",
        "dataset.resolution=64",
        "adapter.rank=2",
        *more,
    )
    assert result.code == 0, result.err
    return result


def listed(command: Command) -> dict[str, dict[str, Any]]:
    lines = command("jobs", "--json").out.splitlines()
    return {job["title"]: job for job in map(json.loads, lines)}


def test_the_queue_in_a_terminal(command: Command, files: Path) -> None:
    here = Path.cwd()
    said = queued(command, files, "red").out
    assert "job 1: red is number 1 of those that wait" in said and "`loraloom work` does" in said
    for name in ("green", "blue"):
        queued(command, files, name)
    assert listed(command)["blue"]["folder"] == str(here / "runs" / "blue")
    assert "job 3 (blue) is number 1" in command("jobs", "move", "3", "--before", "1").out
    assert "is held" in command("jobs", "hold", "2").out
    assert [(job["title"], job["held"]) for job in listed(command).values()] == [
        ("blue", False),
        ("red", False),
        ("green", True),
    ]
    shown = command("jobs").out
    assert "queued, held" in shown and shown.index("blue") < shown.index("red") < shown.index("green")
    assert "waits for its turn" in command("jobs", "release", "2").out
    assert "is stopped" in command("jobs", "cancel", "2").out
    assert "waits for its turn" in command("jobs", "retry", "2").out
    assert listed(command)["green"]["position"] == 1
    command("jobs", "cancel", "2")
    assert "its files stay" in command("jobs", "forget", "2").out
    assert "green" not in listed(command) and (here / "runs" / "green" / "settings.toml").is_file()
    assert "printed nothing" in command("jobs", "log", "1").out
    assert "nothing more is started" in command("jobs", "stop-after").out
    assert "nothing more is started" in command("jobs").out
    assert command("jobs", "stop-after", "--off").out == "the queue goes on\n"


def test_what_cannot_be_is_said(command: Command, files: Path, tmp_path: Path) -> None:
    missing = command("jobs")
    assert missing.code == 1 and "there is no queue in" in missing.err and "--home" in missing.err
    assert not (Path.cwd() / "studio.db").exists(), "a look makes nothing"
    queued(command, files, "red")
    for arguments, words in (
        (("jobs", "hold", "7"), "unknown job '7'"),
        (("jobs", "retry", "x"), "valid integer"),
        (("jobs", "forget", "1"), "job 1 is queued"),
        (("train", "--queue", "--plot-lr", "checkpoint=x", "dataset.folder=x"), "--plot-lr"),
        (("train", "--home", "x", "checkpoint=x", "dataset.folder=x"), "--home goes with --queue"),
        (("train", "--resume", "red", "--queue", "steps=3"), "keeps its settings"),
        (("train", "--queue", "checkpoint=x", "dataset.folder=x", "adapter.rank=0"), "rank"),
    ):
        result = command(*arguments)
        assert result.code in (1, 2) and words in result.err, result.err
    assert list(listed(command)) == ["red"]
    (tmp_path / "closed").write_text("", encoding="utf-8")
    closed = command("train", "--queue", "--home", str(tmp_path / "closed"), "checkpoint=x", "dataset.folder=x")
    assert closed.code == 1 and "there is a file of that name" in closed.err and "another folder" in closed.err


def test_a_run_of_the_terminal_and_another_home(command: Command, files: Path, tmp_path: Path) -> None:
    from loraloom.studio.runs.creation import create_run
    from loraloom.training.settings import TrainSettings

    settings = TrainSettings.load(None, ["checkpoint=x", "dataset.folder=x", "name=mine"])
    create_run(settings)
    assert command("train", "--resume", "mine", "--queue", "--home", str(tmp_path / "home")).code == 0
    (job,) = Queue(Home.open(tmp_path / "home")).jobs()
    assert job.title == "mine" and job.folder.samefile(Path("runs/mine"))
    queued(command, files, "blue", "--home", str(tmp_path / "home"))
    assert (tmp_path / "home" / "runs" / "blue").is_dir()


def test_every_kind_can_be_queued(command: Command, files: Path) -> None:
    base, pictures = files / "sd1.safetensors", files / "pictures"
    given = (f"checkpoint={base}", f"dataset.folder={pictures}", "name=rank", "steps=3")
    assert command("sweep", "--queue", *given, "adapter.rank=2,4").code == 0
    painted = command("dataset", "class-images", base, pictures, "a cat", "steps=3", "--count", "2", "--queue")
    assert painted.code == 0, painted.err
    assert command("demo", "--queue", "--epochs", "1", "--character").code == 0
    jobs = listed(command)
    assert {title: job["kind"] for title, job in jobs.items()} == {
        "rank: adapter.rank=2,4": "sweep",
        "a cat": "class_images",
        "a character": "demo",
    }
    told = {title: json.loads((Path(job["folder"]) / "job.json").read_text("utf-8")) for title, job in jobs.items()}
    sweep = told["rank: adapter.rank=2,4"]["settings"]
    assert sweep["train"]["steps"] == 3 and sweep["train"]["output"] == "runs" and sweep["axes"] == ["adapter.rank=2,4"]
    assert told["a cat"]["settings"]["paint"]["steps"] == 3 and told["a cat"]["settings"]["count"] == 2
    assert told["a cat"]["settings"]["dataset"]["folder"] == str(pictures)
    assert told["a character"]["settings"] == {"character": True, "epochs": 1}
    for arguments, words in (
        (("sweep", "--queue", *given), "several values"),
        (("sweep", "--queue", *given, "adapter.rank=2,zero"), "rank"),
        (("sweep", "--queue", "--workers", "2", *given, "adapter.rank=2,4"), "--workers"),
        (("demo", "here", "--queue"), "folder of its own"),
        (("demo", "--home", "here"), "--home goes with --queue"),
    ):
        result = command(*arguments)
        assert result.code == 1 and words in result.err, result.err
    assert len(listed(command)) == 3


def test_a_failure_is_shown_with_its_hint(command: Command, files: Path) -> None:
    said = queued(command, files, "red", "checkpoint=gone.safetensors").err
    assert "gone.safetensors is not there now" in said and "pictures" not in said
    done = subprocess.run(
        [sys.executable, "-m", "loraloom", "work", "--until-done"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "job 1 (red): failed" in done.stdout and "gone.safetensors" in done.stdout
    shown = command("jobs").out
    assert "failed" in shown and "gone.safetensors" in shown
    assert "gone.safetensors" in command("jobs", "log", "1", "--lines", "3").out


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_ctrl_c_ends_the_work_and_leaves_the_jobs(command: Command, files: Path) -> None:
    queued(command, files, "red", "steps=5000", "saving.every_epochs=0", "saving.read_back=false")
    queue = Queue(Home.open(Path.cwd()))
    work = subprocess.Popen(
        [sys.executable, "-m", "loraloom", "work"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )

    def has_two_steps() -> bool:
        job = queue.job(1)
        assert work.poll() is None, (job.state, job.output())
        return job.state == "running" and job.progress is not None and job.progress.done >= 2

    until(has_two_steps)
    assert queue.is_worked_through
    os.kill(work.pid, signal.SIGINT)
    out, err = work.communicate(timeout=HANGS_AFTER_S)
    assert work.returncode == 130 and not queue.is_worked_through
    assert "job 1 (red): running" in out and "job 1 (red) goes on in its own process" in out
    assert "jobs that run go on" in err
    assert queue.job(1).state == "running"
    assert "ends after the step in progress" in command("jobs", "cancel", "1", "--no-save").out
    until(lambda: queue.job(1).is_over)
    assert queue.job(1).state == "stopped"
