"""Samplers of first order: one call of the model a step, and nothing remembered.

Everywhere x is (B, C, h, w) and ``sigmas`` (steps + 1,): see ``contract``.
"""

from __future__ import annotations

import math

from torch import Tensor

from loraloom.diffusion.sampling.contract import (
    Callback,
    Denoise,
    DenoiseBoth,
    Noise,
    Step,
    begin,
    split,
    steps_of,
    towards,
    with_noise,
)

__all__ = ["churned", "ddim", "ddim_cfg_pp", "euler", "euler_ancestral", "lcm"]

_CHURN_LIMIT = math.sqrt(2) - 1


def euler(
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
    """Euler's method on the probability flow (Karras et al., 2206.00364, alg. 2 without its correction)."""
    steps = steps_of(sigmas)
    for step in steps:
        x, step = churned(x, step, len(steps), noise, s_churn, s_tmin, s_tmax, s_noise)
        x = towards(x, begin(denoise, x, step, callback), step.sigma, step.following)
    return x


def churned(
    x: Tensor, step: Step, steps: int, noise: Noise, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float
) -> tuple[Tensor, Step]:
    """x raised to a higher level by new noise, and the step from there (2206.00364, alg. 2, lines 4 to 6).

    Noise is drawn in levels outside of s_tmin and s_tmax too, as k-diffusion does, so that the same draw goes to the
    same step.
    """
    if s_churn <= 0:
        return x, step
    drawn = noise.fresh()
    if not s_tmin <= step.sigma <= s_tmax:
        return x, step
    raised = step.sigma * (1 + min(s_churn / steps, _CHURN_LIMIT))
    return x + drawn * (s_noise * math.sqrt(raised**2 - step.sigma**2)), step._replace(sigma=raised)


def euler_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    callback: Callback | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """Euler steps that go below the next level and add fresh noise back up to it.

    The same step as DDIM's with that eta (Song et al., 2010.02502, eq. 12 and 16), in the other picture.
    """
    for step in steps_of(sigmas):
        clean = begin(denoise, x, step, callback)
        down, fresh = split(step.sigma, step.following, eta)
        x = with_noise(towards(x, clean, step.sigma, down), s_noise * fresh, noise.fresh)
    return x


def ddim(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    callback: Callback | None = None,
    eta: float = 0.0,
    s_noise: float = 1.0,
) -> Tensor:
    """DDIM (Song et al., 2010.02502): deterministic unless ``eta`` says otherwise."""
    return euler_ancestral(denoise, x, sigmas, noise=noise, callback=callback, eta=eta, s_noise=s_noise)


def ddim_cfg_pp(
    denoise: DenoiseBoth,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    callback: Callback | None = None,
    eta: float = 0.0,
    s_noise: float = 1.0,
) -> Tensor:
    """DDIM whose noise is taken from the answer without the prompt (CFG++, Chung et al., 2406.08070, alg. 2).

    ``denoise`` gives the guided clean latents and the unguided ones.
    """
    for step in steps_of(sigmas):
        clean, unguided = denoise(x, x.new_full((len(x),), step.sigma))
        if callback is not None:
            callback(step.number, x, clean)
        down, fresh = split(step.sigma, step.following, eta)
        x = with_noise(clean + (x - unguided) * (down / step.sigma), s_noise * fresh, noise.fresh)
    return x


def lcm(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    callback: Callback | None = None,
    s_noise: float = 1.0,
) -> Tensor:
    """Multistep sampling of a consistency model (Luo et al., 2310.04378, alg. 3): clean, then noisy again.

    The model's boundary condition (c_skip, c_out) is left out: at the levels in use it differs from (0, 1) by 1e-5.
    """
    for step in steps_of(sigmas):
        x = with_noise(begin(denoise, x, step, callback), s_noise * step.following, noise.fresh)
    return x
