"""Samplers of second order that ask the model twice a step, in the middle of the step or at its end.

A step from the level that stands for zero SNR is an Euler step in those that follow the slope: what a second slope
corrects there is multiplied by a stride of thousands.
Everywhere x is (B, C, h, w) and ``sigmas`` (steps + 1,): see ``contract``.
"""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor

from loraloom.diffusion.sampling.contract import (
    ZERO_SNR,
    Callback,
    Denoise,
    Noise,
    Step,
    ask,
    begin,
    split,
    steps_of,
    towards,
    with_noise,
)
from loraloom.diffusion.sampling.one_step import churned

__all__ = ["dpm_2", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "heun", "restart"]


def heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    callback: Callback | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:
    """Heun's method (Karras et al., 2206.00364, alg. 2): two calls a step, one in a step to zero."""
    steps = steps_of(sigmas)
    for step in steps:
        x, step = churned(x, step, len(steps), noise, s_churn, s_tmin, s_tmax, s_noise)
        x = _heun_step(denoise, x, step, callback)
    return x


def _heun_step(denoise: Denoise, x: Tensor, step: Step, callback: Callback | None) -> Tensor:
    clean = begin(denoise, x, step, callback)
    ahead = towards(x, clean, step.sigma, step.following)
    if step.following == 0 or step.sigma >= ZERO_SNR:
        return ahead
    slope = (x - clean) / step.sigma
    slope_ahead = (ahead - ask(denoise, ahead, step.following)) / step.following
    return ahead + (slope_ahead - slope) * ((step.following - step.sigma) / 2)


def dpm_2(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    callback: Callback | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:
    """The midpoint method with the middle in log sigma, as in DPM-Solver-2 (2206.00927); k-diffusion's ``dpm_2``."""
    steps = steps_of(sigmas)
    for step in steps:
        x, step = churned(x, step, len(steps), noise, s_churn, s_tmin, s_tmax, s_noise)
        x = _midpoint_step(denoise, x, step, step.following, callback)
    return x


def dpm_2_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    callback: Callback | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """:func:`dpm_2` with ancestral steps: below the next level, and back up with fresh noise."""
    for step in steps_of(sigmas):
        down, fresh = split(step.sigma, step.following, eta)
        x = with_noise(_midpoint_step(denoise, x, step, down, callback), s_noise * fresh, noise.fresh)
    return x


def _midpoint_step(denoise: Denoise, x: Tensor, step: Step, target: float, callback: Callback | None) -> Tensor:
    clean = begin(denoise, x, step, callback)
    if target == 0 or step.sigma >= ZERO_SNR:
        return towards(x, clean, step.sigma, target)
    middle = math.sqrt(step.sigma * target)
    halfway = towards(x, clean, step.sigma, middle)
    return x + (halfway - ask(denoise, halfway, middle)) * ((target - step.sigma) / middle)


def dpmpp_2s_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    callback: Callback | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """DPM-Solver++(2S) (Lu et al., 2211.01095, alg. 1, r = 1/2) with ancestral steps."""
    for step in steps_of(sigmas):
        clean = begin(denoise, x, step, callback)
        down, fresh = split(step.sigma, step.following, eta)
        if down > 0:
            middle = math.sqrt(step.sigma * down)
            clean = ask(denoise, towards(x, clean, step.sigma, middle), middle)
        x = with_noise(towards(x, clean, step.sigma, down), s_noise * fresh, noise.fresh)
    return x


def dpmpp_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    callback: Callback | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """The stochastic DPM-Solver++ of one step (k-diffusion's ``dpmpp_sde``, r = 1/2): the middle has noise too."""
    for step in steps_of(sigmas):
        clean = begin(denoise, x, step, callback)
        if step.following == 0:
            return clean
        middle = math.sqrt(step.sigma * step.following)
        halfway = _stochastic(x, clean, step.sigma, middle, noise, eta, s_noise)
        x = _stochastic(x, ask(denoise, halfway, middle), step.sigma, step.following, noise, eta, s_noise)
    return x


def _stochastic(
    x: Tensor, clean: Tensor, sigma: float, following: float, noise: Noise, eta: float, s_noise: float
) -> Tensor:
    down, fresh = split(sigma, following, eta)
    return with_noise(towards(x, clean, sigma, down), s_noise * fresh, lambda: noise.brownian(sigma, following))


def restart(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    callback: Callback | None = None,
    s_noise: float = 1.0,
) -> Tensor:
    """Restart sampling (Xu et al., 2306.14878): Heun, and from level 0.1 back up to 2 and down once more.

    The plan is the web UI's: below 20 steps plain Heun; from 20 on one restart of 9 steps, from 36 on two of a quarter
    of the steps each, taken from a Karras schedule over the range of the levels given. The number of steps is the same.
    """
    at: float | None = None
    for number, (sigma, following) in enumerate(_restart_plan([float(sigma) for sigma in sigmas.tolist()])):
        if at is not None and sigma > at * (1 + 1e-9):
            x = with_noise(x, s_noise * math.sqrt(sigma**2 - at**2), noise.fresh)
        x = _heun_step(denoise, x, Step(number, sigma, following), callback)
        at = following
    return x


def _restart_plan(levels: list[float]) -> list[tuple[float, float]]:
    """The steps, (level, following level), with those of the restarts in between."""
    steps = len(levels) - 1
    if steps < 20:
        return list(pairwise(levels))
    length, times = (steps // 4, 2) if steps >= 36 else (9, 1)
    levels = [*_karras(steps - length * times, levels[-2], levels[0]), 0.0]
    low, high = (min(range(len(levels)), key=lambda index: abs(levels[index] - level)) for level in (0.1, 2.0))
    plan = list(pairwise(levels))
    again = _karras(length + 1, levels[low], levels[high])
    repeated = list(pairwise(again)) * times if high < low else []
    return [*plan[:low], *repeated, *plan[low:]]


def _karras(count: int, smallest: float, largest: float, rho: float = 7.0) -> list[float]:
    ends = largest ** (1 / rho), smallest ** (1 / rho)
    return [(ends[0] + index / max(1, count - 1) * (ends[1] - ends[0])) ** rho for index in range(count)]
