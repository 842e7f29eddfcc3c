"""Layers that adapters are put on in tests, and adapters with random values in them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from loraloom.adapters.adapter import Adapter
from loraloom.adapters.settings import AdapterSettings
from loraloom.formats.adapter_file import AdapterTarget
from loraloom.formats.adapter_kinds import ADAPTERS

__all__ = ["INPUTS", "LAYERS", "SETTINGS", "TRAINED", "made", "randomise", "spot"]

TRAINED = tuple(kind for kind in ADAPTERS if kind != "norm")
LAYERS = {
    "linear": lambda: nn.Linear(12, 20),
    "narrow": lambda: nn.Linear(12, 12, bias=False),
    "conv1": lambda: nn.Conv2d(12, 20, 1),
    "conv3": lambda: nn.Conv2d(12, 20, 3, stride=2, padding=1),
}
INPUTS = {"linear": (2, 5, 12), "narrow": (3, 12), "conv1": (2, 12, 5, 4), "conv3": (2, 12, 8, 7)}

SETTINGS: Mapping[str, dict[str, object]] = {
    "lora": {"kind": "lora"},
    "lora pissa": {"kind": "lora", "init": "pissa"},
    "lora orthogonal": {"kind": "lora", "init": "orthogonal"},
    "lora_fa": {"kind": "lora_fa"},
    "lora_fa pissa": {"kind": "lora_fa", "init": "pissa"},
    "dora": {"kind": "dora"},
    "dora output": {"kind": "dora", "dora_axis": "output"},
    "dora pissa": {"kind": "dora", "init": "pissa"},
    "loha": {"kind": "loha"},
    "lokr": {"kind": "lokr"},
    "lokr factor": {"kind": "lokr", "lokr_factor": 2},
    "lokr both": {"kind": "lokr", "lokr_decompose_both": True, "lokr_factor": 4, "rank": 1},
    "lokr full": {"kind": "lokr", "lokr_full_matrix": True},
    "ia3": {"kind": "ia3"},
    "full": {"kind": "full"},
}
"""Every kind, and every way to make one."""


def spot(layer: nn.Module, name: str = "lora_unet_a_b", *, part: str = "unet") -> AdapterTarget:
    """A target for a layer."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    shape = tuple(weight.shape)
    kind = "norm" if len(shape) == 1 else "linear" if len(shape) == 2 else "conv3x3" if shape[2] == 3 else "conv1x1"
    module = name.removeprefix("lora_unet_")
    return AdapterTarget(part, module, name, (), module.replace("_", "."), f"{module}.weight", None, shape, kind, 0)


def made(
    layer: nn.Module, settings: Mapping[str, object], *, name: str = "lora_unet_a_b", alpha: float = 1.5
) -> Adapter:
    """A new adapter for a layer."""
    chosen = AdapterSettings(**{"rank": 2, **settings})  # type: ignore[arg-type]
    base = layer.weight.detach()  # type: ignore[operator,union-attr]
    kind: type[Adapter] = ADAPTERS.load(chosen.kind)
    return kind.create(spot(layer, name), chosen, chosen.rank, alpha, seed=3, base=base)  # type: ignore[arg-type]


def randomise(adapter: Adapter, seed: int = 0, size: float = 0.3) -> Adapter:
    """Random values added to everything that is trained."""
    random = torch.Generator().manual_seed(seed)
    for parameter in adapter.parameters():
        if parameter.requires_grad:
            parameter.data += size * torch.randn(parameter.shape, generator=random)
    return adapter
