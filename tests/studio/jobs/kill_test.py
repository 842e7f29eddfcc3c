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
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Kill:
    """Who is killed, and when: some seconds after the last start, or some steps after the last kill."""

    victims: str
    seconds: float = 0.0
    steps: int = 0


def random_kill(rng: random.Random) -> Kill:
    """While a process starts, or in the middle of its steps."""
    victims = rng.choice(("worker", "dispatcher", "both"))
    if rng.random() < 0.4:
        return Kill(victims, seconds=rng.uniform(0.0, LONGEST_S))
    return Kill(victims, steps=rng.randint(1, 9))


class Killer:
    """Carries out the kills of one home, each when it is due."""

    def __init__(self, kills: list[Kill]) -> None:
        self._left = list(kills)
        self._since = time.monotonic()
        self._step = 0

    def look(self, job: Job, work: subprocess.Popen[bytes]) -> None:
        """Kill, if it is time."""
        step = job.progress.done if job.progress is not None else 0
        if not self._left or time.monotonic() - self._since < self._left[0].seconds:
            return
        if self._left[0].steps and (job.state != "running" or step < self._step + self._left[0].steps):
            return
        due = self._left.pop(0)
        say(f"{due.victims} killed, {job.state}, step {step}; {len(self._left)} left")
        kill(job, work, due.victims)
        self._since, self._step = time.monotonic(), step


def to_the_end(home: Home, job: Job, killer: Killer) -> None:
    """Work through the queue with these kills."""
    queue = Queue(Home.open(home.path))
    work = start_work(home)
    while (now := queue.job(job.id)).state != "done":
        killer.look(now, work)
        if work.poll() is not None:
            work = start_work(home)
        if now.is_over:
            assert now.state == "interrupted", now
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
    kills = [random_kill(rng) for _ in range(chosen.count)]
    with tempfile.TemporaryDirectory(prefix="loraloom-kill-") as text:
        folder = Path(text)
        base = make_checkpoint(folder / "base.safetensors")
        ended = []
        for name, planned in (("peace", list[Kill]()), ("killed", kills)):
            home = home_with_drawings(folder / name)
            job = Queue(home).add("train", run_settings(base, "mystyle", *SMALL))
            to_the_end(home, job, Killer(planned))
            steps = [event.step for event in RunLog(job.folder).events() if isinstance(event, StepFinished)]
            assert steps == list(range(1, 301)), f"{name}: the curve has a gap"
            ended.append(lora(job.folder / "weights" / "mystyle.safetensors"))
            say(f"{name}: done")
        assert ended[0] == ended[1], "the LoRA differs"
    say(f"{chosen.count} kills, the same LoRA, no gap")


if __name__ == "__main__":
    main()
