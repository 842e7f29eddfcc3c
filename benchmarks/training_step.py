"""One LoRA training step of a full-size SD 1.5 U-Net against diffusers + PEFT: same layers, same sizes, one run.

    python benchmarks/training_step.py [--size 256] [--rank 32] [--repeats 5] [--threads 2]

Random weights (speed does not depend on them), batch 1, fp32, the 192 default layers, forward, backward, AdamW. Each
rival is a process of its own, as its users run it, and they take turns step by step. Processor seconds are given beside
wall seconds, since other work on the machine disturbs them less. Needs the test extra and about 10 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]

from harness import peak_memory_bytes, record, summary

from layouts import read_layout
from loraloom.adapters.attach import attach, create_adapters
from loraloom.adapters.settings import AdapterSettings
from loraloom.formats.tensors import TensorInfo
from loraloom.hardware import keep_freed_memory
from loraloom.models.sd1 import SD1
from loraloom.models.unet import UNet

PREFIX = "model.diffusion_model."


def random_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Weights that keep activations finite: small normal matrices, norms of one."""
    tensors = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            tensors[name] = torch.randn(shape) * (shape[1] * (shape[2] * shape[3] if len(shape) == 4 else 1)) ** -0.5
        else:
            tensors[name] = torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    return tensors


def ours(rank: int, inputs: tuple[torch.Tensor, ...]) -> Callable[[], float]:
    """A step of Loraloom's U-Net with its own LoRA."""
    layout = read_layout("sd15")
    infos = {name: TensorInfo(torch.float32, shape) for name, (_, shape) in layout.items()}
    shapes = {name.removeprefix(PREFIX): shape for name, (_, shape) in layout.items() if name.startswith(PREFIX)}
    family = SD1()
    with torch.device("meta"):
        unet = UNet.from_shapes(shapes, heads_rule=family.attention_heads)
    unet.load_state_dict(random_weights(shapes), assign=True)
    unet.requires_grad_(False)
    targets = [target for target in family.adapter_targets(infos) if target.part == "unet"]
    adapters = create_adapters(AdapterSettings(rank=rank), targets, seed=0).train()
    attach(adapters, {target.name: unet.get_submodule(target.module) for target in targets})
    assert len(adapters) == 192
    return stepper(lambda x, t, c: unet(x, t, c), list(adapters.parameters()), inputs)


def peft(rank: int, inputs: tuple[torch.Tensor, ...]) -> Callable[[], float]:
    """A step of diffusers' U-Net with PEFT's LoRA on the same layers."""
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig

    unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
    unet.requires_grad_(False)
    names = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=names))
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    assert len(parameters) == 2 * 192
    unet.train()
    return stepper(lambda x, t, c: unet(x, t, c).sample, parameters, inputs)


def stepper(
    denoise: Callable[..., torch.Tensor], parameters: list[torch.nn.Parameter], inputs: tuple[torch.Tensor, ...]
) -> Callable[[], float]:
    x, timesteps, context, target = inputs
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def step() -> float:
        loss = F.mse_loss(denoise(x, timesteps, context), target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


RIVALS = {"diffusers + PEFT": peft, "loraloom": ours}


def work(name: str, arguments: argparse.Namespace) -> None:
    """In the child process: one step for every line read, its seconds as a line of JSON."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    side = arguments.size // 8
    latents = [torch.randn(1, 4, side, side) for _ in range(2)]
    inputs = (latents[0], torch.tensor([500]), torch.randn(1, 77, 768), latents[1])
    if name == "loraloom":
        keep_freed_memory()  # as loraloom.training does on a CPU
    step = RIVALS[name](arguments.rank, inputs)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        facts = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "peak": peak_memory_bytes()}
        print(json.dumps(facts), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", choices=list(RIVALS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, arguments)
        return
    command = [sys.executable, __file__, *sys.argv[1:], "--work"]
    workers = {
        name: subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in RIVALS
    }
    wall: dict[str, list[float]] = {name: [] for name in RIVALS}
    cpu: dict[str, list[float]] = {name: [] for name in RIVALS}
    peak: dict[str, float] = {}
    for turn in range(1 + arguments.repeats):
        for name, worker in workers.items():
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.write("step\n")
            worker.stdin.flush()
            facts = json.loads(worker.stdout.readline())
            if turn > 0:  # the first step warms up
                wall[name].append(facts["wall"])
                cpu[name].append(facts["cpu"])
            peak[name] = round(facts["peak"] / 2**30, 2)
    for worker in workers.values():
        worker.communicate()
    against = "diffusers + PEFT"
    figures = {
        "what": __doc__.splitlines()[0],
        "settings": {key: value for key, value in vars(arguments).items() if key != "work"},
        "wall": summary(wall, against=against),
        "processor": summary(cpu, against=against),
        "peak_gib": peak,
    }
    record("training_step", figures)


if __name__ == "__main__":
    main()
