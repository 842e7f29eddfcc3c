"""One LoRA training step of a full-size SD 1.5 U-Net against diffusers + PEFT: same layers, same sizes, one run.

    python benchmarks/training_step.py [--size 256] [--rank 32] [--repeats 5] [--threads 2]

Random weights (speed does not depend on them), batch 1, fp32, the 192 default layers, forward, backward, AdamW.
Needs the test extra and about 10 GB of memory.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]

from harness import interleaved, record, summary

from layouts import read_layout
from loraloom.adapters.attach import attach, create_adapters
from loraloom.adapters.settings import AdapterSettings
from loraloom.formats.tensors import TensorInfo
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


def ours(size: int, rank: int, inputs: tuple[torch.Tensor, ...]) -> Callable[[], float]:
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
    print(f"ours: {len(adapters)} layers")
    return stepper(lambda x, t, c: unet(x, t, c), list(adapters.parameters()), inputs)


def peft(size: int, rank: int, inputs: tuple[torch.Tensor, ...]) -> Callable[[], float]:
    """A step of diffusers' U-Net with PEFT's LoRA on the same layers."""
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig

    unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
    unet.requires_grad_(False)
    names = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=names))
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    print(f"peft: {len(parameters) // 2} layers")
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
        return float(loss)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    side = arguments.size // 8
    inputs = (
        torch.randn(1, 4, side, side),
        torch.tensor([500]),
        torch.randn(1, 77, 768),
        torch.randn(1, 4, side, side),
    )
    rivals = {
        "diffusers + PEFT": peft(arguments.size, arguments.rank, inputs),
        "loraloom": ours(arguments.size, arguments.rank, inputs),
    }
    seconds = interleaved(rivals, repeats=arguments.repeats)
    figures = {"what": __doc__.splitlines()[0], "size_px": arguments.size, "rank": arguments.rank}
    record("training_step", {**figures, "steps": summary(seconds, against="diffusers + PEFT")})


if __name__ == "__main__":
    main()
