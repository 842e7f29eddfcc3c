"""One way to measure, for every benchmark: rivals interleaved in one run, medians, ratios, and the machine named.

A script calls :func:`interleaved` for times and :func:`record` to write ``benchmarks/results/<name>.json``.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def interleaved(
    rivals: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    warmup: int = 1,
    prepare: Mapping[str, Callable[[], object]] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each call; rivals take turns, so that a machine that slows down slows all of them.

    ``prepare``: what a rival needs before every turn, which is not timed. ``clock``: wall time unless told otherwise.
    """
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for turn in range(warmup + repeats):
        for name, run in rivals.items():
            if prepare is not None and name in prepare:
                prepare[name]()
            began = clock()
            run()
            if turn >= warmup:
                seconds[name].append(clock() - began)
    return seconds


def summary(seconds: Mapping[str, Sequence[float]], *, against: str) -> dict[str, dict[str, float]]:
    """Median, fastest and the ratio of medians (above 1: faster than ``against``)."""
    base = statistics.median(seconds[against])
    return {
        name: {
            "median_s": round(statistics.median(values), 4),
            "fastest_s": round(min(values), 4),
            "ratio": round(base / statistics.median(values), 3),
        }
        for name, values in seconds.items()
    }


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    import torch

    facts = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_memory_bytes() -> int:
    """The largest resident size of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent held when it started this process
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        raise SystemExit("peak memory is measured on Linux and macOS only")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def in_subprocess(script: Path, *arguments: str) -> dict[str, Any]:
    """Run ``script`` in a process of its own (peak memory is per process); its last output line is JSON."""
    result = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{script.name} {' '.join(arguments)} failed:\n{result.stderr}")
    data: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return data


def record(name: str, figures: Mapping[str, Any]) -> Path:
    """Write the figures with the machine and the date to ``benchmarks/results/<name>.json`` and print them."""
    RESULTS.mkdir(exist_ok=True)
    data = {"date": time.strftime("%Y-%m-%d"), "machine": machine(), **figures}
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(data, indent=2, ensure_ascii=False))
    return path
