"""A checkpoint larger than the memory: what opening, inspecting, indexing and merging it takes.

    python benchmarks/large_checkpoint.py [--gigabytes 30] [--folder /disk]

SDXL's keys and shapes in float64, and averaged copies until the file has the size; all zeros, in a sparse file that
takes a few kilobytes of the disk. Every command runs in a process of its own. ``counted``: the most memory that the
system counts as the process's beyond what importing takes (private and writable, touched or not; /proc, Linux only);
``own``: anonymous memory that was really used; ``resident``: with the pages of the mapped file, which the system can
drop. The merge writes float16: a quarter of the size, really.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]

from harness import record

GIGABYTE = 10**9
_FIELDS = {"counted": "VmData", "own": "RssAnon", "resident": "VmRSS"}


def write_sparse(path: Path, nbytes: int) -> int:
    """A checkpoint of about that size; returns its real size."""
    import torch

    from loraloom.formats.entries import TensorInfo
    from loraloom.formats.safetensors_file import safetensors_header
    from loraloom.models.sdxl import SDXL

    infos = {name: TensorInfo(torch.float64, shape) for name, shape in SDXL().full_size().items()}
    total, largest = sum(info.nbytes for info in infos.values()), (2**27,)
    for number in range(max(0, nbytes - total) // 2**30):
        infos[f"model_ema.copy{number}"] = TensorInfo(torch.float64, largest)
    header = safetensors_header(infos, {})
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + sum(info.nbytes for info in infos.values()))
    return path.stat().st_size


def write_lora(path: Path) -> None:
    """A random LoRA of rank 8 on the default layers."""
    from loraloom.adapters.attach import create_adapters
    from loraloom.adapters.settings import AdapterSettings
    from loraloom.formats.tensors import write_tensors
    from loraloom.models.sdxl import SDXL

    targets = [target for target in SDXL().all_targets() if not target.extended and target.part == "unet"]
    adapters = create_adapters(AdapterSettings(rank=8), targets[:200], seed=0)
    for parameter in adapters.parameters():
        parameter.data.normal_(std=0.02)
    write_tensors(path, adapters.requires_grad_(False).file_tensors())


def measured(command: str, folder: Path) -> dict[str, Any]:
    """Run one command and watch the memory of this process."""
    from loraloom.adapters.strength import LoraStrength
    from loraloom.formats.tensors import open_tensors
    from loraloom.studio import library
    from loraloom.weights.inspect import inspect_file
    from loraloom.weights.merge import LoraWeight, merge

    base, models = folder / "models" / "base.safetensors", folder / "models"
    lora, merged = folder / "lora.safetensors", folder / "merged.safetensors"
    commands: dict[str, Callable[[], object]] = {
        "open": lambda: open_tensors(base),
        "inspect": lambda: inspect_file(base),
        "library scan": lambda: library.scan([models], index=folder / "index.sqlite"),
        "merge": lambda: merge(base, [LoraWeight(lora, LoraStrength(0.7))], merged, precision="fp16"),
    }
    before, peak, done = _memory(), _memory(), threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            for name, value in _memory().items():
                peak[name] = max(peak[name], value)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    kept = commands[command]()
    done.set()
    watcher.join()
    peak = {name: max(value, peak[name]) for name, value in _memory().items()}
    del kept
    return {f"{name}_mib": round((peak[name] - before[name]) / 2**20) for name in _FIELDS}


def _memory() -> dict[str, int]:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return {name: 1024 * int(re.findall(rf"{field}:\s+(\d+)", status)[0]) for name, field in _FIELDS.items()}


def main() -> None:
    """Write the files, run every command in a process of its own, record the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=int, default=30)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measured(arguments.only[0], Path(arguments.only[1]))))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        (folder / "models").mkdir()
        size = write_sparse(folder / "models" / "base.safetensors", arguments.gigabytes * GIGABYTE)
        write_lora(folder / "lora.safetensors")
        found: dict[str, Any] = {"file_bytes": size}
        for command in ("open", "inspect", "library scan", "merge"):
            line = [sys.executable, __file__, "--only", command, str(folder)]
            found[command] = json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
            print(command, found[command], flush=True)
    record("large_checkpoint", found)


if __name__ == "__main__":
    main()
