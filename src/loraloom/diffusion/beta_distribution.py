"""Quantiles of the beta distribution, in plain Python."""

from __future__ import annotations

import math

__all__ = ["beta_quantile"]


def beta_quantile(share: float, alpha: float, beta: float) -> float:
    """The x in [0, 1] below which that share of a beta distribution lies; alpha, beta > 0."""
    if share in (0.0, 1.0):
        return share
    low, high = 0.0, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if _share_below(middle, alpha, beta) < share:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _share_below(x: float, alpha: float, beta: float) -> float:
    """The regularized incomplete beta function (Abramowitz and Stegun, 26.5.8: a continued fraction)."""
    if x > (alpha + 1) / (alpha + beta + 2):  # where the fraction converges slowly, that of the mirror image is fast
        return 1 - _share_below(1 - x, beta, alpha)
    log_front = alpha * math.log(x) + beta * math.log1p(-x) - math.log(alpha)
    log_front += math.lgamma(alpha + beta) - math.lgamma(alpha) - math.lgamma(beta)
    fraction = 1.0
    for step in range(100, 0, -1):
        half = step // 2
        if step % 2:
            factor = -(alpha + half) * (alpha + beta + half) / ((alpha + 2 * half) * (alpha + 2 * half + 1))
        else:
            factor = half * (beta - half) / ((alpha + 2 * half - 1) * (alpha + 2 * half))
        fraction = 1 + factor * x / fraction
    return math.exp(log_front) / fraction
