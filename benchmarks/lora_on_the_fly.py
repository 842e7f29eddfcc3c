"""LoRAs in use on SD 1.5: another weight, removal, weights by image, several at once; against the usual ways.

    python benchmarks/lora_on_the_fly.py [--size 192] [--rank 16] [--repeats 4] [--folder /big/disk]

Full size; random weights in fp16, written to a temporary folder (2.2 GB) and used in fp32, and random LoRAs on the 192
default layers of the U-Net. diffusers has the same weights and LoRAs, and outputs that agree. Rivals take turns. Times
are the processor's, and ratios those of the fastest calls, since other work on the machine can only slow a call down.
What is measured:

- one LoRA gets another weight, or is removed. A change is timed with all that the next pass would have to do for it.
  ``backup and patch`` keeps a clone of each weight, copies it back and adds ``weight * up @ down``;
- four images with four weights, in one pass and in four;
- a pass with 0, 1, 3 and 5 LoRAs.

For the passes freed memory is kept (``hardware.keep_freed_memory``), for both rivals: otherwise taking it from the
system again and again is a quarter of a pass and hides what a LoRA adds.

``--toy`` tries the script on a small model in seconds and records nothing. Needs the test extra and 12 GB of memory.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parent)]

from full_size_checkpoints import write
from harness import interleaved, record
from lora_rivals import BEFORE, COUNTS, BackupAndPatch, Diffusers, Side

from loraloom.adapters.attach import AdapterSet, create_adapters
from loraloom.adapters.settings import AdapterSettings
from loraloom.formats.tensors import write_tensors
from loraloom.generation.live_merge import LiveMerge
from loraloom.generation.loras import AppliedLora
from loraloom.hardware import keep_freed_memory
from loraloom.models.conditioning import Conditioning
from loraloom.models.family import FAMILIES
from loraloom.models.loaded import LoadedModel, load_model

WEIGHTS = (0.2, 0.4, 0.6, 0.8)  # of the images of a batch
AFTER = (0.5, 0.6)  # what a weight of BEFORE is changed to, in turn

Figures = dict[str, Any]


class Bench:
    """Both models with the same LoRAs, and the same input for both."""

    def __init__(self, model: LoadedModel, options: argparse.Namespace) -> None:
        self.model = model
        self.sets = [random_lora(model, options.rank, seed) for seed in range(max(COUNTS))]
        self.side, self.theirs = Side(model, self.sets), Diffusers(model, self.sets)
        self.repeats = options.repeats
        self.measure = partial(interleaved, repeats=options.repeats, clock=time.process_time)
        width = self.theirs.unet.config.cross_attention_dim
        self._noisy = torch.randn(len(WEIGHTS), 4, *[options.size // 8] * 2)
        self._context = torch.randn(len(WEIGHTS), 77, width)

    def our_pass(self, first: int = 0, count: int = 1) -> Tensor:
        rows = slice(first, first + count)
        return self.model.denoise(self._noisy[rows], torch.full((count,), 500), Conditioning(self._context[rows]))

    def their_pass(self, first: int = 0) -> Tensor:
        rows = slice(first, first + 1)
        return self.theirs.unet(self._noisy[rows], 500, self._context[rows]).sample


def checkpoint_in(folder: Path, *, toy: bool) -> Path:
    path = folder / "sd15.safetensors"
    if toy:
        write_tensors(path, {name: tensor.half() for name, tensor in FAMILIES.load("sd1")().toy().items()})
    else:
        write("sd15-fp16", path, path)
    return path


def random_lora(model: LoadedModel, rank: int, seed: int) -> AdapterSet:
    targets = [target for target in model.targets if target.part == "unet"]
    adapters = create_adapters(AdapterSettings(rank=rank), targets, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapters.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.02
    return adapters.requires_grad_(False)


def table(seconds: Mapping[str, Sequence[float]], *, against: str) -> Figures:
    """Milliseconds, and how many times as long as ``against`` each took."""
    base = min(seconds[against])
    return {
        name: {
            "median_ms": round(1000 * median(values), 3),
            "fastest_ms": round(1000 * min(values), 3),
            f"times {against}": round(min(values) / base, 5),
        }
        for name, values in seconds.items()
    }


def changes(bench: Bench) -> Figures:
    """A LoRA gets another weight, and is removed. Each rival: what it needs before its turn, and what is timed."""
    side, theirs, adapters = bench.side, bench.theirs, bench.sets[0]
    merge, patch = LiveMerge(bench.model), BackupAndPatch(bench.model, adapters)
    lora = partial(AppliedLora, "random", adapters)
    new = itertools.cycle(AFTER)

    def merged() -> None:
        merge.apply([lora(unet=BEFORE)])

    rivals = {
        "reweight": {
            "backup and patch": (lambda: patch.apply(BEFORE), lambda: patch.apply(next(new))),
            "loraloom, side branch": (lambda: side.has(1), lambda: side.weigh(next(new))),
            "loraloom, merged": (merged, lambda: merge.apply([lora(unet=next(new))])),
            "diffusers, set_adapters": (lambda: theirs.has(1), lambda: theirs.weigh(1, next(new))),
            "diffusers, unfuse and fuse": (lambda: theirs.has(1, fused=True), lambda: theirs.fuse(next(new))),
        },
        "remove": {
            "backup and patch": (lambda: patch.apply(BEFORE), patch.remove),
            "loraloom, side branch": (lambda: side.has(1), side.remove),
            "loraloom, merged": (merged, merge.remove),
            "diffusers, delete_adapters": (lambda: theirs.has(1), theirs.delete),
            "diffusers, unfuse": (lambda: theirs.has(1, fused=True), theirs.unfuse),
        },
    }
    figures: Figures = {}
    for what, pairs in rivals.items():
        prepare, run = ({name: pair[place] for name, pair in pairs.items()} for place in (0, 1))
        figures[what] = table(bench.measure(run, prepare=prepare), against="backup and patch")
    return figures | {"backup_mib": round(patch.mib), "largest_error_left_in_a_weight": errors(bench)}


def errors(bench: Bench) -> dict[str, float]:
    """How far weights from which a LoRA was removed are from those of the file."""
    left = {"loraloom, merged": 0.0, "diffusers, unfuse": 0.0}
    for target in bench.sets[0].targets.values():
        stored = bench.model.checkpoint[target.tensor].float()
        weights = (bench.model.weight_of(target), bench.theirs.weight(target.diffusers_name))
        for name, weight in zip(left, weights, strict=True):
            left[name] = max(left[name], float((weight.reshape(stored.shape) - stored).abs().max()))
    return left


def four_weights(bench: Bench) -> Figures:
    """Four images, the same LoRA at a weight of its own in each."""
    side, theirs, count = bench.side, bench.theirs, len(WEIGHTS)

    def one_pass() -> Tensor:
        side.weigh_images(WEIGHTS)
        return bench.our_pass(count=count)

    def four_passes() -> Tensor:
        results = []
        for row, weight in enumerate(WEIGHTS):
            side.weigh_images([weight])
            results.append(bench.our_pass(row))
        return torch.cat(results)

    def their_passes() -> None:
        for row, weight in enumerate(WEIGHTS):
            theirs.weigh(1, weight)
            bench.their_pass(row)

    rivals = {
        "four passes": (lambda: side.has(1), four_passes),
        "one pass": (lambda: side.has(1), one_pass),
        "one pass without a LoRA": (side.remove, lambda: bench.our_pass(count=count)),
        "diffusers, four passes": (lambda: theirs.has(1), their_passes),
    }
    prepare, run = ({name: pair[place] for name, pair in rivals.items()} for place in (0, 1))
    seconds = bench.measure(run, prepare=prepare, repeats=1 + bench.repeats // 2)
    figures = table(seconds, against="four passes")
    side.has(1)
    return figures | {"largest_difference": difference(one_pass(), four_passes())}


def stacked(bench: Bench) -> Figures:
    """A pass with no LoRA and with several."""
    side, theirs = bench.side, bench.theirs
    theirs.has(max(COUNTS))
    run: dict[str, Callable[[], object]] = {}
    prepare: dict[str, Callable[[], object]] = {}
    for count in COUNTS:
        run |= {f"loraloom, {count}": bench.our_pass, f"diffusers, {count}": bench.their_pass}
        prepare[f"loraloom, {count}"] = partial(side.has, count)
        prepare[f"diffusers, {count}"] = partial(theirs.weigh, count, BEFORE)
    seconds = bench.measure(run, prepare=prepare)
    figures: Figures = {}
    for name in ("loraloom", "diffusers"):
        figures |= table({f"{name}, {count}": seconds[f"{name}, {count}"] for count in COUNTS}, against=f"{name}, 0")
    side.has(max(COUNTS))
    return figures | {"largest_difference": difference(bench.our_pass(), bench.their_pass())}


def difference(first: Tensor, second: Tensor) -> float:
    """The largest, as a share of the largest value."""
    return float((first - second).abs().max() / first.abs().max())


def told(figures: Figures) -> None:
    """The figures as lines to read."""
    for what in ("reweight", "remove", "four_weights", "passes"):
        print(f"\n{what}")
        for name, row in figures[what].items():
            if isinstance(row, dict):
                label, ratio = list(row.items())[-1]
                print(f"  {name:28} {row['fastest_ms']:10.2f} ms  {ratio:9.4f} {label}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=192, help="pixels")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the temporary checkpoint goes (2.2 GB)")
    parser.add_argument("--toy", action="store_true", help="a small model, to try the script; nothing is recorded")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="loraloom-") as folder, torch.no_grad():
        checkpoint = checkpoint_in(Path(folder), toy=options.toy)
        bench = Bench(load_model(checkpoint, device=torch.device("cpu")), options)
        figures: Figures = {
            "what": (__doc__ or "").splitlines()[0],
            "settings": {name: getattr(options, name) for name in ("size", "rank", "repeats")},
            "layers": len(bench.sets[0]),
            **changes(bench),
            "freed_memory_kept_from_here": keep_freed_memory(),
            "four_weights": four_weights(bench),
            "passes": stacked(bench),
        }
    if not options.toy:
        record("lora_on_the_fly", figures)
    told(figures)


if __name__ == "__main__":
    main()
