"""How long starting takes: the help text, the import, and the way to a loaded fp16 SD 1.5 checkpoint.

    python benchmarks/startup.py [--repeats 10] [--folder /big/disk]

Every figure is a whole process, from its start to its end, imports included. A full-size checkpoint of random weights
in the real layout is written to a temporary folder (2 GB).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from full_size_checkpoints import write
from harness import interleaved, record, summary

LOAD = """
import sys
from pathlib import Path
import torch
from loraloom.models.loaded import load_model
model = load_model(Path(sys.argv[1]), device=torch.device("cpu"), keep_file_precision={keep})
assert len(model.parts) == 3
"""


def commands(checkpoint: Path) -> dict[str, list[str]]:
    """What is timed, by name."""
    return {
        "python alone": ["-c", "pass"],
        "loraloom --help": ["-m", "loraloom", "--help"],
        "import loraloom": ["-c", "import loraloom"],
        "import torch": ["-c", "import torch"],
        "load SD 1.5, fp16 as stored": ["-c", LOAD.format(keep=True), str(checkpoint)],
        "load SD 1.5, fp16 to fp32": ["-c", LOAD.format(keep=False), str(checkpoint)],
    }


def run(arguments: list[str]) -> None:
    """One process, whose output goes nowhere."""
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def processor_seconds(arguments: list[str]) -> float:
    """Processor time of one process, which does not depend on what else the machine does."""
    before = os.times()
    run(arguments)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="where the temporary file goes (2 GB)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="loraloom-") as folder:
        checkpoint = Path(folder) / "sd15.safetensors"
        write("sd15-fp16", checkpoint, checkpoint)
        timed = commands(checkpoint)
        seconds = interleaved(
            {name: partial(run, arguments) for name, arguments in timed.items()}, repeats=options.repeats
        )
        figures = summary(seconds, against="python alone")
        for name, arguments in timed.items():
            del figures[name]["ratio"]
            figures[name]["processor_s"] = round(min(processor_seconds(arguments) for _ in range(3)), 4)
    record("startup", {"what": __doc__.splitlines()[0], "processes": figures})


if __name__ == "__main__":
    main()
