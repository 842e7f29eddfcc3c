"""Scanning and searching thousands of small LoRA files.

    python benchmarks/library.py [--files 5000] [--folder /big/disk]

Copies of one LoRA of the toy, each with values, title and trigger words of its own, in 50 folders. Every command runs
in a process of its own, so its time includes the start of Python.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]

from harness import record


def write_files(folder: Path, count: int) -> int:
    """The files; returns their bytes."""
    import torch

    from loraloom.formats.tensors import write_tensors
    from random_loras import random_lora

    tensors = random_lora("sd1", 0, conv=False).file_tensors()
    first = next(iter(tensors))
    for index in range(count):
        inside = folder / f"{index % 50:02d}"
        inside.mkdir(exist_ok=True)
        said = {
            "modelspec.title": f"Style {index}",
            "modelspec.trigger_phrase": f"trigger{index}",
            "ss_base_model_version": "sd_v1",
            "ss_tag_frequency": '{"1_x": {"a cat": 3, "blue sky": 2}}',
        }
        own = {first: torch.full_like(tensors[first], index / count)}
        write_tensors(inside / f"lora-{index:05d}.safetensors", {**tensors, **own}, metadata=said)
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def timed(*arguments: object) -> tuple[float, str]:
    """Seconds and last line of a command."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "loraloom", *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return round(time.perf_counter() - began, 3), done.stdout.splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--folder", type=Path, help="where the temporary files go")
    options = parser.parse_args()
    figures: dict[str, Any] = {"what": __doc__.splitlines()[0], "files": options.files}
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="loraloom-") as name:
        folder, index = Path(name) / "models", Path(name) / "library.sqlite"
        folder.mkdir()
        figures["bytes"] = write_files(folder, options.files)
        scan = ("library", "scan", folder, "--index", index)
        figures["first_scan_s"], figures["first_scan"] = timed(*scan)
        again = [timed(*scan) for _ in range(3)]
        figures["second_scan_s"], figures["second_scan"] = sorted(again)[1]
        found = [timed("library", "search", f"trigger{options.files // 2}", "--index", index) for _ in range(3)]
        figures["search_s"], figures["search"] = sorted(found)[1]
        figures["index_bytes"] = index.stat().st_size
    record("library", figures)


if __name__ == "__main__":
    main()
