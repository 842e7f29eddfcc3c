"""LoRAs extracted, resized and added up for SD 1.5, against loading everything and decomposing whole matrices.

    python benchmarks/weight_tools.py [--layers 2] [--repeats 1] [--folder /big/disk]

Full size, in a temporary folder (4.5 GB): a checkpoint of random weights in fp16, one that differs from it by 5 % in
all 350 layers with singular values that fall like 1/k, and LoRAs of the 264 default layers with the same spectrum.

- extract: rank 32 of what distinguishes the checkpoints, 3x3 convolutions included;
- resize: a LoRA of rank 64 to rank 16;
- combine: two LoRAs of rank 16 to one of rank 16.

The straightforward way loads its files whole, in their own precision, and takes ``torch.linalg.svd`` of every
difference, product or sum. That takes long: with ``--layers N`` it does N layers of every shape, and the time of the
others is estimated from those (0: all layers). Every piece of work is a process of its own. Times include the start of
Python and imports, and are the processor's, which other work on the machine disturbs less. Own memory is what the
process took for itself; resident counts mapped pages of files too. The residual is the relative Frobenius norm of what
the written file leaves out, for both ways over the same layers, those that the straightforward way did.

How merging compares is in ``merge.py``. ``--toy`` tries the script on a small model in seconds and records nothing.
Needs the test extra (safetensors) and 6 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parent)]

from full_size_checkpoints import AnonymousPeak, write
from harness import in_subprocess, peak_memory_bytes, record

from loraloom.formats.adapter_file import AdapterTarget, layer_keys, write_adapter_file
from loraloom.formats.tensors import TensorSource, open_tensors, write_tensors
from loraloom.models.checkpoint import open_checkpoint
from loraloom.models.family import FAMILIES
from loraloom.studio.weights import extract_lora, merge_files, resize_lora, weighted_lora

TASKS = ("extract", "resize", "combine")
WAYS = ("loraloom", "full SVD")
RANKS = {"extract": 32, "resize": 16, "combine": 16}
LORAS = {"large": 64, "first": 16, "second": 16}
SPECTRUM = 256  # singular values of the difference; more would add nothing to see
DIFFERENCE = 0.05

Figures = dict[str, Any]
Matrices = dict[str, tuple[tuple[int, ...], Callable[[], Tensor]]]
"""By layer: the shape of its weight, and how to get the matrix that is to be approximated."""


# ------------------------------------------------------------------------------------------------ files


def decaying(target: AdapterTarget, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random ``(down, up)`` whose product has singular values like 1/k."""
    out, columns = target.shape[0], math.prod(target.shape[1:])
    generator = torch.Generator().manual_seed(seed)
    root = torch.arange(1, rank + 1) ** -0.5
    down = torch.randn(rank, columns, generator=generator) * columns**-0.5 * root[:, None]
    up = torch.randn(out, rank, generator=generator) * out**-0.5 * root
    return down.reshape(rank, *target.shape[1:]), up.reshape(out, rank, *(1 for _ in target.shape[2:]))


def tuned_weight(weight: Tensor, target: AdapterTarget, seed: int) -> Tensor:
    down, up = decaying(target, min(SPECTRUM, target.shape[0]), seed)
    delta = up.flatten(1) @ down.flatten(1)
    old = weight.float()
    return (old + (delta * (DIFFERENCE * old.norm() / delta.norm())).reshape(old.shape)).to(weight.dtype)


def write_files(folder: Path, *, toy: bool) -> None:
    base = folder / "base.safetensors"
    if toy:
        write_tensors(base, {name: tensor.half() for name, tensor in FAMILIES.load("sd1")().toy().items()})
    else:
        write("sd15-fp16", base, base)
    opened = open_checkpoint(base)
    targets = targets_of(folder)
    changed = {target.tensor: (target, seed) for seed, target in enumerate(targets)}

    def load(name: str) -> Tensor:
        return tuned_weight(opened[name], *changed[name]) if name in changed else opened[name]

    write_tensors(
        folder / "tuned.safetensors", [TensorSource(name, opened.info(name), partial(load, name)) for name in opened]
    )
    for number, (lora, rank) in enumerate(LORAS.items(), 1):
        tensors: dict[str, Tensor] = {}
        for seed, target in enumerate(targets):
            if not target.extended:
                down, up = decaying(target, rank, 1000 * number + seed)
                tensors |= layer_keys(target.name, {"down": down, "up": up, "alpha": torch.tensor(float(rank))})
        write_adapter_file(folder / f"{lora}.safetensors", tensors, metadata={}, dtype=torch.float16)


def targets_of(folder: Path) -> list[AdapterTarget]:
    opened = open_checkpoint(folder / "base.safetensors")
    return opened.family.adapter_targets(opened.infos)


def product(lora: Mapping[str, Tensor], name: str) -> Tensor:
    """The change that a LoRA makes to a layer, (out, in times kernel)."""
    down, up = (lora[f"{name}.lora_{role}.weight"].float().flatten(1) for role in ("down", "up"))
    return up @ down * (float(lora[f"{name}.alpha"]) / len(down))


def wanted(task: str, folder: Path, load: Callable[[Path], Mapping[str, Tensor]]) -> Matrices:
    """What each layer of the result should be, from files opened with ``load``."""
    targets = targets_of(folder)
    if task == "extract":
        base, tuned = load(folder / "base.safetensors"), load(folder / "tuned.safetensors")
        return {
            t.name: (t.shape, partial(lambda key: tuned[key].float() - base[key].float(), t.tensor)) for t in targets
        }
    loras = [load(folder / f"{name}.safetensors") for name in (("large",) if task == "resize" else ("first", "second"))]
    return {
        t.name: (t.shape, partial(lambda name: sum(product(lora, name) for lora in loras), t.name))
        for t in targets
        if not t.extended
    }


# ------------------------------------------------------------------------------------------------ work


def ours(task: str, folder: Path, output: Path) -> None:
    rank, (large, first, second) = RANKS[task], (folder / f"{name}.safetensors" for name in LORAS)
    if task == "extract":
        options = {"conv_rank": None, "to_residual": None, "min_difference": 0.0, "precision": "fp16"}
        extract_lora(folder / "base.safetensors", folder / "tuned.safetensors", output, rank=rank, **options)
    elif task == "resize":
        resize_lora(large, output, rank=rank)
    else:
        merge_files(None, [weighted_lora(first), weighted_lora(second)], output, rank=rank)


def full_svd(task: str, folder: Path, output: Path, per_shape: int) -> Figures:
    """Everything loaded, whole matrices decomposed; what the layers that were left out would have taken."""
    from safetensors.torch import load_file, save_file

    def load(path: Path) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in load_file(path).items()}  # load_file itself maps

    layers, rank = wanted(task, folder, load), RANKS[task]
    tensors: dict[str, Tensor] = {}
    count = Counter((shape[0], math.prod(shape[1:])) for shape, _ in layers.values())
    seconds: dict[tuple[int, int], list[float]] = {shape: [] for shape in count}
    for name, (shape, matrix) in layers.items():
        done = seconds[shape[0], math.prod(shape[1:])]
        if per_shape and len(done) == per_shape:
            continue
        began = time.process_time()
        left, values, right = torch.linalg.svd(matrix().flatten(1), full_matrices=False)
        root = values[:rank].sqrt()
        down = (root[:, None] * right[:rank]).reshape(-1, *shape[1:])
        up = (left[:, :rank] * root).reshape(shape[0], -1, *(1 for _ in shape[2:]))
        tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = (
            factor.half().contiguous() for factor in (down, up)
        )
        tensors[f"{name}.alpha"] = torch.tensor(float(len(root)))
        done.append(time.process_time() - began)
    save_file(tensors, output)
    left_out = sum((count[shape] - len(done)) * sum(done) / len(done) for shape, done in seconds.items())
    return {"left_out_s": left_out, "done": sum(map(len, seconds.values())), "layers": len(layers)}


def work(task: str, way: str, folder: Path, per_shape: int) -> None:
    """In a process of its own: the work, then what it took as one line of JSON."""
    memory = AnonymousPeak()
    memory.start()
    output = folder / f"{task} {way}.safetensors"
    facts = ours(task, folder, output) if way == "loraloom" else full_svd(task, folder, output, per_shape)
    taken = {"processor_s": time.process_time(), "own": memory.peak, "resident": peak_memory_bytes()}
    print(json.dumps(taken | (facts or {})))


def residuals(task: str, folder: Path) -> dict[str, float]:
    """Of both ways, from the files that they wrote."""
    results = {way: open_tensors(folder / f"{task} {way}.safetensors") for way in WAYS}
    lost = dict.fromkeys(WAYS, 0.0)
    whole = 0.0
    for name, (_, matrix) in wanted(task, folder, open_tensors).items():
        if f"{name}.alpha" in results["full SVD"]:
            right = matrix().flatten(1)
            whole += float(right.norm()) ** 2
            for way, lora in results.items():
                lost[way] += float((right - product(lora, name)).norm()) ** 2
    return {way: round(math.sqrt(value / whole), 5) for way, value in lost.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2, metavar="N", help="of every shape for the full SVD; 0: all")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the temporary files go (4.5 GB)")
    parser.add_argument("--toy", action="store_true", help="a small model, to try the script; nothing is recorded")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.work:
        task, way, place = options.work
        work(task, way, Path(place), options.layers)
        return
    settings = {name: getattr(options, name) for name in ("layers", "repeats", "threads")}
    figures: Figures = {"what": (__doc__ or "").splitlines()[0], "settings": settings}
    passed = [f"--{name}={value}" for name, value in settings.items()]
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="loraloom-") as name:
        folder = Path(name)
        write_files(folder, toy=options.toy)
        for task in TASKS:
            runs: dict[str, list[Figures]] = {way: [] for way in WAYS}
            for _ in range(options.repeats):
                for way in WAYS:
                    runs[way].append(in_subprocess(Path(__file__), *passed, "--work", task, way, name))
            figures[task] = table(runs, residuals(task, folder))
            told(task, figures[task])
    if not options.toy:
        record("weight_tools", figures)


def table(runs: Mapping[str, list[Figures]], residual: Mapping[str, float]) -> Figures:
    rows: Figures = {}
    for way, facts in runs.items():
        seconds = median(fact["processor_s"] + fact.get("left_out_s", 0.0) for fact in facts)
        rows[way] = {"processor_s": round(seconds, 2)}
        for key in ("own", "resident"):
            rows[way][f"{key}_mib"] = round(median(fact[key] or 0 for fact in facts) / 2**20)
        rows[way]["residual"] = residual[way]
        done, layers = facts[0].get("done"), facts[0].get("layers")
        if done != layers:
            rows[way]["time"] = f"estimated from {done} of {layers} layers"
    rows["times as fast"] = round(rows["full SVD"]["processor_s"] / rows["loraloom"]["processor_s"], 2)
    return rows


def told(task: str, rows: Figures) -> None:
    """The figures as lines to read."""
    for way in WAYS:
        row = rows[way]
        print(
            f"{task:8} {way:10} {row['processor_s']:8.1f} s  {row['own_mib']:6} MiB own  "
            f"residual {row['residual']:.4f}  {row.get('time', '')}",
            flush=True,
        )


if __name__ == "__main__":
    main()
