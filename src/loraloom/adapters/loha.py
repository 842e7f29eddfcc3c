"""LoHa: the elementwise product of two low-rank matrices (FedPara, Hyeon-Woo et al., arXiv:2108.06098)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from loraloom.adapters.adapter import Adapter, alpha_of, fitted
from loraloom.adapters.readers import NO, Reading
from loraloom.adapters.settings import AdapterSettings
from loraloom.errors import AdapterError
from loraloom.formats.adapter_file import AdapterTarget
from loraloom.formats.key_layout import FACTOR, KERNEL, NUMBER, KeyLayout, Product
from loraloom.randomness import generator

__all__ = ["LohaAdapter", "product_of", "scale_in_file", "without_core"]

_FACTORS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_ENDS = {f".{role}": role for role in (*_FACTORS, "hada_t1", "hada_t2")}


class LohaAdapter(Adapter):
    """``delta = alpha / rank * (w1_a @ w1_b) * (w2_a @ w2_b)``; each pair is (out, rank), (rank, in * kh * kw).

    The product of two matrices of rank r has a rank of up to r squared, with the values of a LoRA of rank 2 r.
    """

    kind = "loha"
    layout = KeyLayout(
        "LoHa",
        own=dict.fromkeys(_FACTORS, FACTOR),
        more={"hada_t1": KERNEL, "hada_t2": KERNEL, "alpha": NUMBER},
        needs=((_FACTORS,),),
        products=(Product("hada_w1_a", "hada_w1_b", "hada_t1"), Product("hada_w2_a", "hada_w2_b", "hada_t2")),
        ranks=("hada_w1_b",),
        columns=(("hada_w1_b",),),
        keys={"peft": _ENDS},
        peft_modules=(*_FACTORS, "hada_t1", "hada_t2"),
        marks=("hada_w1",),
    )
    network_module = "lycoris.kohya"
    algorithm = "loha"
    readings = (Reading("loha", ("yes since 1.5", "yes", "yes", "yes", NO)),)

    def __init__(self, factors: tuple[Tensor, Tensor, Tensor, Tensor], alpha: float, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.w1_a, self.w1_b, self.w2_a, self.w2_b = (nn.Parameter(factor) for factor in factors)
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
        """LyCORIS' start: normal values, 0.1 for ``w1_a`` (out, r) and 1 for the ``_b`` (r, in); ``w2_a`` is zero."""
        out, columns = target.shape[0], math.prod(target.shape[1:])
        random = generator(seed, "init", target.name)
        w1_a = torch.randn(out, rank, generator=random) * 0.1
        w1_b, w2_b = (torch.randn(rank, columns, generator=random) for _ in range(2))
        return cls((w1_a, w1_b, torch.zeros(out, rank), w2_b), alpha, target.shape)

    @classmethod
    def norm_in_file(cls, tensors: Mapping[str, Tensor]) -> tuple[float, float]:
        first = product_of(tensors, "hada_w1_a", "hada_w1_b", "hada_t1")
        change = first * product_of(tensors, "hada_w2_a", "hada_w2_b", "hada_t2")
        return float(change.norm()) * scale_in_file(tensors, len(tensors["hada_w1_b"])), change.numel()

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys((self.w1_b.shape[0], self.w2_b.shape[0])))

    @property
    def scale(self) -> float:
        """What the product is multiplied by."""
        return self.alpha / self.w1_b.shape[0]

    def change(self, base: Tensor | None = None) -> Tensor:
        product = (self.w1_a.float() @ self.w1_b.float()) * (self.w2_a.float() @ self.w2_b.float())
        return (product * self.scale).reshape(self.shape)

    @torch.no_grad()
    def scale_by(self, ratio: float) -> None:
        for factor in (self.w1_a, self.w1_b, self.w2_a, self.w2_b):
            factor.mul_(ratio**0.25)

    def tensors(self) -> dict[str, Tensor]:
        factors = (self.w1_a, self.w1_b, self.w2_a, self.w2_b)
        stored = {role: factor.detach() for role, factor in zip(_FACTORS, factors, strict=True)}
        return {**stored, "alpha": torch.tensor(float(self.alpha))}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], target: AdapterTarget) -> Self:
        missing = set(_FACTORS) - set(tensors)
        if missing:
            raise AdapterError(f"layer {target.name} has no {' and no '.join(sorted(missing))} matrix")
        out, columns = target.shape[0], math.prod(target.shape[1:])
        factors: list[Tensor] = []
        for number in "12":
            a, b = tensors[f"hada_w{number}_a"], tensors[f"hada_w{number}_b"]
            if f"hada_t{number}" in tensors:
                a, b = without_core(tensors[f"hada_t{number}"], a, b, target)
            rank = b.shape[0]
            pair = {"w_a": a.flatten(1), "w_b": b.flatten(1)}
            factors += [fitted(pair, "w_a", (out, rank), target), fitted(pair, "w_b", (rank, columns), target)]
        alpha = alpha_of(tensors, factors[1].shape[0])
        return cls((factors[0], factors[1], factors[2], factors[3]), alpha, target.shape)


def product_of(tensors: Mapping[str, Tensor], left: str, right: str, core: str = "") -> Tensor:
    """The product of two stored factors, with the core between them where the file has one."""
    if core in tensors:
        factors = tensors[right].flatten(1), tensors[left].flatten(1)
        return torch.einsum("ijkl,jr,ip->prkl", tensors[core], *factors)
    return tensors[left].flatten(1) @ tensors[right].flatten(1)


def scale_in_file(tensors: Mapping[str, Tensor], rank: int) -> float:
    """The size of alpha / rank."""
    return abs(alpha_of(tensors, rank)) / rank


def without_core(core: Tensor, a: Tensor, b: Tensor, target: AdapterTarget) -> tuple[Tensor, Tensor]:
    """The Tucker form (core (r, r, kh, kw), a (r, out), b (r, in)) as an ordinary pair of factors.

    The factors may have a trailing 1x1, as those of a convolution. Raises AdapterError where core and factors do not
    fit one another.
    """
    a, b = a.flatten(1), b.flatten(1)
    if core.ndim != 4 or core.shape[:2] != (a.shape[0], b.shape[0]):
        raise AdapterError(
            f"layer {target.name}: a core of shape {tuple(core.shape)} does not fit factors of shape "
            f"{tuple(a.shape)} and {tuple(b.shape)}",
            "the file is damaged",
        )
    return a.float().T, torch.einsum("abhw,bi->aihw", core.float(), b.float()).flatten(1)
