"""UniPC: a multistep predictor whose result the model's next answer corrects (Zhao et al., 2302.04867).

Everywhere x is (B, C, h, w) and ``sigmas`` (steps + 1,): see ``contract``.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from loraloom.diffusion.sampling.contract import ZERO_SNR, Callback, Denoise, Noise, Step, begin, steps_of

__all__ = ["Variant", "unipc"]

Variant = Literal["bh1", "bh2"]


def unipc(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    callback: Callback | None = None,
    order: int = 3,
    variant: Variant = "bh1",
) -> Tensor:
    """UniPC of any order that predicts clean latents; the order falls to 1 in the last steps.

    The step from the level that stands for zero SNR is not corrected: its stride is too long for it.

    ``variant`` is the paper's B(h): bh1 is h, bh2 is e^h - 1 (they differ below order 3 only in rounding).
    """
    steps = steps_of(sigmas)
    past: list[tuple[Tensor, float]] = []
    reached: tuple[Tensor, Step, list[tuple[Tensor, float]], int] | None = None
    for step in steps:
        clean = begin(denoise, x, step, callback)
        if reached is not None and reached[1].sigma < ZERO_SNR:
            x = _advance(*reached, variant, answer=clean)
        if step.following == 0:
            return clean
        past = [(clean, -math.log(step.sigma)), *past[: order - 1]]
        reached = x, step, past, min(order, len(past), len(steps) - step.number)
        x = _advance(*reached, variant)
    return x


def _advance(
    x: Tensor,
    step: Step,
    past: list[tuple[Tensor, float]],
    order: int,
    variant: Variant,
    *,
    answer: Tensor | None = None,
) -> Tensor:
    """x at the end of the step (alg. 6, 7): predicted from the past alone, or with the model's answer at its end."""
    (newest, at), *older = past[:order]
    stride = -math.log(step.following) - at
    nodes = [(position - at) / stride for _, position in older]
    slopes = [(clean - newest) / node for (clean, _), node in zip(older, nodes, strict=True)]
    if answer is not None:
        nodes, slopes = [*nodes, 1.0], [*slopes, answer - newest]
    x = newest + (x - newest) * (step.following / step.sigma)
    scale = -stride if variant == "bh1" else math.expm1(-stride)
    for weight, slope in zip(_weights(nodes, stride, scale), slopes, strict=True):
        x = x - scale * weight * slope
    return x


def _weights(nodes: list[float], stride: float, scale: float) -> list[float]:
    """The weight of each difference: the solution of R rho = b (eq. 9 to 11): exact for polynomials."""
    count = len(nodes)
    if count == 0:
        return []
    if count == 1:
        return [0.5]  # the paper's choice for UniP-2 and UniC-1; it is within the order
    phi = math.expm1(-stride) / -stride - 1
    factorial, wanted = 1, []
    for power in range(1, count + 1):
        wanted.append(phi * factorial / scale)
        factorial *= power + 1
        phi = phi / -stride - 1 / factorial
    matrix = torch.tensor([[node**power for node in nodes] for power in range(count)], dtype=torch.float64)
    solution: list[float] = torch.linalg.solve(matrix, torch.tensor(wanted, dtype=torch.float64)).tolist()
    return solution
