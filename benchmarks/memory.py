"""What a LoRA step of full-size SD 1.5 takes: memory and time for each way of computing activations again.

    python benchmarks/memory.py [--size 256] [--rank 32] [--repeats 5] [--threads 1]

Random weights, batch 1, fp32, the 192 default layers of the U-Net, forward, backward, AdamW. Own memory (anonymous) is
measured in a process for each way, one after the other; what the plan's meter counts on tensors without data stands
beside it. For the time the ways take turns on one model. ``kept`` is what waits for the backward pass.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]

from harness import in_subprocess, record, summary
from training_step import PREFIX, random_weights

from layouts import read_layout
from loraloom.adapters.attach import AdapterSet, attach, create_adapters
from loraloom.adapters.settings import AdapterSettings
from loraloom.formats.tensors import TensorInfo
from loraloom.hardware import PeakMemory, keep_freed_memory, own_memory_bytes
from loraloom.models.quantized import QuantizedWeight, quantizable
from loraloom.models.sd1 import SD1
from loraloom.models.unet import UNet
from loraloom.training.meter import Meter

WAYS = ("none", "selective", "full")


def build(way: str, rank: int, device: str, quantize: str) -> tuple[UNet, AdapterSet]:
    """The U-Net with a LoRA on it; on the meta device without data."""
    layout = read_layout("sd15")
    shapes = {name.removeprefix(PREFIX): shape for name, (_, shape) in layout.items() if name.startswith(PREFIX)}
    family = SD1()
    with torch.device("meta"):
        unet = UNet.from_shapes(shapes, heads_rule=family.attention_heads)
    if device != "meta":
        state = random_weights(shapes)
        if quantize != "none":
            for name in quantizable(unet):
                state[name] = QuantizedWeight.quantize(state[name], quantize)
        unet.load_state_dict(state, assign=True)
    unet.requires_grad_(False)
    infos = {name: TensorInfo(torch.float32, shape) for name, (_, shape) in layout.items()}
    targets = [target for target in family.adapter_targets(infos) if target.part == "unet"]
    adapters = create_adapters(AdapterSettings(rank=rank), targets, seed=0).train().to(device)
    attach(adapters, {target.name: unet.get_submodule(target.module) for target in targets})
    unet.gradient_checkpointing = way  # type: ignore[assignment]
    return unet, adapters


def inputs_of(size: int, device: str) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    side = size // 8
    latents = [torch.randn(1, 4, side, side) for _ in range(2)]
    return tuple(t.to(device) for t in (latents[0], torch.tensor([500]), torch.randn(1, 77, 768), latents[1]))


def count(way: str, arguments: argparse.Namespace) -> dict[str, float]:
    """What the meter says, without data."""
    unet, _ = build(way, arguments.rank, "meta", "none")
    x, timesteps, context, target = inputs_of(arguments.size, "meta")
    with Meter() as meter:
        loss = F.mse_loss(unet(x, timesteps, context), target)
        kept = meter.live
        loss.backward()
    mib = 2**20
    return {
        "kept_mib": round(kept / mib, 1),
        "gradients_mib": round(meter.live / mib, 1),
        "peak_mib": round(meter.peak / mib, 1),
        "peak_with_workspace_mib": round(meter.peak_with_workspace / mib, 1),
        "tflop": round(meter.flops / 1e12, 3),
    }


def stepper(unet: UNet, adapters: AdapterSet, size: int) -> Callable[[], float]:
    """One step, which returns the loss."""
    inputs = inputs_of(size, "cpu")
    parameters = list(adapters.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def step() -> float:
        loss = F.mse_loss(unet(*inputs[:3]), inputs[3])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def measure(way: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """In a child process: own memory before and in three steps, and their losses."""
    torch.manual_seed(0)
    keep_freed_memory()  # as loraloom.training does on a CPU
    unet, adapters = build(way, arguments.rank, "cpu", arguments.quantize)
    step = stepper(unet, adapters, arguments.size)
    before = own_memory_bytes()
    with PeakMemory(torch.device("cpu")) as memory:
        losses = [step() for _ in range(3)]
    mib = 2**20
    return {"own_before_mib": round(before / mib), "own_peak_mib": round((memory.peak or 0) / mib), "losses": losses}


def take_turns(arguments: argparse.Namespace) -> dict[str, Any]:
    """In a child process: the ways take turns on one model, step by step."""
    torch.manual_seed(0)
    keep_freed_memory()
    unet, adapters = build("none", arguments.rank, "cpu", arguments.quantize)
    step = stepper(unet, adapters, arguments.size)
    wall: dict[str, list[float]] = {way: [] for way in WAYS}
    cpu: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(1 + arguments.repeats):
        for way in WAYS:
            unet.gradient_checkpointing = way  # type: ignore[assignment]
            began, worked = time.perf_counter(), time.process_time()
            step()
            if turn > 0:  # the first step warms up
                wall[way].append(time.perf_counter() - began)
                cpu[way].append(time.process_time() - worked)
    return {"wall": summary(wall, against="none"), "processor": summary(cpu, against="none")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quantize", choices=["none", "int8", "nf4"], default="none")
    parser.add_argument("--work", choices=[*WAYS, "time"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.work:
        print(json.dumps(take_turns(arguments) if arguments.work == "time" else measure(arguments.work, arguments)))
        return
    options = [str(part) for key in ("size", "rank", "repeats", "threads", "quantize") for part in
               (f"--{key}", getattr(arguments, key))]  # fmt: skip
    table = {}
    for way in WAYS:
        table[way] = count(way, arguments) | in_subprocess(Path(__file__), *options, "--work", way)
    losses = [row.pop("losses") for row in table.values()]
    figures = {
        "what": (__doc__ or "").splitlines()[0],
        "settings": {key: value for key, value in vars(arguments).items() if key != "work"},
        "memory": table,
        **in_subprocess(Path(__file__), *options, "--work", "time"),
        "losses_identical": all(other == losses[0] for other in losses),
    }
    record("memory" if arguments.quantize == "none" else f"memory-{arguments.quantize}", figures)


if __name__ == "__main__":
    main()
