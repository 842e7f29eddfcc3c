"""Full fine-tuning against a LoRA on the same model, pictures and steps: time per step, memory, size of the file.

    python benchmarks/full_or_lora.py [--checkpoint FILE --resolution 256] [--steps N]

Left out, the checkpoint is the small one that comes with the package, at 128 px. Every run has a process of its own;
they take turns. The step's median is that of all steps but the first three; memory is the process's own at its peak.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch
from harness import in_subprocess, record

from loraloom.events import StepFinished
from loraloom.hardware import PeakMemory
from loraloom.studio.demo import STYLE, copy_dataset, make_checkpoint
from loraloom.studio.runs.training import run_training
from loraloom.training.settings import TrainSettings

RIVALS = {
    "lora, rank 16": ["method=adapter", "optimizer.lr=1e-4"],
    "lora, rank 16, convolutions": ["method=adapter", "optimizer.lr=1e-4", "adapter.conv_rank=16"],
    "full": ["method=full", "optimizer.lr=2e-6"],
}
WARMUP = 3


def measure(
    rival: str, checkpoint: Path, folder: Path, resolution: int, steps: int, batch_size: int
) -> dict[str, float]:
    """Train, and say what it took."""
    torch.set_num_threads(1)
    seconds: list[float] = []
    settings = TrainSettings.load(
        None,
        [
            f"checkpoint='{checkpoint}'",
            f"output='{folder / 'runs'}'",
            f"dataset.folder='{folder / 'pictures'}'",
            f"dataset.resolution={resolution}",
            f"batch_size={batch_size}",
            f"steps={steps + WARMUP}",
            "device=cpu",
            "saving.every_epochs=0",
            "saving.state=false",
            *RIVALS[rival],
        ],
    )
    watch = PeakMemory(torch.device("cpu"))
    with watch:
        result = run_training(
            settings,
            listener=lambda event: seconds.append(event.seconds) if isinstance(event, StepFinished) else None,
        )
    assert result.lora is not None
    return {
        "step_s": statistics.median(seconds[WARMUP:]),
        "peak_mib": round((watch.peak or 0) / 2**20),
        "file_mib": round(result.lora.stat().st_size / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--name", default="full_or_lora", help="of the file of results")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        rival, folder = arguments.child
        sizes = (arguments.resolution, arguments.steps, arguments.batch_size)
        print(json.dumps(measure(rival, arguments.checkpoint, Path(folder), *sizes)))
        return
    found: dict[str, list[dict[str, float]]] = {rival: [] for rival in RIVALS}
    with tempfile.TemporaryDirectory() as work:
        checkpoint = arguments.checkpoint or make_checkpoint(Path(work) / "base.safetensors")
        copy_dataset(STYLE, Path(work) / "pictures")
        for _ in range(arguments.rounds):
            for rival in RIVALS:
                options = [f"--{name}={getattr(arguments, name.replace('-', '_'))}" for name in ("resolution", "steps")]
                options += [
                    f"--batch-size={arguments.batch_size}",
                    f"--checkpoint={checkpoint}",
                    "--child",
                    rival,
                    work,
                ]
                found[rival].append(in_subprocess(Path(__file__), *options))
    figures = {
        rival: {
            "step_s": round(min(turn["step_s"] for turn in turns), 4),
            "peak_mib": max(turn["peak_mib"] for turn in turns),
            "file_mib": turns[0]["file_mib"],
        }
        for rival, turns in found.items()
    }
    for rival in figures:
        figures[rival]["time_of_full"] = round(figures[rival]["step_s"] / figures["full"]["step_s"], 3)
    what = {"what": __doc__.splitlines()[0], "resolution": arguments.resolution, "batch_size": arguments.batch_size}
    record(arguments.name, {**what, "rivals": figures})


if __name__ == "__main__":
    main()
