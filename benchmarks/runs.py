"""Listing many runs with long logs: what each has come to, told from its files.

    python benchmarks/runs.py [--runs 300] [--steps 50000] [--folder /big/disk]

Every log has pictures that are encoded first, a validation, a preview and a state now and then, and one resume. The
first log is listed as often as there are runs, so that the disk is not measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from harness import record

from loraloom.events import (
    Event,
    LatentsCached,
    PreviewSaved,
    RunResumed,
    RunStarted,
    StateSaved,
    StepFinished,
    ValidationMeasured,
    to_record,
)
from loraloom.studio.runs.status import read_status


def events(steps: int) -> list[Event]:
    """What a run of so many steps records, interrupted once."""
    found: list[Event] = [LatentsCached(number, 1000) for number in range(1, 1001)]
    started = RunStarted("runs/cat", steps, steps // 50, 50, 1000, 3_000_000)
    found.append(started)
    for number in range(1, steps + 1):
        epoch = 1 + (number - 1) // (steps // 50)
        rates = {"unet": 1e-4, "text_encoder": 5e-5}
        found.append(StepFinished(number, epoch, 0.123456789, 0.123456789, rates, 1.2345678))
        if number % (steps // 50) == 0:
            found.append(ValidationMeasured(number, epoch, 0.1 - number * 1e-7, {"100": 0.1, "500": 0.2}, True))
            found.append(PreviewSaved(f"runs/cat/previews/cat_e{epoch:06d}_00.png", "a cat", number, epoch))
            found.append(StateSaved(f"runs/cat/state/step-{number:08d}.safetensors", number))
        if number == steps // 2:
            found += [RunResumed(number), started]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--folder", type=Path, help="where the temporary files go")
    options = parser.parse_args()
    figures: dict[str, Any] = {"what": __doc__.splitlines()[0], "runs": options.runs, "steps": options.steps}
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="loraloom-") as name:
        folder = Path(name)
        (folder / "settings.toml").write_text("", encoding="utf-8")
        lines = [json.dumps(to_record(event), ensure_ascii=False) for event in events(options.steps)]
        (folder / "events.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        figures["bytes_a_log"] = (folder / "events.jsonl").stat().st_size
        began = time.process_time()
        for _ in range(options.runs):
            status = read_status(folder)
        figures["cpu_s"] = round(time.process_time() - began, 3)
        figures["state"] = status.to_record() | {"folder": ""}
    record("runs", figures)


if __name__ == "__main__":
    main()
