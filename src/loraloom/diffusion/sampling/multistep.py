"""Samplers that remember: one call of the model a step, and a higher order from the answers of earlier steps.

Everywhere x is (B, C, h, w) and ``sigmas`` (steps + 1,): see ``contract``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from loraloom.diffusion.sampling.contract import (
    ZERO_SNR,
    Callback,
    Denoise,
    Noise,
    ask,
    begin,
    steps_of,
    towards,
    with_noise,
)

__all__ = ["dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde", "lms", "plms"]

_PLMS_WEIGHTS = ((3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def lms(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    callback: Callback | None = None,
) -> Tensor:
    """Linear multistep (Adams-Bashforth on uneven levels) of order four, one call a step."""
    steps = steps_of(sigmas)
    slopes: list[Tensor] = []
    for step in steps:
        clean = begin(denoise, x, step, callback)
        slopes = [(x - clean) / step.sigma, *slopes[:3]]
        if step.number == 0:
            x = towards(x, clean, step.sigma, step.following)
            continue
        past = [steps[step.number - back].sigma for back in range(len(slopes))]
        for slope, coefficient in zip(slopes, _adams_bashforth(past, step.following), strict=True):
            x = x + coefficient * slope
    return x


def _adams_bashforth(past: list[float], following: float) -> list[float]:
    """Integrals from ``past[0]`` to ``following`` of the Lagrange polynomials through ``past``."""
    # Gauss-Legendre with two points is exact up to degree three, all that four past levels need.
    middle, half = (past[0] + following) / 2, (following - past[0]) / 2
    points = (middle - half / math.sqrt(3), middle + half / math.sqrt(3))
    return [
        half * sum(math.prod((at - other) / (own - other) for other in past if other != own) for at in points)
        for own in past
    ]


def plms(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    callback: Callback | None = None,
) -> Tensor:
    """Pseudo linear multistep (Liu et al., 2202.09778), as Stable Diffusion uses it: Adams-Bashforth for even steps.

    The first step asks the model twice, except from the level that stands for zero SNR.
    """
    slopes: list[Tensor] = []
    for step in steps_of(sigmas):
        clean = begin(denoise, x, step, callback)
        slope = (x - clean) / step.sigma
        slopes = [slope, *slopes[:3]]
        if step.number == 0:
            ahead = towards(x, clean, step.sigma, step.following)
            if step.following > 0 and step.sigma < ZERO_SNR:
                late = (ahead - ask(denoise, ahead, step.following)) / step.following
                ahead = ahead + (late - slope) * ((step.following - step.sigma) / 2)
            x = ahead
            continue
        for weight, past in zip(_PLMS_WEIGHTS[len(slopes) - 2], slopes, strict=True):
            x = x + ((step.following - step.sigma) * weight) * past
    return x


def dpmpp_2m(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    callback: Callback | None = None,
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
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """SDE-DPM-Solver++(2M) (2211.01095, section 5), midpoint form; ``eta`` 0 is DPM-Solver++(2M)."""

    def midpoint(stride: float) -> float:
        return -math.expm1(-stride) / 2

    return _two_steps(denoise, x, sigmas, noise, callback, eta, s_noise, midpoint)


def dpmpp_2m_sde_heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    callback: Callback | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """:func:`dpmpp_2m_sde` with the slope of the clean latents integrated exactly, not taken in the middle."""
    return _two_steps(denoise, x, sigmas, noise, callback, eta, s_noise, _phi_2)


def _two_steps(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    callback: Callback | None,
    eta: float,
    s_noise: float,
    correction: Callable[[float], float],
) -> Tensor:
    previous: Tensor | None = None
    previous_stride = 0.0
    for step in steps_of(sigmas):
        clean = begin(denoise, x, step, callback)
        if step.following == 0:
            return clean
        stride = math.log(step.sigma / step.following)
        if stride == 0:
            continue
        x = _keep(x, clean, stride * (1 + eta))
        if previous is not None:
            x = x + (clean - previous) * (correction(stride * (1 + eta)) * stride / previous_stride)
        x = _renoise(x, step.sigma, step.following, noise, eta, s_noise)
        previous, previous_stride = clean, stride
    return x


def dpmpp_3m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    callback: Callback | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """The stochastic DPM-Solver++ with three answers and one call a step (k-diffusion's ``dpmpp_3m_sde``).

    As published it counts the curvature half, so it converges at order two.
    """
    past: list[tuple[Tensor, float]] = []
    for step in steps_of(sigmas):
        clean = begin(denoise, x, step, callback)
        if step.following == 0:
            return clean
        stride = math.log(step.sigma / step.following)
        if stride == 0:
            continue
        whole = stride * (1 + eta)
        x = _keep(x, clean, whole)
        if past:
            (last, last_stride), *older = past
            near = last_stride / stride
            slope = (clean - last) / near
            if older:
                far = older[0][1] / stride
                bend = (slope - (last - older[0][0]) / far) / (near + far)
                slope = slope + bend * near
                x = x - bend * (_phi_2(whole) / whole - 0.5)
            x = x + slope * _phi_2(whole)
        x = _renoise(x, step.sigma, step.following, noise, eta, s_noise)
        past = [(clean, stride), *past[:1]]
    return x


def _keep(x: Tensor, clean: Tensor, stride: float) -> Tensor:
    """The exact flow along a stride of -log sigma for clean latents that stay the same."""
    kept = math.exp(-stride)
    return kept * x + (1 - kept) * clean


def _phi_2(stride: float) -> float:
    return math.expm1(-stride) / stride + 1


def _renoise(x: Tensor, sigma: float, following: float, noise: Noise, eta: float, s_noise: float) -> Tensor:
    amount = following * math.sqrt(-math.expm1(-2 * eta * math.log(sigma / following)))
    return with_noise(x, s_noise * amount, lambda: noise.brownian(sigma, following))
