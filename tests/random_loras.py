"""Random LoRAs for the toys, on every layer that an adapter can be put on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch

from loraloom.adapters.attach import AdapterSet, create_adapters
from loraloom.adapters.settings import AdapterSettings
from loraloom.formats.adapter_file import AdapterTarget
from loraloom.formats.tensors import TensorInfo
from loraloom.models.family import FAMILIES
from toys import toy_tensors

__all__ = ["PARTS", "random_lora", "targets_of"]

PARTS = ("unet", "text_encoder", "text_encoder_2")


@cache
def targets_of(family: str) -> tuple[AdapterTarget, ...]:
    """Every layer of the toy that an adapter can be put on."""
    infos = {name: TensorInfo(tensor.dtype, tuple(tensor.shape)) for name, tensor in toy_tensors(family).items()}
    return tuple(FAMILIES.load(family)().adapter_targets(infos))


def random_lora(
    family: str, seed: int = 0, *, parts: Sequence[str] = PARTS, conv: bool = True, size: float = 0.1
) -> AdapterSet:
    """A LoRA of rank 2 that changes every layer of these parts; ``size`` scales its matrices."""
    settings = AdapterSettings(rank=2, alpha=1.5, conv_rank=2 if conv else 0)
    adapters = create_adapters(settings, [t for t in targets_of(family) if t.part in parts], seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapters.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * size
    return adapters.requires_grad_(False).eval()
