"""DPM-Solver (Lu et al., 2206.00927), exponential integrators in log sigma: a fixed plan, and adaptive steps.

Both choose their own levels between the ends of those given. Positions are -log sigma.
A start that stands for zero SNR is left by one Euler step to level 15, above which the noise hides all there is: errors
of an estimate of the noise would be multiplied by thousands there.
Everywhere x is (B, C, h, w) and ``sigmas`` (steps + 1,): see ``contract``.
"""

from __future__ import annotations

import math

from torch import Tensor

from loraloom.diffusion.sampling.contract import ZERO_SNR, Callback, Denoise, Noise, ask, split, towards, with_noise

__all__ = ["dpm_adaptive", "dpm_fast"]

_ABSOLUTE, _RELATIVE = 0.0078, 0.05
_FIRST_STRIDE = 0.05
_ACCEPTED = 0.81
_RESOLUTION = 1e-5
_HIDDEN = -math.log(15.0)


def dpm_fast(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    callback: Callback | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """DPM-Solver-fast (2206.00927, app. D.3): third-order steps, and a shorter one or two; as many calls as steps."""
    calls, (start, end) = len(sigmas) - 1, _ends(sigmas)
    x, below = _below_zero_snr(denoise, x, start, end if calls == 1 else _HIDDEN, callback)
    done = int(below != start)
    calls, start = calls - done, below
    if calls == 0:
        return x
    count = calls // 3 + 1
    orders = [3] * (count - 2) + [2, 1] if calls % 3 == 0 else [3] * (count - 1) + [calls % 3]
    positions = [start + (end - start) * index / count for index in range(count + 1)]
    for number, order in enumerate(orders):
        at, following = positions[number], positions[number + 1]
        target, fresh = _ancestral(at, following, end, eta)
        slope = _slope(denoise, x, at)
        if callback is not None:
            callback(done + sum(orders[: number + 1]) - 1, x, x - math.exp(-at) * slope)
        if order == 3:
            x, _ = _third(denoise, x, at, target, slope)
        elif order == 2:
            x = _second(denoise, x, at, target, slope, 1 / 2)
        else:
            x = _first(x, at, target, slope)
        x = with_noise(x, s_noise * fresh, noise.fresh)
    return x


def dpm_adaptive(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    callback: Callback | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """DPM-Solver-23 with steps as long as the error allows (2206.00927, alg. 4); k-diffusion's tolerances.

    The number of steps given counts only for ``callback``, which is given how far along the way each one begins. The
    error is taken over the whole batch, so x should be one image.
    """
    steps, (at, end) = len(sigmas) - 1, _ends(sigmas)
    x, at = _below_zero_snr(denoise, x, at, _HIDDEN, callback)
    start, stride, previous = at, _FIRST_STRIDE, x
    while at < end - _RESOLUTION:
        following = min(end, at + stride)
        target, fresh = _ancestral(at, following, end, eta)
        slope = _slope(denoise, x, at)
        high, low = _third(denoise, x, at, target, slope)
        allowed = low.abs().maximum(previous.abs()).mul(_RELATIVE).clamp(min=_ABSOLUTE)
        error = float(((low - high) / allowed).square().mean().sqrt())
        factor = 1 + math.atan((error + 1e-8) ** (-1 / (1.5 if eta else 3)) - 1)
        if math.isnan(factor):
            return high
        if factor >= _ACCEPTED or stride < _RESOLUTION:
            if callback is not None:
                callback(int(steps * (at - start) / (end - start)), x, x - math.exp(-at) * slope)
            previous, at = low, following
            x = with_noise(high, s_noise * fresh, noise.fresh)
        stride *= factor
    return x


def _below_zero_snr(
    denoise: Denoise, x: Tensor, at: float, target: float, callback: Callback | None
) -> tuple[Tensor, float]:
    sigma = math.exp(-at)
    if sigma < ZERO_SNR:
        return x, at
    clean = ask(denoise, x, sigma)
    if callback is not None:
        callback(0, x, clean)
    return towards(x, clean, sigma, math.exp(-target)), target


def _ends(sigmas: Tensor) -> tuple[float, float]:
    levels = [float(level) for level in sigmas.tolist() if level > 0]
    return -math.log(levels[0]), -math.log(levels[-1])


def _ancestral(at: float, following: float, end: float, eta: float) -> tuple[float, float]:
    """Where to go down to, not beyond the end, and the noise that leads back up."""
    if eta == 0:
        return following, 0.0
    level = math.exp(-following)
    down, _ = split(math.exp(-at), level, eta)
    target = min(end, -math.log(down)) if down > 0 else end
    return target, math.sqrt(max(0.0, level**2 - math.exp(-2 * target)))


def _slope(denoise: Denoise, x: Tensor, at: float) -> Tensor:
    sigma = math.exp(-at)
    return (x - ask(denoise, x, sigma)) / sigma


def _first(x: Tensor, at: float, target: float, slope: Tensor) -> Tensor:
    return x - math.exp(-target) * math.expm1(target - at) * slope


def _second(denoise: Denoise, x: Tensor, at: float, target: float, slope: Tensor, part: float) -> Tensor:
    """A step with a second slope at ``part`` of the way (alg. 1)."""
    between = at + part * (target - at)
    change = _slope(denoise, _first(x, at, between, slope), between) - slope
    return _bent(x, at, target, slope, change, part)


def _bent(x: Tensor, at: float, target: float, slope: Tensor, change: Tensor, part: float) -> Tensor:
    reach = math.exp(-target) * math.expm1(target - at)
    return x - reach * slope - reach / (2 * part) * change


def _third(denoise: Denoise, x: Tensor, at: float, target: float, slope: Tensor) -> tuple[Tensor, Tensor]:
    """A step with slopes at one and two thirds (alg. 2), and what the first two give alone."""
    stride = target - at
    if stride == 0:
        return x, x
    one, two = at + stride / 3, at + stride * 2 / 3
    change = _slope(denoise, _first(x, at, one, slope), one) - slope
    there = _first(x, at, two, slope) - math.exp(-two) * 2 * _psi(stride * 2 / 3) * change
    late = _slope(denoise, there, two) - slope
    third = _first(x, at, target, slope) - math.exp(-target) * 1.5 * _psi(stride) * late
    return third, _bent(x, at, target, slope, change, 1 / 3)


def _psi(stride: float) -> float:
    return math.expm1(stride) / stride - 1
