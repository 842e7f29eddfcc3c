"""The parts of a model, built in the sizes of a checkpoint's file and given its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from loraloom.control import Control, heed
from loraloom.errors import CheckpointError
from loraloom.formats.tensors import is_finite
from loraloom.hardware import return_freed_memory
from loraloom.models.checkpoint import Checkpoint
from loraloom.models.quantized import Quantization, QuantizedWeight, quantizable
from loraloom.models.text_encoders import ClipTextEncoder, OpenClipTextEncoder
from loraloom.models.unet import UNet
from loraloom.models.vae import VAE

__all__ = ["PartPlan", "built_part", "check_is_weight", "load_part", "not_finite", "part_plans", "part_problems"]

Shapes = dict[str, tuple[int, ...]]
Build = Callable[[Shapes], nn.Module]


@dataclass(frozen=True)
class PartPlan:
    """A part of a model: what its tensors' names begin with (None: it is not in the file), how to build it."""

    name: str
    prefix: str | None
    build: Build
    missing: CheckpointError


def part_plans(checkpoint: Checkpoint) -> Iterator[PartPlan]:
    """The parts that a model of the checkpoint's family has."""
    family, path = checkpoint.family, checkpoint.path
    unet: Build = lambda shapes: UNet.from_shapes(shapes, heads_rule=family.attention_heads)  # noqa: E731
    yield PartPlan("unet", family.unet_prefix, unet, CheckpointError(f"{path} holds no U-Net"))
    has_vae = f"{family.vae_prefix}decoder.conv_in.weight" in checkpoint
    no_vae = CheckpointError(f"{path} holds no VAE", "use a checkpoint with a VAE in it (this one can still be merged)")
    yield PartPlan("vae", family.vae_prefix if has_vae else None, VAE.from_shapes, no_vae)
    encoders: dict[str, Build] = {"clip": ClipTextEncoder.from_shapes, "open_clip": OpenClipTextEncoder.from_shapes}
    for part in family.text_parts:
        missing = CheckpointError(f"{path} holds no {part.part}", "use a complete checkpoint")
        yield PartPlan(part.part, part.prefix(checkpoint), encoders[part.encoder], missing)


def part_problems(checkpoint: Checkpoint) -> list[str]:
    """What keeps the parts of a checkpoint from being loaded, by what loading checks; reads no tensor."""
    problems = []
    for plan in part_plans(checkpoint):
        try:
            built_part(checkpoint, plan)
        except CheckpointError as error:
            problems.append(error.problem.removeprefix(f"{checkpoint.path}").lstrip(": "))
    return problems


def built_part(checkpoint: Checkpoint, plan: PartPlan) -> tuple[str, nn.Module]:
    """The prefix and the module of a part, without memory. Raises CheckpointError unless every tensor is there."""
    prefix = plan.prefix
    if prefix is None:
        raise plan.missing
    names = [name for name in checkpoint if name.startswith(prefix)]
    shapes = {name.removeprefix(prefix): checkpoint.info(name).shape for name in names}

    # On the meta device a module takes no memory, so shapes are compared before a weight is read.
    try:
        with torch.device("meta"):
            module = plan.build(shapes)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.path}: {error.problem}", error.hint) from error

    for name, expected in module.state_dict().items():
        info = checkpoint.info(prefix + name) if prefix + name in checkpoint else None
        if info is None or info.shape != tuple(expected.shape):
            found = "is missing" if info is None else f"has the shape {info.shape} instead of {tuple(expected.shape)}"
            raise CheckpointError(f"{checkpoint.path}: the tensor {prefix + name} {found}", "the file is incomplete")
        if expected.is_floating_point():
            check_is_weight(checkpoint.path, prefix + name, info.dtype)

    return prefix, module


def load_part(
    checkpoint: Checkpoint,
    prefix: str,
    module: nn.Module,
    device: torch.device,
    dtype: torch.dtype | None,
    quantize: Quantization,
    control: Control,
) -> tuple[nn.Module, CheckpointError | None]:
    """Give a part without memory the file's tensors; only a change of precision or device copies.

    Second is what is wrong with the first tensor that holds NaN or infinite values.
    """
    damage: CheckpointError | None = None
    state: dict[str, Tensor] = {}
    small = set() if quantize == "none" else quantizable(module)
    for name in module.state_dict():
        heed(control)
        weight, problem = _loaded_weight(checkpoint, prefix + name, device, dtype)
        damage = damage or problem
        if name in small:
            weight = QuantizedWeight.quantize(weight, quantize)
            # What it was made from leaves holes in the heap, which in sum would take more than is saved.
            return_freed_memory()
        state[name] = weight
    module.load_state_dict(state, assign=True)
    return module.requires_grad_(False).eval(), damage


def _loaded_weight(
    checkpoint: Checkpoint, name: str, device: torch.device, dtype: torch.dtype | None
) -> tuple[Tensor, CheckpointError | None]:
    """A tensor for use, mapped where it stays as it is in the file, else converted; and what is wrong with it."""
    info = checkpoint.info(name)
    if device.type == "meta":  # a plan asks for sizes alone
        return torch.empty(info.shape, dtype=dtype or info.dtype, device=device), None
    stays = device.type == "cpu" and dtype in (None, info.dtype)
    if not stays:
        stored = checkpoint[name]
        weight = stored.to(device=device, dtype=dtype)
    else:
        checkpoint.check(name)
        stored = weight = checkpoint.mapped(name)
    if is_finite(weight):
        return weight, None
    if not is_finite(stored):
        return weight, not_finite(checkpoint.path, name, stored)
    kept, wanted = (str(tensor.dtype).removeprefix("torch.") for tensor in (stored, weight))
    return weight, CheckpointError(
        f"{checkpoint.path}: the tensor {name} ({kept}) holds values beyond the range of {wanted}",
        "compute in bf16 or float",
    )


def check_is_weight(path: Path, name: str, dtype: torch.dtype) -> None:
    """Raise CheckpointError for a weight of whole numbers: only the program that made them knows their scales."""
    if not dtype.is_floating_point:
        raise CheckpointError(
            f"{path}: the tensor {name} holds {str(dtype).removeprefix('torch.')}, not floating-point numbers",
            "it was quantized by another program, whose scales are needed: use the file it was made from",
        )


def not_finite(path: Path, name: str, tensor: Tensor) -> CheckpointError:
    """What to say of a model's tensor, of any shape, with values that are NaN or infinite."""
    bad = int((~torch.isfinite(tensor.float())).sum())
    return CheckpointError(
        f"{path}: the tensor {name} holds {bad} of {tensor.numel()} values that are NaN or infinite",
        "the checkpoint is damaged (a merge or training that overflowed leaves this): get another copy or version",
    )
