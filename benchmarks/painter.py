"""What a model that stays is worth: the second picture of a painter against one that reads its checkpoint anew.

    python benchmarks/painter.py [CHECKPOINT] [--steps 20] [--repeats 5]

Without a checkpoint the one that comes with the package is used, at 128 x 128 pixels. A "fresh process" is a new
interpreter that paints one picture and ends, as ``loraloom generate`` does. Writes ``results/painter.json``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import interleaved, record, summary

from loraloom.generation.settings import GenerateSettings
from loraloom.studio.demo import make_checkpoint
from loraloom.studio.images import generate_images
from loraloom.studio.painter import Painter


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", nargs="?", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        checkpoint = options.checkpoint or make_checkpoint(folder / "base.safetensors")
        size = {} if options.checkpoint else {"width": 128, "height": 128}
        told = {
            "prompt": "a red heart",
            "steps": options.steps,
            "seed": 1,
            "output_folder": str(folder / "out"),
            **size,
        }
        settings = GenerateSettings.parse(told)
        painter = Painter()
        words = [sys.executable, "-m", "loraloom", "generate", str(checkpoint)]
        words += [told["prompt"], *(f"{name}={value}" for name, value in told.items() if name != "prompt")]
        seconds = interleaved(
            {
                "fresh process": lambda: subprocess.run(words, check=True, capture_output=True),
                "fresh painter": lambda: generate_images(checkpoint, settings),
                "kept": lambda: generate_images(checkpoint, settings, painter=painter),
            },
            repeats=options.repeats,
        )
    shown = summary(seconds, against="fresh process")
    record("painter", {"checkpoint": checkpoint.name, "steps": options.steps, "loads": painter.loads, "seconds": shown})
    for name, values in shown.items():
        print(f"{name}: {values['median_s']:.3f} s, {values['ratio']:.1f} times as fast as a fresh process")


if __name__ == "__main__":
    main()
