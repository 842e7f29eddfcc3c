"""LoKr: a Kronecker product, its sides whole or of low rank (KronA, Edalati et al., arXiv:2212.10650; LyCORIS)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loraloom.adapters.adapter import Adapter, alpha_of, fitted, uniform_tensor
from loraloom.adapters.loha import product_of, scale_in_file, without_core
from loraloom.adapters.readers import NO, Reading
from loraloom.adapters.settings import AdapterSettings
from loraloom.errors import AdapterError
from loraloom.formats.adapter_file import AdapterTarget
from loraloom.formats.key_layout import FACTOR, KERNEL, MATRIX, NUMBER, KeyLayout, Product
from loraloom.randomness import generator

__all__ = ["LokrAdapter", "split_dimension"]

_FIRST = ("lokr_w1", "lokr_w1_a", "lokr_w1_b")
_SECOND = ("lokr_w2", "lokr_w2_a", "lokr_w2_b")
_ROLES = (*_FIRST, *_SECOND, "lokr_t2")


def split_dimension(size: int, factor: int) -> tuple[int, int]:
    """``size`` as a product (small, large): small is ``factor`` if that divides, else the largest divisor below it.

    -1: as square as possible.
    """
    if factor > 0 and size % factor == 0:
        small, large = sorted((factor, size // factor))
        return small, large
    limit = math.isqrt(size) if factor <= 0 else min(factor, math.isqrt(size))
    small = next(divisor for divisor in range(limit, 0, -1) if size % divisor == 0)
    return small, size // small


class LokrAdapter(Adapter):
    """``delta = scale * kron(w1, w2)``; w1 is (a, c), w2 is (b, d[, kh, kw]) with out = a * b and in = c * d.

    Either side may be a product of two factors; the scale is alpha / rank, and 1 where neither is.
    """

    kind = "lokr"
    layout = KeyLayout(
        "LoKr",
        own=dict.fromkeys(_FIRST, MATRIX) | dict.fromkeys(_SECOND, FACTOR),
        more={"lokr_t2": KERNEL, "alpha": NUMBER},
        needs=tuple(((whole,), (left, right)) for whole, left, right in (_FIRST, _SECOND)),
        products=(Product("lokr_w1_a", "lokr_w1_b"), Product("lokr_w2_a", "lokr_w2_b", "lokr_t2")),
        ranks=("lokr_w2_b", "lokr_w1_b"),
        columns=(("lokr_w1", "lokr_w1_b"), ("lokr_w2", "lokr_w2_b")),
        keys={"peft": {f".{role}": role for role in _ROLES}},
        peft_modules=_ROLES,
        peft_scaled="lokr_w1",
        marks=("lokr_w",),
    )
    rebuilds = False
    network_module = "lycoris.kohya"
    algorithm = "lokr"
    readings = (Reading("lokr", ("yes since 1.5", "yes", "yes", "yes", NO)),)

    def __init__(self, w1: tuple[Tensor, ...], w2: tuple[Tensor, ...], alpha: float, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.w1 = nn.ParameterList([nn.Parameter(factor) for factor in w1])
        self.w2 = nn.ParameterList([nn.Parameter(factor) for factor in w2])
        self.alpha = alpha
        self.shape = shape

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
        """LyCORIS' start: uniform within 1/sqrt(fan in), but ``w2`` (or its second factor) zero.

        ``base`` has the layer's shape; the start does not depend on it.
        """
        out, in_, *kernel = target.shape
        (a, b), (c, d) = split_dimension(out, settings.lokr_factor), split_dimension(in_, settings.lokr_factor)
        random = generator(seed, "init", target.name)
        full, columns = settings.lokr_full_matrix, d * math.prod(kernel)
        w1_shapes = [(a, c)]
        if settings.lokr_decompose_both and not full and rank < max(a, c) / 2:
            w1_shapes = [(a, rank), (rank, c)]
        w1 = tuple(uniform_tensor(shape, 1 / math.sqrt(shape[1]), random) for shape in w1_shapes)
        if full or rank >= max(b, d) / 2:
            w2: tuple[Tensor, ...] = (torch.zeros(b, d, *kernel),)
        else:
            w2 = uniform_tensor((b, rank), 1 / math.sqrt(rank), random), torch.zeros(rank, columns)
        return cls(w1, w2, alpha, target.shape)

    @classmethod
    def network_args(cls, settings: AdapterSettings) -> dict[str, object]:
        return {
            "factor": settings.lokr_factor,
            **({"decompose_both": "True"} if settings.lokr_decompose_both else {}),
            **({"full_matrix": "True"} if settings.lokr_full_matrix else {}),
        }

    @classmethod
    def norm_in_file(cls, tensors: Mapping[str, Tensor]) -> tuple[float, float]:
        first = tensors["lokr_w1"] if "lokr_w1" in tensors else product_of(tensors, "lokr_w1_a", "lokr_w1_b")
        second = tensors.get("lokr_w2")
        if second is None:
            second = product_of(tensors, "lokr_w2_a", "lokr_w2_b", "lokr_t2")
        ranks = [len(tensors[role]) for role in cls.layout.ranks if role in tensors]
        scale = scale_in_file(tensors, ranks[0]) if ranks else 1.0
        return float(first.norm() * second.norm()) * scale, first.numel() * second.numel()

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(side[1].shape[0] for side in (self.w1, self.w2) if len(side) == 2))

    @property
    def scale(self) -> float:
        """What the product is multiplied by."""
        return self.alpha / self.ranks[0] if self.ranks else 1.0

    def _sides(self) -> tuple[Tensor, Tensor]:
        """w1 (a, c) and w2 (b, d, kernel)."""
        w1 = self.w1[0] if len(self.w1) == 1 else self.w1[0].float() @ self.w1[1].float()
        if len(self.w2) == 1:
            return w1, self.w2[0]
        rows, d = self.w2[0].shape[0], self.shape[1] // w1.shape[1]
        return w1, (self.w2[0].float() @ self.w2[1].float()).reshape(rows, d, *self.shape[2:])

    def change(self, base: Tensor | None = None) -> Tensor:
        w1, w2 = (side.float() for side in self._sides())
        return torch.kron(w1.reshape(*w1.shape, *(1 for _ in self.shape[2:])), w2.contiguous()) * self.scale

    def branch(self, x: Tensor, layer: nn.Module) -> Tensor:
        """Without building the product: the input as (c, d) goes through w2 along d, then through w1 along c."""
        w1, w2 = (side.to(x.dtype) for side in self._sides())
        w1 = w1 * self.scale
        c = w1.shape[1]
        if isinstance(layer, nn.Conv2d):
            groups = x.reshape(x.shape[0] * c, -1, *x.shape[2:])
            groups = F.conv2d(groups, w2, stride=layer.stride, padding=layer.padding)
            groups = groups.reshape(x.shape[0], c, -1)
            mixed = torch.matmul(w1, groups)
            height, width = (
                (size + 2 * pad - kernel) // stride + 1
                for size, pad, kernel, stride in zip(
                    x.shape[2:], _pair(layer.padding), layer.kernel_size, layer.stride, strict=True
                )
            )
            side = mixed.reshape(x.shape[0], self.shape[0], height, width)
        else:
            groups = F.linear(x.reshape(*x.shape[:-1], c, -1), w2.flatten(1))
            side = torch.matmul(w1, groups).reshape(*x.shape[:-1], self.shape[0])
        return self.without_rows(side)

    def norm(self) -> Tensor:
        """The norm of a Kronecker product is the product of the norms."""
        norms: list[Tensor] = [torch.linalg.vector_norm(side.detach().float()) for side in self._sides()]
        return norms[0] * norms[1] * self.scale

    @torch.no_grad()
    def scale_by(self, ratio: float) -> None:
        for side in (self.w1, self.w2):
            for factor in side:
                factor.mul_(ratio ** (0.5 / len(side)))

    def tensors(self) -> dict[str, Tensor]:
        stored: dict[str, Tensor] = {}
        for name, side in (("lokr_w1", self.w1), ("lokr_w2", self.w2)):
            names = [name] if len(side) == 1 else [f"{name}_a", f"{name}_b"]
            stored |= {role: factor.detach() for role, factor in zip(names, side, strict=True)}
        return {**stored, "alpha": torch.tensor(float(self.alpha))}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], target: AdapterTarget) -> Self:
        w1, w2 = _stored_side(tensors, "lokr_w1", target), _stored_side(tensors, "lokr_w2", target)
        if "lokr_t2" in tensors and len(w2) == 2:
            w2 = without_core(tensors["lokr_t2"], w2[0], w2[1], target)

        out, in_, *kernel = target.shape
        rows, columns = w1[0].shape[0], w1[-1].shape[1]
        if rows == 0 or columns == 0 or out % rows or in_ % columns:
            raise AdapterError(
                f"layer {target.name} has shape {tuple(target.shape)}, which no Kronecker product with a first factor "
                f"of shape ({rows}, {columns}) has",
                "the LoRA was made for another model",
            )

        b, d = out // rows, in_ // columns
        if len(w1) == 2:
            _check_pair(w1, (rows, columns), target)
        if len(w2) == 1:
            w2 = (fitted(tensors, "lokr_w2", (b, d, *kernel), target),)
        else:
            w2 = w2[0].flatten(1), w2[1].flatten(1)
            _check_pair(w2, (b, d * math.prod(kernel)), target)

        # An alpha has no meaning where neither side is factored.
        rank = next((side[1].shape[0] for side in (w1, w2) if len(side) == 2), 1)
        first, second = (tuple(factor.float() for factor in side) for side in (w1, w2))
        return cls(first, second, alpha_of(tensors, rank), target.shape)


def _stored_side(tensors: Mapping[str, Tensor], name: str, target: AdapterTarget) -> tuple[Tensor, ...]:
    if name in tensors:
        return (tensors[name],)
    missing = [role for role in (f"{name}_a", f"{name}_b") if role not in tensors]
    if missing:
        raise AdapterError(f"layer {target.name} has no {missing[0]} matrix", "the file is incomplete")
    return tensors[f"{name}_a"], tensors[f"{name}_b"]


def _check_pair(pair: tuple[Tensor, ...], shape: tuple[int, int], target: AdapterTarget) -> None:
    first, second = pair
    if (first.shape[0], second.shape[1]) != shape or first.shape[1] != second.shape[0]:
        raise AdapterError(
            f"layer {target.name} has shape {tuple(target.shape)}, but the LoRA's factors are {tuple(first.shape)} and "
            f"{tuple(second.shape)}",
            "the LoRA was made for another model",
        )


def _pair(padding: str | tuple[int, ...]) -> tuple[int, ...]:
    assert not isinstance(padding, str)
    return padding
