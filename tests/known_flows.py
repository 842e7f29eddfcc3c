"""Denoisers whose exact flow is known: a Gaussian, and a mixture of two; and noise that is the same everywhere."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MEAN, SPREAD = 0.7, 0.5
PARTS = ((0.3, -1.0, 0.4), (0.7, 0.8, 0.6))
"""Of the mixture: weight, mean, spread."""


def gaussian_denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    """The exact E[x0 | x] when x0 is normal with MEAN and SPREAD."""
    variance = sigma.view(-1, 1).square()
    return (SPREAD**2 * x + variance * MEAN) / (SPREAD**2 + variance)


def gaussian_flow(x: Tensor, start: float, end: float) -> Tensor:
    """Where the probability flow takes x: the same quantile of the wider and the narrower Gaussian."""
    return MEAN + (x - MEAN) * ((SPREAD**2 + end**2) / (SPREAD**2 + start**2)) ** 0.5


def mixture_denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    """The exact E[x0 | x] when x0 is of the mixture; x (B, n)."""
    variance = sigma.view(-1, 1).square()
    logs, means = [], []
    for weight, mean, spread in PARTS:
        wide = spread**2 + variance
        logs.append(math.log(weight) - (x - mean).square() / (2 * wide) - wide.log() / 2)
        means.append((spread**2 * x + variance * mean) / wide)
    shares = torch.stack(torch.broadcast_tensors(*logs)).softmax(dim=0)
    return (shares * torch.stack(means)).sum(dim=0)


def mixture_flow(x: Tensor, start: float, end: float) -> Tensor:
    """Where the flow takes x: the same quantile of the mixture at both levels (found by halving)."""
    wanted = _mixture_share(x, start)
    low, high = torch.full_like(x, -1e3), torch.full_like(x, 1e3)
    for _ in range(80):
        middle = (low + high) / 2
        below = _mixture_share(middle, end) < wanted
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def _mixture_share(x: Tensor, sigma: float) -> Tensor:
    shares = [
        weight * torch.erfc((mean - x) / (2 * (spread**2 + sigma**2)) ** 0.5) / 2 for weight, mean, spread in PARTS
    ]
    return shares[0] + shares[1]


class CountedNoise:
    """Noise by a formula, so that two programs draw the same without sharing a generator."""

    def __init__(self, like: Tensor) -> None:
        self._places = torch.arange(like.numel(), dtype=like.dtype).view(like.shape)
        self.drawn = 0

    def fresh(self) -> Tensor:
        self.drawn += 1
        return 1.3 * (1.7 * self.drawn + 2.3 * self._places).cos()

    def brownian(self, sigma: float, following: float) -> Tensor:
        return 1.3 * (3 * math.log(sigma) + 5 * math.log(following) + self._places).sin()


class RandomNoise:
    """Plain random noise of one generator; for samplers that ask for no two overlapping Brownian steps."""

    def __init__(self, like: Tensor, seed: int) -> None:
        self._like = like
        self._generator = torch.Generator().manual_seed(seed)

    def fresh(self) -> Tensor:
        return torch.randn(self._like.shape, generator=self._generator, dtype=self._like.dtype)

    def brownian(self, sigma: float, following: float) -> Tensor:
        return self.fresh()


class NoNoise:
    """For samplers that should not ask."""

    def fresh(self) -> Tensor:
        raise AssertionError("a deterministic sampler asked for noise")

    def brownian(self, sigma: float, following: float) -> Tensor:
        raise AssertionError("a deterministic sampler asked for noise")
