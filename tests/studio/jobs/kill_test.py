"""Kill the worker of a job, the dispatcher or both with SIGKILL, at random, and compare with a run left in peace.

    python tests/studio/jobs/kill_test.py --count 20

What was killed is started again, and a job that was interrupted put back, as a person would. In the end the LoRA must
have the same tensors, and the curve no gap.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from job_homes import home_with_drawings, lora, run_settings
from loraloom.events import StepFinished
from loraloom.studio.demo import make_checkpoint
from loraloom.studio.home import Home
from loraloom.studio.jobs.job import Job
from loraloom.studio.jobs.queue import Queue
from loraloom.studio.runs.control import PROCESS
from loraloom.studio.runs.log import RunLog

SMALL = ("dataset.resolution=64", "adapter.rank=2", "steps=300", "saving.state_every_steps=5", "saving.precision=float")
LONGEST_S = 8.0


def say(text: str) -> None:
    """A line for whoever watches."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def start_work(home: Home) -> subprocess.Popen[bytes]:
    """``loraloom work`` on the home, quietly."""
    command = [sys.executable, "-m", "loraloom", "work", "--home", str(home.path)]
    with (home.path / "work.log").open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def worker_of(job: Job) -> int | None:
    """The process that works on the job, where there is one."""
    with suppress(OSError, ValueError):
        return int(json.loads((job.folder / PROCESS).read_text(encoding="utf-8"))["pid"])
    return None


def kill(job: Job, work: subprocess.Popen[bytes], victims: str) -> None:
    """End the worker, the dispatcher or both at once."""
    if victims in ("worker", "both") and (number := worker_of(job)) is not None:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    if victims in ("dispatcher", "both"):
        work.kill()
        work.wait()


def to_the_end(home: Home, job: Job, kills: list[tuple[float, str]]) -> None:
    """Work through the queue with these kills, each so many seconds after the last start."""
    queue = Queue(Home.open(home.path))
    work = start_work(home)
    until = time.monotonic() + (kills[0][0] if kills else 0.0)
    while queue.job(job.id).state != "done":
        if kills and time.monotonic() > until:
            state = queue.job(job.id)
            say(f"{len(kills)} left: {kills[0][1]}, {state.state}, {state.progress}")
            kill(job, work, kills.pop(0)[1])
            until = time.monotonic() + (kills[0][0] if kills else 0.0)
        if work.poll() is not None:
            work = start_work(home)
        if queue.job(job.id).state in ("interrupted", "failed", "stopped"):
            assert queue.job(job.id).state == "interrupted", queue.job(job.id)
            queue.retry(job.id)
        assert Home.open(home.path).notices == ()
        time.sleep(0.1)
    work.kill()
    work.wait()


def main() -> None:
    """Two homes, one of them in peace."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--count", type=int, default=20)
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    rng = random.Random(chosen.seed)
    kills = [(rng.uniform(0, LONGEST_S), rng.choice(("worker", "dispatcher", "both"))) for _ in range(chosen.count)]
    with tempfile.TemporaryDirectory(prefix="loraloom-kill-") as text:
        folder = Path(text)
        base = make_checkpoint(folder / "base.safetensors")
        ended = []
        for name, planned in (("peace", []), ("killed", kills)):
            home = home_with_drawings(folder / name)
            job = Queue(home).add("train", run_settings(base, "mystyle", *SMALL))
            to_the_end(home, job, list(planned))
            steps = [event.step for event in RunLog(job.folder).events() if isinstance(event, StepFinished)]
            assert steps == list(range(1, 301)), f"{name}: the curve has a gap"
            ended.append(lora(job.folder / "weights" / "mystyle.safetensors"))
            say(f"{name}: done")
        assert ended[0] == ended[1], "the LoRA differs"
    say(f"{chosen.count} kills, the same LoRA, no gap")


if __name__ == "__main__":
    main()
