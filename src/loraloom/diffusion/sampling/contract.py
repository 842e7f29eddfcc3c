"""What samplers share: the shapes of what goes in, and the few formulas that all of them are made of.

The convention is k-diffusion's: ``x = x0 + sigma * noise``, and ``denoise(x, sigma)`` answers with an estimate of x0.
x and noise are (B, C, h, w), ``sigmas`` (steps + 1,). All coefficients are Python floats (64 bit).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple, Protocol

from torch import Tensor

__all__ = [
    "ZERO_SNR",
    "Callback",
    "Denoise",
    "DenoiseBoth",
    "Noise",
    "Sampler",
    "Step",
    "ask",
    "begin",
    "split",
    "steps_of",
    "towards",
    "with_noise",
]

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x (B, C, h, w), sigma (B,)) to the clean latents."""
DenoiseBoth = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""The same, with guidance and without the prompt."""
Callback = Callable[[int, Tensor, Tensor], None]

ZERO_SNR = 1000.0
"""Only schedules with zero terminal SNR have noise levels above this."""


class Noise(Protocol):
    """Where a sampler's random numbers come from; all are standard normal and shaped like x."""

    def fresh(self) -> Tensor:
        """The next random numbers, independent of all others."""

    def brownian(self, sigma: float, following: float) -> Tensor:
        """The step of one Brownian path, with sigma as its time, from one level to another, at unit variance.

        Steps over intervals that share a part are correlated as the path says, which is what a solver of a stochastic
        equation needs in its intermediate stages.
        """


class Sampler(Protocol):
    """What every function in the table is.

    ``x`` at noise level ``sigmas[0]``; ``sigmas`` (steps + 1,) falling, usually to 0. Returns x at ``sigmas[-1]``.
    ``callback(step, x, x0)`` is called once per step, before it. ``options`` are those that the table's entry names
    (``takes``): ``eta`` scales the noise of samplers that add some, ``s_noise`` its standard deviation alone.
    """

    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        sigmas: Tensor,
        *,
        noise: Noise,
        callback: Callback | None = None,
        **options: float,
    ) -> Tensor: ...


class Step(NamedTuple):
    """One step: its number, the level it starts from, the level it leads to."""

    number: int
    sigma: float
    following: float


def steps_of(sigmas: Tensor) -> list[Step]:
    """The steps along falling levels (steps + 1,)."""
    return [Step(number, *levels) for number, levels in enumerate(pairwise(map(float, sigmas.tolist())))]


def ask(denoise: Denoise, x: Tensor, sigma: float) -> Tensor:
    """The clean latents of x, all of whose samples are at the same level."""
    return denoise(x, x.new_full((len(x),), sigma))


def begin(denoise: Denoise, x: Tensor, step: Step, callback: Callback | None) -> Tensor:
    """The clean latents at the start of a step, which are passed to the callback."""
    clean = ask(denoise, x, step.sigma)
    if callback is not None:
        callback(step.number, x, clean)
    return clean


def towards(x: Tensor, clean: Tensor, sigma: float, following: float) -> Tensor:
    """An Euler step, written so that a huge first sigma (zero terminal SNR) costs no precision."""
    return clean + (x - clean) * (following / sigma)


def split(sigma: float, following: float, eta: float) -> tuple[float, float]:
    """An ancestral step: the level to go down to, and the fresh noise that leads back up to ``following``.

    That of DDIM with the same eta (Song et al., 2010.02502, eq. 16), in the other picture.
    """
    fresh = min(following, eta * following * math.sqrt(max(0.0, 1 - (following / sigma) ** 2)))
    return math.sqrt(following**2 - fresh**2), fresh


def with_noise(x: Tensor, amount: float, noise: Callable[[], Tensor]) -> Tensor:
    """x with noise of that size added; nothing is drawn where the size is 0."""
    return x + amount * noise() if amount > 0 else x
