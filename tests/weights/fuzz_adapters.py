"""Mutate LoRA files and bring them to every door: only a LoraloomError or success may come out.

``python tests/weights/fuzz_adapters.py --count 200000 --progress FILE`` runs the long campaign, and goes on where it
was stopped; ``--only INDEX`` does one file again and says all about it. ``test_fuzz_adapters.py`` runs a short one.
With ``--tools 2`` every file is read and inspected, and two tools are drawn for it: those that the reader takes are
brought to them, and of those that it refuses every tenth. That takes a fifth of the time.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from adapter_doors import DOORS, READING_DOORS, Bench, Fault, examine, remembered_names
from adapter_mutations import Seeds, mutate, write

REPORT_EVERY = 500
SLOW_S = 5.0
IN_MEMORY = Path("/dev/shm")


@dataclass
class Progress:
    """What a campaign has found so far; ``faults`` by place, with the number of files and the first of them."""

    seed: int
    done: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: dict[str, dict[str, object]] = field(default_factory=dict)
    slow: list[int] = field(default_factory=list)

    def add(self, index: int, fault: Fault) -> bool:
        """Count a fault in; whether it is a new one."""
        place = f"{fault.door} | {fault.where}"
        known = self.faults.get(place)
        if known is None:
            self.faults[place] = {"index": index, "files": 1, "what": fault.what}
            return True
        known["files"] = int(str(known["files"])) + 1
        return False

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        unfinished = path.with_name(f"{path.name}.new")
        unfinished.write_text(json.dumps(vars(self), indent=1), encoding="utf-8")
        unfinished.replace(path)


def read_progress(path: Path | None, seed: int) -> Progress:
    """The campaign that a file tells of, or a new one."""
    if path is None or not path.exists():
        return Progress(seed)
    stored = json.loads(path.read_text(encoding="utf-8"))
    if stored["seed"] != seed:
        raise SystemExit(f"{path} is of seed {stored['seed']}")
    return Progress(**{**stored, "outcomes": Counter(stored["outcomes"])})


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def doors_of(name: str, tools: int | None) -> list[str]:
    """The doors for a file: all, or those that read and so many of the others, drawn by the file's name."""
    others = [door for door in DOORS if door not in READING_DOORS]
    if tools is None:
        return list(DOORS)
    drawn = random.Random(f"doors-{name}").sample(others, tools)
    if "extract" in drawn and "merge" not in drawn:  # it takes apart what was merged
        drawn.append("merge")
    return [door for door in DOORS if door in READING_DOORS or door in drawn]


def run(
    progress: Progress, count: int, bench: Bench, *, tools: int | None, path: Path | None, keep: Path | None
) -> None:
    """Examine the files from where the progress ends up to ``count``."""
    seeds = Seeds()
    for index in range(progress.done, count):
        began, worked = time.monotonic(), time.process_time()
        name = f"{progress.seed}-{index}"
        draft = mutate(random.Random(name), seeds)
        doors, refused_too = doors_of(name, tools), tools is None or index % 10 == 0
        for fault in examine(draft, bench, progress.outcomes, doors, refused_too=refused_too):
            if progress.add(index, fault):
                _say(f"{index}: {fault.door} | {fault.where}\n    {fault.what}")
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    write(draft, keep, f"fault-{progress.seed}-{index}")
        if time.process_time() - worked > SLOW_S:
            progress.slow.append(index)
        progress.done = index + 1
        progress.seconds += time.monotonic() - began
        if progress.done % REPORT_EVERY == 0 or progress.done == count:
            each = f"{progress.seconds / progress.done * 1000:.0f} ms each"
            done = f"{progress.done} files, {progress.seconds:.0f} s, {each}"
            read = f"{progress.outcomes['read: done']} read, {progress.outcomes['read: refused']} refused"
            _say(f"{done}, {read}, {len(progress.faults)} faults, {len(progress.slow)} slow")
            if path is not None:
                progress.save(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tools", type=int, help="how many of the tools each file is brought to; all, if left out")
    parser.add_argument("--only", type=int, help="the index of one file")
    parser.add_argument("--progress", type=Path, help="a file that keeps what was found, to go on from")
    parser.add_argument("--keep", type=Path, help="folder for the files that broke the rule")
    options = parser.parse_args()
    torch.set_num_threads(1)
    memory = IN_MEMORY if IN_MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory, prefix="fuzz-") as folder, remembered_names():
        bench = Bench(Path(folder))
        if options.only is not None:
            return _one(options.seed, options.only, bench, options.keep)
        progress = read_progress(options.progress, options.seed)
        run(progress, options.count, bench, tools=options.tools, path=options.progress, keep=options.keep)
    _say(json.dumps(dict(sorted(progress.outcomes.items())), indent=1))
    return 1 if progress.faults else 0


def _one(seed: int, index: int, bench: Bench, keep: Path | None) -> int:
    draft = mutate(random.Random(f"{seed}-{index}"), Seeds())
    _say(f"{draft.family}, {draft.suffix}, metadata {draft.metadata}, config {draft.config}")
    for key, tensor in draft.tensors.items():
        values = tensor.flatten().tolist()[:4]
        _say(f"  {key!r}: {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)} {values}")
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        write(draft, keep, f"file-{seed}-{index}")
    outcomes: Counter[str] = Counter()
    faults = examine(draft, bench, outcomes)
    _say(", ".join(sorted(outcomes)))
    for fault in faults:
        _say(f"{fault.door} | {fault.where}\n    {fault.what}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
