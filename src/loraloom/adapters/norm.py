"""Differences of a normalization's weight and bias, as LyCORIS' ``train_norm`` writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loraloom.adapters.adapter import Adapter, fitted
from loraloom.adapters.readers import NO, Reading
from loraloom.adapters.settings import AdapterSettings
from loraloom.formats.adapter_file import AdapterTarget
from loraloom.formats.key_layout import VECTOR, KeyLayout

__all__ = ["NormAdapter"]


class NormAdapter(Adapter):
    """``delta = w_norm``, and ``b_norm`` for the bias, of a group or layer normalization."""

    kind = "norm"
    layout = KeyLayout("norm difference", own={"w_norm": VECTOR}, more={"b_norm": VECTOR}, adds_up=True)
    rebuilds = False
    readings = (
        Reading("LyCORIS' differences of normalizations (read, not trained)", ("yes", "yes", "yes", "yes", NO)),
    )

    @classmethod
    def takes(cls, target: AdapterTarget) -> bool:
        return target.kind == "norm"

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

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
        return cls(torch.zeros(target.shape), torch.zeros(target.shape))

    def change(self, base: Tensor | None = None) -> Tensor:
        return self.weight.float()

    def bias_delta(self) -> Tensor | None:
        return None if self.bias is None else self.bias.detach().float()

    def branch(self, x: Tensor, layer: nn.Module) -> Tensor:
        weight, bias = self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
        if isinstance(layer, nn.GroupNorm):
            return F.group_norm(x, layer.num_groups, weight, bias, layer.eps)
        assert isinstance(layer, nn.LayerNorm)
        return F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)

    @torch.no_grad()
    def scale_by(self, ratio: float) -> None:
        for parameter in self.parameters():
            parameter.mul_(ratio)

    def tensors(self) -> dict[str, Tensor]:
        bias = {} if self.bias is None else {"b_norm": self.bias.detach()}
        return {"w_norm": self.weight.detach(), **bias}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], target: AdapterTarget) -> Self:
        bias = fitted(tensors, "b_norm", target.shape, target) if "b_norm" in tensors else None
        return cls(fitted(tensors, "w_norm", target.shape, target), bias)
