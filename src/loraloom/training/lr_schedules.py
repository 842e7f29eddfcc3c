"""Learning-rate schedules: each a pure function of the step, so that resuming one needs no state.

Every function returns the factor on the base learning rate for optimizer step ``step`` (0-based) of ``total``.
"""

from __future__ import annotations

import math

from loraloom.registry import Entry, Registry

__all__ = ["LR_SCHEDULES", "lr_factor"]


def _warmup(step: int, warmup: int) -> float:
    return (step + 1) / (warmup + 1) if step < warmup else 1.0


def _progress(step: int, total: int, warmup: int) -> float:
    """How much of the run after warm-up is over, from 0 at its first step towards 1."""
    return (step - warmup) / max(1, total - warmup)


def constant(step: int, total: int, *, warmup: int, cycles: int, power: float) -> float:
    """The base rate throughout; warm-up is not used."""
    return 1.0


def constant_with_warmup(step: int, total: int, *, warmup: int, cycles: int, power: float) -> float:
    """Rises linearly, then stays."""
    return _warmup(step, warmup)


def linear(step: int, total: int, *, warmup: int, cycles: int, power: float) -> float:
    """Falls linearly to zero."""
    return _warmup(step, warmup) if step < warmup else 1.0 - _progress(step, total, warmup)


def cosine(step: int, total: int, *, warmup: int, cycles: int, power: float) -> float:
    """Falls along half a cosine (Loshchilov and Hutter, arXiv:1608.03983)."""
    if step < warmup:
        return _warmup(step, warmup)
    return 0.5 * (1 + math.cos(math.pi * _progress(step, total, warmup)))


def cosine_with_restarts(step: int, total: int, *, warmup: int, cycles: int, power: float) -> float:
    """Half a cosine, started again ``cycles`` times (arXiv:1608.03983)."""
    if step < warmup:
        return _warmup(step, warmup)
    return 0.5 * (1 + math.cos(math.pi * ((cycles * _progress(step, total, warmup)) % 1.0)))


def polynomial(step: int, total: int, *, warmup: int, cycles: int, power: float) -> float:
    """Falls to zero along a power of what remains."""
    if step < warmup:
        return _warmup(step, warmup)
    return float((1.0 - _progress(step, total, warmup)) ** power)


LR_SCHEDULES = Registry(
    "lr schedule",
    {
        name: Entry(f"loraloom.training.lr_schedules:{name}", summary)
        for name, summary in (
            ("constant", "the same rate throughout"),
            ("constant_with_warmup", "rises, then stays"),
            ("linear", "falls in a straight line to zero"),
            ("cosine", "falls slowly, fast, slowly to zero"),
            ("cosine_with_restarts", "cosine, several times"),
            ("polynomial", "falls to zero along a power"),
        )
    },
)


def lr_factor(name: str, step: int, total: int, *, warmup: int, cycles: int, power: float) -> float:
    """The factor of the named schedule at one step."""
    return float(LR_SCHEDULES.load(name)(step, total, warmup=warmup, cycles=cycles, power=power))
