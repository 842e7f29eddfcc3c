"""Samplers: one function each, from noise to a clean latent along falling noise levels.

The convention is k-diffusion's: ``x = x0 + sigma * noise``, and ``denoise(x, sigma)`` answers with an estimate of x0.
Random numbers come from ``noise(x, step)``, so that a caller can make them a pure function of (image, step). All
coefficients are Python floats (64 bit). This module imports no torch: the two tables are read by ``--help``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

from loraloom.errors import UnknownNameError
from loraloom.registry import Entry, Registry

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "SAMPLERS",
    "SIGMA_SCHEDULES",
    "Sampler",
    "SamplerEntry",
    "SamplerPlan",
    "ddim",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "euler",
    "euler_ancestral",
    "heun",
    "lms",
    "resolve_sampler",
    "resolve_sigma_schedule",
]

Denoise = Callable[["Tensor", "Tensor"], "Tensor"]
Noise = Callable[["Tensor", int], "Tensor"]
Callback = Callable[[int, "Tensor", "Tensor"], None]

_ZERO_SNR = 1000.0  # only schedules with zero terminal SNR have noise levels above this


class Sampler(Protocol):
    """What every function in this module is.

    ``x`` (B, C, h, w) at noise level ``sigmas[0]``; ``sigmas`` (steps + 1,) falling, usually to 0. Returns x at
    ``sigmas[-1]``. ``denoise(x, sigma (B,))`` gives x0; ``noise(x, step)`` standard normal values like x;
    ``callback(step, x, x0)`` is called once per step, before it. ``eta`` scales the randomness of samplers that have
    any; None is the sampler's usual amount.
    """

    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        sigmas: Tensor,
        *,
        noise: Noise,
        callback: Callback | None = None,
        eta: float | None = None,
    ) -> Tensor: ...


def euler(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    callback: Callback | None = None,
    eta: float | None = None,
) -> Tensor:
    """Euler's method on the probability flow (Karras et al., 2206.00364, alg. 1 without its correction)."""
    levels = _levels(sigmas)
    for step, (sigma, following) in enumerate(pairwise(levels)):
        clean = _denoise(denoise, x, sigma, step, callback)
        x = _towards(x, clean, sigma, following)
    return x


def euler_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    callback: Callback | None = None,
    eta: float | None = None,
) -> Tensor:
    """Euler steps that go below the next level and add fresh noise back up to it; ``eta`` 1 unless given.

    The same step as DDIM's with that eta (Song et al., 2010.02502, eq. 12 and 16), in the other picture.
    """
    eta = 1.0 if eta is None else eta
    levels = _levels(sigmas)
    for step, (sigma, following) in enumerate(pairwise(levels)):
        clean = _denoise(denoise, x, sigma, step, callback)
        fresh = min(following, eta * following * math.sqrt(max(0.0, 1 - (following / sigma) ** 2)))
        x = _towards(x, clean, sigma, math.sqrt(following**2 - fresh**2))
        if fresh > 0:
            x = x + fresh * noise(x, step)
    return x


def ddim(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    callback: Callback | None = None,
    eta: float | None = None,
) -> Tensor:
    """DDIM (Song et al., 2010.02502): deterministic unless ``eta`` says otherwise."""
    return euler_ancestral(denoise, x, sigmas, noise=noise, callback=callback, eta=0.0 if eta is None else eta)


def heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    callback: Callback | None = None,
    eta: float | None = None,
) -> Tensor:
    """Heun's second-order method (Karras et al., 2206.00364, alg. 1): two calls a step, one in a step to zero.

    A step from the level that stands for zero SNR is not corrected either: the correction is the change of slope
    times half of the stride, and that stride is thousands.
    """
    levels = _levels(sigmas)
    for step, (sigma, following) in enumerate(pairwise(levels)):
        clean = _denoise(denoise, x, sigma, step, callback)
        ahead = _towards(x, clean, sigma, following)
        if following > 0 and sigma < _ZERO_SNR:
            slope = (x - clean) / sigma
            slope_ahead = (ahead - denoise(ahead, ahead.new_full((len(ahead),), following))) / following
            ahead = ahead + (slope_ahead - slope) * ((following - sigma) / 2)
        x = ahead
    return x


def dpmpp_2m(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    callback: Callback | None = None,
    eta: float | None = None,
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al., 2211.01095, alg. 2): second order with one call a step."""
    return dpmpp_2m_sde(denoise, x, sigmas, noise=noise, callback=callback, eta=0.0)


def dpmpp_2m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    callback: Callback | None = None,
    eta: float | None = None,
) -> Tensor:
    """SDE-DPM-Solver++(2M) (2211.01095, section 5), midpoint form; ``eta`` 1 unless given, 0 is DPM-Solver++(2M)."""
    eta = 1.0 if eta is None else eta
    levels = _levels(sigmas)
    previous: Tensor | None = None
    previous_stride = 0.0
    for step, (sigma, following) in enumerate(pairwise(levels)):
        clean = _denoise(denoise, x, sigma, step, callback)
        if following == 0:
            return clean
        stride = math.log(sigma / following)
        if stride == 0:
            continue
        estimate = clean
        if previous is not None:
            estimate = clean + (clean - previous) * (stride / (2 * previous_stride))
        keep = math.exp(-stride * (1 + eta))
        x = keep * x + (1 - keep) * estimate
        if eta > 0:
            x = x + following * math.sqrt(-math.expm1(-2 * eta * stride)) * noise(x, step)
        previous, previous_stride = clean, stride
    return x


def lms(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    callback: Callback | None = None,
    eta: float | None = None,
) -> Tensor:
    """Linear multistep (Adams-Bashforth on uneven levels) of order four, one call a step."""
    levels = _levels(sigmas)
    slopes: list[Tensor] = []
    for step, (sigma, following) in enumerate(pairwise(levels)):
        clean = _denoise(denoise, x, sigma, step, callback)
        slopes = [(x - clean) / sigma, *slopes[:3]]
        past = [levels[step - back] for back in range(len(slopes))]
        for slope, coefficient in zip(slopes, _adams_bashforth(past, following), strict=True):
            x = x + coefficient * slope
    return x


def _levels(sigmas: Tensor) -> list[float]:
    return [float(sigma) for sigma in sigmas.tolist()]


def _denoise(denoise: Denoise, x: Tensor, sigma: float, step: int, callback: Callback | None) -> Tensor:
    clean = denoise(x, x.new_full((len(x),), sigma))
    if callback is not None:
        callback(step, x, clean)
    return clean


def _towards(x: Tensor, clean: Tensor, sigma: float, following: float) -> Tensor:
    """An Euler step, written so that a huge first sigma (zero terminal SNR) costs no precision."""
    return clean + (x - clean) * (following / sigma)


def _adams_bashforth(past: list[float], following: float) -> list[float]:
    """Integrals from ``past[0]`` to ``following`` of the Lagrange polynomials through ``past``."""
    # Gauss-Legendre with two points is exact up to degree three, all that four past levels need.
    middle, half = (past[0] + following) / 2, (following - past[0]) / 2
    points = (middle - half / math.sqrt(3), middle + half / math.sqrt(3))
    return [
        half * sum(math.prod((at - other) / (own - other) for other in past if other != own) for at in points)
        for own in past
    ]


@dataclass(frozen=True)
class SamplerEntry(Entry):
    """A sampler: its code, and how it starts. ``schedule`` names the noise levels it uses unless told otherwise."""

    schedule: str = "Uniform"
    pure_noise: bool = False
    """Start from unit noise in the variance-preserving picture: x = noise * sqrt(1 + sigma²), not noise * sigma."""
    old_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class SamplerPlan:
    """A sampler and its noise levels, both by the names used in the tables (and by A1111)."""

    sampler: str
    schedule: str

    @property
    def entry(self) -> SamplerEntry:
        """The sampler's entry in SAMPLERS."""
        entry = SAMPLERS[self.sampler]
        return entry if isinstance(entry, SamplerEntry) else SamplerEntry(entry.target, entry.summary)


def _normalized(name: str) -> str:
    """What is left of a name when case, blanks, signs and the prefix ``k_`` or ``sample_`` do not count."""
    plain = re.sub(r"^(sample_|k_)+", "", name.strip().lower().replace("++", "pp").replace(" ", "_"))
    return re.sub(r"[^a-z0-9]", "", plain.replace("ancestral", "a"))


def resolve_sigma_schedule(name: str) -> str:
    """The name in SIGMA_SCHEDULES that ``name`` means, whatever its spelling; raises UnknownNameError."""
    wanted = _normalized(name)
    for known in SIGMA_SCHEDULES:
        if wanted == _normalized(known):
            return known
    if wanted in ("normal", "default"):
        return "Uniform"
    raise UnknownNameError(SIGMA_SCHEDULES.kind, name, SIGMA_SCHEDULES)


def resolve_sampler(name: str, schedule: str = "automatic") -> SamplerPlan:
    """The sampler that ``name`` means: A1111's names old and new, k-diffusion's, any case ("dpmpp_2m_karras").

    A schedule in the name is used unless ``schedule`` names one; raises UnknownNameError.
    """
    wanted = _normalized(name)
    suffixes = {"": "", **{_normalized(known): known for known in SIGMA_SCHEDULES}, "ka": "Karras"}
    for title in SAMPLERS:
        entry = SamplerPlan(title, "").entry
        stems = {_normalized(known) for known in (title, *entry.old_names)}
        for suffix, named in suffixes.items():
            if wanted.endswith(suffix) and wanted[: len(wanted) - len(suffix)] in stems:
                if _normalized(schedule) not in ("", "automatic"):
                    named = resolve_sigma_schedule(schedule)
                return SamplerPlan(title, named or entry.schedule)
    raise UnknownNameError(SAMPLERS.kind, name, SAMPLERS)


_HERE = "loraloom.diffusion.samplers"
_SCHEDULES = "loraloom.diffusion.schedules"

SIGMA_SCHEDULES = Registry(
    "sigma schedule",
    {
        "Uniform": Entry(f"{_SCHEDULES}:uniform", "evenly spaced timesteps, ending with the first"),
        "Karras": Entry(f"{_SCHEDULES}:karras", "more steps at low noise (rho 7)"),
        "Exponential": Entry(f"{_SCHEDULES}:exponential", "evenly spaced in log sigma"),
        "SGM Uniform": Entry(f"{_SCHEDULES}:sgm_uniform", "evenly spaced timesteps, stopping one stride short"),
        "Simple": Entry(f"{_SCHEDULES}:simple", "every n-th training noise level"),
        "DDIM": Entry(f"{_SCHEDULES}:ddim", "DDIM's whole timesteps"),
    },
)

SAMPLERS = Registry(
    "sampler",
    {
        "Euler": SamplerEntry(f"{_HERE}:euler", "first order, deterministic"),
        "Euler a": SamplerEntry(f"{_HERE}:euler_ancestral", "first order with fresh noise at every step"),
        "Heun": SamplerEntry(f"{_HERE}:heun", "second order, two model calls a step"),
        "DPM++ 2M": SamplerEntry(f"{_HERE}:dpmpp_2m", "second order, one model call a step"),
        "DPM++ 2M SDE": SamplerEntry(
            f"{_HERE}:dpmpp_2m_sde", "second order with fresh noise at every step", schedule="Exponential"
        ),
        "LMS": SamplerEntry(f"{_HERE}:lms", "fourth order multistep, one model call a step"),
        "DDIM": SamplerEntry(f"{_HERE}:ddim", "Stable Diffusion's first sampler", schedule="DDIM", pure_noise=True),
    },
)
