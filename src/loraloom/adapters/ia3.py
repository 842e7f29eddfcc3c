"""(IA)3 (Liu et al., arXiv:2205.05638): one factor for each channel of a layer's output or input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from loraloom.adapters.adapter import Adapter, apply_weight, fitted, per_channel, weight_of
from loraloom.adapters.readers import NO, Reading
from loraloom.adapters.settings import AdapterSettings
from loraloom.formats.adapter_file import AdapterTarget
from loraloom.formats.key_layout import FLAG, WEIGHT, KeyLayout

__all__ = ["Ia3Adapter"]

_ON_INPUT = ("ff_net_2", "mlp_fc2")
"""Ends of the names of layers whose input is scaled: those behind the activation of a feed-forward block."""


class Ia3Adapter(Adapter):
    """``delta = W * scale`` along the output channels, or along the input channels (``on_input``)."""

    kind = "ia3"
    layout = KeyLayout(
        "(IA)3",
        own={"on_input": FLAG, "weight": WEIGHT},
        is_told_by_all=True,
        keys={"comfy": {}},  # with ``.weight`` every U-Net in ComfyUI's names would be a LoRA
    )
    needs_base = True
    network_module = "lycoris.kohya"
    algorithm = "ia3"
    readings = (
        Reading(
            "ia3",
            (
                "yes since 1.5; of convolutions only the factors of inputs, which are what Loraloom trains",
                NO,
                NO,
                "no: its file loader fails; a network made with the same preset loads it",
                NO,
            ),
        ),
    )

    def __init__(self, scale: Tensor, *, on_input: bool, ndim: int = 2) -> None:
        super().__init__()
        self.weight = nn.Parameter(scale)
        self.on_input = on_input
        self.ndim = ndim

    @classmethod
    def create(
        cls,
        target: AdapterTarget,
        settings: AdapterSettings,
        rank: int,
        alpha: float,
        *,
        seed: int,
        base: Tensor | None = None,
    ) -> Self:
        # AUTOMATIC1111 reads factors of a convolution's inputs, and fails at those of its outputs.
        on_input = len(target.shape) > 2 or any(name.endswith(_ON_INPUT) for name in (target.name, *target.aliases))
        return cls(torch.zeros(target.shape[1 if on_input else 0]), on_input=on_input, ndim=len(target.shape))

    def change(self, base: Tensor | None) -> Tensor:
        if base is None:
            raise ValueError("the change of this kind depends on the layer's own weight")
        axis = 1 if self.on_input else 0
        shape = [-1 if index == axis else 1 for index in range(base.ndim)]
        return base.float() * self.weight.float().reshape(shape)

    def branch(self, x: Tensor, layer: nn.Module) -> Tensor:
        weight, factors = weight_of(layer).to(x.dtype), per_channel(self.weight.to(x.dtype), x)
        side = apply_weight(x * factors, weight, layer) if self.on_input else apply_weight(x, weight, layer) * factors
        return self.without_rows(side)

    def norm(self) -> Tensor:
        """Of the factors themselves."""
        norm: Tensor = torch.linalg.vector_norm(self.weight.detach().float())
        return norm

    @torch.no_grad()
    def scale_by(self, ratio: float) -> None:
        self.weight.mul_(ratio)

    def tensors(self) -> dict[str, Tensor]:
        weight = self.weight.detach()
        weight = weight if self.ndim == 2 else weight.reshape(1, -1, *(1,) * (self.ndim - 2))
        return {"weight": weight, "on_input": torch.tensor(int(self.on_input))}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], target: AdapterTarget) -> Self:
        on_input = bool(tensors["on_input"])
        stored = {role: tensor.flatten() for role, tensor in tensors.items()}
        weight = fitted(stored, "weight", (target.shape[1 if on_input else 0],), target)
        return cls(weight, on_input=on_input, ndim=len(target.shape))
