"""Mutate tensor files and read them: only a FileError or success may come out.

``python tests/formats/fuzz_tensors.py --count 1000000`` runs the long campaign; ``test_tensors.py`` a short one.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tensor_mutations import campaign


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for mutations that broke the rule")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    outcomes, faults = campaign(options.count, options.seed, report=True)
    print(f"{options.count} mutations in {time.monotonic() - started:.0f} s: {dict(outcomes)}")  # noqa: T201
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
        for index, data in enumerate(faults):
            (options.keep / f"fault-{options.seed}-{index}.bin").write_bytes(data)
    return 1 if faults or outcomes["laborious"] else 0


if __name__ == "__main__":
    sys.exit(main())
