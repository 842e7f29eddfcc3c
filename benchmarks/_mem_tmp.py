"""What a LoRA step of full-size SD 1.5 takes: memory and time for each way of computing activations again.

    python benchmarks/memory.py [--size 256] [--rank 32] [--repeats 5] [--threads 1]

Random weights, batch 1, fp32, the 192 default layers of the U-Net, forward, backward, AdamW. Each way is a process of
its own; they take turns step by step. Own memory (anonymous) is sampled; what the plan's meter counts on tensors
without data stands beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]

from full_size_checkpoints import AnonymousPeak
from harness import record, summary
from training_step import PREFIX, random_weights

from layouts import read_layout
from loraloom.adapters.attach import AdapterSet, attach, create_adapters
from loraloom.adapters.settings import AdapterSettings
from loraloom.formats.tensors import TensorInfo
from loraloom.hardware import keep_freed_memory
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


def work(way: str, arguments: argparse.Namespace) -> None:
    """In the child process: one step for every line read."""
    torch.set_num_threads(arguments.threads)
    counted = count(way, arguments)
    torch.manual_seed(0)
    import os
    os.environ.get("KEEP") and keep_freed_memory()  # as loraloom.training does on a CPU
    unet, adapters = build(way, arguments.rank, "cpu", arguments.quantize)
    inputs = inputs_of(arguments.size, "cpu")
    parameters = list(adapters.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    sampler = AnonymousPeak()
    sampler.start()
    time.sleep(0.1)
    before = sampler.peak or 0
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        loss = F.mse_loss(unet(*inputs[:3]), inputs[3])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        own = {"before": before, "peak": sampler.peak}
        print(json.dumps({**seconds, **own, "loss": loss.item(), "counted": counted}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quantize", default="none")
    parser.add_argument("--work", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, arguments)
        return
    command = [sys.executable, __file__, *sys.argv[1:], "--work"]
    workers = {
        way: subprocess.Popen([*command, way], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for way in WAYS
    }
    wall: dict[str, list[float]] = {way: [] for way in WAYS}
    cpu: dict[str, list[float]] = {way: [] for way in WAYS}
    losses: dict[str, list[float]] = {way: [] for way in WAYS}
    table: dict[str, dict[str, float]] = {}
    for turn in range(1 + arguments.repeats):
        for way, worker in workers.items():
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.write("step\n")
            worker.stdin.flush()
            facts = json.loads(worker.stdout.readline())
            losses[way].append(facts["loss"])
            table[way] = facts["counted"] | {
                "own_before_mib": round(facts["before"] / 2**20, 1),
                "own_peak_mib": round(facts["peak"] / 2**20, 1),
            }
            if turn > 0:  # the first step warms up
                wall[way].append(facts["wall"])
                cpu[way].append(facts["cpu"])
    for worker in workers.values():
        worker.communicate()
    figures = {
        "what": (__doc__ or "").splitlines()[0],
        "settings": {key: value for key, value in vars(arguments).items() if key != "work"},
        "memory": table,
        "wall": summary(wall, against="none"),
        "processor": summary(cpu, against="none"),
        "losses_identical": all(losses[way] == losses["none"] for way in WAYS),
    }
    record("memory", figures)


if __name__ == "__main__":
    main()
