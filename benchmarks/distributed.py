"""One run in one process and in two, through torchrun: the time of a step, and how far the LoRAs are apart.

    python benchmarks/distributed.py [--size 128] [--batch 4] [--steps 20] [--threads 1] [--repeats 2]

The small checkpoint of the package, LoRA of rank 8 with dropout, on drawings of two shapes with regularization images;
gloo on the CPU. Both get the same number of threads for each process. The runs take turns. Times are medians over the
steps of ``events.jsonl``, without the first two.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent)]

import torch
from harness import record, summary
from PIL import Image

from loraloom.formats.tensors import open_tensors
from loraloom.studio.demo import make_checkpoint

WARMUP = 2
"""Steps of each run that are not counted."""


def draw_pictures(folder: Path, size: int) -> None:
    """Eight training pictures in two shapes and four regularization images."""
    for number in range(12):
        kind = "train/1_sks thing" if number < 8 else "regularization/1_thing"
        shape = (size, size * 3 // 2) if number % 4 == 1 else (size, size)
        noise = torch.rand(6, 6, 3, generator=torch.Generator().manual_seed(number)).mul(255).byte().numpy()
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).resize(shape).save(folder / kind / f"{number}.png")
        (folder / kind / f"{number}.txt").write_text(f"a thing, number {number}", encoding="utf-8")


def train(folder: Path, name: str, processes: int, options: argparse.Namespace) -> Path:
    """The run folder of ``loraloom train`` in so many processes."""
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    settings = [
        f"checkpoint={folder / 'base.safetensors'}",
        f"dataset.folder={folder / 'train'}",
        f"dataset.regularization_folder={folder / 'regularization'}",
        f"dataset.resolution={options.size}",
        f"output={folder / 'runs'}",
        f"name={name}",
        f"batch_size={options.batch}",
        f"steps={options.steps}",
        "adapter.rank=8",
        "adapter.dropout=0.1",
        "optimizer.lr=1e-4",
        "saving.precision=float",
        "saving.every_epochs=0",
        "saving.state=false",
        "device=cpu",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    subprocess.run([*command, "loraloom", "train", *settings], env=environment, check=True, capture_output=True)
    return folder / "runs" / name


def step_seconds(run: Path) -> list[float]:
    """Seconds of every step that counts."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return [event["seconds"] for event in events if event["event"] == "StepFinished"][WARMUP:]


def furthest(first: Path, second: Path) -> tuple[float, float]:
    """(largest difference of a weight, largest weight) of the LoRAs of two runs."""
    one, two = (open_tensors(run / "weights" / f"{run.name}.safetensors") for run in (first, second))
    names = [name for name in one if not name.endswith("alpha")]
    return (
        max(float((one[name].double() - two[name].double()).abs().max()) for name in names),
        max(float(one[name].abs().max()) for name in names),
    )


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {"1 process": [], "2 processes": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_checkpoint(folder / "base.safetensors")
        draw_pictures(folder, options.size)
        for turn in range(options.repeats):
            alone, together = train(folder, f"one{turn}", 1, options), train(folder, f"two{turn}", 2, options)
            seconds["1 process"] += step_seconds(alone)
            seconds["2 processes"] += step_seconds(together)
        difference, largest = furthest(alone, together)
    record(
        "distributed",
        {
            "what": (__doc__ or "").partition("\n")[0],
            "settings": vars(options),
            "step": summary(seconds, against="1 process"),
            "largest_difference_of_a_weight": difference,
            "largest_weight": round(largest, 5),
            "load": [round(number, 1) for number in os.getloadavg()],
        },
    )


if __name__ == "__main__":
    main()
