"""All random numbers of an image: functions of its own seeds, so that no image depends on its batch or on its device.

The first noise, its variations and the fresh noise of later steps are the numbers of the web UI with its random number
generator set to the CPU. Samplers that solve a stochastic equation (the SDE ones) get a Brownian path of our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loraloom.diffusion.sampling.brownian import BrownianPath

__all__ = ["LATENT_CHANNELS", "LATENT_STEP", "BatchNoise", "ImageSeed", "initial_noise", "slerp"]

LATENT_CHANNELS = 4
LATENT_STEP = 8
"""Pixels per latent, each way."""


@dataclass(frozen=True)
class ImageSeed:
    """What decides the noise of one image."""

    seed: int
    variation_seed: int = 0
    variation_strength: float = 0.0
    """0 is the noise of ``seed``, 1 that of ``variation_seed``."""
    resize_from: tuple[int, int] | None = None
    """(width, height) in pixels of an image whose composition is to be kept: its noise is put into the middle."""
    seed_delta: int = 0
    """Added to the seed for the fresh noise of later steps (the web UI's ENSD)."""

    def first(self, width: int, height: int) -> Tensor:
        """Standard normal (4, height / 8, width / 8): the first noise of an image of that size."""
        from_width, from_height = self.resize_from or (width, height)
        noise = initial_noise(self.seed, from_width, from_height)
        if self.variation_strength > 0:
            other = initial_noise(self.variation_seed, from_width, from_height)
            noise = slerp(noise, other, self.variation_strength)
        if (from_width, from_height) == (width, height):
            return noise
        return _in_the_middle(noise, initial_noise(self.seed, width, height))


class BatchNoise:
    """The noise of a batch: a sampler's source of random numbers, each image's from its own seed.

    ``size``: (width, height) in pixels. Everything is drawn on the CPU in float32 and put on ``device``.
    """

    def __init__(self, seeds: Sequence[ImageSeed], size: tuple[int, int], device: torch.device) -> None:
        self._seeds, self._size, self._device = seeds, size, device
        self._shape = LATENT_CHANNELS, size[1] // LATENT_STEP, size[0] // LATENT_STEP
        self._streams = [torch.Generator("cpu").manual_seed(seed.seed + seed.seed_delta) for seed in seeds]
        for seed, stream in zip(seeds, self._streams, strict=True):
            if seed.seed_delta == 0:
                torch.randn(self._shape, generator=stream)  # the first noise is of this stream too
        self._paths = [BrownianPath(self._shape, seed.seed) for seed in seeds]

    def first(self) -> Tensor:
        """What the images start from, (B, 4, h, w)."""
        return torch.stack([seed.first(*self._size) for seed in self._seeds]).to(self._device)

    def fresh(self) -> Tensor:
        """The next numbers of each image's stream, which goes on behind the first noise."""
        return torch.stack([torch.randn(self._shape, generator=stream) for stream in self._streams]).to(self._device)

    def brownian(self, sigma: float, following: float) -> Tensor:
        """The step of each image's Brownian path between two noise levels, at unit variance."""
        return torch.stack([path.increment(sigma, following) for path in self._paths]).to(self._device)


def initial_noise(seed: int, width: int, height: int) -> Tensor:
    """Standard normal (4, height / 8, width / 8), float32 on the CPU: a pure function of the seed and the size.

    The same numbers on every device, and those of the web UI with its random numbers set to the CPU.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(LATENT_CHANNELS, height // LATENT_STEP, width // LATENT_STEP, generator=generator)


def slerp(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Spherical interpolation, column by column (along dimension 1 of (C, h, w)), as the web UI's variations do it.

    Of columns that are parallel it is the straight line.
    """
    lengths = first.norm(dim=1, keepdim=True) * second.norm(dim=1, keepdim=True)
    angle: Tensor = ((first * second).sum(dim=1, keepdim=True) / lengths).clamp(-1, 1).acos()
    sine = angle.sin()
    turned = (((1 - share) * angle).sin() * first + (share * angle).sin() * second) / sine
    return torch.where(sine < 1e-4, torch.lerp(first, second, share), turned)


def _in_the_middle(noise: Tensor, around: Tensor) -> Tensor:
    """``around`` with ``noise`` (of another size) in its middle; what sticks out is cut off evenly."""
    result = around.clone()
    here, there = [], []
    for own, other in zip(around.shape[1:], noise.shape[1:], strict=True):
        offset = (own - other) // 2
        length = other if offset >= 0 else other + 2 * offset
        here.append(slice(max(offset, 0), max(offset, 0) + length))
        there.append(slice(max(-offset, 0), max(-offset, 0) + length))
    result[:, here[0], here[1]] = noise[:, there[0], there[1]]
    return result
