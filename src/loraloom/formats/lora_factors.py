"""A LoRA layer of a file as one pair of factors and a number, whatever form the file keeps it in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from loraloom.errors import AdapterError
from loraloom.formats.dialects import alpha_in_use

__all__ = ["LoraFactors", "factors_of", "product_norm"]

_DAMAGED = "the file is damaged"
_LARGEST_NORM = 1e30
"""Far above every norm of a sound LoRA, and far enough from the end of float32 for sums of several."""


@dataclass(frozen=True)
class LoraFactors:
    """``scale * up @ down``: up (out, r), down (r, in times kernel), float32; ``kernel`` is () for a linear layer."""

    down: Tensor
    up: Tensor
    scale: float
    kernel: tuple[int, ...]

    @property
    def rank(self) -> int:
        """Rank of the factors."""
        return len(self.down)

    @property
    def is_convolution(self) -> bool:
        """Whether the kernel is larger than 1x1: such layers have a rank of their own."""
        return any(size > 1 for size in self.kernel)

    def is_beyond_range(self) -> bool:
        """Whether the change, or what is calculated on the way to it, may be more than float32 can hold."""
        down, up = (float(torch.linalg.vector_norm(factor.double())) for factor in (self.down, self.up))
        return max(down, 1.0) * max(up, 1.0) * max(abs(self.scale), 1.0) > _LARGEST_NORM

    def roles(self, down: Tensor, up: Tensor) -> dict[str, Tensor]:
        """The tensors of the file for other factors of this layer, (r, in * kernel) and (out, r), whose scale is 1."""
        rank, ones = len(down), tuple(1 for _ in self.kernel)
        columns = down.shape[1] // math.prod(self.kernel)
        return {
            "down": down.reshape(rank, columns, *self.kernel),
            "up": up.reshape(len(up), rank, *ones),
            "alpha": torch.tensor(float(rank)),
        }

    def without_scale(self) -> tuple[Tensor, Tensor]:
        """``(down, up)`` whose product is the change: the scale is shared evenly, so that neither becomes tiny."""
        root = math.sqrt(abs(self.scale))
        return self.down * root, self.up * math.copysign(root, self.scale)


def factors_of(roles: Mapping[str, Tensor], where: str) -> LoraFactors:
    """The factors of one layer's tensors, Tucker's middle tensor multiplied into ``down``.

    ``where`` names file and layer in the AdapterError for tensors that do not fit together or are not finite.
    """
    missing = [role for role in ("down", "up") if role not in roles]
    if missing:
        raise AdapterError(f"{where} has no {' and no '.join(missing)} matrix", "the file is incomplete")
    down, up = roles["down"].float(), roles["up"].float()

    # Tucker's layers are brought to two factors, so that whoever works with them has one form to mind.
    if "mid" in roles:
        middle = roles["mid"].float()
        if down.ndim < 2 or middle.ndim != 4 or middle.shape[1] != len(down):
            raise AdapterError(f"{where}: the middle tensor does not fit", _DAMAGED)
        down = torch.einsum("abhw,bi->aihw", middle, down.flatten(1))

    if down.ndim not in (2, 4) or up.ndim not in (2, 4) or up.flatten(1).shape[1] != len(down) or not down.numel():
        raise AdapterError(f"{where}: its factors have shapes {tuple(down.shape)} and {tuple(up.shape)}", _DAMAGED)
    alpha = roles.get("alpha")
    if alpha is not None and alpha.numel() != 1:
        raise AdapterError(f"{where}: its alpha is not a number", _DAMAGED)
    value = None if alpha is None else float(alpha)

    # NaN in one factor makes the whole product NaN, and later nobody could say which layer it came from.
    if not (bool(torch.isfinite(down).all()) and bool(torch.isfinite(up).all()) and math.isfinite(value or 0.0)):
        raise AdapterError(f"{where} holds NaN or infinite values", _DAMAGED)
    return LoraFactors(
        down.flatten(1), up.flatten(1), alpha_in_use(value, len(down)) / len(down), tuple(down.shape[2:])
    )


def product_norm(up: Tensor, down: Tensor) -> float:
    """Frobenius norm of ``up @ down``, (out, r) and (r, in), from products of the size of the rank."""
    up, down = up.double(), down.double()
    return math.sqrt(max(float(((up.T @ up) * (down @ down.T)).sum()), 0.0))
