"""The plain difference of a layer's weight, LyCORIS' ``full``: as many values as the weight itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from loraloom.adapters.adapter import Adapter, apply_weight, fitted
from loraloom.adapters.readers import NO, Reading
from loraloom.adapters.settings import AdapterSettings
from loraloom.formats.adapter_file import AdapterTarget
from loraloom.formats.key_layout import VECTOR, WEIGHT, KeyLayout

__all__ = ["FullAdapter"]


class FullAdapter(Adapter):
    """``delta = diff``; files of other trainers may change the bias too (``diff_b``)."""

    kind = "full"
    layout = KeyLayout(
        "full difference", own={"diff": WEIGHT}, more={"diff_b": VECTOR}, columns=(("diff",),), adds_up=True
    )
    rebuilds = False
    network_module = "lycoris.kohya"
    algorithm = "full"
    readings = (Reading("full", ("yes since 1.5", "yes", "yes", "yes", NO)),)

    def __init__(self, diff: Tensor, diff_b: Tensor | None = None) -> None:
        super().__init__()
        self.diff = nn.Parameter(diff)
        self.diff_b = None if diff_b is None else nn.Parameter(diff_b)

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
        return cls(torch.zeros(target.shape))

    def change(self, base: Tensor | None = None) -> Tensor:
        return self.diff.float()

    def bias_delta(self) -> Tensor | None:
        return None if self.diff_b is None else self.diff_b.detach().float()

    def branch(self, x: Tensor, layer: nn.Module) -> Tensor:
        bias = None if self.diff_b is None else self.diff_b.to(x.dtype)
        return self.without_rows(apply_weight(x, self.diff.to(x.dtype), layer, bias))

    @torch.no_grad()
    def scale_by(self, ratio: float) -> None:
        for parameter in self.parameters():
            parameter.mul_(ratio)

    def tensors(self) -> dict[str, Tensor]:
        bias = {} if self.diff_b is None else {"diff_b": self.diff_b.detach()}
        return {"diff": self.diff.detach(), **bias}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], target: AdapterTarget) -> Self:
        bias = fitted(tensors, "diff_b", target.shape[:1], target) if "diff_b" in tensors else None
        return cls(fitted(tensors, "diff", target.shape, target), bias)
