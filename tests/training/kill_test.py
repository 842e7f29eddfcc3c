"""Kill a training run at random moments with SIGKILL, resume it each time, and compare with a run left in peace.

    python tests/training/kill_test.py --count 20

Saves, states and previews are made every few steps, so that many of the kills fall into a write. Each life of the run
is a fork of this process, which has imported everything: else most of the time would go by with importing it again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a fork has none of its parent's other threads

import torch
from PIL import Image
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))

import loraloom.studio.runs.training
import loraloom.training.trainer  # noqa: F401
from loraloom.cli.main import main as loraloom_main
from loraloom.formats.tensors import write_tensors
from toys import toy_tensors


def material(folder: Path, steps: int) -> list[str]:
    """A toy checkpoint and three pictures; returns the settings of a run."""
    write_tensors(folder / "toy.safetensors", toy_tensors("sd1"))
    pictures = folder / "pictures" / "1_squares"
    pictures.mkdir(parents=True)
    for index, colour in enumerate(("#d02020", "#2030c0", "#30a060")):
        Image.new("RGB", (64, 64), colour).save(pictures / f"{index}.png")
    return [
        f"checkpoint={folder / 'toy.safetensors'}",
        f"dataset.folder={folder / 'pictures'}",
        "dataset.resolution=64",
        "saving.read_back=false",
        "dataset.flip=true",
        "adapter.rank=2",
        "adapter.dropout=0.1",
        f"steps={steps}",
        "device=cpu",
        "optimizer.lr=1e-3",
        "ema.enabled=true",
        "ema.save=both",
        "saving.precision=float",
        "saving.every_steps=10",
        "saving.every_epochs=0",
        "saving.state_every_steps=2",
        "saving.keep_last=3",
        "preview.prompts=['a square']",
        "preview.steps=1",
        "preview.every_epochs=0",
        "preview.every_steps=50",
    ]


def say(text: str) -> None:
    """A line for whoever watches."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def start(arguments: list[str], folder: Path) -> BaseProcess:
    """``loraloom train`` in ``folder``, quietly."""
    process = multiprocessing.get_context("fork").Process(target=_train, args=(arguments, folder))
    process.start()
    return process


def _train(arguments: list[str], folder: Path) -> None:
    with (folder / "output.log").open("ab") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    sys.argv = ["loraloom", "train", *arguments]
    loraloom_main()


def wait_for_steps(run: Path, process: BaseProcess, seen: int) -> None:
    """Until the log has grown by the step that makes the process one that trains."""
    log = run / "events.jsonl"
    while process.is_alive() and (not log.exists() or log.read_bytes().count(b'"StepFinished"') <= seen):
        time.sleep(0.02)


def main() -> int:
    """Exit code 0 when the files are identical."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--steps", type=int, default=240, help="length of the run")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="loraloom-kill-") as temporary:
        folder = Path(temporary)
        settings = material(folder, options.steps)
        began = time.monotonic()
        whole = start([*settings, "name=whole"], folder)
        whole.join()
        if whole.exitcode != 0:
            say((folder / "output.log").read_text(encoding="utf-8"))
            return 1
        say(f"{options.steps} steps without a kill: {time.monotonic() - began:.1f} s")
        records = [json.loads(line) for line in (folder / "runs/whole/events.jsonl").read_text("utf-8").splitlines()]
        seconds = sum(record["seconds"] for record in records if record["event"] == "StepFinished")
        run, log, kills, lost = folder / "runs" / "lora", folder / "runs" / "lora" / "events.jsonl", 0, []
        arguments = settings
        while True:
            seen = log.read_bytes().count(b'"StepFinished"') if log.exists() else 0
            process = start(arguments, folder)
            if kills < options.count:
                wait_for_steps(run, process, seen)
                # As long a life on average as spreads the kills over the run, the first ones into its first steps.
                process.join(moments.uniform(0, 1.5 * seconds / options.count))
                if process.is_alive():
                    process.kill()
                    kills += 1
            process.join()
            code = process.exitcode
            if code == 0:
                break
            if code != -9:
                say((folder / "output.log").read_text(encoding="utf-8"))
                return 1
            states = sorted((run / "state").glob("step-*.safetensors"))
            steps = [
                json.loads(line)["step"]
                for line in log.read_text("utf-8").splitlines()
                if '"StepFinished"' in line and line.endswith("}")
            ]
            kept = int(states[-1].stem.removeprefix("step-")) if states else 0
            lost.append(max(0, steps[-1] - kept))
            say(f"kill {kills}: after step {steps[-1]}, newest state {kept}")
            arguments = ["--resume", "lora"]
        different = compare(folder / "runs" / "whole", run)
        leftovers = [path.name for path in run.rglob(".tmp-*")]
        say(f"{kills} kills, {sum(lost)} steps trained again, {len(leftovers)} unfinished temporary files left")
        say("different: " + ", ".join(different) if different else "all files identical, tensor for tensor")
        return 1 if different else 0


def compare(whole: Path, run: Path) -> list[str]:
    """Names of LoRA files that are missing or differ, and previews that differ."""
    different = []
    expected = {path.name.replace("whole", "lora", 1): path for path in (whole / "weights").glob("*.safetensors")}
    found = {path.name: path for path in (run / "weights").glob("*.safetensors")}
    for name in sorted(expected.keys() | found.keys()):
        if name not in expected or name not in found:
            different.append(f"{name} (there only once)")
            continue
        one, other = load_file(expected[name]), load_file(found[name])
        if one.keys() != other.keys() or not all(torch.equal(one[key], other[key]) for key in one):
            different.append(name)
    for path in (whole / "previews").glob("whole_*.png"):
        other_path = run / "previews" / path.name.replace("whole", "lora", 1)
        if other_path.exists() and Image.open(path).tobytes() != Image.open(other_path).tobytes():
            different.append(path.name)
    return different


if __name__ == "__main__":
    sys.exit(main())
