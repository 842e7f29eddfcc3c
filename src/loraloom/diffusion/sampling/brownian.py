"""A Brownian path that is a pure function of its key: any two points of it can be asked for in any order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from loraloom.randomness import normal

__all__ = ["BrownianPath"]

_LOWEST = -12
_DEPTH = 12


class BrownianPath:
    """W(time) for time >= 0, W(0) = 0, of tensors of a shape: float32 on the CPU.

    The path is fixed at the powers of two from 2^-12 on, and between two of them by halving (Lévy's construction) down
    to a 4096th of the interval; the last piece is a bridge of its own to the exact time. Each number has its own key,
    so a value does not depend on which others were asked for. Points closer than a 4096th of their size are
    correlated less than they should be.
    """

    def __init__(self, shape: Sequence[int], *key: int | str) -> None:
        self._shape, self._key = tuple(shape), key
        self._at = lru_cache(maxsize=8)(self._value)
        self._power = lru_cache(maxsize=2)(self._at_power)

    def increment(self, start: float, end: float) -> Tensor:
        """(W(end) - W(start)) / sqrt(|end - start|): standard normal; ``start`` and ``end`` in either order."""
        return (self._at(end) - self._at(start)) / math.sqrt(abs(end - start))

    def _draw(self, *place: int | str) -> Tensor:
        return normal(self._shape, *self._key, "brownian", *place)

    def _at_power(self, exponent: int) -> Tensor:
        value = self._draw("power", _LOWEST) * 2 ** (_LOWEST / 2)
        for power in range(_LOWEST, exponent):
            value = value + self._draw("power", power + 1) * 2 ** (power / 2)
        return value

    def _value(self, time: float) -> Tensor:
        if time == 0:
            return torch.zeros(self._shape)
        exponent = math.frexp(time)[1] - 1
        if exponent < _LOWEST:
            low, high, left, right = 0.0, 2.0**_LOWEST, torch.zeros(self._shape), self._power(_LOWEST)
        else:
            low, high = 2.0**exponent, 2.0 ** (exponent + 1)
            left, right = self._power(exponent), self._power(exponent + 1)
        node = 1
        for _ in range(_DEPTH):
            middle = (low + high) / 2
            draw = self._draw("node", max(exponent, _LOWEST - 1), node)
            between = (left + right) / 2 + draw * (math.sqrt(high - low) / 2)
            if time >= middle:
                low, left, node = middle, between, 2 * node + 1
            else:
                high, right, node = middle, between, 2 * node
        share = (time - low) / (high - low)
        spread = math.sqrt((time - low) * (high - time) / (high - low))
        value = torch.lerp(left, right, share)
        return value + spread * self._draw("point", time.hex()) if spread > 0 else value
