"""Merging a rank-32 LoRA into a full-size SD 1.5 checkpoint in fp16, against loading everything and adding.

    python benchmarks/merge.py [--repeats 3] [--folder /big/disk]

Random weights in the real layout, written to a temporary folder (10 GB in all). Every merge runs in a process of its
own, so times include the start of Python and imports, and the memory is that merge's alone. Ours also flushes the file
to the disk before it replaces the target, which the plain way does not. Memory is given twice: what the process took
for itself (anonymous), and everything resident, which counts pages of the mapped file that the system can drop.
Needs the test extra (safetensors) for the plain way.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]

from full_size_checkpoints import AnonymousPeak, write
from harness import interleaved, peak_memory_bytes, record, summary

WEIGHT = 0.8


def write_lora(checkpoint: Path, path: Path, rank: int) -> int:
    """A random LoRA on all default layers, in fp16; returns how many layers."""
    import torch

    from loraloom.adapters.attach import create_adapters
    from loraloom.adapters.settings import AdapterSettings
    from loraloom.formats.adapter_file import write_adapter_file
    from loraloom.models.checkpoint import open_checkpoint

    opened = open_checkpoint(checkpoint)
    adapters = create_adapters(AdapterSettings(rank=rank), opened.family.adapter_targets(opened.infos), seed=0)
    for parameter in adapters.parameters():
        parameter.data = torch.randn(parameter.shape) * 0.02
    write_adapter_file(path, adapters.file_tensors(), metadata={}, dtype=torch.float16)
    return len(adapters)


def ours(checkpoint: Path, lora: Path, output: Path) -> None:
    """The command."""
    from loraloom.cli.main import main

    sys.argv = ["loraloom", "merge", str(checkpoint), f"{lora}:{WEIGHT}", "-o", str(output)]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise


def plain(checkpoint: Path, lora: Path, output: Path) -> None:
    """Everything into memory as fp32, add, convert back, save."""
    import torch
    from safetensors.torch import load_file, save_file

    from loraloom.models.checkpoint import open_checkpoint

    opened = open_checkpoint(checkpoint)
    targets = opened.family.adapter_targets(opened.infos)
    stored = load_file(checkpoint)
    dtypes = {name: tensor.dtype for name, tensor in stored.items()}
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in stored.items()}
    matrices = {name: tensor.float() for name, tensor in load_file(lora).items()}
    for target in targets:
        if f"{target.name}.alpha" not in matrices:
            continue
        down, up = matrices[f"{target.name}.lora_down.weight"], matrices[f"{target.name}.lora_up.weight"]
        scale = WEIGHT * float(matrices[f"{target.name}.alpha"]) / len(down)
        weight = tensors[target.tensor]
        weight += (up.flatten(1) @ down.flatten(1)).reshape(weight.shape) * scale
    result = {name: tensor.to(dtypes[name]) for name, tensor in tensors.items()}
    if output.suffix == ".ckpt":
        torch.save({"state_dict": result}, output)
    else:
        save_file(result, output)


WAYS = {"loraloom": ours, "load everything": plain}


def child(way: str, checkpoint: Path, lora: Path, output: Path, threads: int) -> None:
    """In a process of its own: merge, then print the memory it took as one line of JSON."""
    import torch

    torch.set_num_threads(threads)
    memory = AnonymousPeak()
    memory.start()
    WAYS[way](checkpoint, lora, output)
    print(json.dumps({"own_bytes": memory.peak, "resident_bytes": peak_memory_bytes()}))


def same(first: Path, second: Path) -> bool:
    """Whether two files hold the same tensors, up to one rounding step of fp16."""
    import torch

    from loraloom.formats.tensors import open_tensors

    left, right = open_tensors(first), open_tensors(second)
    return set(left) == set(right) and all(
        torch.allclose(left[name].float(), right[name].float(), rtol=2e-3, atol=1e-6) for name in left
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the temporary files go (10 GB)")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        way, *paths = options.child
        child(way, *map(Path, paths), options.threads)
        return
    figures: dict[str, Any] = {"what": __doc__.splitlines()[0], "rank": options.rank}
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="loraloom-") as name:
        folder = Path(name)
        checkpoint, lora = folder / "sd15.safetensors", folder / "lora.safetensors"
        write("sd15-fp16", checkpoint, checkpoint)
        figures["layers"] = write_lora(checkpoint, lora, options.rank)
        figures["checkpoint_bytes"] = checkpoint.stat().st_size
        for suffix in (".safetensors", ".ckpt"):
            outputs = {way: folder / f"{way.replace(' ', '-')}{suffix}" for way in WAYS}
            measured: dict[str, list[dict[str, int]]] = {way: [] for way in WAYS}

            def run(way: str, outputs: dict[str, Path], measured: dict[str, list[dict[str, int]]]) -> None:
                command = [sys.executable, __file__, "--threads", str(options.threads), "--child"]
                command += [way, str(checkpoint), str(lora), str(outputs[way])]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, encoding="utf-8")
                measured[way].append(json.loads(done.stdout.splitlines()[-1]))

            ways = {way: partial(run, way, outputs, measured) for way in WAYS}
            seconds = interleaved(ways, repeats=options.repeats)
            figures[suffix] = summary(seconds, against="load everything")
            for way, facts in measured.items():
                for key in ("own_bytes", "resident_bytes"):
                    values = [fact[key] for fact in facts if fact[key] is not None]
                    figures[suffix][way][key.replace("bytes", "mib")] = round(statistics.median(values) / 2**20)
            figures[suffix]["same_tensors"] = same(outputs["loraloom"], outputs["load everything"])
            for output in outputs.values():
                output.unlink()
    record("merge", figures)


if __name__ == "__main__":
    main()
