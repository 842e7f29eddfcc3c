"""The named shapes of block learning rates, which settings may name and the optimizer's groups are made from."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["SHAPES", "block_weights"]

SHAPES: dict[str, Callable[[float], float]] = {
    "sine": lambda x: math.sin(math.pi / 2 * x),
    "cosine": lambda x: math.sin(math.pi / 2 * (1 - x)),
    "linear": lambda x: x,
    "reverse_linear": lambda x: 1 - x,
    "zeros": lambda x: 0.0,
}
"""sd-scripts' shapes of block learning rates, for 0 (first block of a section) to 1 (last)."""


def block_weights(shape: str, count: int) -> tuple[float, ...]:
    """The factors of a named shape for ``count`` blocks: ``sine``, ``zeros+0.5``. Raises ValueError."""
    name, plus, base = shape.partition("+")
    try:
        raised = float(base) if plus else 0.0
    except ValueError as error:
        raise ValueError(f"{shape!r}: what is behind + must be a number") from error
    if name not in SHAPES:
        raise ValueError(f"{shape!r} is not a shape; known: {', '.join(SHAPES)}, with +number behind it, or a list")
    return tuple(SHAPES[name](index / max(count - 1, 1)) + raised for index in range(count))
