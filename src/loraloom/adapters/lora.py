"""The Adapter contract and LoRA (Hu et al., arXiv:2106.09685) for linear and convolution layers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loraloom.errors import AdapterError
from loraloom.formats.adapter_file import AdapterTarget
from loraloom.randomness import generator

__all__ = ["Adapter", "LoraAdapter"]


class Adapter(nn.Module, ABC):
    """A trainable change of one layer of a frozen model."""

    kind: ClassVar[str]

    @abstractmethod
    def delta(self) -> Tensor:
        """The change of the layer's weight, in its shape, float32. Merging and tests need only this."""

    @abstractmethod
    def add_to(self, output: Tensor, x: Tensor, layer: nn.Module, weight: float) -> Tensor:
        """``output + weight * (the change applied to x)``; ``x`` and ``output`` are the layer's own."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a LoRA file, by role."""

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], target: AdapterTarget) -> Self:
        """The inverse of :meth:`tensors`; raises AdapterError where they do not fit the target."""


class LoraAdapter(Adapter):
    """``delta = alpha / rank * up @ down``; ``down`` is (rank, in[, kh, kw]), ``up`` is (out, rank[, 1, 1])."""

    kind = "lora"

    def __init__(self, down: Tensor, up: Tensor, alpha: float, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(up)
        self.alpha = alpha
        self.dropout = dropout
        self.dropout_seed = 0

    @classmethod
    def create(cls, target: AdapterTarget, rank: int, alpha: float, *, dropout: float, seed: int) -> Self:
        """A LoRA that changes nothing yet: ``down`` uniform within 1/sqrt(fan in), ``up`` zero."""
        out, *rest = target.shape
        bound = 1 / math.sqrt(math.prod(rest))
        random = generator(seed, "init", target.name)
        down = torch.empty(rank, *rest).uniform_(-bound, bound, generator=random)
        return cls(down, torch.zeros(out, rank, *(1 for _ in rest[1:])), alpha, dropout=dropout)

    @property
    def rank(self) -> int:
        """Rank of the update."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """What ``up @ down`` is multiplied by."""
        return self.alpha / self.rank

    def delta(self) -> Tensor:
        up, down = self.up.detach().float(), self.down.detach().float()
        product = up.flatten(1) @ down.flatten(1)
        return (product * self.scale).reshape(up.shape[0], *down.shape[1:])

    def add_to(self, output: Tensor, x: Tensor, layer: nn.Module, weight: float) -> Tensor:
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        scale = self.scale * weight
        if isinstance(layer, nn.Conv2d):
            low = F.conv2d(x, down, stride=layer.stride, padding=layer.padding)
            return output + F.conv2d(self._dropped(low) * scale, up)
        # The scale goes on the thin activation and the sum into the product: no extra pass over the full size.
        low = self._dropped(F.linear(x, down)) * scale
        sum_ = torch.addmm(output.reshape(-1, output.shape[-1]), low.reshape(-1, low.shape[-1]), up.t())
        return sum_.reshape(output.shape)

    def _dropped(self, low: Tensor) -> Tensor:
        if not self.training or self.dropout == 0.0:
            return low
        random = torch.Generator(low.device).manual_seed(self.dropout_seed)
        keep = torch.rand(low.shape, generator=random, device=low.device) >= self.dropout
        return low * keep.to(low.dtype) / (1 - self.dropout)

    def tensors(self) -> dict[str, Tensor]:
        return {"down": self.down.detach(), "up": self.up.detach(), "alpha": torch.tensor(float(self.alpha))}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], target: AdapterTarget) -> Self:
        missing = {"down", "up"} - set(tensors)
        if missing:
            raise AdapterError(f"layer {target.name} has no {' and no '.join(sorted(missing))} matrix")
        down, up = tensors["down"], tensors["up"]
        rank = down.shape[0] if down.ndim else 0
        out, *rest = target.shape
        wanted_down, wanted_up = (rank, *rest), (out, rank, *(1 for _ in rest[1:]))
        fits = (
            rank > 0 and _squeezed(down.shape) == _squeezed(wanted_down) and _squeezed(up.shape) == _squeezed(wanted_up)
        )
        if not fits:
            raise AdapterError(
                f"layer {target.name} has shape {tuple(target.shape)}, but the LoRA's matrices are "
                f"{tuple(down.shape)} and {tuple(up.shape)}",
                "the LoRA was made for another model",
            )
        alpha = float(tensors["alpha"]) if "alpha" in tensors else float(rank)
        if not math.isfinite(alpha) or not (torch.isfinite(down).all() and torch.isfinite(up).all()):
            raise AdapterError(f"layer {target.name} of the LoRA holds NaN or infinite values", "the file is damaged")
        # sd-scripts treats an alpha of zero as "equal to the rank".
        return cls(down.reshape(wanted_down).float(), up.reshape(wanted_up).float(), alpha or float(rank))


def _squeezed(shape: tuple[int, ...] | torch.Size) -> tuple[int, ...]:
    """The shape without the trailing 1x1 of a convolution: SD2 projections come in 2-D and in 4-D."""
    shape = tuple(shape)
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape
